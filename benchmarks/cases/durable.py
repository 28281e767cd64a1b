"""Publish 64 events at a time, each acked when it is on the disk, from Python."""

import asyncio
from functools import partial

import loom
from benchmarks import disk
from benchmarks.model import Case, Sample, Side, Target
from benchmarks.peers import servers
from benchmarks.workload import EVENT, check, measure_acks
from loom.envelope import AckLevel

LOOM = "Loom"
JETSTREAM = "NATS JetStream, sync_interval: always"
REDIS = "Redis Streams, appendfsync always"


def publish(count: int, in_flight: int, ack: AckLevel = "disk") -> Sample:
    """Publish to a log in a new directory; nobody hears the events."""
    return asyncio.run(_publish(count, in_flight, ack))


async def _publish(count: int, in_flight: int, ack: AckLevel) -> Sample:
    app = loom.App("bench")
    with disk.directory() as place:
        async with app.running(data=place) as ctx:

            async def publish_one() -> None:
                receipt = await ctx.emit("readings.hall", EVENT, ack=ack)
                check(receipt.level == ack, f"acked as {receipt.level}")

            return await measure_acks(count, in_flight, publish_one)


CASE = Case(
    name="durable",
    title="durable publish, acked from the disk, 64 in flight",
    sides=(
        Side(name=LOOM, run=partial(publish, in_flight=64), count=32_000),
        Side(name=JETSTREAM, run=partial(servers.jetstream_synced, in_flight=64), count=2_000),
        Side(name=REDIS, run=partial(servers.redis_synced, in_flight=64), count=6_000),
    ),
    targets=(
        Target(
            name="durable-jetstream",
            promise="64 durable publishes in flight against JetStream that syncs each",
            metric="rate",
            of=LOOM,
            against=JETSTREAM,
            at_least=8,
        ),
        Target(
            name="durable-redis",
            promise="64 durable publishes in flight against Redis Streams that sync each",
            metric="rate",
            of=LOOM,
            against=REDIS,
            at_least=3,
        ),
    ),
)
