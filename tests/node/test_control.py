"""What an operator asks of a node: the capabilities under loom.node, over an engine of the test."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import loom
from loom.codec import decode, encode
from loom.config import Config, LogConfig
from loom.errors import CODES, Conflict, InvalidParams, NotFound, NotSupported
from loom.link import Link, Local, open_local
from loom.node.control import Control, Parts
from loom.node.tokens import Grants, TokenStore, hash_of, new_secret
from loom.runtime.running import running

shop = loom.App("shop")


@shop.agent("clerk", topics=["order.*"], max_deliver=1)
async def clerk(ctx: loom.Context, event: loom.Event) -> None:
    if event.data == "bad":
        raise ValueError("no such thing")
    await ctx.emit("parcel.sent", event.data)


@shop.capability("price", effect="pure")
async def price(item: str) -> int:
    return len(item)


@dataclass
class Node:
    """An engine with its control in two namespaces, and what the control has asked of it."""

    engine: Local
    tokens: TokenStore
    data: Path | None
    told: list[str] = field(default_factory=list[str])
    links: dict[str, Link] = field(default_factory=dict[str, Link])

    async def ask(self, name: str, namespace: str = "default", /, **args: Any) -> Any:
        link = self.links[namespace]
        root = link.session.root
        try:
            call = link.session.call(
                root, None, f"loom.node.{name}", encode(args), 5.0, None, 0, None
            )
        except link.refusal as error:
            raise link.translate(error) from None
        return decode(await link.outcome(call, 5.0))


async def hosted(engine: Local, data: Path | None, folder: Path) -> AsyncGenerator[Node]:
    node = Node(engine, TokenStore(folder, engine.clock.wall), data)
    parts = Parts(
        engine=engine,
        tokens=node.tokens,
        data=data,
        authorize=lambda: node.told.append("authorize"),
        drain=lambda: node.told.append("drain"),
        urls=lambda: ["loom://127.0.0.1:1"],
        bridge=lambda: {"connections": 1},
    )
    controls = [Control(parts, one) for one in ("default", "bank")]
    for control in controls:
        await control.start()
        node.links[control.namespace] = engine.attach(control.namespace, "operator")
    yield node
    for control in controls:
        node.links[control.namespace].close()
        await control.stop()
    await engine.close()


@pytest.fixture
async def node(tmp_path: Path) -> AsyncGenerator[Node]:
    """A node on the log of an app that has run: one order well, one badly."""
    data = tmp_path / "data"
    config = LogConfig(dir=data, durable=("order.>",))
    settled = Config(target="", model="auto", environment={}, origins={}, log=config)
    async with running(shop, config=settled) as run:
        await run.context.emit("order.1", "good", ack="disk")
        await run.context.emit("order.2", "bad", ack="disk")
    async for made in hosted(open_local(log=config), data, tmp_path / "state"):
        yield made


@pytest.fixture
async def bare(tmp_path: Path) -> AsyncGenerator[Node]:
    """A node whose log is in memory."""
    async for made in hosted(open_local(), None, tmp_path / "state"):
        yield made


@pytest.mark.requirement("NODE-CONTROL")
async def test_the_log_of_a_node_is_looked_into(node: Node) -> None:
    lines = await node.ask("logs", topic="order.*")
    assert [(line["topic"], line["data"]) for line in lines] == [
        ("order.1", '"good"'),
        ("order.2", '"bad"'),
    ]
    assert await node.ask("logs", topic="order.*", after=lines[0]["n"]) == lines[1:]
    assert await node.ask("logs", topic="order.*", limit=1) == lines[1:]
    runs = await node.ask("runs")
    assert [run["root"] for run in runs] == ["order.1", "order.2"]
    (one,) = await node.ask("runs", run=runs[1]["run"])
    assert one["run"] == runs[1]["run"]
    assert [agent["agent"] for agent in one["agents"]] == ["clerk"]
    parcel = (await node.ask("logs", topic="parcel.sent"))[0]["id"]
    chain = await node.ask("why", event=parcel)
    assert [link["topic"] for link in chain["links"]] == ["order.1", "parcel.sent"]


@pytest.mark.requirement("NODE-CONTROL")
async def test_to_look_into_a_log_adds_nothing_to_it(node: Node) -> None:
    before = await node.ask("logs", limit=0)
    for _ in range(3):
        await node.ask("runs")
        await node.ask("stats")
    assert await node.ask("logs", limit=0) == before
    assert len(await node.ask("runs")) == 2


@pytest.mark.requirement("NODE-CONTROL")
async def test_what_happened_is_replayed(node: Node) -> None:
    run = (await node.ask("runs"))[0]["run"]
    moments = await node.ask("replay", run=run[-8:])
    assert {moment["run_id"] for moment in moments} == {run}
    topics = [moment["name"] for moment in moments if moment["what"] == "event"]
    assert topics == ["order.1", "parcel.sent"]
    assert moments[0]["data"] == "good"
    all_of_it = await node.ask("replay", since="0")
    assert [moment for moment in all_of_it if moment["run_id"] == run] == moments
    second = next(m["n"] for m in all_of_it if m["name"] == "order.2")
    assert await node.ask("replay", since=str(second)) == [
        moment for moment in all_of_it if moment["n"] >= second
    ]
    assert await node.ask("replay", since="1h", until="1m") == []
    for args, wrong in (({}, "run"), ({"since": "soon"}, "from"), ({"run": "no"}, "run")):
        with pytest.raises((InvalidParams, NotFound)) as refused:
            await node.ask("replay", **args)
        assert refused.value.field == wrong


@pytest.mark.requirement("NODE-CONTROL")
async def test_all_lines_of_a_log_are_given_however_many_are_looked_up_at_a_time(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = await node.ask("logs", limit=0)
    assert len(everything) > 5
    for at_once in (1, 2, len(everything)):
        monkeypatch.setattr("loom.node.control.CONTROL_ROWS", at_once)
        assert await node.ask("logs", limit=0) == everything
        assert await node.ask("logs", limit=3) == everything[-3:]
        after = everything[0]["n"]
        assert await node.ask("logs", after=after, limit=2) == everything[1:3]


@pytest.mark.requirement("NODE-CONTROL")
async def test_new_lines_are_waited_for(node: Node) -> None:
    everything = await node.ask("logs", limit=0)
    last = everything[-1]["n"]
    assert await node.ask("logs", after=last, wait=0.01) == [{"type": "end", "n": last}]
    waiting = asyncio.create_task(node.ask("logs", after=last, wait=4.0, topic="order.*"))
    (letter,) = await node.ask("dead.list")
    anew = await node.ask("dead.redrive", id=letter["id"])
    new, end = await waiting
    assert (new["topic"], new["id"], end["type"]) == ("order.2", anew["event_id"], "end")
    assert last < new["n"] <= end["n"]


@pytest.mark.requirement("NODE-CONTROL")
async def test_what_was_given_up_is_shown_and_published_anew(node: Node) -> None:
    (letter,) = await node.ask("dead.list")
    assert (letter["topic"], letter["code"]) == ("order.2", "HANDLER_ERROR")
    shown = await node.ask("dead.show", id=letter["id"])
    assert shown["event"]["data"] == '"bad"'
    assert [step["topic"] for step in shown["chain"]] == ["order.2"]
    sent = await node.ask("dead.redrive", id=letter["id"], data="good", replace=True)
    assert (sent["topic"], sent["agent"]) == ("order.2", "clerk")
    assert await node.ask("dead.list") == []
    with pytest.raises(Conflict):
        await node.ask("dead.redrive", id=letter["id"])
    with pytest.raises(NotFound):
        await node.ask("dead.show", id="9.99")


@pytest.mark.requirement("NODE-CONTROL")
async def test_effects_are_listed_and_one_that_is_not_there_is_named(node: Node) -> None:
    assert await node.ask("effects.list") == []
    for name in ("show", "resolve"):
        more: dict[str, Any] = {} if name == "show" else {"done": False}
        with pytest.raises(NotFound):
            await node.ask(f"effects.{name}", id="abcd", **more)


@pytest.mark.requirement("NODE-CONTROL")
async def test_a_copy_of_the_log_goes_beside_it_and_nowhere_else(node: Node) -> None:
    assert node.data is not None
    copied = await node.ask("backup", name="monday")
    assert Path(copied["path"]) == node.data.with_name("data.backups") / "monday"
    assert (Path(copied["path"]) / "MANIFEST").is_file()
    for name in ("../elsewhere", "/tmp/x", "Monday"):
        with pytest.raises(InvalidParams):
            await node.ask("backup", name=name)


@pytest.mark.requirement("NODE-CONTROL")
async def test_what_is_registered_and_attached_is_listed(bare: Node) -> None:
    link = bare.links["default"]
    info = encode({"name": "clerk", "filters": ["order.*"]})
    link.session.register("clerk", ["order.*"], "clerk", 1, info, False)
    (agent,) = await bare.ask("list", kind="agents")
    assert agent["name"] == "clerk"
    assert (
        await bare.ask("list", kind="topics")
        == [
            {"topic": "order.*", "agents": ["clerk"]},
            {"topic": "spawn.clerk", "agents": ["clerk"]},
        ][:1]
    )
    assert await bare.ask("list", kind="capabilities") == []
    with pytest.raises(InvalidParams) as refused:
        await bare.ask("list", kind="everything")
    assert refused.value.field == "kind"
    names = [(one["namespace"], one["name"]) for one in await bare.ask("sessions")]
    assert ("default", "operator") in names
    assert ("bank", "operator") in names
    stats = await bare.ask("stats")
    assert stats["urls"] == ["loom://127.0.0.1:1"]
    assert [one["name"] for one in stats["subscriptions"]] == ["clerk"]


@pytest.mark.requirement("NODE-NAMESPACES")
async def test_another_namespace_sees_nothing_of_it(node: Node) -> None:
    assert {line["type"] for line in await node.ask("logs", "bank")} <= {"note"}
    assert await node.ask("runs", "bank") == []
    assert await node.ask("dead.list", "bank") == []
    assert await node.ask("list", "bank", kind="agents") == []
    stats = await node.ask("stats", "bank")
    assert set(stats) == {"subscriptions", "capabilities", "logs"}
    told = [entry["namespace"] for entries in stats.values() for entry in entries]
    assert set(told) <= {"bank"}
    assert {one["namespace"] for one in await node.ask("sessions", "bank")} == {"bank"}


@pytest.mark.requirement("NODE-NAMESPACES")
@pytest.mark.parametrize("name", ["backup", "drain"])
async def test_what_concerns_the_whole_node_is_the_operators(bare: Node, name: str) -> None:
    with pytest.raises(NotFound):
        await bare.ask(name, "bank", name="x")
    assert bare.told == []


@pytest.mark.requirement("NODE-NAMESPACES")
async def test_tokens_of_a_namespace_are_made_and_seen_there(bare: Node) -> None:
    secret = new_secret()
    grants = {"subscribe": ["order.>"]}
    made = await bare.ask(
        "tokens.create", "bank", name="web", sha256=hash_of(secret), grants=grants
    )
    assert (made["namespace"], made["name"]) == ("bank", "web")
    assert "sha256" not in made
    again = await bare.ask(
        "tokens.create", "bank", name="web", sha256=hash_of(secret), grants=grants
    )
    assert again == made
    other, _ = bare.tokens.create("other", namespace="shop", grants=Grants.everything())
    assert await bare.ask("tokens.list", "bank") == [made]
    assert [one["id"] for one in await bare.ask("tokens.list")] == [made["id"], other.id]
    for namespace in ("shop", "*"):
        with pytest.raises(InvalidParams) as refused:
            await bare.ask(
                "tokens.create",
                "bank",
                name="x",
                sha256=hash_of(new_secret()),
                grants=grants,
                namespace=namespace,
            )
        assert refused.value.field == "namespace"
    with pytest.raises(NotFound):
        await bare.ask("tokens.revoke", "bank", id=other.id)
    assert bare.told == ["authorize", "authorize"]
    await bare.ask("tokens.revoke", "bank", id=made["id"])
    assert bare.told == ["authorize"] * 3
    assert [token.id for token in bare.tokens.tokens()] == [other.id]
    await bare.ask("tokens.revoke", id=other.id)
    assert not bare.tokens.tokens()


@pytest.mark.requirement("NODE-CONTROL")
async def test_a_node_is_told_to_end(bare: Node) -> None:
    assert await bare.ask("drain") == {"draining": True}
    assert bare.told == ["drain"]


@pytest.mark.requirement("NODE-CONTROL")
@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("logs", {}),
        ("runs", {}),
        ("replay", {"since": "0"}),
        ("backup", {"name": "x"}),
        ("why", {"event": "x"}),
    ],
)
async def test_a_node_without_a_directory_says_so(
    name: str, args: dict[str, Any], bare: Node
) -> None:
    with pytest.raises(NotSupported) as refused:
        await bare.ask(name, **args)
    assert "loom up --data" in str(refused.value.hint)


@pytest.mark.requirement("NODE-CONTROL")
async def test_nobody_but_the_node_offers_what_is_its_own(bare: Node) -> None:
    link = bare.links["default"]
    with pytest.raises(link.refusal) as refused:
        link.session.provide("loom.node.more", "1", 0, 1, b"{}", "me", False)
    assert refused.value.args[0] == CODES["DENIED"]
