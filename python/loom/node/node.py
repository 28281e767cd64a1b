"""A node: an engine, its Bridge, its tokens, its control; and what tells its user where it is.

It imports no user code. ``hosting`` runs one while its block runs.
"""

import asyncio
import fcntl
import logging
import os
import secrets
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from loom.address import (
    LOCK_FILE,
    NODE_FILE,
    Address,
    NodeFile,
    find_node,
    is_loopback,
    parse_bind,
    read_private,
)
from loom.codec import encode
from loom.config import BridgeConfig, Config
from loom.errors import Denied, InvalidParams, LoomError
from loom.limits import STOP_SECONDS
from loom.link import Local, open_local
from loom.link.local import Served
from loom.node.control import OPERATOR, Control, Parts
from loom.node.tokens import TokenStore, write_private

_LOOK: Final = 1.0  # seconds between two looks at the file of the tokens
_ANY: Final = ("0.0.0.0", "::", "")  # noqa: S104  a host that is every address of the machine
_SOCKET: Final = "node.sock"
_SOCKET_BYTES: Final = 108  # of a path that a socket may have, with the zero behind it
_logger = logging.getLogger("loom.node")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a node is to be: how its log is kept and where it listens, checked."""

    config: Config
    data: Path | None
    bridge: BridgeConfig
    accept_loss: bool = False

    def __post_init__(self) -> None:
        """Refuse what would expose it, or cannot work.

        Raises:
            InvalidParams: it may be reached from elsewhere without TLS; half of a certificate.
            Denied: somebody else may read the key.
            NotFound: the key is not there.
        """
        bridge = self.bridge
        if (bridge.tls_cert is None) != (bridge.tls_key is None):
            missing = "tls_key" if bridge.tls_key is None else "tls_cert"
            raise InvalidParams(
                "a certificate and its key go together",
                field=missing,
                hint="give --tls-cert and --tls-key",
            )
        if bridge.tls_key is not None:
            try:
                read_private(bridge.tls_key)
            except LoomError as error:
                error.field = "tls_key"
                raise
        elif bridge.tls_client_ca is not None:
            raise InvalidParams(
                "client certificates are asked for over TLS only",
                field="tls_client_ca",
                hint="give --tls-cert and --tls-key",
            )
        if not bridge.bind and bridge.unix is None:
            raise InvalidParams("it would listen nowhere", field="bind", hint="--bind 127.0.0.1:0")
        for one in bridge.bind:
            host, _ = parse_bind(one)
            if not is_loopback(host) and bridge.tls_cert is None and not bridge.insecure:
                raise InvalidParams(
                    f"{one} can be reached from other machines, and there is no TLS: tokens and "
                    "data could be read on the way",
                    field="bind",
                    hint="give --tls-cert and --tls-key; --insecure where the network is trusted",
                )


class Node:
    """One node while it runs."""

    def __init__(self, plan: Plan, engine: Local, tokens: TokenStore) -> None:
        self._plan = plan
        self._engine = engine
        self._tokens = tokens
        self._boot = secrets.token_hex(16)
        self._controls: dict[str, Control] = {}
        self._came = asyncio.Event()
        self.asked_to_end = asyncio.Event()
        self.is_found = False  # programs of its user find it, and no other one
        self.token_file: Path = tokens.admin()
        self._socket = self._local_socket()
        self.served: Served = self._serve()
        self._parts = Parts(
            engine=engine,
            tokens=tokens,
            data=plan.data,
            authorize=self._authorize,
            drain=self.asked_to_end.set,
            urls=lambda: list(self.urls),
            bridge=self.served.stats,
        )

    def _local_socket(self) -> Path | None:
        """Return the Unix socket to listen on.

        A certificate is for the names that others use: where there is one, programs of this user
        come by a socket beside ``node.json``, unless another node of theirs has it.
        """
        bridge, runtime = self._plan.bridge, self._plan.config.runtime
        if bridge.unix is not None:
            return bridge.unix.absolute()
        if bridge.tls_cert is None or find_node(runtime) is not None:
            return None
        socket = (runtime / _SOCKET).absolute()
        if len(os.fsencode(socket)) >= _SOCKET_BYTES:
            return None
        runtime.mkdir(parents=True, exist_ok=True, mode=0o700)
        return socket

    def _serve(self) -> Served:
        bridge = self._plan.bridge
        tls = None
        if bridge.tls_cert is not None and bridge.tls_key is not None:
            tls = (bridge.tls_cert, bridge.tls_key, bridge.tls_client_ca)
        try:
            return self._engine.serve(
                bind=[_numeric(one) for one in bridge.bind],
                unix=self._socket,
                tls=tls,
                origins=bridge.origins,
                hosts=bridge.hosts,
                credentials=self._tokens.credentials(),
            )
        except LoomError as error:
            if error.field == "listen":
                error.field = "bind"  # as it is called here
            raise

    @property
    def urls(self) -> tuple[str, ...]:
        """Where it can be reached from this machine, the nearest first."""
        bridge = self._plan.bridge
        scheme = "loom" if bridge.tls_cert is None else "looms"
        found: list[str] = []
        if self._socket is not None:
            found.append(Address("unix", path=str(self._socket)).url)
        for one in self.served.addresses:
            host, port = parse_bind(one)
            near = "127.0.0.1" if host in _ANY else host
            found.append(Address(scheme, near, port).url)
        return tuple(found)

    @property
    def told(self) -> NodeFile:
        """What the programs of its user are told."""
        data = self._plan.data
        return NodeFile(
            urls=self.urls,
            token_file=str(self.token_file.absolute()),
            pid=os.getpid(),
            boot=self._boot,
            data=None if data is None else str(data.absolute()),
        )

    # -- while it runs ----------------------------------------------------------------------------

    async def start(self) -> None:
        """Offer control in the operator's namespace."""
        asyncio.get_running_loop().add_reader(self.served.fd, self._came.set)
        await self._control(OPERATOR)

    async def attend(self) -> None:
        """Offer control wherever somebody comes, and follow the file of the tokens; for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow_namespaces())
            group.create_task(self._follow_tokens())

    async def _follow_namespaces(self) -> None:
        while True:
            await self._came.wait()
            self._came.clear()
            for namespace in self.served.opened():
                try:
                    await self._control(namespace)
                except LoomError:
                    _logger.exception("there is no control in namespace %s", namespace)

    async def _control(self, namespace: str) -> None:
        if namespace not in self._controls:
            control = self._controls[namespace] = Control(self._parts, namespace)
            await control.start()

    async def _follow_tokens(self) -> None:
        seen, is_well = self._tokens.credentials(), True
        while True:
            await asyncio.sleep(_LOOK)
            try:
                now = self._tokens.credentials()
                if now != seen:
                    self.served.authorize(now)
            except LoomError:
                if is_well:
                    _logger.exception("the tokens stay as they were")
                is_well = False
                continue
            seen, is_well = now, True

    def _authorize(self) -> None:
        self.served.authorize(self._tokens.credentials())

    # -- its end ----------------------------------------------------------------------------------

    async def drain(self) -> None:
        """Take nothing new, and let what is under way end, within ``STOP_SECONDS``."""
        if not await self.served.drain(STOP_SECONDS):
            _logger.warning("cut off after %d s", STOP_SECONDS)

    async def stop(self) -> None:
        """Let go of all connections."""
        asyncio.get_running_loop().remove_reader(self.served.fd)
        self.served.close()
        for control in self._controls.values():
            await control.stop()


@asynccontextmanager
async def hosting(plan: Plan) -> AsyncGenerator[Node]:
    """Run a node while the block runs.

    Leaving it drains: it takes nothing new, and what is under way has ``STOP_SECONDS`` to end. A
    cancellation meanwhile ends it at once.

    Raises:
        LoomError: the data directory, an address or a file cannot be used.
    """
    config = plan.config
    log = replace(config.log, dir=plan.data)
    _own(config.runtime)
    if plan.data is None:
        _own(config.state)
    else:
        _writable(plan.data)
    folder = config.state if plan.data is None else plan.data
    engine = open_local(log=log, accept_loss=plan.accept_loss)
    try:
        node = Node(plan, engine, TokenStore(folder, engine.clock.wall))
        try:
            await node.start()
            with _announced(config.runtime, node.told) as is_found:
                node.is_found = is_found
                attending = asyncio.get_running_loop().create_task(node.attend(), name="loom node")
                try:
                    yield node
                    await node.drain()
                finally:
                    attending.cancel()
                    await asyncio.wait([attending])
        finally:
            await node.stop()
    finally:
        await engine.close()


def _own(folder: Path) -> None:
    """Make a folder of this user's.

    Raises:
        Denied: it cannot be made, or not be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        why = None if os.access(folder, os.W_OK | os.X_OK) else "you may not write to it"
    except OSError as error:
        why = error.strerror
    if why is not None:
        raise Denied(
            f"a node keeps something in {folder}, and that cannot be: {why}",
            field="LOOM_HOME",
            hint="LOOM_HOME names a folder that you may write to",
        )


def _writable(data: Path) -> None:
    """Refuse a data directory that could not be written, before anything is done there.

    Raises:
        Denied: you may not write to it, or not make it.
    """
    there = next(one for one in (data.absolute(), *data.absolute().parents) if one.exists())
    if not os.access(there, os.W_OK | os.X_OK) and there.is_dir():
        raise Denied(
            f"the log cannot be kept in {data}: you may not write to {there}",
            field="data",
            hint="name a directory of yours: --data DIR",
        )


class _announced:  # noqa: N801  used as a function
    """Tells the programs of this user where the node is, unless another one has told already."""

    def __init__(self, runtime: Path, told: NodeFile) -> None:
        self._runtime = runtime
        self._told = told
        self._lock: int | None = None

    def __enter__(self) -> bool:
        """Tell them; return whether they have been told."""
        self._runtime.mkdir(parents=True, exist_ok=True, mode=0o700)
        flags = os.O_CREAT | os.O_RDWR | os.O_CLOEXEC
        lock = os.open(self._runtime / LOCK_FILE, flags, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return False
        self._lock = lock
        write_private(self._runtime / NODE_FILE, encode(self._told.as_json) + b"\n")
        return True

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            with suppress(FileNotFoundError):
                (self._runtime / NODE_FILE).unlink()
            os.close(self._lock)


def _numeric(bind: str) -> str:
    host, port = parse_bind(bind)
    host = "127.0.0.1" if host == "localhost" else host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
