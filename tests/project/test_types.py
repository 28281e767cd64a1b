"""The types of the public names, as a user's type checker sees them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.project.repo import ROOT

PYRIGHT = ROOT / "node_modules" / ".bin" / "pyright"
# Each line that ends in `# wrong` must be refused, and no other.
USES = """
from pydantic import BaseModel

import loom
from loom.collab import Contractor, barrier, contract_net, fanin, fanout

app = loom.App("types")


class Question(BaseModel):
    text: str


@app.capability("notes.search", effect="pure")
async def search(query: str, limit: int = 5) -> list[str]:
    return [query] * limit


@app.capability("notes.count", effect="pure")
def count(query: str) -> int:
    return len(query)


@app.agent("planner", topics=["question.>"])
class Planner(loom.Agent):
    async def on_event(self, ctx: loom.Context, event: loom.Event[Question]) -> None:
        text: str = event.data.text
        number: int = event.data.text  # wrong
        found: list[str] = await ctx.tool(search.bind(query=text, limit=number))
        many: int = await ctx.tool(count.bind(text))
        wrong: str = await ctx.tool(count.bind(text))  # wrong
        search.bind(query=1)  # wrong
        search.bind(qery=text)  # wrong
        search.bind()  # wrong
        drafted = await ctx.request("draft.write", found, timeout=20, returns=Question)
        title: str = drafted.data.text
        times: int = drafted.data.text  # wrong
        named: list[str] = await ctx.tool("notes.search", args={"query": title}, returns=list[str])
        await ctx.reply((many, wrong, times, named))


@app.agent("plain", topics=["a"])
async def plain(ctx: loom.Context, event: loom.Event[Question]) -> str:
    return event.data.text


@app.agent("mistaken", topics=["a"])
class Mistaken(loom.Agent):
    async def on_event(self, ctx: loom.Context, event: Question) -> None:  # wrong
        await ctx.emit("b", event)


app.capability("notes.drop", effect="harmless")  # wrong


async def together(ctx: loom.Context) -> None:
    async with fanout(ctx, [search.bind("a"), search.bind("b")], timeout=1) as calls:
        lines: list[str] = await calls.any()
        line: str = await calls.any()  # wrong
    async with fanout(ctx, ["a", count.bind("b")], lines, timeout=1, returns=Question) as asked:
        texts = [item.data.text for item in (await asked.all()).items]
        texts.append(line)
        (await asked.majority(key=lambda question: question.txt))  # wrong
    async with fanin(ctx, ["a"], timeout=1, returns=Question) as heard:
        text: str = (await heard.first(1)).items[0].data.text
        number: int = (await heard.majority(of=3)).text  # wrong
    replies = await ctx.request_many("a", returns=Question)
    answers: list[int] = [reply.data.text for reply in replies.items]  # wrong
    award = await contract_net(ctx, text, topic="a", bid_timeout=1, timeout=2, returns=Question)
    result: str = award.result.text
    times: int = award.result  # wrong
    met: bool = (await barrier(ctx, "b", 2, timeout=1)).complete
    await barrier(ctx, "b", "2", timeout=1)  # wrong
    await ctx.emit("c", (number, answers, result, times, met))


class Painter(Contractor[Question]):
    async def bid(self, ctx: loom.Context, task: Question) -> float:
        return float(task.text)

    async def execute(self, ctx: loom.Context, task: int) -> int:  # wrong
        return task
"""

# Rooms whose names users do not import.
INTERNAL = ("loom.cli.", "loom.node.", "loom.runtime.", "loom.link.")

pytestmark = [pytest.mark.js, pytest.mark.timeout(120)]


def pyright(*arguments: str, cwd: Path) -> dict[str, Any]:
    done = subprocess.run(
        [str(PYRIGHT), "--outputjson", "--pythonpath", sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT / "python")},
        capture_output=True,
        text=True,
        check=False,
    )
    return json.loads(done.stdout)


@pytest.mark.requirement("TYPED-PUBLIC")
def test_right_uses_pass_and_wrong_ones_fail_the_type_check(tmp_path: Path) -> None:
    (tmp_path / "uses.py").write_text(USES, encoding="utf-8")
    settings = {"typeCheckingMode": "strict", "reportUnusedVariable": False}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings), encoding="utf-8")
    report = pyright("-p", str(tmp_path), cwd=tmp_path)
    reported = {found["range"]["start"]["line"] for found in report["generalDiagnostics"]}
    wrong = {i for i, line in enumerate(USES.splitlines()) if line.endswith("# wrong")}
    assert reported == wrong, report["generalDiagnostics"]


@pytest.mark.requirement("TYPED-PUBLIC")
def test_every_public_name_has_a_complete_type(tmp_path: Path) -> None:
    report = pyright("--verifytypes", "loom", "--ignoreexternal", cwd=tmp_path)
    incomplete = [
        symbol["name"]
        for symbol in report["typeCompleteness"]["symbols"]
        if symbol["isExported"]
        and not (symbol["isTypeKnown"] and not symbol["isTypeAmbiguous"])
        and not symbol["name"].startswith(INTERNAL)
    ]
    assert incomplete == []
