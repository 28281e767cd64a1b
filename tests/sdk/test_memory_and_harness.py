"""Memory in process, the virtual clock, seeds, scripted models, leaks."""

import asyncio
from typing import cast

import pytest
from pydantic import BaseModel

import loom
from loom.errors import InvalidParams
from loom.limits import QUEUE_ITEMS
from loom.testing import Harness, ScriptedModel


@pytest.mark.requirement("MEMORY-BOUNDED", "HARNESS-CLOCK")
@pytest.mark.in_process("fills 64 MiB")
async def test_memory_keeps_scans_expires_and_is_bounded() -> None:
    async with Harness(loom.App("memory")) as h:
        memory = h.ctx.memory
        await memory.put("b", [1, 2])
        await memory.put("a", {"x": 1}, ttl=10)
        await memory.put("a2", None)
        assert await memory.get("a") == {"x": 1}
        assert await memory.get("zzz", "default") == "default"
        assert [key async for key, _ in memory.scan("a")] == ["a", "a2"]
        await h.advance(11)
        assert await memory.get("a") is None
        assert [key async for key, _ in memory.scan()] == ["a2", "b"]
        assert await memory.delete("b")
        assert not await memory.delete("b")
        for n in range(66):
            await memory.put(str(n), "x" * 1_000_000)
        with pytest.raises(loom.LoomError) as caught:
            await memory.put("more", "x" * 2_000_000)
        assert (caught.value.code, caught.value.limit) == ("EXHAUSTED", "memory_bytes")
        with pytest.raises(loom.LoomError):
            await memory.put("nan", float("nan"))


def nested(levels: int) -> object:
    value: object = {"a": []}
    for _ in range(levels - 2):
        value = [value]
    return value


@pytest.mark.requirement("MEMORY-READABLE")
async def test_a_memory_takes_only_what_all_who_look_through_it_can_read() -> None:
    cases: list[tuple[object, object, str]] = [
        ("", 1, "key"),
        ("a\x1b[31m", 1, "key"),
        ("a\x9f", 1, "key"),
        ("a\ud800", 1, "key"),
        ("é" * 129, 1, "key"),
        (5, 1, "key"),
        ("raw", b"\xff", "value"),
        ("deep", nested(128), "value"),
    ]
    async with Harness(loom.App("memory")) as h:
        memory = h.ctx.memory
        for key, value, field in cases:
            with pytest.raises(InvalidParams) as caught:
                await memory.put(cast("str", key), value)
            assert caught.value.field == field, key
        wide: dict[str, object] = {"é" * 128: nested(127), "wide": [[]] * 500, "text": "[" * 500}
        for key, value in wide.items():
            await memory.put(key, value)
        assert {key: value async for key, value in memory.scan()} == wide
        assert await memory.get("", "nothing") == "nothing"
        assert not await memory.delete("")


@pytest.mark.requirement("HARNESS-CLOCK")
async def test_sleeps_and_now_move_only_when_advanced() -> None:
    app = loom.App("sleeps")
    woke: list[tuple[str, float]] = []

    @app.agent("sleeper", topics=["sleep"])
    async def sleeper(ctx: loom.Context, event: loom.Event[float]) -> None:
        before = ctx.now()
        await ctx.sleep(event.data)
        woke.append((event.topic, round(ctx.now() - before, 6)))

    async with Harness(app) as h:
        for seconds in (30.0, 10.0, 20.0):
            await h.ctx.emit("sleep", seconds)
        await h.idle()
        assert woke == []
        await h.advance(10)
        assert [seconds for _, seconds in woke] == [10.0]
        await h.advance(60)

    assert [seconds for _, seconds in woke] == [10.0, 20.0, 30.0]


async def test_the_same_seed_gives_the_same_ids_and_random_numbers() -> None:
    async def draw(seed: int) -> tuple[str, str, float]:
        async with Harness(loom.App("seeds"), seed=seed) as h:
            receipt = await h.ctx.emit("a")
            return receipt.id, str(h.ctx.uuid()), h.ctx.random.random()

    assert await draw(1) == await draw(1)
    assert await draw(1) != await draw(2)


class Verdict(BaseModel):
    good: bool


async def test_a_scripted_model_gives_its_answers_in_order_and_keeps_the_prompts() -> None:
    app = loom.App("scripted")

    @app.agent("writer", topics=["write"])
    async def writer(ctx: loom.Context, event: loom.Event[str]) -> str:
        answer = await ctx.model.generate(event.data, context=["one"])
        verdict = await ctx.model.generate("good?", returns=Verdict)
        async with ctx.model.stream("again") as words:
            streamed = "".join([word async for word in words])
        return f"{answer.text} {verdict.data.good} {streamed.strip()}"

    model = ScriptedModel(["first", Verdict(good=True), "third answer"])
    async with Harness(app, model=model) as h:
        answer = await h.ctx.request("write", "please")
        with pytest.raises(loom.LoomError) as caught:
            await h.ctx.request("write", "more")

    assert answer.data == "first True third answer"
    assert [prompt.prompt for prompt in model.prompts][:3] == ["please", "good?", "again"]
    assert model.prompts[0].context == ("one",)
    assert caught.value.code == "EXHAUSTED"


async def test_race_gather_and_step_end_what_they_started() -> None:
    cancelled: list[str] = []

    async def forever(name: str) -> str:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            cancelled.append(name)
        return name

    async def quick(name: str) -> str:
        return name

    async def broken(name: str) -> str:
        raise RuntimeError(name)

    async with Harness(loom.App("tasks")) as h:
        assert await h.ctx.race(forever("a"), quick("b"), forever("c")) == "b"
        assert await h.ctx.gather(quick("a"), quick("b")) == ["a", "b"]
        with pytest.raises(RuntimeError, match="d"):
            await h.ctx.gather(forever("e"), broken("d"))
        assert await h.ctx.step(quick, "f") == "f"

    assert sorted(cancelled) == ["a", "c", "e"]


def never(pattern: str, topic: str) -> bool:
    return False


@pytest.mark.requirement("CONSERVATION")
async def test_the_harness_finds_books_that_do_not_balance(monkeypatch: pytest.MonkeyPatch) -> None:
    app = loom.App("books")

    @app.agent("worker", topics=["job"])
    async def worker(ctx: loom.Context, event: loom.Event) -> None: ...

    async with Harness(app) as h:
        await h.ctx.emit("job")
        await h.idle()
        h.check()
        monkeypatch.setattr("loom.testing.harness.matches", never)
        with pytest.raises(AssertionError, match="worker"):
            h.check()
        monkeypatch.undo()


async def test_events_of_a_harness_can_be_filtered_and_calls_counted() -> None:
    app = loom.App("counts")

    @app.capability("double", effect="pure")
    async def double(n: int) -> int:
        return 2 * n

    @app.agent("worker", topics=["job"])
    async def worker(ctx: loom.Context, event: loom.Event[int]) -> None:
        await ctx.emit("done", await ctx.tool(double.bind(n=event.data)))

    async with Harness(app) as h:
        for n in range(3):
            await h.ctx.emit("job", n)
        await h.idle()
        assert [event.data for event in h.events("done")] == [0, 2, 4]
        assert h.calls("double") == 3


@pytest.mark.requirement("CONSERVATION")
async def test_a_harness_that_lost_events_says_so_and_blames_no_agent() -> None:
    app = loom.App("burst")

    @app.agent("solo", topics=["t"])
    async def solo(ctx: loom.Context, event: loom.Event) -> None: ...

    async def burst() -> None:
        async with Harness(app) as h:
            for n in range(QUEUE_ITEMS * 2):
                await h.ctx.emit("t", n, qos="realtime")
            await h.idle()
            with pytest.raises(AssertionError, match="the harness lost"):
                h.events("t")

    with pytest.raises(AssertionError, match=r"the harness lost \d+ realtime events"):
        await burst()


@pytest.mark.requirement("CONSERVATION")
async def test_the_harness_knows_that_a_request_waited_for_an_agent_in_quarantine() -> None:
    app = loom.App("late")

    @app.agent("late", topics=["t"])
    async def late(ctx: loom.Context, event: loom.Event[str]) -> str:
        if event.data == "crash":
            raise SystemExit
        return event.data

    async with Harness(app) as h:
        while (await h.ctx.agents("late"))[0].health != "quarantined":
            await h.ctx.emit("t", "crash")
            await h.advance(40)
        asked = asyncio.ensure_future(h.ctx.request("t", "still here", wait=True, timeout=50))
        await h.idle()
        app.release("late")
        await h.advance(1)
        assert (await asked).data == "still here"
        h.check()
