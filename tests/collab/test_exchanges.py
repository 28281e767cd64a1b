"""What travels: schemas, golden exchanges, and members that know nothing else."""

import asyncio
import copy
import json
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import ValidationError

import loom
from loom.collab import Award, barrier, contract_net, messages
from loom.testing import Harness
from tests.collab.exchanges import RUNS
from tests.project.repo import ROOT, text

SPEC = ROOT / "spec" / "collab"
MODELS: dict[str, type[messages.Message]] = {
    "cfp": messages.Cfp,
    "bid": messages.BidMade,
    "award": messages.Awarded,
    "decline": messages.Declined,
    "done": messages.Done,
    "barrier-arrival": messages.Arrival,
    "barrier-outcome": messages.Outcome,
}
VALIDATORS: dict[str, Any] = {
    name: Draft202012Validator(json.loads(text(SPEC / f"{name}.schema.json"))) for name in MODELS
}
GOLDEN: dict[str, dict[str, Any]] = {
    name: json.loads(text(SPEC / "golden" / f"{name}.json")) for name in RUNS
}
EXAMPLES: dict[str, list[Any]] = {name: [] for name in MODELS}
for golden in GOLDEN.values():
    for said in golden["exchange"]:
        if said["schema"] is not None:
            EXAMPLES[said["schema"]].append(said["data"])


def by_sender(told: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """What each says, in its order: who of several speaks first is chance."""
    found: dict[str, list[dict[str, Any]]] = {}
    for said in told:
        data: Any = said["data"]
        if isinstance(data, dict) and "members" in data:
            members = cast("list[str]", data["members"])
            data = {**cast("dict[str, Any]", data), "members": sorted(members)}
        found.setdefault(said["sender"], []).append({**said, "data": data})
    return found


def fits(name: str, data: object) -> bool:
    """Whether the types take it, as it travels."""
    try:
        MODELS[name].model_validate_json(json.dumps(data))
    except ValidationError:
        return False
    return True


@pytest.mark.requirement("COLLAB-EXCHANGE")
@pytest.mark.parametrize("name", RUNS)
async def test_each_primitive_says_what_its_golden_exchange_says(name: str) -> None:
    assert by_sender(await RUNS[name]()) == by_sender(GOLDEN[name]["exchange"])


@pytest.mark.in_process("elsewhere what agents say at the same time comes in any order")
@pytest.mark.requirement("COLLAB-EXCHANGE")
@pytest.mark.parametrize("name", RUNS)
async def test_in_one_process_the_same_seed_says_it_in_the_same_order(name: str) -> None:
    assert await RUNS[name]() == GOLDEN[name]["exchange"]
    assert await RUNS[name]() == GOLDEN[name]["exchange"]


@pytest.mark.requirement("COLLAB-SCHEMA")
def test_there_is_a_schema_and_a_type_for_each_message_and_no_other() -> None:
    assert {path.name.removesuffix(".schema.json") for path in SPEC.glob("*.json")} == set(MODELS)
    assert {path.stem for path in (SPEC / "golden").iterdir()} == set(RUNS)
    for name, validator in VALIDATORS.items():
        Draft202012Validator.check_schema(validator.schema)
        assert validator.schema["additionalProperties"] is False
        assert set(validator.schema["required"]) == set(validator.schema["properties"])
        assert set(validator.schema["properties"]) == set(MODELS[name].model_fields)
        assert EXAMPLES[name], f"no golden exchange shows a {name}"


@pytest.mark.requirement("COLLAB-SCHEMA")
@pytest.mark.parametrize("name", MODELS)
def test_what_was_said_fits_its_schema_and_its_type(name: str) -> None:
    for data in EXAMPLES[name]:
        assert VALIDATORS[name].is_valid(data)
        assert fits(name, data)
        assert json.loads(MODELS[name].model_validate(data).model_dump_json()) == data


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 90_000_000),
    st.sampled_from([0.5, -1.5]),
    st.sampled_from(["", "x", "DENIED", "lower", "x" * 129, "x" * 258, "x" * 1_025]),
    st.lists(st.sampled_from(["", "a", 3]), max_size=2),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=1),
)


@st.composite
def mutants(draw: st.DrawFn) -> tuple[str, Any]:
    """A message of a golden exchange with one field changed, dropped or added."""
    name = draw(st.sampled_from(sorted(MODELS)))
    data = copy.deepcopy(draw(st.sampled_from(EXAMPLES[name])))
    field = draw(st.sampled_from([*data, "extra"]))
    if draw(st.booleans()) and field in data:
        del data[field]
    else:
        data[field] = draw(VALUES)
    return name, data


@pytest.mark.requirement("COLLAB-SCHEMA")
@given(mutants())
def test_schema_and_type_refuse_the_same(mutant: tuple[str, Any]) -> None:
    name, data = mutant
    assert VALIDATORS[name].is_valid(data) == fits(name, data), (name, data)


@pytest.mark.requirement("COLLAB-SCHEMA")
@pytest.mark.parametrize("name", MODELS)
def test_another_version_and_an_unknown_field_are_refused(name: str) -> None:
    for data in EXAMPLES[name]:
        for change in ({"v": 2}, {"v": "1"}, {"unknown": 1}):
            assert not fits(name, {**data, **change})
        for field in data:
            assert not fits(name, {k: v for k, v in data.items() if k != field}), field


@pytest.mark.requirement("COLLAB-EXCHANGE")
async def test_a_contractor_that_knows_only_the_golden_exchange_can_take_part() -> None:
    app = loom.App("market")
    said = {f"{m['schema']} {m['sender']}": m["data"] for m in GOLDEN["contract_net"]["exchange"]}

    @app.agent("ada", topics=["job", "thread.*.award"])
    async def ada(ctx: loom.Context, event: loom.Event) -> None:
        if event.topic == "job":
            await ctx.emit(f"thread.{event.thread_id}.bid", said["bid default/ada"])
        elif event.data["winner"] == "default/ada":
            done = {**said["done default/ada"], "award": event.data["award"]}
            await ctx.emit(f"thread.{event.thread_id}.done", done)

    async with Harness(app) as h:
        award: Award[str] = await contract_net(
            h.ctx, "paint the fence", topic="job", bid_timeout=2, timeout=30, returns=str
        )
        await h.idle()

    assert (award.winner, award.result) == ("default/ada", "paint the fence: done")
    assert (award.bids[0].score, award.ignored.malformed) == (1.5, 0)


@pytest.mark.requirement("COLLAB-EXCHANGE")
async def test_a_member_that_knows_only_the_golden_exchange_can_meet() -> None:
    arrival = cast("dict[str, Any]", GOLDEN["barrier"]["exchange"][0]["data"])
    async with Harness(loom.App("crew")) as h:
        python = asyncio.create_task(
            barrier(h.ctx, "ready", 2, timeout=5, member="python", thread="t")
        )
        await h.idle()
        outcome = await h.ctx.request("thread.t.barrier.ready", {**arrival, "member": "js"})
        meeting = await python

    assert VALIDATORS["barrier-outcome"].is_valid(outcome.data)
    assert outcome.data["members"] == list(meeting.members)
    assert meeting.complete
