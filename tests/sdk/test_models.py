"""Groups that crash and providers that fail, in random schedules, held against what is certain.

Two machines drive one running app each through the public API. What the reference models cannot
know, which member a new lane gets say, they read from the counters, and hold all that follows to
it.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import loom
from loom.errors import HandlerError, ProviderUnavailable
from loom.limits import (
    BREAKER_FAILURES,
    BREAKER_LONGEST_SECONDS,
    CALL_ATTEMPTS,
    CRASHES,
    RETRY_PERCENT,
    RETRY_START,
)
from loom.testing import Harness

pytestmark = pytest.mark.timeout(120)  # seconds alone, many on a busy machine

# -- groups ---------------------------------------------------------------------------------------

_CONCURRENCY = 2
_RESTARTED = 2.0  # seconds: one for turns under way to end, and less than one of pause
_ROUNDS = 100  # in each of which a group goes on with at least one event

End: TypeAlias = Literal["return", "meant", "exit"]


@dataclass(eq=False)
class Job:
    """One event of the group."""

    number: int
    key: str | None
    poison: bool
    id: str = ""
    home: str | None = None  # the member that has it; None: one of several heirs, or nobody
    moved: bool = False  # or was lost, in this step: others may have had it meanwhile
    state: Literal["waiting", "running", "ended", "lost"] = "waiting"
    outlives: bool = False  # its member was put into quarantine meanwhile: its lane went on
    gate: "asyncio.Future[End] | None" = None
    told: End | None = None

    @property
    def crashes(self) -> bool:
        """Whether its turn crashes the member that has it."""
        return self.poison or self.told == "exit"


class Group:
    """What is known of the members, and of all that was emitted."""

    def __init__(self, members: list[str]) -> None:
        self.members = members
        self.jobs: list[Job] = []
        self.health = dict.fromkeys(members, "up")
        self.crashed: Counter[str] = Counter()  # in all
        self.forgiven: Counter[str] = Counter()  # of these, before its last release
        self.failed: Counter[str] = Counter()
        self.heard: list[str] = members  # who was not in quarantine when this step began
        self.fell: set[str] = set()  # who crashed in this step
        self.eaten: list[Job] = []  # poison that must have crashed somebody: later ones have begun

    def next_step(self) -> None:
        """Forget what has happened in the step before."""
        self.fell.clear()
        self.heard = self.hearing()
        for job in self.jobs:
            job.moved = False

    def hearing(self) -> list[str]:
        return [m for m in self.members if self.health[m] != "quarantined"]

    def those(self, state: str, member: str | None = None) -> list[Job]:
        return [j for j in self.jobs if j.state == state and (member is None or j.home == member)]

    def lane(self, job: Job) -> list[Job]:
        return [job] if job.key is None else [j for j in self.jobs if j.key == job.key]

    def learn(self, agents: dict[str, dict[str, Any]]) -> None:
        """Take over how the members fare; what waits for those that left moves, or is lost."""
        left: list[str] = []
        for member in self.members:
            health, crashes = agents[member]["health"], agents[member]["crashes"]
            if crashes > self.crashed[member]:
                self.fell.add(member)
            self.crashed[member] = crashes
            count = crashes - self.forgiven[member]
            assert (health == "quarantined") == (count >= CRASHES), (member, health, count)
            if health == "quarantined" != self.health[member]:
                left.append(member)
            self.health[member] = health
        heirs = self.hearing()
        for job in self.those("running"):
            job.outlives |= job.home in left
        for job in self.those("waiting"):
            if job.home in left or (job.home is None and len(heirs) < 2):
                job.moved, job.home = True, heirs[0] if len(heirs) == 1 else None
                job.state = "waiting" if heirs else "lost"

    def give(self, job: Job, member: str | None) -> None:
        """A new event is at this member, None: at nobody."""
        if member is None:
            assert not self.hearing(), f"nobody got {job.number}"
            job.state = "lost"
            return
        assert member in self.hearing(), f"{member} is in quarantine and got {job.number}"
        held = [j for j in self.lane(job) if j is not job and j.state in ("waiting", "running")]
        homes = {j.home for j in held} - {None}
        if homes and not any(j.outlives for j in held):
            assert homes == {member}, f"{job.number} went to {member}, its lane is at {homes}"
        self.settle(job, member)

    def settle(self, job: Job, member: str) -> None:
        """All that waits in the lane of an event is where it is."""
        job.home = member
        for other in self.lane(job) if member in self.hearing() else []:
            if other.home is None and other.state == "waiting":
                other.home = member

    def at(self, job: Job, member: str) -> None:
        """This member has begun with an event: it must be the one that had it."""
        assert job.state in ("waiting", "lost"), f"{job.number} was begun twice"
        if job.moved and member in self.heard:
            job.state, job.home = "waiting", member
        assert job.state == "waiting", f"{job.number} was lost, and begun by {member}"
        assert job.home in (member, None), f"{job.number} is at {job.home}, not at {member}"
        self.settle(job, member)

    def begin(self, number: int, member: str, gate: "asyncio.Future[End]") -> Job:
        """A handler has begun."""
        job = self.jobs[number]
        assert not job.poison, f"a handler has seen {number}, at which {member} was to crash"
        up = self.health[member] == "up" or member in self.fell
        assert up, f"{member} is {self.health[member]} and began {number}"
        self.at(job, member)
        assert len(self.those("running", member)) < _CONCURRENCY, "more turns than its concurrency"
        lane = self.lane(job)
        for earlier in lane[: lane.index(job)]:
            if earlier.state == "waiting":
                assert earlier.poison, f"{number} was begun before {earlier.number} of its lane"
                self.eaten.append(earlier)
        running = [j.number for j in lane if j.state == "running" and not j.outlives]
        assert not running, f"{running} and {number} of one lane at a time"
        job.state, job.gate = "running", gate
        return job

    def stuck(self) -> list[int]:
        """Return what could run and does not."""
        free = {
            m
            for m in self.hearing()
            if self.health[m] == "up" and len(self.those("running", m)) < _CONCURRENCY
        }
        return [
            job.number
            for job in self.those("waiting")
            if ({job.home} if job.home is not None else set(self.hearing())) <= free
            and not any(j.state == "running" for j in self.lane(job))
        ]


class Members(RuleBasedStateMachine):
    """A group of two or three, of which some crash."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.wrong: list[AssertionError] = []
        self.read = 0  # events of the Harness
        self.up: set[str] = set()  # as the events tell it
        self.due: Counter[str] = Counter()  # crashes that must be told
        self.start_faults: set[str] = set()
        self.unheard = 0

    @initialize(count=st.sampled_from([2, 3]))
    def start(self, count: int) -> None:
        self.group = Group(["ann", "bob", "eve"][:count])
        self.up = set(self.group.members)
        self.app = loom.App("groups")
        for member in self.group.members:
            self._add(member)
        self.h = Harness(self.app)
        self.runner.run(self.h.__aenter__())

    def _add(self, member: str) -> None:
        @self.app.agent(member, topics=["job.>"], group="crew", concurrency=_CONCURRENCY)
        async def work(ctx: loom.Context, event: loom.Event[int]) -> None:
            gate: asyncio.Future[End] = asyncio.get_running_loop().create_future()
            job = self._checked(lambda: self._begun(event.data, member, gate))
            try:
                end = await gate
            finally:
                self._checked(lambda: self._ended(job, member))
            if end == "meant":
                raise HandlerError("meant")
            if end == "exit":
                raise SystemExit

    def _checked(self, step: Any) -> Any:
        """Keep for the machine what is wrong inside of a handler."""
        try:
            return step()
        except AssertionError as error:
            self.wrong.append(error)
            raise

    def _begun(self, number: int, member: str, gate: "asyncio.Future[End]") -> Job:
        self._learn()
        return self.group.begin(number, member, gate)

    def _ended(self, job: Job, member: str) -> None:
        self._learn()
        job.state, job.gate = "ended", None
        if job.told is None:
            assert self.group.health[member] != "up", f"{job.number} was cut off for no reason"
        if job.told != "return":
            self.group.failed[member] += 1

    def _learn(self) -> None:
        self.group.learn(self.h.stats()["runtime"]["agents"])

    def _run(self, coroutine: Coroutine[Any, Any, Any] | None = None) -> None:
        async def one() -> None:
            if coroutine is not None:
                await coroutine
            await self.h.idle()

        self.group.next_step()
        self.runner.run(one())
        self._learn()
        for event in self.h.events()[self.read :]:
            self.read += 1
            self._told(event)
        eaten, self.group.eaten = self.group.eaten, []
        assert all(job.state == "ended" for job in eaten), eaten
        assert not +self.due, f"crashes of {self.due} were not told"

    def _told(self, event: loom.Event[Any]) -> None:
        """Follow crashes by the events that tell of them: in their order, each once."""
        group = self.group
        if event.topic == "loom.directory.agent.changed":
            if event.data["health"] == "up":
                self.up.add(event.data["name"])
        elif event.topic == "loom.error.handler_error":
            member = event.data["who"].removeprefix("default/")
            if "event_id" not in event.data:
                if not self.due[member]:
                    assert member in self.start_faults, f"{member} crashed for no reason"
                    assert member not in self.up, f"{member} crashed at a start while it was up"
                    self.start_faults.remove(member)
                    return
                self.due[member] -= 1
                return
            (job,) = (j for j in group.jobs if j.id == event.data["event_id"])
            if job.poison:
                group.at(job, member)
                job.state = "ended"
                group.failed[member] += 1
            if job.crashes and member in self.up:
                self.up.remove(member)
                self.due[member] += 1

    # -- what can be done -------------------------------------------------------------------------

    async def _emit(self, key: str | None, *, poison: bool) -> None:
        job = Job(len(self.group.jobs), key, poison)
        self.group.jobs.append(job)
        topic = f"job.{job.number}" if poison else "job.work"
        if poison:
            for member in self.group.members:
                self.h.crash(member, at=topic)
        before = self._matched()
        receipt = await self.h.ctx.emit(topic, job.number, key=key)
        job.id = receipt.id
        more = list((self._matched() - before).elements())
        assert receipt.matched == 1 + len(more) <= 2, f"{job.number} went to {more}"  # and the tap
        self.unheard += not more
        self.group.give(job, more[0] if more else None)

    def _matched(self) -> Counter[str]:
        return Counter({name: row["matched"] for name, row in self._rows().items()})

    def _rows(self) -> dict[str, dict[str, Any]]:
        rows = self.h.stats()["subscriptions"]
        return {row["name"]: row for row in rows if row["kind"] == "agent"}

    @rule(key=st.sampled_from([None, "a", "b", "c"]), times=st.sampled_from([1, 1, 3]))
    def emit(self, key: str | None, times: int) -> None:
        for _ in range(times):
            self._run(self._emit(key, poison=False))

    @rule(key=st.sampled_from(["a", "b", "c"]), times=st.sampled_from([1, 2, CRASHES]))
    def crash(self, key: str, times: int) -> None:
        for _ in range(times):
            self._run(self._emit(key, poison=True))

    @rule(choice=st.integers(0, 2))
    def crash_at_start(self, choice: int) -> None:
        member = self.group.members[choice % len(self.group.members)]
        self.h.crash(member, at="start")
        self.start_faults.add(member)

    @precondition(lambda self: self.group.those("running"))
    @rule(choice=st.integers(0, 5), end=st.sampled_from(["return", "return", "meant", "exit"]))
    def end(self, choice: int, end: End) -> None:
        running = self.group.those("running")
        self._end(running[choice % len(running)], end)
        self._run()

    def _end(self, job: Job, end: End) -> None:
        assert job.gate is not None
        job.told = end
        job.gate.set_result(end)

    @rule(seconds=st.sampled_from([0.05, 0.5, _RESTARTED, 5 * _RESTARTED]))
    def advance(self, seconds: float) -> None:
        down = [m for m in self.group.members if self.group.health[m] == "restarting"]
        crashed = self.group.crashed.copy()
        self._run(self.h.advance(seconds))
        if seconds >= _RESTARTED:
            again = [m for m in down if self.group.crashed[m] == crashed[m]]
            assert all(self.group.health[m] == "up" for m in again), self.group.health

    @precondition(lambda self: len(self.group.hearing()) < len(self.group.members))
    @rule()
    def release(self) -> None:
        member = next(m for m in self.group.members if m not in self.group.hearing())
        self.group.forgiven[member] = self.group.crashed[member]
        self.group.health[member] = "restarting"
        self.app.release(member)
        is_ending = bool(self.group.those("running", member))
        faulty = member in self.start_faults
        self._run()
        health = "restarting" if is_ending or faulty else "up"
        assert self.group.health[member] == health or self.group.crashed[member], health

    # -- what must be true ------------------------------------------------------------------------

    @invariant()
    def each_event_is_handled_once_in_its_order_and_none_stands_still(self) -> None:
        assert not self.wrong, self.wrong
        assert not self.group.stuck(), f"{self.group.stuck()} could be handled and are not"

    @invariant()
    def the_books_are_those_of_the_model(self) -> None:
        group, rows = self.group, self._rows()
        for member in group.members:
            row = rows[member]
            done = (row["delivered"], row["failed"], row["leased"])
            running = len(group.those("running", member))
            assert done == (len(group.those("ended", member)), group.failed[member], running)
            if all(job.home is not None for job in group.those("waiting")):
                assert row["queued"] == len(group.those("waiting", member)), member
        total = Counter[str]()
        for row in rows.values():
            total.update({name: row[name] for name in ("matched", "queued")})
            total.update(row["dropped"])
        assert total["queued"] == len(group.those("waiting"))
        assert total["matched"] == len(group.jobs) - self.unheard
        assert total["unsubscribed"] == len(group.those("lost")) - self.unheard
        assert not total["overflow"] + total["lagging"] + total["session_gone"]
        topics = {row["topic"]: row["matched"] for row in self.h.stats()["topics"]}
        if "(other)" not in topics:
            heard = sum(n for topic, n in topics.items() if topic.startswith("job."))
            assert heard == total["matched"] + len(group.jobs)  # each by the tap, too

    @invariant()
    def crashes_are_counted(self) -> None:
        agents = self.h.stats()["runtime"]["agents"]
        for member in self.group.members:
            down = agents[member]["health"] != "up"
            assert agents[member]["crashes"] >= agents[member]["restarts"] + down

    def teardown(self) -> None:
        with contextlib.closing(self.runner):
            if not hasattr(self, "h"):
                return
            for _ in range(_ROUNDS):
                for job in self.group.those("running"):
                    self._end(job, "return")
                self._run(self.h.advance(_RESTARTED))
                if not self.group.those("waiting") and not self.group.those("running"):
                    break
            self.each_event_is_handled_once_in_its_order_and_none_stands_still()
            self.the_books_are_those_of_the_model()
            assert not self.group.those("waiting")
            assert not self.group.those("running")
            self.runner.run(self.h.__aexit__(None, None, None))  # checks the books


TestMembers = pytest.mark.requirement(
    "LANE-GROUP", "GROUP-LEAVES", "CRASH-RESTART", "CRASH-QUARANTINE", "CRASH-PLANTED"
)(Members.TestCase)
TestMembers.settings = settings(
    max_examples=50, stateful_step_count=40, deadline=None, derandomize=True
)


# -- the broker -----------------------------------------------------------------------------------

_EFFECTS: dict[str, Any] = {"look": "pure", "charge": "idempotent", "send": "unsafe"}
_OFFERED = {"1": ["ann", "bob"], "2": ["eve"]}
_PROVIDERS = [provider for offering in _OFFERED.values() for provider in offering]
_LATE = 0.25  # seconds
_WELL_AGAIN = BREAKER_LONGEST_SECONDS + 1.0

Mode: TypeAlias = Literal["well", "late", "unavailable", "broken", "hangs"]
Outcome: TypeAlias = list[Any] | str  # what was returned, or the code of the error
_CAPABILITIES = st.sampled_from(sorted(_EFFECTS))
_VERSIONS = st.sampled_from([None, "1", "1", "2"])
_MODES = st.sampled_from(["unavailable", "well", "late", "broken", "hangs"])
_TIMEOUTS = st.sampled_from([1.0, 2.0, 30.0])


@dataclass
class Attempt:
    """One run of a provider's function."""

    provider: str
    mode: Mode
    effect_id: str | None


class Work:
    """One call, and those that have joined it."""

    def __init__(self, number: int, name: str, version: str | None, key: str | None) -> None:
        self.number = number
        self.name = name
        self.version = version
        self.key = key
        self.attempts: list[Attempt] = []
        self.callers: list[Caller] = []
        self.sound: set[str] = set()  # who could certainly have served it when it was made
        self.is_drained = False  # nobody had a weight then

    @property
    def offering(self) -> list[str]:
        return _PROVIDERS if self.version is None else _OFFERED[self.version]

    @property
    def last(self) -> Mode | None:
        return self.attempts[-1].mode if self.attempts else None


@dataclass(eq=False)
class Caller:
    """Who waits for a work."""

    work: Work
    task: "asyncio.Task[Any]"
    deadline: float
    conflicts: bool
    is_refused: bool = False
    outcome: Outcome | None = None


class Broker:
    """What is certain of providers and of those who call them."""

    def __init__(self) -> None:
        self.works: list[Work] = []
        self.modes: dict[str, Mode] = dict.fromkeys(_PROVIDERS, "well")
        self.drained: dict[tuple[str, str], int] = {}  # the first work made since then
        self.failures: Counter[tuple[str, str]] = Counter()  # at least as many as were counted
        self.timeouts: Counter[tuple[str, str]] = Counter()

    def callers(self) -> list[Caller]:
        return [caller for work in self.works for caller in work.callers]

    def open(self, name: str, version: str | None, key: str | None) -> Work:
        work = Work(len(self.works), name, version, key)
        work.sound = {p for p in work.offering if self.is_sound(name, p)}
        work.is_drained = all((name, p) in self.drained for p in work.offering)
        self.works.append(work)
        return work

    def is_sound(self, name: str, provider: str) -> bool:
        """Whether it cannot be ejected and has a weight."""
        failed = self.failures[name, provider]
        return failed < BREAKER_FAILURES and (name, provider) not in self.drained

    def still_sound(self, work: Work) -> list[str]:
        """Who could have served it all the time since it was made."""
        return [p for p in work.offering if p in work.sound and self.is_sound(work.name, p)]

    def begin(self, work: Work, attempt: Attempt) -> Mode:
        """A provider has begun; return how it fares."""
        name, provider, before = work.name, attempt.provider, work.attempts
        effect = _EFFECTS[name]
        assert provider in work.offering, f"{provider} does not offer {work.version}"
        drained_from = self.drained.get((name, provider), len(self.works))
        assert work.number < drained_from, f"{provider} has the weight 0 for {name}"
        if before:
            assert len(before) < CALL_ATTEMPTS, f"{work.number} is tried too often"
            assert work.last == "unavailable", f"tried again after it was {work.last}"
            assert effect != "unsafe" or work.key is not None, f"{name} was run twice"
            others = next(o for o in _OFFERED.values() if provider in o)
            assert before[0].provider in others, "tried again in another version"
            assert {a.effect_id for a in before} == {attempt.effect_id}
            fits = [p for p in others if self.is_sound(name, p) and not self.timeouts[name, p]]
            assert before[-1].provider != provider or fits in ([], [provider]), fits
        elif work.version is None:
            newest = [p for p in self.still_sound(work) if p in _OFFERED["2"]]
            assert provider in newest or not newest, "an older version was chosen"
        assert (attempt.effect_id is None) == (effect == "pure")
        work.attempts.append(attempt)
        self.failures[name, provider] += attempt.mode not in ("well", "late")
        self.timeouts[name, provider] += attempt.mode == "hangs"
        return attempt.mode

    def end(self, caller: Caller, outcome: Outcome, now: float) -> None:
        """A caller has its outcome: it must follow from what the providers did."""
        work, last = caller.work, caller.work.last
        assert caller.outcome is None
        caller.outcome = outcome
        if caller.conflicts:
            assert outcome == "CONFLICT", outcome
            caller.is_refused = True
        elif isinstance(outcome, list):
            assert last in ("well", "late"), last
            assert outcome == [work.number, work.attempts[-1].provider]
        elif outcome == "CAPABILITY_ERROR":
            assert last == "broken", last
        elif outcome == "PROVIDER_UNAVAILABLE":
            assert last in ("unavailable", None), last
            sound = self.still_sound(work)
            assert last is not None or not sound, f"{sound} could have served it"
        else:
            began = last in ("late", "hangs")
            is_unknown = began and _EFFECTS[work.name] != "pure"
            assert outcome == ("INDETERMINATE" if is_unknown else "TIMEOUT"), (outcome, last)
            assert now >= caller.deadline, f"{outcome} before its deadline"
            narrow = any(self.timeouts[work.name, p] for p in work.offering)
            assert began or narrow, f"{work.number} was begun by nobody"
            if last == "late":
                self.failures[work.name, work.attempts[-1].provider] += 1
                self.timeouts[work.name, work.attempts[-1].provider] += 1
        assert not work.is_drained or caller.is_refused or outcome == "PROVIDER_UNAVAILABLE"
        same = [c.outcome for c in work.callers if not c.conflicts and c.outcome is not None]
        timeless = [o for o in same if o not in ("TIMEOUT", "INDETERMINATE")]
        assert all(o == timeless[0] for o in timeless), f"callers of one work got {timeless}"


class Calls(RuleBasedStateMachine):
    """Three providers of three capabilities that fail as they are told."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.model = Broker()
        self.now = 0.0
        self.joined = 0
        self.wrong: list[AssertionError] = []

    @initialize(modes=st.lists(_MODES, min_size=3, max_size=3))
    def start(self, modes: list[Mode]) -> None:
        self.model.modes.update(zip(_PROVIDERS, modes, strict=True))
        self.app = loom.App("calls")
        for version, offering in _OFFERED.items():
            for provider in offering:
                self._add(provider, version)
        self.h = Harness(self.app)
        self.runner.run(self.h.__aenter__())

    def _add(self, provider: str, version: str) -> None:
        async def run(number: int, effect_id: str | None = None) -> list[Any]:
            return await self._serve(provider, number, effect_id)

        @self.app.agent(provider)
        class Provider(loom.Agent):
            @loom.capability("look", effect="pure", version=version)
            async def look(self, number: int, text: str) -> list[Any]:
                return await run(number)

            @loom.capability("charge", effect="idempotent", version=version)
            async def charge(
                self, number: int, text: str, effect_id: str | None = None
            ) -> list[Any]:
                return await run(number, effect_id)

            @loom.capability("send", effect="unsafe", version=version)
            async def send(self, number: int, text: str, effect_id: str | None = None) -> list[Any]:
                return await run(number, effect_id)

    async def _serve(self, provider: str, number: int, effect_id: str | None) -> list[Any]:
        attempt = Attempt(provider, self.model.modes[provider], effect_id)
        try:
            mode = self.model.begin(self.model.works[number], attempt)
        except AssertionError as error:
            self.wrong.append(error)
            raise
        if mode == "unavailable":
            raise ProviderUnavailable("not now")
        if mode == "broken":
            raise ValueError
        if mode == "hangs":
            await asyncio.Event().wait()
        if mode == "late":
            await self.h.ctx.sleep(_LATE)
        return [number, provider]

    def _run(self, coroutine: Coroutine[Any, Any, Any] | None = None) -> None:
        async def one() -> None:
            if coroutine is not None:
                await coroutine
            await self.h.idle()

        self.runner.run(one())
        for caller in self.model.callers():
            if caller.outcome is None and caller.task.done():
                self.model.end(caller, _outcome(caller.task), self.now)

    def _call(self, work: Work, timeout: float, *, conflicts: bool = False) -> Caller:
        args = {"number": work.number, "text": "other" if conflicts else "same"}
        call = self.h.ctx.tool(
            work.name, args=args, timeout=timeout, key=work.key, version=work.version
        )
        task = self.runner.get_loop().create_task(call)
        caller = Caller(work, task, self.now + timeout, conflicts)
        work.callers.append(caller)
        return caller

    def _settle(self, first: list[Caller], others: list[Caller]) -> None:
        """Let new calls go as far as they do: those that end before anything else are refused."""
        self.runner.run(_begin())
        for caller in [*first, *others]:
            caller.is_refused = caller.task.done()
            work = caller.work
            assert not work.is_drained or caller.is_refused, f"{work.number} waits for nobody"
        self._run()
        self.joined += sum(not caller.is_refused for caller in others)

    # -- what can be done -------------------------------------------------------------------------

    @rule(provider=st.sampled_from([*_PROVIDERS, None]), mode=_MODES)
    def switch(self, provider: str | None, mode: Mode) -> None:
        for one in _PROVIDERS if provider is None else [provider]:
            self.model.modes[one] = mode

    @rule(
        name=_CAPABILITIES,
        version=_VERSIONS,
        timeout=_TIMEOUTS,
        times=st.sampled_from([1, 3, 12]),
    )
    def call(self, name: str, version: str | None, timeout: float, times: int) -> None:
        works = [self.model.open(name, version, None) for _ in range(times)]
        self._settle([self._call(work, timeout) for work in works], [])

    @rule(
        name=_CAPABILITIES,
        version=_VERSIONS,
        timeouts=st.tuples(_TIMEOUTS, _TIMEOUTS),
        conflicts=st.booleans(),
    )
    def call_twice(
        self, name: str, version: str | None, timeouts: tuple[float, float], conflicts: bool
    ) -> None:
        work = self.model.open(name, version, f"k{len(self.model.works)}")
        first, second = (self._call(work, timeout) for timeout in timeouts)
        self._settle([first], [second])
        if conflicts:
            self._conflict(work)

    def _live(self) -> list[Work]:
        live = (w for w in self.model.works if w.key is not None)
        return [w for w in live if any(c.outcome is None for c in w.callers)]

    @precondition(lambda self: self._live())
    @rule(choice=st.integers(0, 9), timeout=_TIMEOUTS, conflicts=st.booleans())
    def join(self, choice: int, timeout: float, conflicts: bool) -> None:
        live = self._live()
        work = live[choice % len(live)]
        if conflicts:
            self._conflict(work)
            return
        self._run()
        self.joined += 1
        self._call(work, timeout)
        self._run()

    def _conflict(self, work: Work) -> None:
        if any(c.outcome is None for c in work.callers):
            caller = self._call(work, 1.0, conflicts=True)
            self._run()
            assert caller.outcome == "CONFLICT"

    @rule(
        name=_CAPABILITIES, weights=st.lists(st.sampled_from([0, 0, 1, 3]), min_size=3, max_size=3)
    )
    def weigh(self, name: str, weights: list[int]) -> None:
        self._weigh(name, dict(zip(_PROVIDERS, weights, strict=True)))

    @rule(name=_CAPABILITIES)
    def clear(self, name: str) -> None:
        self._weigh(name, None)

    def _weigh(self, name: str, weights: dict[str, int] | None) -> None:
        for provider in _PROVIDERS:
            if weights is None or weights[provider]:
                self.model.drained.pop((name, provider), None)
            else:
                self.model.drained.setdefault((name, provider), len(self.model.works))
        if weights is None:
            self.app.routes.clear(name)
        else:
            self.app.routes.set(name, weights)

    @rule(seconds=st.sampled_from([0.125, 0.5, 1.0, 4.0]))
    def advance(self, seconds: float) -> None:
        self.now += seconds
        self._run(self.h.advance(seconds))

    def recover(self) -> None:
        """All are well again: after the longest ejection each call is served at once."""
        self.switch(None, "well")
        for name in _EFFECTS:
            self._weigh(name, None)
        self.advance(_WELL_AGAIN)
        for name in _EFFECTS:
            for version in ("1", "1", "2", None):
                caller = self._call(self.model.open(name, version, None), 1.0)
                self._settle([caller], [])
                assert isinstance(caller.outcome, list), caller.outcome

    # -- what must be true ------------------------------------------------------------------------

    @invariant()
    def each_call_has_one_outcome_by_its_deadline(self) -> None:
        assert not self.wrong, self.wrong
        late = [c.deadline for c in self.model.callers() if c.outcome is None]
        assert all(deadline > self.now for deadline in late), late

    @invariant()
    def retries_are_few_and_breakers_open_for_a_reason(self) -> None:
        for name in _EFFECTS:
            rows = [row for row in self.h.stats()["capabilities"] if row["name"] == name]
            providers = {p["provider"]: p for row in rows for p in row["providers"]}
            begun = [work.attempts for work in self.model.works if work.name == name]
            begun = [attempts for attempts in begun if attempts]
            retried = sum(p["retries"] for p in providers.values())
            again = sum(len(attempts) - 1 for attempts in begun)
            assert again <= retried <= len(begun) * RETRY_PERCENT / 100 + RETRY_START, name
            ejected = {p for p, row in providers.items() if row["health"] != "up"}
            assert not set(_OFFERED["1"]) <= ejected, "all who offer a version are ejected"
            for provider in ejected:
                assert self.model.failures[name, provider] >= BREAKER_FAILURES, provider

    @invariant()
    def the_books_are_those_of_the_model(self) -> None:
        stats, callers = self.h.stats(), self.model.callers()
        ends = Counter(_end_of(c.outcome) for c in callers if c.outcome is not None)
        calls = stats["calls"]
        names = ("ok", "error", "timeout", "cancelled", "indeterminate")
        assert {name: calls[name] for name in names} == {name: ends[name] for name in names}
        assert calls["started"] == len(callers)
        assert calls["pending"] == len(callers) - ends.total()
        assert calls["joined"] == self.joined
        assert not calls["late"] + calls["double"] + calls["foreign"]
        rows = stats["capabilities"]
        assert calls["retried"] == sum(p["retries"] for row in rows for p in row["providers"])
        for name in _EFFECTS:
            taken = [c for c in callers if c.work.name == name and not c.is_refused]
            codes = Counter(c.outcome for c in taken if isinstance(c.outcome, str))
            told = Counter[str]()
            for row in (row for row in rows if row["name"] == name):
                told.update({"calls": row["calls"], "ok": row["ok"]})
                told.update(row["errors"])
            assert told.pop("calls", 0) == len(taken), name
            assert told.pop("ok", 0) == sum(isinstance(c.outcome, list) for c in taken), name
            assert told == codes, name

    def teardown(self) -> None:
        with contextlib.closing(self.runner):
            if not hasattr(self, "h"):
                return
            self.recover()
            self.each_call_has_one_outcome_by_its_deadline()
            self.the_books_are_those_of_the_model()
            assert all(caller.task.done() for caller in self.model.callers())
            self.runner.run(self.h.__aexit__(None, None, None))  # checks the books


async def _begin() -> None:
    """Return when the tasks that were made before have begun."""


def _outcome(task: "asyncio.Task[Any]") -> Outcome:
    error = task.exception()
    if error is None:
        return task.result()
    assert isinstance(error, loom.LoomError), repr(error)
    return error.code


def _end_of(outcome: Outcome) -> str:
    if isinstance(outcome, list):
        return "ok"
    return {"TIMEOUT": "timeout", "INDETERMINATE": "indeterminate"}.get(outcome, "error")


TestCalls = pytest.mark.requirement(
    "CALL-ONE-OUTCOME", "CALL-RETRY", "CALL-BUDGET", "CALL-JOIN", "CALL-WEIGHTS", "CALL-VERSIONS"
)(Calls.TestCase)
TestCalls.settings = settings(
    max_examples=50, stateful_step_count=40, deadline=None, derandomize=True
)
