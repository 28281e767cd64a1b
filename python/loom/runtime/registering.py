"""What the engine and the directory are told of an app's agents and capabilities."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from loom.agent import AgentSpec, source_of
from loom.capabilities import Capability
from loom.codec import encode
from loom.context import HOST, TURN
from loom.directory import EFFECTS
from loom.envelope import start_code
from loom.errors import LoomError
from loom.runtime.host import Host, Services
from loom.runtime.pool import Pool
from loom.runtime.serving import Serving


async def register(
    services: Services, spec: AgentSpec, methods: Sequence[Capability[..., Any]]
) -> int:
    """Register an agent; return its handle.

    Raises:
        LoomError: the engine refused it.
    """
    link = services.link
    try:
        handle = link.session.register(
            spec.name,
            spec.filters,
            spec.group,
            spec.concurrency,
            _agent_info(spec, methods),
            spec.realtime,
            start_code(spec.start),
            spec.max_deliver,
            spec.exclusive,
        )
        await link.registered(handle)
        # Reading a source costs a start some of its time; only a recording names it.
        source = source_of(spec) if services.engine.is_recording else b""
        link.session.describe(handle, spec.version, source)
    except link.refusal as error:
        raise link.translate(error) from None
    return handle


async def provide(
    host: Host,
    capability: Capability[..., Any],
    provider: str,
    *,
    schemas: Mapping[str, Any] | None = None,
) -> tuple[Serving, Pool]:
    """Offer a capability; nothing of it runs yet.

    ``schemas`` are its "input" and "output" where they are known; else they are made of its hints.
    A function gets no more calls at a time than it has threads or processes: the others wait in
    the engine, not started.

    Raises:
        LoomError: the engine refused it, or it cannot have a process of its own.
    """
    link, terms = host.link, capability.terms
    serving = Serving(host, capability)
    try:
        handle = link.session.provide(
            terms.name,
            terms.version,
            EFFECTS.index(terms.effect),
            serving.limit,
            _capability_info(capability, provider, schemas or _schemas_of(capability)),
            provider,
            capability.prober is not None,
        )
        await link.registered(handle)
    except link.refusal as error:
        raise link.translate(error) from None
    timeouts = host.services.timeouts
    timeouts[terms.name, terms.version] = terms.timeout
    timeouts[terms.name, None] = max(terms.timeout, timeouts.get((terms.name, None), 0.0))
    return serving, pool_of(serving, handle)


def pool_of(serving: Serving, handle: int) -> Pool:
    """Return what takes the invocations of a capability that is offered."""
    name = f"loom capability {serving.name}"
    return Pool(serving.host.link, handle, serving, limit=serving.limit, name=name)


def _agent_info(spec: AgentSpec, methods: Sequence[Capability[..., Any]]) -> bytes:
    return encode(
        {
            "name": spec.name,
            "filters": list(spec.filters),
            "group": spec.group,
            "concurrency": spec.concurrency,
            "description": spec.description,
            "capabilities": [capability.name for capability in methods],
        }
    )


def _schemas_of(capability: Capability[..., Any]) -> Mapping[str, Any]:
    return {"input": capability.input_schema(), "output": capability.output_schema()}


def _capability_info(
    capability: Capability[..., Any], provider: str, schemas: Mapping[str, Any]
) -> bytes:
    terms = capability.terms
    return encode(
        {
            "name": terms.name,
            "version": terms.version,
            "effect": terms.effect,
            "timeout": terms.timeout,
            "cost": terms.cost,
            "tags": list(terms.tags),
            "description": capability.description,
            "input": schemas["input"],
            "output": schemas["output"],
            "streams": capability.streams,
            "needs_approval": terms.needs_approval,
            "provider": provider,
        }
    )


class _BusHandler(logging.Handler):
    """Publishes what is logged through a Context on ``loom.log.<level>``, in the Context's app."""

    def emit(self, record: logging.LogRecord) -> None:
        """Publish one record; what cannot be published stays a record only."""
        host: Host | None = getattr(record, HOST, None)
        if host is None:
            return
        try:
            payload = encode({"message": record.getMessage(), "logger": record.name})
            turn: Any = getattr(record, TURN, None)
            host.session.log(host.sender, turn, record.levelname.lower(), payload)
            host.link.look()  # who hears it is woken now
        except (host.link.refusal, LoomError):
            return  # the app has stopped, the agent was replaced, or a loop of logs was ended
        except Exception:  # noqa: BLE001  as the logging module wants it: a log line breaks nothing
            self.handleError(record)


_BUS_HANDLER = _BusHandler(logging.INFO)


def bus_logger(name: str) -> logging.Logger:
    """Return the logger of that name; what Contexts log through it is published, too."""
    logger = logging.getLogger(name)
    if _BUS_HANDLER not in logger.handlers:
        logger.addHandler(_BUS_HANDLER)
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)
    return logger
