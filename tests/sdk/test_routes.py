"""Who gets a call: versions side by side, and the table that policies write."""

from collections import Counter
from typing import Any

import pytest

import loom
from loom.errors import Conflict, InvalidParams, NotFound
from loom.testing import Harness


def versions() -> loom.App:
    app = loom.App("versions")

    @app.capability("greet", effect="pure", version="1")
    async def old(name: str) -> str:
        return f"hello {name}"

    @app.capability("greet", effect="pure", version="1.10", timeout=2)
    async def new(name: str, loud: bool = False) -> str:
        return f"good day {name}"

    @app.capability("greet", effect="pure", version="1.9")
    async def between(name: str) -> str:
        return f"hi {name}"

    return app


@pytest.mark.requirement("CALL-VERSIONS")
async def test_versions_of_a_capability_stand_side_by_side() -> None:
    app = versions()
    async with Harness(app) as h:
        newest = await h.ctx.tool("greet", args={"name": "Ann"})
        named = await h.ctx.tool("greet", args={"name": "Ann"}, version="1")
        bound = await h.ctx.tool(app.capabilities[2].bind(name="Ann"))
        infos = await h.ctx.capabilities("greet")
        assert h.calls("greet") == 3
    assert (newest, named, bound) == ("good day Ann", "hello Ann", "hi Ann")
    assert sorted(info.version for info in infos) == ["1", "1.10", "1.9"]
    assert {info.health for info in infos} == {"up"}


@pytest.mark.requirement("CALL-VERSIONS")
async def test_an_unknown_version_is_not_found_and_says_which_there_are() -> None:
    async with Harness(versions()) as h:
        with pytest.raises(NotFound, match="2") as told:
            await h.ctx.tool("greet", args={"name": "Ann"}, version="2")
    assert "1.10" in str(told.value.hint)


@pytest.mark.requirement("CALL-VERSIONS")
def test_the_same_version_twice_is_a_conflict_that_names_the_field() -> None:
    app = versions()
    with pytest.raises(Conflict) as told:

        @app.capability("greet", version="1.9")
        async def again() -> None: ...

    assert told.value.field == "name"
    with pytest.raises(Conflict):
        app.include(versions())


@pytest.mark.requirement("BAD-INPUT")
async def test_a_bound_call_has_its_own_version() -> None:
    app = versions()
    async with Harness(app) as h:
        call: Any = app.capabilities[0].bind(name="Ann")
        with pytest.raises(InvalidParams) as told:
            await h.ctx.tool(call, version="1.10")
    assert told.value.field == "version"


def painters() -> tuple[loom.App, Counter[str]]:
    app = loom.App("painters")
    done: Counter[str] = Counter()

    def add(name: str) -> None:
        @app.agent(name)
        class Painter(loom.Agent):
            @loom.capability("paint", effect="pure")
            async def paint(self) -> str:
                done[name] += 1
                return name

    for name in ("ann", "bob", "eve"):
        add(name)
    return app, done


@pytest.mark.requirement("CALL-WEIGHTS")
async def test_calls_are_shared_by_weight_and_a_provider_with_none_gets_none() -> None:
    app, done = painters()
    app.routes.set("paint", {"ann": 3, "bob": 0})  # eve is not named: 1
    async with Harness(app) as h:
        for _ in range(40):
            await h.ctx.tool("paint")
        assert done == {"ann": 30, "eve": 10}
        assert app.routes.get("paint") == {"ann": 3.0, "bob": 0.0}

        done.clear()
        app.routes.set("paint", {"ann": 0, "bob": 1, "eve": 0})
        for _ in range(5):
            await h.ctx.tool("paint")
        assert done == {"bob": 5}

        done.clear()
        app.routes.clear("paint")
        for _ in range(30):
            await h.ctx.tool("paint")
        assert done == {"ann": 10, "bob": 10, "eve": 10}
        assert app.routes.get("paint") is None


@pytest.mark.requirement("CALL-WEIGHTS", "BAD-INPUT")
@pytest.mark.parametrize(
    ("weights", "field"),
    [
        ({}, "weights"),
        ({"ann": -1}, "weights.ann"),
        ({"ann": float("nan")}, "weights.ann"),
        ({"ann": 1_001}, "weights.ann"),
        ({"ann": "much"}, "weights.ann"),
        ({"Ann!": 1}, "weights"),
        ({f"p{n}": 1 for n in range(65)}, "weights"),
        (None, "weights"),
    ],
)
def test_weights_that_are_none_are_refused_by_their_field(weights: Any, field: str) -> None:
    app, _ = painters()
    with pytest.raises(InvalidParams) as told:
        app.routes.set("paint", weights)
    assert told.value.field == field
    assert app.routes.get("paint") is None
