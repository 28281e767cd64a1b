"""NATS JetStream and Redis Streams: a server of one's own on a free port, and its Python client.

The servers are those that ``make bench`` has brought into ``.venv-bench/servers``, or the system's.
"""

import asyncio
import os
import shutil
import socket
import subprocess
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from benchmarks import disk
from benchmarks.model import NotInstalledError, Sample
from benchmarks.workload import EVENT, check, encode, measure_acks

SERVERS: Final = Path(__file__).resolve().parents[2] / ".venv-bench" / "servers"
_START: Final = 10.0  # seconds in which a server answers
_STOP: Final = 10.0
_LOOK: Final = 0.02  # seconds between two tries to reach it
_SUBJECT: Final = "readings.hall"


def jetstream_synced(count: int, in_flight: int) -> Sample:
    """Publish to a stream whose file is synced before each ack."""
    return asyncio.run(_jetstream(count, in_flight, "sync_interval: always"))


def jetstream(count: int, in_flight: int) -> Sample:
    """Publish to a stream with the default settings: it is synced every two minutes."""
    return asyncio.run(_jetstream(count, in_flight, ""))


def redis_synced(count: int, in_flight: int) -> Sample:
    """Add to a stream of Redis with ``appendfsync always``, one connection a publisher."""
    return asyncio.run(_redis(count, in_flight))


async def _jetstream(count: int, in_flight: int, settings: str) -> Sample:
    nats = client("nats")
    server = program("nats-server", "nats-server")
    with disk.directory() as place:
        port = free_port()
        configuration = place / "server.conf"
        configuration.write_text(
            f'listen: "127.0.0.1:{port}"\njetstream {{ store_dir: "{place}/store"\n{settings} }}\n',
            encoding="utf-8",
        )
        with running((str(server), "-c", str(configuration)), place):
            await reachable(port)
            connection = await nats.connect(f"nats://127.0.0.1:{port}", max_reconnect_attempts=1)
            try:
                stream = connection.jetstream(timeout=60.0)
                await stream.add_stream(name="bench", subjects=["readings.>"])

                async def publish() -> None:
                    await stream.publish(_SUBJECT, encode(EVENT))

                figures = await measure_acks(count, in_flight, publish)
                kept = (await stream.stream_info("bench")).state.messages
                check(kept >= count // in_flight * in_flight, f"the stream has only {kept}")
                return figures
            finally:
                await connection.close()


async def _redis(count: int, in_flight: int) -> Sample:
    redis = client("redis.asyncio")
    server = program("redis-server", "redis/usr/bin/redis-server")
    with disk.directory() as place:
        port = free_port()
        command = (
            *(str(server), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(place)),
            *("--appendonly", "yes", "--appendfsync", "always", "--save", ""),
        )
        with running(command, place):
            await reachable(port)
            pool = redis.BlockingConnectionPool(
                host="127.0.0.1", port=port, max_connections=in_flight, timeout=60
            )
            connection = redis.Redis(connection_pool=pool)
            try:

                async def publish() -> None:
                    await connection.xadd(_SUBJECT, {"data": encode(EVENT)})

                figures = await measure_acks(count, in_flight, publish)
                kept = await connection.xlen(_SUBJECT)
                check(kept >= count // in_flight * in_flight, f"the stream has only {kept}")
                return figures
            finally:
                await connection.aclose()
                await pool.aclose()


def client(module: str) -> Any:
    """Return a peer's Python library."""
    try:
        return import_module(module)
    except ModuleNotFoundError:
        raise NotInstalledError(module) from None


def program(name: str, brought: str) -> Path:
    """Return the server, one's own before the system's."""
    own = SERVERS / brought
    if own.exists():
        return own
    of_system = shutil.which(name)
    if of_system is None:
        raise NotInstalledError(name)
    return Path(of_system)


def free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


@contextmanager
def running(command: Sequence[str], place: Path) -> Generator[None]:
    """Run a server for the time of the block; what it prints goes beside its data."""
    libraries = sorted(
        {str(one.parent) for one in SERVERS.glob("redis/**/*.so*")}
    )  # of a Redis that was unpacked and not installed
    with (place / "output").open("wb") as output:
        process = subprocess.Popen(
            command,
            env={**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(libraries)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(_STOP)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


async def reachable(port: int) -> None:
    """Wait until something listens there."""
    async with asyncio.timeout(_START):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(_LOOK)
            else:
                writer.close()
                await writer.wait_closed()
                return
