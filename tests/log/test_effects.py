"""``app.effects``: what became of each effect, and a person's word on what nobody knows."""

import asyncio
import re
from pathlib import Path
from typing import Any, Literal

import pytest

import loom
from loom.errors import Conflict, Indeterminate, InvalidParams, LoomError, NotFound, NotSupported
from loom.testing import Harness

Class = Literal["idempotent", "probeable", "unsafe"]
NOWHERE = "01890000-0000-7000-8000-000000000000"


class Bank:
    """A service outside that remembers what it did, and a life in which it hangs."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.hangs = False

    def app(self, effect: Class = "unsafe") -> loom.App:
        app = loom.App("bank")

        @app.capability("pay", effect=effect, timeout=5)
        async def pay(cents: int, effect_id: str = "") -> dict[str, int]:
            self.done.append(effect_id)
            if self.hangs:
                await asyncio.Event().wait()
            if cents < 0:
                raise LoomError("not that way round")
            return {"paid": cents}

        if effect == "probeable":

            @pay.probe
            async def probe(effect_id: str) -> loom.Done[dict[str, int]] | loom.NotDone | None:
                if effect_id in self.done:
                    return loom.Done({"paid": 0})
                return loom.NotDone()

            del probe
        return app


async def pay(h: Harness, cents: int, key: str) -> Any:
    return await h.ctx.tool("pay", args={"cents": cents}, key=key)


async def run_out(h: Harness, key: str) -> None:
    """Make a call that gets no answer."""
    call = asyncio.create_task(pay(h, 1, key))
    await h.advance(5)
    with pytest.raises(Indeterminate):
        await call


async def lose(app: loom.App, h: Harness, key: str) -> str:
    """Let a call run out of time; return the id of its effect."""
    await run_out(h, key)
    (info,) = [one for one in app.effects.list(unknown=True) if one.key == key]
    return info.id


@pytest.mark.requirement("EFFECT-API")
async def test_an_effect_is_listed_and_shown_with_its_key_its_provider_and_its_result(
    tmp_path: Path,
) -> None:
    bank = Bank()
    app = bank.app()
    async with Harness(app, data=tmp_path) as h:
        assert await pay(h, 5, "may") == {"paid": 5}
        with pytest.raises(LoomError):
            await pay(h, -1, "june")
        assert app.effects.list(unknown=True) == ()
        may, june = sorted(app.effects.list(), key=lambda one: str(one.key), reverse=True)
        assert (may.key, may.state, may.capability) == ("may", "confirmed", "pay")
        assert (may.effect, may.attempts, may.result) == ("unsafe", 1, None)
        assert may.id == bank.done[0]
        assert re.fullmatch(r"\w+-\w+-\w+", may.position)
        assert may.intended <= may.since
        assert (june.key, june.state) == ("june", "failed")
        assert june.code is not None
        assert app.effects.get(may.id).result == {"paid": 5}


@pytest.mark.requirement("EFFECT-API")
async def test_all_pages_are_listed_each_effect_once(tmp_path: Path) -> None:
    app = Bank().app()
    async with Harness(app, data=tmp_path) as h:
        await h.ctx.gather(*(pay(h, n, f"bill-{n}") for n in range(600)))
        listed = app.effects.list()
    assert {one.key for one in listed} == {f"bill-{n}" for n in range(600)}
    assert [one.id for one in listed] == sorted(one.id for one in listed)
    assert len(listed) == 600


@pytest.mark.requirement("EFFECT-RESOLVE", "EFFECT-KEPT")
@pytest.mark.in_process("elsewhere effects are listed by loom.node.effects")
async def test_what_a_person_says_was_done_is_the_result_of_the_key_after_a_restart_too(
    tmp_path: Path,
) -> None:
    bank = Bank()
    bank.hangs = True
    app = bank.app()
    async with Harness(app, data=tmp_path) as h:
        effect = await lose(app, h, "may")
        info = await app.effects.resolve(effect, done=True, result={"paid": 1}, note="on the bill")
        assert (info.state, info.by, info.note) == ("reconciled", "operator", "on the bill")
        assert info.result == {"paid": 1}
        assert await pay(h, 1, "may") == {"paid": 1}
        with pytest.raises(Conflict):
            await app.effects.resolve(effect, done=False)
    later = bank.app()
    async with Harness(later, data=tmp_path) as h:
        assert await pay(h, 1, "may") == {"paid": 1}
        assert later.effects.get(effect).result == {"paid": 1}
        with pytest.raises(Conflict):
            await pay(h, 2, "may")
    assert bank.done == [effect]


@pytest.mark.requirement("EFFECT-RESOLVE")
async def test_of_two_who_settle_an_effect_at_once_one_has_the_word_and_the_other_is_told(
    tmp_path: Path,
) -> None:
    bank = Bank()
    bank.hangs = True
    app = bank.app()
    async with Harness(app, data=tmp_path) as h:
        effect = await lose(app, h, "may")
        first, second = await asyncio.gather(
            app.effects.resolve(effect, done=True, result={"paid": 1}),
            app.effects.resolve(effect, done=False),
            return_exceptions=True,
        )
        assert isinstance(first, loom.EffectInfo)
        assert first.state == "reconciled"
        assert isinstance(second, Conflict)
        assert "being settled" in second.message
        assert await pay(h, 1, "may") == {"paid": 1}
    assert bank.done == [effect]


@pytest.mark.requirement("EFFECT-RESOLVE")
async def test_what_a_person_says_was_not_done_is_done_by_the_next_call_and_no_other(
    tmp_path: Path,
) -> None:
    bank = Bank()
    bank.hangs = True
    app = bank.app()
    async with Harness(app, data=tmp_path) as h:
        effect = await lose(app, h, "may")
        bank.hangs = False
        with pytest.raises(Indeterminate):
            await pay(h, 1, "may")
        assert bank.done == [effect]
        assert (await app.effects.resolve(effect, done=False)).state == "failed"
        assert await pay(h, 1, "may") == {"paid": 1}
    assert bank.done == [effect, effect]


@pytest.mark.requirement("EFFECT-PROBE")
@pytest.mark.in_process("elsewhere effects are listed by loom.node.effects")
async def test_a_probe_tells_what_became_of_an_effect_and_the_key_is_given_its_result(
    tmp_path: Path,
) -> None:
    bank = Bank()
    bank.hangs = True
    app = bank.app("probeable")
    async with Harness(app, data=tmp_path) as h:
        await run_out(h, "may")
        assert await pay(h, 1, "may") == {"paid": 0}
        (info,) = app.effects.list()
        assert (info.state, h.stats()["effects"]["reconciled"]) == ("reconciled", 1)
    assert bank.done == [info.id]


@pytest.mark.requirement("EFFECT-API")
async def test_what_cannot_be_shown_or_settled_is_refused_with_its_field(tmp_path: Path) -> None:
    app = Bank().app()
    with pytest.raises(NotSupported):
        app.effects.list()
    async with Harness(app, data=tmp_path):
        with pytest.raises(NotFound) as unknown:
            app.effects.get(NOWHERE)
        assert unknown.value.field == "effect"
        with pytest.raises(InvalidParams) as no_id:
            app.effects.get("may")
        assert no_id.value.field == "effect"
        with pytest.raises(NotFound):
            await app.effects.resolve(NOWHERE, done=True)
        with pytest.raises(InvalidParams) as both:
            await app.effects.resolve(NOWHERE, done=False, result=1)
        assert both.value.field == "result"
        with pytest.raises(InvalidParams) as long:
            await app.effects.resolve(NOWHERE, done=True, note="x" * 100_000)
        assert long.value.field == "note"
    with pytest.raises(NotSupported):
        app.effects.get(NOWHERE)


@pytest.mark.requirement("CALL-INDETERMINATE")
@pytest.mark.parametrize(
    ("effect", "key", "way_out"),
    [
        ("unsafe", "may", "loom effects resolve {id}"),
        ("idempotent", "may", "call again with the same key"),
        ("unsafe", None, "declare the effect pure if it changes nothing"),
    ],
)
@pytest.mark.in_process("elsewhere effects are listed by loom.node.effects")
async def test_a_call_without_an_answer_names_the_way_out_of_its_class(
    tmp_path: Path, effect: Class, key: str | None, way_out: str
) -> None:
    bank = Bank()
    bank.hangs = True
    app = bank.app(effect)
    async with Harness(app, data=tmp_path) as h:
        call = asyncio.create_task(h.ctx.tool("pay", args={"cents": 1}, key=key))
        await h.advance(5)
        with pytest.raises(Indeterminate) as told:
            await call
        (info,) = app.effects.list()
        assert way_out.format(id=info.id) in str(told.value.hint)


@pytest.mark.requirement("ERRORS-PUBLISHED")
async def test_the_error_of_a_call_that_was_never_begun_belongs_to_the_run_of_its_turn() -> None:
    app = loom.App("hasty")

    @app.agent("hasty", topics=["go"])
    async def hasty(ctx: loom.Context, event: loom.Event[Any]) -> None:
        del event
        with pytest.raises(NotFound):
            await ctx.tool("nothing.there", args={})

    del hasty
    async with Harness(app) as h:
        async with h.ctx.watch("loom.error.>") as errors:
            await h.ctx.emit("go")
            error = await anext(aiter(errors))
        (go,) = h.events("go")
        assert (error.run_id, error.causation_id) == (go.id, go.id)
        assert error.data["who"] == "nothing.there"
        assert error.data["event_id"] == go.id
