"""Each figure that an app or a node tells is explained in docs/stats.md."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

import loom
from loom.config import BridgeConfig, load
from loom.node.node import Plan, hosting
from tests.project.repo import ROOT

DOCS = (ROOT / "docs" / "stats.md").read_text(encoding="utf-8")
NAMES = {"agents", "errors"}  # what stands below has names of its own


def keys(told: Any, above: str = "") -> Iterator[str]:
    """The keys of a dict, and of all that is in it, from the top."""
    if isinstance(told, list):
        for one in cast("list[Any]", told):
            yield from keys(one, above)
    elif isinstance(told, dict):
        for key, value in cast("dict[str, Any]", told).items():
            inner = above.rpartition(".")[2]
            if inner in NAMES:
                yield from keys(value, f"{above}.{{}}")
                continue
            yield f"{above}.{key}".strip(".")
            yield from keys(value, f"{above}.{key}".strip("."))


def explained(section: str) -> set[str]:
    """The words that stand as code in one section of the page; "": in all of it."""
    found = DOCS if not section else DOCS.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    return set(re.findall(r"\w+", " ".join(re.findall(r"`([^`\n]+)`", found))))


@pytest.mark.requirement("NODE-FIGURES")
async def test_each_figure_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOM_HOME", str(tmp_path))
    app = loom.App("shop")

    @app.agent("clerk", topics=["order"])
    async def clerk(ctx: loom.Context, event: loom.Event) -> int:
        return await ctx.tool("price", args={"item": "tea"})

    @app.capability("price", effect="pure")
    async def price(item: str) -> int:
        return len(item)

    bridge = BridgeConfig(bind=("127.0.0.1:0",))
    async with (
        hosting(Plan(config=load(), data=tmp_path / "data", bridge=bridge)),
        app.running(url="local") as ctx,
    ):
        assert (await ctx.request("order")).data == 3
        told = {
            "link": app.stats()["link"],
            "runtime": app.stats()["runtime"],
            "sessions": await ctx.tool("loom.node.sessions"),
            "": await ctx.tool("loom.node.stats"),
        }
        assert told["link"]["frames"]["sent"] > 0
        assert told[""]["bridge"]["sessions"][0]["frames"]["received"] > 0
        assert told[""]["bridge"]["visits"]["accepted"] == 1
    told["bridge"] = told[""].pop("bridge")
    missing = {
        f"{section}: {key}"
        for section, found in told.items()
        for key in keys(found)
        if key.rpartition(".")[2] not in explained(section)
    }
    assert not missing
