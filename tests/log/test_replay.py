"""What the log knows afterwards: runs, what happened in them and why, what the code does now."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

import loom
from loom.errors import InvalidCursor, InvalidParams, LoomError, NotFound, Unavailable
from loom.replay import Rerun
from loom.testing import Harness

Handle = Callable[[loom.Context[Any], loom.Event[Any]], Awaitable[Any]]


class Cart(BaseModel):
    items: list[str] = []


class Outside:
    """Counts what happens outside, and fails where nothing may."""

    def __init__(self) -> None:
        self.calls = 0
        self.closed = False

    def touch(self) -> None:
        assert not self.closed, "a replay has reached outside"
        self.calls += 1


def shop(outside: Outside, planner: Handle | None = None) -> loom.App:
    """An app with one of each: a call, a request, memory, a step, time, chance, state."""
    app = loom.App("shop")

    @app.capability("add", effect="pure")
    async def add(a: int, b: int) -> int:
        outside.touch()
        return a + b

    @app.capability("mail", effect="idempotent")
    async def mail(text: str) -> str:
        outside.touch()
        return f"sent {text}"

    async def look() -> int:
        outside.touch()
        return 7

    async def plan(ctx: loom.Context[Any], event: loom.Event[Any]) -> None:
        ctx.log.info("planning")
        total = await ctx.tool(add.bind(1, event.data))
        seen = await ctx.memory.get("seen", 0)
        await ctx.memory.put("seen", seen + total)
        found = await ctx.step(look)
        agents = [agent.name for agent in await ctx.agents()]
        reply = await ctx.request("ask", {"total": total, "id": str(ctx.uuid()), "at": ctx.now()})
        await ctx.tool("mail", args={"text": str(ctx.random.random())}, key=f"k{event.data}")
        ctx.state.items.append(f"{total} {found} {agents}")
        await ctx.emit("done", reply.data, key="all")

    @app.agent("planner", topics=["q"], version="2")
    class Planner(loom.Agent[Cart]):
        async def on_event(self, ctx: loom.Context[Cart], event: loom.Event[Any]) -> None:
            await (planner or plan)(ctx, event)

    @app.agent("helper", topics=["ask"])
    async def helper(ctx: loom.Context[Any], event: loom.Event[Any]) -> Any:
        return {"twice": event.data["total"] * 2}

    return app


async def recorded(app: loom.App, data: Path, *events: tuple[str, Any]) -> loom.Log:
    """Run an app on a log, and open that log."""
    async with Harness(app, data=data) as h:
        for topic, value in events:
            await h.ctx.emit(topic, value)
            await h.idle()
    return loom.open_log(data)


async def rerun(log: loom.Log, app: loom.App) -> Rerun:
    """Run the handlers of the first run again."""
    return await log.replay(log.runs()[0].id, agents=app)


def one_agent(handle: Handle) -> loom.App:
    """An app with one agent that does this."""
    app = loom.App("shop")
    app.agent("planner", topics=["q"])(handle)

    @app.capability("slow", effect="pure")
    async def slow(n: int) -> int:
        await asyncio.sleep(0)
        return n

    @app.capability("slower", effect="pure")
    async def slower(n: int) -> int:
        for _ in range(30):
            await asyncio.sleep(0)
        return n

    return app


def said(result: Rerun) -> str:
    return "\n".join(differs for turn in result.turns for differs in turn.differs)


@pytest.mark.requirement("REPLAY-SAME", "REPLAY-NO-EFFECT", "RECORD-STEP", "RECORD-CALL")
async def test_unchanged_handlers_do_the_same_and_nothing_happens_outside(tmp_path: Path) -> None:
    outside = Outside()
    app = shop(outside)
    log = await recorded(app, tmp_path / "log", ("q", 4), ("q", 5))
    outside.closed = True
    assert outside.calls == 6
    for run in log.runs():
        again = await log.replay(run.id, agents=app)
        assert not again.diverged, said(again)
        assert [turn.verdict for turn in again.turns] == ["same", "same"]
        assert again.state == again.recorded_state


@pytest.mark.requirement("REPLAY-RUNS")
async def test_a_log_tells_of_its_runs(tmp_path: Path) -> None:
    log = await recorded(shop(Outside()), tmp_path / "log", ("q", 4))
    (run,) = log.runs()
    assert (run.topic, run.events, run.turns, run.calls) == ("q", 4, 2, 2)
    assert (run.agents, run.errors, run.missing, run.open) == (("helper", "planner"), 0, 0, 0)
    assert run.whole
    assert run.started <= run.ended
    assert log.run(run.id[-8:]) == run
    moments = (await log.replay(run.id)).moments
    assert [m.what for m in moments][:3] == ["event", "turn", "event"]
    assert [m.name for m in moments if m.what == "call"] == ["add", "mail"]


@pytest.mark.requirement("REPLAY-DIVERGED")
@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ("argument", "call slow is asked with"),
        ("more", "call slower"),
        ("less", "did not do what was recorded: call slow"),
        ("data", "with other data"),
        ("topic", "publishes 'other'"),
        ("error", "it ended with CAPABILITY_ERROR (no), recorded no error"),
        ("raises", "it ended with HANDLER_ERROR (ValueError: sold out), recorded no error"),
        ("memory", "memory.get other was never made"),
    ],
)
async def test_a_handler_that_does_something_else_diverges_and_it_is_said_where(
    tmp_path: Path, changed: str, told: str
) -> None:
    async def before(ctx: loom.Context[Any], event: loom.Event[Any]) -> None:
        await ctx.emit("done", await ctx.tool("slow", args={"n": 1}))

    async def after(ctx: loom.Context[Any], event: loom.Event[Any]) -> None:
        if changed == "memory":
            await ctx.memory.get("other")
        if changed == "raises":
            raise ValueError("sold out")
        n = 1
        if changed != "less":
            n = await ctx.tool("slow", args={"n": 2 if changed == "argument" else 1})
        if changed == "more":
            await ctx.tool("slower", args={"n": 1})
        await ctx.emit("other" if changed == "topic" else "done", n + (changed == "data"))
        if changed == "error":
            raise loom.errors.CapabilityError("no")

    log = await recorded(one_agent(before), tmp_path / "log", ("q", 1))
    assert not (await rerun(log, one_agent(before))).diverged
    again = await rerun(log, one_agent(after))
    assert again.diverged
    assert said(again).count(told) == 1, "it is said, and said once"
    if changed == "raises":
        assert "did not do what was recorded: call slow" in said(again)
    if changed not in ("less", "error", "raises"):
        assert f"{__file__}:" in said(again), "the line is named"


@pytest.mark.requirement("REPLAY-DIVERGED")
async def test_another_state_at_the_end_is_a_difference(tmp_path: Path) -> None:
    def counting(step: int) -> Handle:
        async def handle(ctx: loom.Context[Any], event: loom.Event[Any]) -> None:
            ctx.state.items.append("x" * step)

        return handle

    log = await recorded(shop(Outside(), counting(1)), tmp_path / "log", ("q", 1))
    assert not (await rerun(log, shop(Outside(), counting(1)))).diverged
    again = await rerun(log, shop(Outside(), counting(2)))
    assert again.diverged
    assert "leaves another state" in said(again)
    assert again.state != again.recorded_state


@pytest.mark.requirement("REPLAY-DIVERGED")
async def test_an_agent_that_is_gone_diverges(tmp_path: Path) -> None:
    log = await recorded(shop(Outside()), tmp_path / "log", ("q", 1))
    again = await rerun(log, loom.App("shop"))
    assert "no agent 'planner' any more" in said(again)


@pytest.mark.requirement("REPLAY-ORDER")
async def test_a_race_is_won_by_who_won_it_then(tmp_path: Path) -> None:
    def racing(*names: str) -> Handle:
        async def handle(ctx: loom.Context[Any], event: loom.Event[Any]) -> None:
            calls = (ctx.tool(name, args={"n": index}) for index, name in enumerate(names))
            await ctx.emit("won", await ctx.race(*calls))

        return handle

    for number, names in enumerate((("slow", "slower"), ("slower", "slow"))):
        log = await recorded(one_agent(racing(*names)), tmp_path / f"log{number}", ("q", 1))
        won = [m.data for m in log.events() if m.name == "won"]
        assert won == [names.index("slow")]
        again = await rerun(log, one_agent(racing(*names)))
        assert not again.diverged, said(again)


@pytest.mark.requirement("REPLAY-ORDER")
async def test_results_come_in_the_order_of_then(tmp_path: Path) -> None:
    async def handle(ctx: loom.Context[Any], event: loom.Event[Any]) -> None:
        came: list[str] = []

        async def one(name: str) -> None:
            await ctx.tool(name, args={"n": 1})
            came.append(name)

        await ctx.gather(one("slower"), one("slow"))
        await ctx.emit("came", came)

    log = await recorded(one_agent(handle), tmp_path / "log", ("q", 1))
    assert [m.data for m in log.events() if m.name == "came"] == [["slow", "slower"]]
    again = await rerun(log, one_agent(handle))
    assert not again.diverged, said(again)


@pytest.mark.requirement("REPLAY-ERRORS")
async def test_refusals_and_failures_come_again_as_they_were(tmp_path: Path) -> None:
    async def handle(ctx: loom.Context[Any], event: loom.Event[Any]) -> None:
        for topic in ("nobody.hears", "nobody.hears"):
            try:
                await ctx.request(topic, 1)
            except Unavailable as error:
                await ctx.emit("told", error.message)
        try:
            await ctx.tool("no.such")
        except NotFound as error:
            await ctx.emit("told", error.message)
        try:
            await ctx.tool("slow", args={"n": "x"})
        except LoomError as error:
            await ctx.emit("told", error.code)

    log = await recorded(one_agent(handle), tmp_path / "log", ("q", 1))
    again = await rerun(log, one_agent(handle))
    assert not again.diverged, said(again)


@pytest.mark.requirement("RECORD-STEP")
async def test_chance_in_a_turn_follows_from_its_event_and_agent() -> None:
    drawn: list[tuple[str, str, float]] = []
    app = loom.App("shop")
    for name in ("a", "b"):

        async def draw(ctx: loom.Context[Any], event: loom.Event[Any]) -> None:
            drawn.append((ctx.agent, event.id, ctx.random.random()))

        app.agent(name, topics=["q"])(draw)
    async with Harness(app) as h:
        await h.ctx.emit("q")
        await h.ctx.emit("q")
        await h.idle()
    assert len({value for _, _, value in drawn}) == 4
    for agent, event, value in drawn:
        assert value == Random(f"{event} {agent}").random()


@pytest.mark.requirement("WHY-CHAIN")
async def test_why_gives_the_chain_from_the_root_with_calls_and_agents(tmp_path: Path) -> None:
    log = await recorded(shop(Outside()), tmp_path / "log", ("q", 4))
    done = next(m for m in log.events() if m.name == "done")
    assert done.id is not None
    chain = log.why(done.id)
    assert chain.whole
    assert [(link.topic, link.agent) for link in chain.links] == [("q", None), ("done", "planner")]
    made = [(made.kind, made.name) for made in chain.links[1].made]
    assert made[0] == ("call", "add")
    assert ("request", "ask") in made
    assert ("call", "mail") in made
    answer = next(m for m in log.events() if m.name.endswith(".reply"))
    topics = [link.topic for link in log.why(str(answer.id)[-10:]).links]
    assert topics[:2] == ["q", "ask"]


@pytest.mark.requirement("WHY-UNKNOWN")
async def test_an_unknown_event_or_run_is_told_with_close_ones(tmp_path: Path) -> None:
    log = await recorded(shop(Outside()), tmp_path / "log", ("q", 4))
    (run,) = log.runs()
    almost = run.id[:-1] + ("0" if run.id[-1] != "0" else "1")
    with pytest.raises(NotFound) as caught:
        await log.replay(almost)
    assert run.id in str(caught.value.hint)
    with pytest.raises(NotFound) as caught:
        log.why("nothing like it")
    assert "loom logs" in str(caught.value.hint)
    with pytest.raises(InvalidParams, match="begin or end"):
        log.why(run.id[:6])


@pytest.mark.requirement("REPLAY-NO-LOG")
@pytest.mark.parametrize("path", ["", 7, None])
def test_what_is_no_path_is_refused(path: Any) -> None:
    with pytest.raises(InvalidParams) as caught:
        loom.open_log(path)
    assert caught.value.field == "path"


@pytest.mark.requirement("REPLAY-NO-LOG")
async def test_a_path_that_is_no_log_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for path in (tmp_path, tmp_path / "notes.txt", tmp_path / "missing"):
        with pytest.raises(LoomError) as caught:
            loom.open_log(path)
        assert str(path) in caught.value.message
    assert os.listdir(tmp_path) == ["notes.txt"]
    log = await recorded(shop(Outside()), tmp_path / "log", ("q", 4))
    with pytest.raises(NotFound, match="no log of namespace 'other'"):
        loom.open_log(tmp_path / "log", namespace="other")
    with pytest.raises(InvalidCursor):
        log.number("over there")


@pytest.mark.requirement("REPLAY-LIVE")
async def test_a_log_is_read_beside_the_engine_that_writes_it(tmp_path: Path) -> None:
    app = shop(Outside())
    async with Harness(app, data=tmp_path / "log") as h:
        await h.ctx.emit("q", 4)
        await h.idle()
        await h.ctx.emit("kept", 1, ack="disk")  # what stands before it is durable, too
        log = loom.open_log(tmp_path / "log")
        assert [run.topic for run in log.runs()] == ["q", "kept"]
        again = await log.replay(log.runs()[0].id, agents=shop(Outside()))
        assert not again.diverged, said(again)
        assert log.bounds[1] > 0


@pytest.mark.requirement("RECORD-SETTING")
async def test_without_recording_there_are_no_turns_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOOM_LOG__RECORD", "off")
    app = shop(Outside())
    async with app.running(data=tmp_path / "log") as ctx:
        await ctx.emit("q", 4)
    log = loom.open_log(tmp_path / "log")
    assert log.runs() == []
    assert [m.what for m in log.events() if m.what == "turn"] == []


_STEPS = st.lists(st.sampled_from(["call", "ask", "put", "emit", "state", "now"]), max_size=6)


@pytest.mark.requirement("REPLAY-DETERMINISTIC")
@settings(max_examples=15)
@given(st.lists(_STEPS, min_size=1, max_size=4))
def test_any_history_replays_to_the_same_states(
    tmp_path_factory: pytest.TempPathFactory, histories: list[list[str]]
) -> None:
    async def handle(ctx: loom.Context[Any], event: loom.Event[Any]) -> None:
        for number, step in enumerate(event.data):
            match step:
                case "call":
                    await ctx.tool("add", args={"a": number, "b": len(ctx.state.items)})
                case "ask":
                    await ctx.request("ask", {"total": number})
                case "put":
                    seen = await ctx.memory.get("n", 0)
                    await ctx.memory.put("n", seen + 1)
                    ctx.state.items.append(str(seen))
                case "emit":
                    await ctx.emit("out", {"id": str(ctx.uuid())}, key=str(number))
                case "state":
                    ctx.state.items.append(str(ctx.random.random()))
                case _:
                    ctx.state.items.append(str(ctx.now()))

    async def check(data: Path) -> None:
        outside = Outside()
        app = shop(outside, handle)
        log = await recorded(app, data, *(("q", history) for history in histories))
        outside.closed = True
        for run in log.runs():
            again = await log.replay(run.id, agents=app)
            assert not again.diverged, said(again)
        states, end = log.states(), log.bounds[1]
        assert log.state_hash() == log.state_hash(anew=True)
        assert log.state_hash(before=end) == log.state_hash(before=end, anew=True)
        assert log.states(before=end) == states
        assert log.states(before=1) == {}

    asyncio.run(check(tmp_path_factory.mktemp("log")))


@pytest.mark.requirement("REPLAY-SAME")
async def test_a_handler_that_publishes_with_acks_does_the_same_in_a_replay(tmp_path: Path) -> None:
    levels: list[str] = []
    app = loom.App("acks")

    @app.agent("orders", topics=["order"])
    async def orders(ctx: loom.Context, event: loom.Event[int]) -> None:
        for level in ("os", "disk"):
            receipt = await ctx.emit("kept", event.data, ack=level, id=f"{level}-{event.data}")
            levels.append(receipt.level)

    del orders
    async with app.running(data=tmp_path / "log") as ctx:
        await ctx.emit("order", 4)
    log = loom.open_log(tmp_path / "log")
    (run,) = log.runs()
    then, levels[:] = levels[:], []
    again = await log.replay(run.id, agents=app)
    assert not again.diverged, said(again)
    assert levels == then == ["os", "disk"]
