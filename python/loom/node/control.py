"""What an operator asks of a node: capabilities under ``loom.node``, offered by the node itself.

They are there in each namespace that has sessions, and see that namespace only. What concerns the
whole node, such as a backup or its end, is offered in the namespace ``default``: it is the
operator's. Who may call what follows from the grants ``observe`` and ``admin`` of a token.
"""

import asyncio
import logging
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random  # noqa: TID251  Contexts have one; nothing here draws from it
from typing import Any, Final, NoReturn

from loom.capabilities import Capability, capability
from loom.codec import decode, encode
from loom.errors import DeadlineExceeded, Internal, InvalidParams, NotFound, NotSupported
from loom.limits import CONTROL_ROWS
from loom.link import Link, Local
from loom.link.view import backup
from loom.memory.in_process import InProcessMemory
from loom.node import asking
from loom.node.asking import Wanted
from loom.node.looking import Looking
from loom.node.place import Place
from loom.node.tokens import ANYWHERE, Grants, TokenStore
from loom.replay import open_log
from loom.runtime.host import Host, Services
from loom.runtime.pool import Pool
from loom.runtime.registering import provide
from loom.runtime.serving import Serving
from loom.runtime.steps import Steps
from loom.topics import check_name

OPERATOR: Final = "default"
SCHEMAS: Final = Path(__file__).with_name("control.json")  # by tools/gen_control.py, of the hints
_NAME: Final = "node"  # who offers all this
_WAIT: Final = 20.0  # seconds that new lines are waited for
_PAUSE: Final = 0.2  # seconds between two looks meanwhile
_LONGEST: Final = 1 << 16  # characters of the data of one line
_LOOKS: Final = 20.0  # seconds that a look into a log may take
_logger = logging.getLogger("loom.node")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What of a node its control works with.

    ``authorize`` hands the tokens to the Bridge, ``drain`` lets the node end; ``urls`` says where
    it listens, ``bridge`` what the Bridge has counted.
    """

    engine: Local
    tokens: TokenStore
    data: Path | None
    authorize: Callable[[], None]
    drain: Callable[[], None]
    urls: Callable[[], list[str]]
    bridge: Callable[[], dict[str, Any]]


class Control:
    """The capabilities of a node in one namespace."""

    def __init__(self, parts: Parts, namespace: str) -> None:
        self.namespace = namespace
        self._parts = parts
        self._link: Link | None = None
        self._offered: list[tuple[Serving, Pool]] = []

    async def start(self) -> None:
        """Offer them."""
        engine = self._parts.engine
        await engine.open(self.namespace)
        self._link = link = engine.attach(self.namespace, _NAME, is_node=True)
        memory, random = InProcessMemory(engine.clock), Random(0)  # noqa: S311  never used
        services = Services(
            engine=engine,
            link=link,
            namespace=self.namespace,
            memory=memory,
            model=_no_model,
            random=random,
            start=_no_agent,
            steps=Steps(engine, link, self.namespace, memory, _no_model, random),
        )
        host = Host(
            services=services, sender=link.session.root, name=_NAME, log=logging.getLogger("loom")
        )
        schemas = decode(SCHEMAS.read_bytes())
        for one in self._capabilities():
            self._offered.append(await provide(host, one, _NAME, schemas=schemas[one.name]))
        for _, pool in self._offered:
            pool.start()
        link.look()

    async def stop(self) -> None:
        """Offer them no more; what is under way is cut off."""
        await asyncio.gather(*(pool.stop() for _, pool in self._offered))
        for serving, _ in self._offered:
            serving.close()
        self._offered.clear()
        if self._link is not None:
            self._link.close()
            self._link = None

    def _capabilities(self) -> list[Capability[..., Any]]:
        made: list[Capability[..., Any]] = [self.listed, self.figures, self.attached]
        made += [self.lines, self.runs_of, self.happened, self.cause]
        made += [self.dead_list, self.dead_show, self.dead_redrive]
        made += [self.effects_list, self.effects_show, self.effects_resolve]
        made += [self.tokens_list, self.tokens_create, self.tokens_revoke]
        if self.namespace == OPERATOR:
            made += [self.copy, self.end]
        return made

    # -- what is there ----------------------------------------------------------------------------

    @capability("loom.node.list", effect="pure")
    async def listed(self, kind: str) -> list[dict[str, Any]]:
        """List what is registered: "agents", "capabilities" or "topics", which are heard."""
        if kind not in {"agents", "capabilities", "topics"}:
            raise InvalidParams(
                f"there are no {kind!r}", field="kind", hint="agents, capabilities or topics"
            )
        one = "capability" if kind == "capabilities" else "agent"
        found = await self._parts.engine.directory(self.namespace, one)
        entries: list[dict[str, Any]] = [decode(entry) for entry in found]
        if kind == "capabilities":
            return [e for e in entries if not str(e["name"]).startswith("loom.")]
        if kind == "agents":
            return entries
        heard: dict[str, list[str]] = {}
        for entry in entries:
            for pattern in entry["filters"]:
                heard.setdefault(pattern, []).append(entry["name"])
        return [{"topic": topic, "agents": heard[topic]} for topic in sorted(heard)]

    @capability("loom.node.stats", effect="pure")
    async def figures(self) -> dict[str, Any]:
        """Return the figures of this namespace; to the operator those of the whole node."""
        stats = self._parts.engine.stats()
        if self.namespace == OPERATOR:
            return {**stats, "bridge": self._parts.bridge(), "urls": self._parts.urls()}
        kept = ("subscriptions", "capabilities", "logs")
        return {name: [e for e in stats[name] if e["namespace"] == self.namespace] for name in kept}

    @capability("loom.node.sessions", effect="pure")
    async def attached(self) -> list[dict[str, Any]]:
        """List who is attached to this namespace; to the operator, to all of them."""
        return self._parts.engine.sessions(None if self.namespace == OPERATOR else self.namespace)

    # -- the log ----------------------------------------------------------------------------------

    @capability("loom.node.logs", effect="pure")
    async def lines(
        self,
        agent: str | None = None,
        thread: str | None = None,
        correlation: str | None = None,
        run: str | None = None,
        topic: str | None = None,
        level: str | None = None,
        code: str | None = None,
        since: str | None = None,
        until: str | None = None,
        grep: str | None = None,
        limit: int = 200,
        after: int | None = None,
        wait: float = 0.0,
    ) -> AsyncIterator[dict[str, Any]]:
        """Give lines of the log, the oldest first: the newest, or those after one; 0: all.

        With ``wait`` they are waited for, at most so many seconds (20), where there are none yet;
        the last line is of type "end" then, and its ``n`` is where to go on.
        """
        wanted = Wanted(
            agent=agent,
            thread=thread,
            correlation=correlation,
            run=run,
            topic=topic,
            level=level,
            code=code,
            since=since,
            until=until,
            grep=grep,
            limit=_checked(limit),
        )
        over = asyncio.get_running_loop().time() + min(wait, _WAIT)
        begin, end = await self._look(lambda looking: asking.span(looking, wanted))
        last, given = begin if after is None else after, 0
        while True:
            most = min(wanted.limit - given, CONTROL_ROWS) if wanted.limit else CONTROL_ROWS
            rows = await self._page(wanted, last, end, most)
            for row in rows:
                yield _cut(row)
            given += len(rows)
            last = rows[-1]["n"] if rows else max(last, end)
            if len(rows) == most and given != wanted.limit:
                continue
            if given or asyncio.get_running_loop().time() >= over:
                break
            await asyncio.sleep(_PAUSE)
            end = (await self._look(lambda looking: asking.span(looking, Wanted())))[1]
        if wait:
            yield {"type": "end", "n": last}

    async def _page(self, wanted: Wanted, after: int, end: int, most: int) -> list[dict[str, Any]]:
        return await self._look(lambda looking: asking.logs(looking, wanted, after, end, most))

    @capability("loom.node.runs", effect="pure")
    async def runs_of(
        self, limit: int = 50, state: str | None = None, run: str | None = None
    ) -> AsyncIterator[dict[str, Any]]:
        """Give the newest runs, the newest last; or one, with its agents, calls and errors."""
        if run is None:
            most = _bounded(limit)
            for one in await self._look(lambda looking: asking.runs(looking, most, state)):
                yield one
            return
        found = await self._look(lambda looking: asking.run(looking, run))
        if found is None:
            raise NotFound(f"there is no run {run!r}", field="run", hint="nothing was logged yet")
        yield found

    @capability("loom.node.why", effect="pure")
    async def cause(self, event: str) -> dict[str, Any]:
        """Return the chain of causes that leads to an event."""
        data = self._directory()
        log = await asyncio.to_thread(open_log, data, namespace=self.namespace)
        chain = await asyncio.to_thread(log.why, event)
        return chain.shown()

    @capability("loom.node.replay", effect="pure")
    async def happened(
        self, run: str | None = None, since: str | None = None, until: str | None = None
    ) -> AsyncIterator[dict[str, Any]]:
        """Give what happened in a run, or from a position or time on and before another."""
        data = self._directory()
        log = await asyncio.to_thread(open_log, data, namespace=self.namespace)
        found = await asyncio.to_thread(asking.replayed, log, run, since, until)
        moments = iter(found)
        while portion := await asyncio.to_thread(lambda: list(islice(moments, CONTROL_ROWS))):
            for moment in portion:
                yield _short(moment.shown())

    @capability("loom.node.dead.list", effect="pure")
    async def dead_list(
        self, *, redriven: bool = False, limit: int = 200
    ) -> AsyncIterator[dict[str, Any]]:
        """Give the events that were given up, with their last errors, the newest last."""
        most = _bounded(limit)
        found = await self._look(
            lambda looking: asking.dead_letters(looking, redriven=redriven, limit=most)
        )
        for one in found:
            yield one

    @capability("loom.node.dead.show", effect="pure")
    async def dead_show(self, id: str) -> dict[str, Any]:
        """Return one event that was given up, with its data and with what led to it."""
        told = await self._look(lambda looking: asking.letter(looking, id))
        return {**told, "event": _cut(told["event"])}

    @capability("loom.node.dead.redrive", effect="unsafe")
    async def dead_redrive(
        self, *, id: str, data: Any = None, replace: bool = False
    ) -> dict[str, Any]:
        """Publish an event that was given up anew; with ``replace``, with other data."""
        row = await self._look(lambda looking: dict(asking.open_letter(looking, id)))
        payload = encode(data, "data") if replace else None
        receipt = await self._own().redrive(row["consumer"], row["n"], payload)
        return {
            "id": id,
            "event_id": receipt.id,
            "position": receipt.position,
            "topic": row["topic"],
            "agent": row["name"],
        }

    @capability("loom.node.effects.list", effect="pure")
    async def effects_list(
        self, *, unknown: bool = False, limit: int = 200
    ) -> AsyncIterator[dict[str, Any]]:
        """Give the calls that change something, and what became of them, the newest last."""
        most = _bounded(limit)
        found = await self._look(
            lambda looking: asking.effects(looking, unknown=unknown, limit=most)
        )
        for one in found:
            yield one

    @capability("loom.node.effects.show", effect="pure")
    async def effects_show(self, id: str) -> dict[str, Any]:
        """Return what the log knows of one effect."""
        return await self._look(lambda looking: asking.effect(looking, id))

    @capability("loom.node.effects.resolve", effect="unsafe")
    async def effects_resolve(
        self, *, id: str, done: bool, result: Any = None, note: str = ""
    ) -> dict[str, Any]:
        """Say what became of an unknown effect: done with a result, or not done."""
        found = await self._look(lambda looking: dict(asking.find_effect(looking, id)))
        payload = encode(result, "result") if done else None
        ledger = self._parts.engine.ledger(self._own(), self.namespace)
        await ledger.settle(found["effect"], payload, note)
        state = "reconciled" if done else "failed"
        return {"id": found["effect"], "state": state, "key": found["key"]}

    # -- tokens -----------------------------------------------------------------------------------

    @capability("loom.node.tokens.list", effect="pure")
    def tokens_list(self) -> list[dict[str, Any]]:
        """List the tokens of this namespace; to the operator all."""
        namespace = None if self.namespace == OPERATOR else self.namespace
        return [token.as_json for token in self._parts.tokens.tokens(namespace)]

    @capability("loom.node.tokens.create", effect="idempotent")
    def tokens_create(
        self,
        name: str,
        sha256: str,
        grants: dict[str, list[str]],
        expires: float | None = None,
        namespace: str | None = None,
    ) -> dict[str, Any]:
        """Take a token, of which only the hash is told: who makes it keeps it.

        It is for this namespace; the operator may name another one, or ``*`` for all.
        """
        chosen = self.namespace if namespace is None else namespace
        if chosen != self.namespace and self.namespace != OPERATOR:
            raise InvalidParams(
                f"a token made here is for {self.namespace!r}, not for {chosen!r}",
                field="namespace",
                hint=f"connect to that namespace, or to {OPERATOR!r}",
            )
        if chosen != ANYWHERE:
            check_name(chosen, field="namespace")
        token = self._parts.tokens.accept(
            sha256, name, namespace=chosen, grants=Grants.read(grants), expires=expires
        )
        self._parts.authorize()
        return token.as_json

    @capability("loom.node.tokens.revoke", effect="idempotent")
    def tokens_revoke(self, id: str) -> dict[str, Any]:
        """Take a token away; the sessions that came with it end."""
        namespace = None if self.namespace == OPERATOR else self.namespace
        token = self._parts.tokens.revoke(id, namespace=namespace)
        self._parts.authorize()
        return token.as_json

    # -- the whole node ---------------------------------------------------------------------------

    @capability("loom.node.backup", effect="unsafe", timeout=600.0)
    def copy(self, name: str) -> dict[str, Any]:
        """Copy the log to a new folder beside the data directory, and check the copy."""
        data = self._directory()
        check_name(name)
        data = data.absolute()
        to = data.with_name(f"{data.name}.backups") / name
        to.parent.mkdir(exist_ok=True, mode=0o700)
        copied = backup(data, to)
        return {
            "path": str(to),
            "files": copied.files,
            "bytes": copied.bytes,
            "namespaces": [
                {
                    "namespace": one.namespace,
                    "first": one.first,
                    "end": one.end,
                    "records": one.records,
                }
                for one in copied.namespaces
            ],
        }

    @capability("loom.node.drain", effect="idempotent")
    async def end(self) -> dict[str, Any]:
        """Let the node end: it takes nothing new, and goes when what is under way has ended."""
        self._parts.drain()
        return {"draining": True}

    # -- inside -----------------------------------------------------------------------------------

    def _own(self) -> Link:
        if self._link is None:
            raise NotSupported("the node is stopping", field="node")
        return self._link

    def _directory(self) -> Path:
        if self._parts.data is None:
            raise NotSupported(
                "this node has no data directory: nothing of its log outlives it",
                field="data",
                hint="loom up --data DIR",
            )
        return self._parts.data

    async def _look(self, ask: Callable[[Looking], Any]) -> Any:
        """Return what somebody finds in the view of this namespace's log, off the event loop."""
        place = Place(self._directory(), self.namespace)
        return await asyncio.to_thread(_looked, place, ask)


def _looked(place: Place, ask: Callable[[Looking], Any]) -> Any:
    with closing(Looking(place)) as looking:
        timer = threading.Timer(_LOOKS, looking.stop.set)
        timer.daemon = True
        timer.start()
        try:
            looking.catch_up()
            if looking.stopped is not None:
                _logger.error("the log of %s is damaged: %s", place.namespace, looking.stopped)
            return ask(looking)
        except sqlite3.DatabaseError as error:
            if not looking.stop.is_set():
                raise Internal(f"the view {looking.file} cannot be read: {error}") from None
            raise DeadlineExceeded(
                f"a look into the log takes more than {_LOOKS:g} s",
                hint="ask for less: a run, a topic, a time",
            ) from None
        finally:
            timer.cancel()


def _bounded(limit: int) -> int:
    return min(_checked(limit) or CONTROL_ROWS, CONTROL_ROWS)


def _checked(limit: int) -> int:
    if limit < 0:
        raise InvalidParams(f"a limit of {limit}", field="limit", hint="0: as many as may be")
    return limit


def _cut(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a line whose data fits into a chunk; of what is longer, how long it is."""
    data = row.get("data")
    is_long = isinstance(data, str) and len(data) > _LONGEST
    return {**row, "data": None} if is_long else dict(row)


def _short(moment: dict[str, Any]) -> dict[str, Any]:
    """Return a moment whose data fits into a chunk; longer data stands where the log is."""
    is_long = moment["data"] is not None and len(encode(moment["data"])) > _LONGEST
    return {**moment, "data": None} if is_long else moment


def _no_model() -> NoReturn:
    raise NotSupported("a node has no model of its own", field="model")


async def _no_agent(spec: object) -> NoReturn:
    raise NotSupported("a node runs no agents of its own", field="agent")
