"""Three agents answer a question together: one plans, one looks things up, one writes.

    loom run examples/trio/app.py
    loom run examples/trio/app.py -- "What is a lambda, and what does functools.lru_cache do?"

It needs no key and no network. With OPENAI_API_KEY set, a model plans and writes instead; not a
line changes here.
"""

import re

from pydantic import BaseModel

import loom
from loom.errors import InvalidParams, NotFound, NotSupported, ProviderUnavailable
from loom.tools import weather, web

QUESTION = "What is an asyncio queue in Python, and how was the weather in Seattle on 2015-06-01?"

app = loom.App("trio")
app.include(web.app)
app.include(weather.app)


class Question(BaseModel):
    text: str


class Search(BaseModel):
    query: str


class Plan(BaseModel):
    searches: list[Search]
    weather: list[weather.Asked]


class Note(BaseModel):
    """Something that was found, and where."""

    title: str
    text: str
    ref: str


class Notes(BaseModel):
    found: list[Note] = []
    missing: list[str] = []


class Draft(BaseModel):
    question: str
    notes: Notes


class Answer(BaseModel):
    text: str
    sources: list[str]
    missing: list[str]
    model: str

    def __str__(self) -> str:
        parts = [self.text, *self.missing]
        if self.sources:
            parts.append("\n".join(["Sources", *self.sources]))
        return "\n\n".join([*parts, f"Written by {self.model}"])


@app.agent("planner", topics=["question.asked"])
class Planner(loom.Agent):
    async def on_event(self, ctx: loom.Context, event: loom.Event[Question]) -> None:
        question = event.data.text
        plan = await make_plan(ctx, question)

        async def research(topic: str, item: Search | weather.Asked) -> Notes:
            # a key of its own is a lane of its own: the researcher looks all up at once
            reply = await ctx.request(topic, item, returns=Notes, key=str(ctx.uuid()))
            return reply.data

        found = await ctx.gather(
            *(research("research.search", search) for search in plan.searches),
            *(research("research.weather", asked) for asked in plan.weather),
        )
        notes = Notes(
            found=[note for part in found for note in part.found],
            missing=[gap for part in found for gap in part.missing],
        )
        draft = Draft(question=question, notes=notes)
        answer = await ctx.request("draft.wanted", draft, returns=Answer, timeout=60)
        await ctx.emit("answer.ready", answer.data)
        if event.wants_reply:
            await ctx.reply(answer.data)


@app.agent("researcher")
class Researcher(loom.Agent):
    @loom.on("research.search")
    async def search(self, ctx: loom.Context, event: loom.Event[Search]) -> Notes:
        found = await ctx.tool(web.search.bind(query=event.data.query, limit=5))
        return Notes(found=[note_of(hit) for hit in found.results])

    @loom.on("research.weather")
    async def look_outside(self, ctx: loom.Context, event: loom.Event[weather.Asked]) -> Notes:
        asked = event.data
        try:
            seen = await ctx.tool(weather.get.bind(place=asked.place, date=asked.date))
        except (InvalidParams, NotFound, ProviderUnavailable) as error:
            return Notes(missing=[f"No weather: {error.message} ({error.hint})."])
        title = f"The weather in {asked.place}"
        return Notes(
            found=[Note(title=title, text=seen.describe(), ref=f"{seen.source}, {seen.ref}")]
        )


@app.agent("writer", topics=["draft.wanted"])
async def write(ctx: loom.Context, event: loom.Event[Draft]) -> Answer:
    notes = event.data.notes
    answer = await ctx.model.generate(
        event.data.question,
        system="Answer in a short summary, each statement with its source.",
        context=[f"{note.title}\n{note.text}" for note in notes.found],
    )
    cited = [notes.found[index] for index in answer.sources]
    number = {str(index + 1): str(n) for n, index in enumerate(answer.sources, 1)}
    return Answer(
        text=re.sub(r"(?<=\[)\d+(?=\])", lambda old: number.get(old[0], old[0]), answer.text),
        sources=[f"[{n}] {note.title} ({note.ref})" for n, note in enumerate(cited, 1)],
        missing=notes.missing,
        model=answer.model,
    )


def note_of(hit: web.SearchResult) -> Note:
    return Note(title=hit.title, text=hit.text, ref=f"{hit.source}, {hit.ref}")


async def make_plan(ctx: loom.Context, question: str) -> Plan:
    """Let the model plan; one that only quotes says so, and then rules do."""
    try:
        planned = await ctx.model.generate(
            question,
            system="Name what to search the web for, and whose weather is needed (YYYY-MM-DD).",
            returns=Plan,
        )
    except NotSupported:
        return plan_by_rules(question)
    return planned.data


NEXT_QUESTION = re.compile(
    r"[?;]|,? and (?=(?:what|how|why|who|when|where|which|does|is|are)\b)", re.IGNORECASE
)


def plan_by_rules(question: str) -> Plan:
    plan = Plan(searches=[], weather=[])
    for part in filter(None, map(str.strip, NEXT_QUESTION.split(question))):
        outside = weather.read_question(part)
        plan.weather.extend(outside)
        if not outside:
            plan.searches.append(Search(query=part))
    return plan


async def main(ctx: loom.Context, args: list[str]) -> Answer:
    """Ask one question; ``loom run`` prints the answer and stops."""
    question = Question(text=" ".join(args) or QUESTION)
    answer = await ctx.request("question.asked", question, returns=Answer, timeout=90)
    return answer.data
