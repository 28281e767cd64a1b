"""The trio with a log: it is asked a dozen questions, and each answer goes into an archive once.

    export LOOM_LOG__DURABLE=question.asked,answer.ready,answer.archived
    loom run examples/crash/app.py --data some-folder

Kill the process whenever you like, and start it again: it goes on where it was. `make demo-crash`
does just that.

The archive stands for a service of somebody else: a file, outside of the log, to which each effect
that happens adds a line.
"""

import asyncio
import sys
from pathlib import Path

import loom
from examples.trio import app as trio
from loom.tools import weather

TAKES = 0.1  # seconds before and after the line is written; the service is far away
DAYS = ("2012-02-14", "2013-06-21", "2014-10-31", "2015-12-24")
QUESTIONS = (
    *(f"How was the weather in Seattle on {day}?" for day in DAYS),
    *(f"How was the weather in Seattle on {day}, and what is a tuple?" for day in DAYS),
    *(f"What is asyncio.{name}?" for name in ("Queue", "Lock", "Event", "Semaphore")),
)

# What is kept of the weather says the same in each life of the process; the internet might not.
weather.provider = weather.KeptObservations()

app = loom.App("crash")
app.include(trio.app)
archive = Path("archive.txt")


def lines() -> list[str]:
    """What is in the archive: an effect's id, its key, and the answer."""
    return archive.read_text(encoding="utf-8").splitlines() if archive.exists() else []


def add(line: str) -> None:
    with archive.open("a", encoding="utf-8") as file:
        file.write(f"{line}\n")


@app.capability("archive.write", effect="probeable")
async def write(question: str, answer: str, effect_id: str = "") -> str:
    """Write a line into the archive; return what it was written under."""
    await asyncio.sleep(TAKES)
    await asyncio.to_thread(add, f"{effect_id} {question} {answer}")
    await asyncio.sleep(TAKES)
    return effect_id


@write.probe
async def was_written(effect_id: str) -> loom.Done[str] | loom.NotDone:
    """Look into the archive: the process may have died before it heard that it was done."""
    found = any(line.startswith(f"{effect_id} ") for line in lines())
    return loom.Done(effect_id) if found else loom.NotDone()


@app.agent("archivist", topics=["answer.ready"], concurrency=2)
async def keep(ctx: loom.Context, event: loom.Event[trio.Answer]) -> None:
    # The run is that of the question, in each life: however often this turn begins, and whatever
    # has become of an earlier one, the archive is written once.
    question = str(event.run_id)
    text = event.data.text.replace("\n", " ")
    await ctx.tool(write.bind(question=question, answer=text), key=f"answer-{question}")
    await ctx.emit("answer.archived", question, id=f"archived-{question}")
    say("archived", question)


def say(*words: object) -> None:
    print(*words, flush=True)


async def main(ctx: loom.Context, args: list[str]) -> str:
    """Ask all questions, and wait until each has its answer in the archive.

    Their ids make it harmless to ask again after a restart: an id that is known is not asked twice.
    """
    for number, text in enumerate(QUESTIONS):
        asked = await ctx.emit(
            "question.asked", trio.Question(text=text), ack="disk", id=f"question-{number}"
        )
        say("asked", asked.id)
    done: set[str] = set()
    async with ctx.watch("answer.archived", start="beginning") as events:
        async for event in events:
            done.add(event.data)
            if len(done) == len(QUESTIONS):
                break
    return f"{len(done)} questions are answered"


async def run(data: Path) -> None:
    async with app.running(data=data) as ctx:
        say(await main(ctx, []))


if __name__ == "__main__":
    archive = Path(sys.argv[2])
    asyncio.run(run(Path(sys.argv[1])))
