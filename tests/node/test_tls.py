"""Nodes with TLS, from Python: whom a client trusts, what it shows, and what it says when not."""

import asyncio
import shutil
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import loom
from loom.address import read_token
from loom.config import BridgeConfig, load
from loom.errors import Denied, InvalidParams, LoomError, NotFound, Unauthenticated, Unavailable
from loom.node.node import Node, Plan, hosting
from tests.node.certificates import Authority, Signed

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.skipif(shutil.which("openssl") is None, reason="OpenSSL makes the certificates"),
]
WAYS = pytest.mark.parametrize("scheme", ["looms", "wss"])


class Kept:
    """Certificates that the tests of this file share."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority(folder / "one")
        self.other = Authority(folder / "other")
        self.node = self.authority.sign("node")
        self.elsewhere = self.authority.sign("far", names="DNS:node.example.org")
        self.old = self.authority.sign("old", to="20200201000000Z")
        self.client = self.authority.sign("client")
        self.stranger = self.other.sign("stranger")


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    return Kept(tmp_path_factory.mktemp("tls"))


@asynccontextmanager
async def node(folder: Path, signed: Signed, **more: Any) -> AsyncGenerator[Node]:
    config = load(environment={"LOOM_HOME": str(folder)})
    more = {"bind": ("127.0.0.1:0",), **more}
    bridge = BridgeConfig(tls_cert=signed.cert, tls_key=signed.key, **more)
    async with hosting(Plan(config=config, data=None, bridge=bridge)) as running:
        yield running


def reach(running: Node, scheme: str, host: str = "127.0.0.1") -> dict[str, str]:
    port = running.served.addresses[0].rpartition(":")[2]
    return {"url": f"{scheme}://{host}:{port}", "token": read_token(running.token_file)}


async def ask(**options: Any) -> Any:
    async with loom.connect(**options) as ctx:
        receipt = await ctx.emit("a.b", 1)
        return receipt.level


async def refused(**options: Any) -> LoomError:
    """Why a connection is refused; at once, and not when time is up."""
    async with asyncio.timeout(4):
        with pytest.raises(LoomError) as caught:
            await ask(**options)
    return caught.value


@WAYS
@pytest.mark.requirement("TLS-PYTHON")
async def test_a_client_trusts_whom_it_is_told_to_trust(
    scheme: str, kept: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with node(tmp_path, kept.node) as running:
        at = reach(running, scheme)
        assert await ask(**at, ca=kept.authority.ca) == "accepted"
        monkeypatch.setenv("LOOM_CA", str(kept.authority.ca))
        assert await ask(**reach(running, scheme, "localhost")) == "accepted"
        app = loom.App("shop")
        async with app.running(**at) as ctx:
            assert ctx.namespace == "default"
        error = await refused(**at, ca=kept.other.ca)
        assert isinstance(error, Unauthenticated)
        assert error.field == "ca"
        assert "has signed the node's certificate" in error.message
        monkeypatch.delenv("LOOM_CA")
        assert (await refused(**at)).field == "ca"


@WAYS
@pytest.mark.requirement("TLS-PYTHON")
async def test_a_certificate_that_has_expired_or_is_for_another_name_is_told_as_such(
    scheme: str, kept: Kept, tmp_path: Path
) -> None:
    ca = kept.authority.ca
    async with node(tmp_path / "a", kept.old) as running:
        error = await refused(**reach(running, scheme), ca=ca)
        assert (error.field, error.message) == ("url", "the node's certificate has expired")
    async with node(tmp_path / "b", kept.elsewhere) as running:
        error = await refused(**reach(running, scheme, "localhost"), ca=ca)
        assert error.field == "url"
        assert "not for localhost, but for: node.example.org" in error.message
    authority = Signed(kept.authority.ca, kept.authority.folder / "ca.key")
    async with node(tmp_path / "c", authority) as running:
        error = await refused(**reach(running, scheme), ca=ca)
        assert "authority" in error.message
        assert "CA:FALSE" in (error.hint or "")


@WAYS
@pytest.mark.requirement("TLS-PYTHON")
async def test_a_node_that_asks_for_a_certificate_says_which_it_misses(
    scheme: str, kept: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ca = kept.authority.ca
    async with node(tmp_path, kept.node, tls_client_ca=ca) as running:
        at = {**reach(running, scheme), "ca": ca}
        mine = {"cert": kept.client.cert, "cert_key": kept.client.key}
        assert await ask(**at, **mine) == "accepted"
        monkeypatch.setenv("LOOM_CERT", str(kept.client.cert))
        monkeypatch.setenv("LOOM_CERT_KEY", str(kept.client.key))
        assert await ask(**at) == "accepted"
        monkeypatch.delenv("LOOM_CERT")
        monkeypatch.delenv("LOOM_CERT_KEY")
        error = await refused(**at)
        assert isinstance(error, Unauthenticated)
        assert error.field == "cert"
        assert "none was shown" in error.message
        stranger = {"cert": kept.stranger.cert, "cert_key": kept.stranger.key}
        error = await refused(**at, **stranger)
        assert error.field == "cert"
        assert "does not trust" in error.message


@pytest.mark.requirement("TLS-PYTHON")
async def test_tls_against_a_node_without_it_is_told_as_such(kept: Kept, tmp_path: Path) -> None:
    config = load(environment={"LOOM_HOME": str(tmp_path)})
    plan = Plan(config=config, data=None, bridge=BridgeConfig(bind=("127.0.0.1:0",)))
    async with hosting(plan) as running:
        error = await refused(**reach(running, "looms"), ca=kept.authority.ca)
        assert error.field == "url"
        assert "no TLS" in error.message


@pytest.mark.parametrize("scheme", ["loom", "ws"])
@pytest.mark.requirement("TLS-PYTHON")
async def test_an_address_without_tls_to_a_node_with_it_is_told_as_such(
    scheme: str, kept: Kept, tmp_path: Path
) -> None:
    async with node(tmp_path, kept.node) as running:
        with pytest.raises(Unavailable) as caught:
            await ask(**reach(running, scheme))
        assert "looms:// or wss://" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("options", "kind", "field"),
    [
        ({"url": "loom://127.0.0.1:1", "ca": "x.pem"}, InvalidParams, "ca"),
        ({"url": "looms://127.0.0.1:1", "ca": "none.pem"}, InvalidParams, "ca"),
        ({"url": "looms://127.0.0.1:1", "cert": "x.pem"}, InvalidParams, "cert_key"),
        ({"url": "wss://127.0.0.1:1", "cert_key": "x.pem"}, InvalidParams, "cert"),
        ({"url": "wss://h", "cert": "x", "cert_key": "none"}, NotFound, "cert_key"),
        ({"url": "wss://h", "cert": "x", "cert_key": "open.key"}, Denied, "cert_key"),
        ({"url": "wss://h", "ca": "open.key"}, InvalidParams, "ca"),
    ],
)
@pytest.mark.requirement("TLS-PYTHON")
async def test_files_that_cannot_be_used_are_refused_by_their_name(
    options: dict[str, str],
    kind: type[LoomError],
    field: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "open.key").write_text("no certificate")
    (tmp_path / "open.key").chmod(0o644)
    error = await refused(token="loom_" + "x" * 43, **options)
    assert isinstance(error, kind)
    assert error.field == field


@pytest.mark.requirement("TLS-PYTHON")
async def test_programs_of_its_user_reach_a_node_whose_certificate_is_for_another_name(
    kept: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOOM_HOME", str(tmp_path))
    async with node(tmp_path, kept.elsewhere) as running:
        assert running.urls[0] == f"unix://{tmp_path}/run/node.sock"
        assert await ask() == "accepted"
        async with node(tmp_path, kept.elsewhere) as second:  # the first has the socket
            assert [url.partition(":")[0] for url in second.urls] == ["looms"]
    assert not (tmp_path / "run" / "node.sock").exists()


@pytest.mark.requirement("TLS-PYTHON")
async def test_commands_take_the_files_that_a_node_with_tls_needs(
    kept: Kept, tmp_path: Path
) -> None:
    ca = kept.authority.ca
    async with node(tmp_path, kept.node, tls_client_ca=ca) as running:
        at = reach(running, "wss")
        (tmp_path / "token").write_text(at["token"])
        (tmp_path / "token").chmod(0o600)
        files = ["--token-file", "token", "--ca", str(ca)]
        own = ["--cert", str(kept.client.cert), "--cert-key", str(kept.client.key)]
        for words, code in (([*files, *own], 0), (files, 5)):
            done = await asyncio.to_thread(
                subprocess.run,
                [sys.executable, "-m", "loom", "emit", "a.b", "--url", at["url"], *words],
                cwd=tmp_path,
                capture_output=True,
                text=True,
                check=False,
                timeout=30,
            )
            assert done.returncode == code, done.stderr
        assert "field: cert" in done.stderr


@pytest.mark.requirement("BRIDGE-ORIGIN")
async def test_a_node_answers_websockets_by_the_names_that_it_was_given_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOOM_HOME", str(tmp_path))
    config = load(environment={"LOOM_HOME": str(tmp_path)})
    name = "127.1"  # leads here, and is no name that a node answers to by itself

    def plan(*hosts: str) -> Plan:
        bridge = BridgeConfig(bind=("127.0.0.1:0",), hosts=hosts)
        return Plan(config=config, data=None, bridge=bridge)

    async with hosting(plan(name)) as running:
        assert await ask(**reach(running, "ws", name)) == "accepted"
    async with hosting(plan()) as running:
        error = await refused(**reach(running, "ws", name))
        assert isinstance(error, Denied)
        assert error.field == "url"
        assert f"--host {name}" in (error.hint or "")
        assert await ask(**reach(running, "loom", name)) == "accepted"
