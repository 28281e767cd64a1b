"""Partitions and loss as a network makes them: nftables drops packets between two namespaces.

Nobody's connection is cut, as the proxy does it: TCP itself has to find out and repair. Needs root.
``python -m tests.faults.partition --seed N --wanted N`` makes the namespaces, runs the clients in
one and the node in the other, and takes them away again.
"""

import argparse
import asyncio
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.faults.pairs import in_python
from tests.faults.trials import Load, Told, Up
from tests.faults.witness import witness

PATH: Final = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))
CLIENTS, NODE = "10.77.0.1", "10.77.0.2"
LINK: Final = "loom1"
"""The node's end of the wire between the two."""
LONG: Final = 17.0
"""Seconds after which both sides have found a silent connection dead."""
EVERY: Final = 10
"""One of so many partitions is that long."""

RULES: Final = {
    "the way up": 'iifname "{link}" drop',
    "the way down": 'oifname "{link}" drop',
    "both ways": 'meta iifname "{link}" drop; oifname "{link}" drop',
    "a third": 'iifname "{link}" numgen random mod 100 < 30 drop;'
    ' oifname "{link}" numgen random mod 100 < 30 drop',
    "refused": 'iifname "{link}" reject with tcp reset',
}
"""What is lost, as rules of nftables."""


def _run(*command: str, given: str | None = None) -> None:
    done = subprocess.run(
        command,
        input=given,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": PATH},
    )
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")


def rules(what: str | None) -> str:
    """Return the whole ruleset in which this is lost, or nothing."""
    text = "flush ruleset\n"
    if what is None:
        return text
    each = [rule.strip() for rule in RULES[what].format(link=LINK).split(";")]
    chains = {"input": [r for r in each if "iifname" in r]}
    chains["output"] = [r for r in each if "oifname" in r]
    text += "table inet faults {\n"
    for chain, inside in chains.items():
        text += f"chain {chain} {{\ntype filter hook {chain} priority 0; policy accept;\n"
        text += "".join(f"{rule.replace('reject', 'meta l4proto tcp reject')}\n" for rule in inside)
        text += "}\n"
    return text + "}\n"


class Net:
    """Two network namespaces with a wire between them."""

    def __init__(self) -> None:
        self.clients = f"loom-clients-{os.getpid()}"
        self.node = f"loom-node-{os.getpid()}"

    def lose(self, what: str | None) -> None:
        """Lose this from now on."""
        lose(self.node, what)

    def make(self) -> None:
        """Make them, or say what refuses."""
        for name in (self.clients, self.node):
            _run("ip", "netns", "add", name)
        wire = ("type", "veth", "peer", "name", LINK, "netns", self.node)
        _run("ip", "-n", self.clients, "link", "add", "loom0", *wire)
        ends = ((self.clients, "loom0", CLIENTS), (self.node, LINK, NODE))
        for name, link, address in ends:
            _run("ip", "-n", name, "addr", "add", f"{address}/24", "dev", link)
            for up in (link, "lo"):
                _run("ip", "-n", name, "link", "set", up, "up")

    def remove(self) -> None:
        """Take them away, and the wire with them."""
        for name in (self.clients, self.node):
            subprocess.run(
                ("ip", "netns", "del", name),
                capture_output=True,
                check=False,
                env={**os.environ, "PATH": PATH},
            )


def lose(namespace: str, what: str | None) -> None:
    """Lose this in a namespace from now on."""
    _run("ip", "netns", "exec", namespace, "nft", "-f", "-", given=rules(what))


@contextmanager
def made() -> Generator[Net]:
    """Two namespaces, as long as this lasts."""
    net = Net()
    try:
        net.make()
        yield net
    finally:
        net.remove()


def missing() -> str | None:
    """Say why there can be no partitions here, or nothing."""
    if os.geteuid() != 0:
        return "network namespaces take root"
    for program, package in (("ip", "iproute2"), ("nft", "nftables")):
        if shutil.which(program, path=PATH) is None:
            return f"{package} is not installed"
    try:
        with made() as net:
            for what in (*RULES, None):
                net.lose(what)
    except OSError as error:
        return f"the kernel refuses: {error}"
    return None


async def inside(seed: int, wanted: int, namespace: str) -> Told:
    """Lose packets again and again while durable events go to and fro; runs beside the clients.

    Each event is in the log once, and reaches its handler once and in the order of its lane.
    """
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="loom-net-") as folder:
        words = ("--insecure", "--unix", f"{folder}/s")
        up = Up(Path(folder), host=NODE, words=words, inside=("ip", "netns", "exec", namespace))
        await up.start()
        try:
            async with (
                witness(f"unix://{folder}/s", up.token) as seen,
                in_python(up.url, up.token) as (ears, publish),
            ):
                load = Load(ears, publish, rng)
                for done in range(wanted):
                    async with load.going():
                        is_long = done % EVERY == EVERY - 1
                        lose(namespace, rng.choice(list(RULES)))
                        await asyncio.sleep(LONG if is_long else rng.uniform(0.1, 2))
                        lose(namespace, None)
                        await load.handled(4)
                assert await load.settled() == 0, "handled twice"
            await load.kept(up)
        finally:
            up.kill()
    return {"partitions": wanted, "events": load.number, **seen}


def partitions(seed: int, wanted: int) -> Told:
    """Make the namespaces, and run that in them."""
    with made() as net:
        words = ("--seed", str(seed), "--wanted", str(wanted), "--inside", net.node)
        command: Sequence[str] = (
            *("ip", "netns", "exec", net.clients),
            *(sys.executable, "-m", "tests.faults.partition", *words),
        )
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            env={**os.environ, "PATH": PATH},
        )
    told: Told = json.loads(done.stdout.splitlines()[-1])
    return told


def main() -> None:
    """Run it and print what it tells."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--wanted", type=int, required=True)
    parser.add_argument("--inside")
    given = parser.parse_args()
    if given.inside:
        told = asyncio.run(inside(given.seed, given.wanted, given.inside))
    else:
        told = partitions(given.seed, given.wanted)
    print(json.dumps({**told, "failures": [], "seeds": f"from {given.seed}"}))


if __name__ == "__main__":
    main()
