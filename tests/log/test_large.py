"""Data over a mebibyte: the log keeps it, so it may travel; what nobody keeps may not."""

import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest

import loom
from loom.errors import Exhausted, InvalidParams, LoomError
from loom.limits import KEPT_PAYLOAD_BYTES, PAYLOAD_BYTES
from loom.testing import Harness

LARGE = 5 << 20


def scan(seed: int, size: int = LARGE) -> str:
    """Text that no two pieces of are the same."""
    return Random(seed).randbytes(size // 2).hex()


def archive(fails: int = 0, fatal: bool = False) -> tuple[loom.App, list[tuple[str, int]]]:
    """An app that keeps what it gets, after it has failed so often."""
    app, got = loom.App("archive"), list[tuple[str, int]]()

    @app.agent("shelf", topics=["scan.>"])
    async def shelf(ctx: loom.Context[Any], event: loom.Event[str]) -> None:
        got.append((event.data, event.attempt))
        if fatal:
            await event.term(reason="unreadable")
        elif event.attempt <= fails:
            raise LoomError("the shelf is full")

    return app, got


@pytest.mark.requirement("LARGE-EVENT")
async def test_a_large_event_is_given_again_and_read_again_until_it_is_done(tmp_path: Path) -> None:
    app, got = archive(fails=2)
    data = scan(1)
    async with Harness(app, data=tmp_path) as h:
        await h.ctx.emit("scan.new", data, ack="disk")
        await h.ctx.emit("scan.new", "small", ack="disk", key="other")
        await h.idle()
        await h.advance(1.5)
        await h.idle()
    async with Harness(app, data=tmp_path) as h:
        await h.advance(10)
        await h.idle()
        async with h.ctx.watch("scan.>", start="beginning") as events:
            async for event in events:
                assert event.data == data
                break
    mine = [attempt for text, attempt in got if text == data]
    assert mine == [1, 2, 3]
    assert len(got) == len(mine) + sum(text == "small" for text, _ in got)


@pytest.mark.requirement("LARGE-EVENT")
async def test_large_data_is_replayed_as_it_was(tmp_path: Path) -> None:
    app = loom.App("archive")
    outside: list[int] = []

    @app.capability("sort", effect="pure")
    async def sort(text: str) -> str:
        outside.append(len(text))
        return text[::-1]

    @app.capability("store", effect="unsafe")
    async def store(text: str) -> str:
        outside.append(len(text))
        return text.upper()

    @app.agent("shelf", topics=["scan.new"])
    async def shelf(ctx: loom.Context[Any], event: loom.Event[str]) -> None:
        turned = await ctx.tool(sort.bind(event.data))
        await ctx.memory.put("last", turned)
        kept = await ctx.tool("store", args={"text": turned}, key="k", returns=str)
        read = await ctx.memory.get("last")
        assert isinstance(read, str)
        await ctx.emit("scan.kept", kept + read[:5], ack="os")

    async with Harness(app, data=tmp_path) as h:
        await h.ctx.emit("scan.new", scan(2), ack="disk")
        await h.idle()
        assert h.stats()["errors"] == {}
        assert await h.ctx.tool("store", args={"text": scan(2)[::-1]}, key="k", returns=str)
    assert outside == [LARGE, LARGE]
    log = loom.open_log(tmp_path)
    (run,) = [run for run in log.runs() if run.topic == "scan.new"]
    assert run.whole
    again = await log.replay(run.id, agents=app)
    told = "\n".join(line[:200] for turn in again.turns for line in turn.differs)
    assert not again.diverged, told
    assert [turn.verdict for turn in again.turns] == ["same"]
    assert outside == [LARGE, LARGE]


@pytest.mark.requirement("BLOB-TRANSCRIPT")
async def test_a_hundred_calls_over_a_growing_transcript_take_three_times_its_unique_bytes(
    tmp_path: Path,
) -> None:
    app = loom.App("talk")

    @app.capability("model.answer", effect="pure")
    async def answer(transcript: str) -> int:
        return len(transcript)

    @app.agent("talker", topics=["talk"])
    async def talker(ctx: loom.Context[Any], event: loom.Event[int]) -> None:
        transcript = ""
        for turn in range(100):
            transcript += scan(turn, 12_000)
            assert await ctx.tool(answer.bind(transcript)) == len(transcript)

    async with Harness(app, data=tmp_path) as h:
        await h.ctx.emit("talk", 1)
        await h.idle()
        stats = h.stats()
    unique = 100 * 12_000
    assert unique > PAYLOAD_BYTES
    written = stats["log"]["bytes"] + stats["log"]["blob_bytes"]
    assert unique < written <= 3 * unique
    (run,) = loom.open_log(tmp_path).runs()
    assert run.errors == 0
    # a disk that is behind leaves a gap, and the run says so
    assert run.whole == (run.calls == 100)


@pytest.mark.requirement("LARGE-EVENT", "LARGE-CALL")
@pytest.mark.parametrize("kept", [False, True])
async def test_what_nobody_keeps_stays_small_and_its_error_names_the_way_out(
    tmp_path: Path, kept: bool
) -> None:
    app, got = archive()

    @app.capability("measure", effect="pure")
    async def measure(text: str) -> int:
        return len(text)

    @app.capability("make", effect="pure")
    async def make(size: int) -> str:
        return "x" * size

    large = "x" * PAYLOAD_BYTES  # the quotes make it too large
    async with Harness(app, data=tmp_path if kept else None) as h:
        with pytest.raises(InvalidParams, match="1048578 bytes of at most 1048576") as caught:
            await h.ctx.emit("scan.new", large)
        assert (caught.value.limit, "durable" in str(caught.value.hint)) == ("payload_bytes", True)
        for act in (measure.bind(large), make.bind(PAYLOAD_BYTES)):
            with pytest.raises(InvalidParams) as caught:
                await h.ctx.tool(act)
            assert caught.value.limit == "payload_bytes"
            assert "recorded turn" in str(caught.value.hint)
        assert got == []
        if kept:
            await h.ctx.emit("scan.new", large, ack="os")
            with pytest.raises(InvalidParams) as caught:
                await h.ctx.emit("scan.new", "x" * (KEPT_PAYLOAD_BYTES - 1), ack="os")
            assert caught.value.limit == "kept_payload_bytes"
            await h.ctx.emit("scan.new", "x" * (KEPT_PAYLOAD_BYTES - 2), ack="os")
            await h.idle()
            assert [len(text) for text, _ in got] == [PAYLOAD_BYTES, KEPT_PAYLOAD_BYTES - 2]


@pytest.mark.requirement("LARGE-BOUNDED")
async def test_a_group_that_is_behind_gets_all_large_events_though_its_queue_holds_one(
    tmp_path: Path,
) -> None:
    app, got = archive()
    refused = 0
    async with Harness(loom.App("archive"), data=tmp_path) as h:
        for seed in range(12):
            await h.ctx.emit("scan.new", scan(seed), ack="os")
    async with Harness(app, data=tmp_path) as h:
        for seed in range(12, 15):
            try:
                await h.ctx.emit("scan.new", scan(seed), ack="os")
            except Exhausted:
                refused += 1
        await h.idle()
    assert refused == 0
    assert [text[:20] for text, _ in got] == [scan(seed)[:20] for seed in range(12, 15)]
    late, all_of_them = archive()
    late.agent("late", topics=["scan.>"], start="beginning")(_measured(all_of_them))
    async with Harness(late, data=tmp_path) as h:
        await h.idle()
    assert [text for text, _ in all_of_them] == [scan(seed)[:20] for seed in range(15)]


def _measured(got: list[tuple[str, int]]) -> Any:
    async def measured(ctx: loom.Context[Any], event: loom.Event[str]) -> None:
        got.append((event.data[:20], len(event.data)))

    return measured


SCRIPT = """
import asyncio, hashlib, sys
import loom

app = loom.App("archive")
folder, life = sys.argv[1], int(sys.argv[2])


@app.agent("shelf", topics=["scan.new"])
async def shelf(ctx, event):
    print(hashlib.sha256(event.data.encode()).hexdigest(), event.attempt, flush=True)
    if life == 0:
        await asyncio.sleep(3600)
    done.set()


async def main():
    async with app.running(data=f"{folder}/data") as ctx:
        if life == 0:
            await ctx.emit("scan.new", open(f"{folder}/scan").read(), ack="disk")
        await done.wait()


done = asyncio.Event()
asyncio.run(main())
"""


@pytest.mark.requirement("LARGE-EVENT")
def test_a_large_event_whose_process_is_killed_is_given_again(tmp_path: Path) -> None:
    script = tmp_path / "archive.py"
    script.write_text(SCRIPT, encoding="utf-8")
    (tmp_path / "scan").write_text(scan(3), encoding="utf-8")
    lines: list[list[str]] = []
    for life in range(2):
        command = [sys.executable, str(script), str(tmp_path), str(life)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            try:
                lines.append(process.stdout.readline().split())
            finally:
                if life == 0:
                    process.kill()
    (first, one), (second, two) = lines
    assert first == second
    assert (one, two) == ("1", "2")
