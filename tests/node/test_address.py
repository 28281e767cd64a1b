"""URLs of nodes, and how the programs of one user find theirs."""

import fcntl
import os
from collections.abc import Generator
from pathlib import Path

import pytest

from loom.address import (
    LOCK_FILE,
    NODE_FILE,
    Address,
    NodeFile,
    find_node,
    parse_bind,
    parse_url,
    settle,
)
from loom.codec import encode
from loom.errors import Denied, InvalidParams, NotFound, Unauthenticated

TOKEN = "loom_" + "a" * 43
OTHER = "loom_" + "b" * 43


@pytest.mark.requirement("BRIDGE-URL")
@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("loom://localhost", Address("loom", "localhost", 7420)),
        ("loom://127.0.0.1:1", Address("loom", "127.0.0.1", 1)),
        ("looms://node.example.org:443/", Address("looms", "node.example.org", 443)),
        ("ws://[::1]:7420/v1/ws", Address("ws", "::1", 7420)),
        ("wss://h", Address("wss", "h", 7420)),
        ("unix:///run/loom/n.sock", Address("unix", path="/run/loom/n.sock")),
    ],
)
def test_a_url_says_where_a_node_is(url: str, address: Address) -> None:
    assert parse_url(url) == address
    assert parse_url(address.url) == address


@pytest.mark.requirement("BRIDGE-URL")
@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("", "scheme"),
        ("localhost:7420", "scheme"),
        ("http://localhost", "scheme"),
        ("loom://", "host"),
        ("loom://a b", "host"),
        ("loom://a:0", "port"),
        ("loom://a:65536", "port"),
        ("loom://a:x", "port"),
        ("loom://[::1", "host"),
        ("loom://a/path", "path"),
        ("unix://relative", "path"),
        ("unix://", "path"),
    ],
)
def test_a_url_that_is_none_is_refused_by_its_part(url: str, named: str) -> None:
    with pytest.raises(InvalidParams) as refused:
        parse_url(url)
    assert refused.value.field == "url"
    assert named in refused.value.message


@pytest.mark.requirement("BRIDGE-URL")
@pytest.mark.parametrize("url", [f"loom://{TOKEN}@a", f"ws://a/?token={TOKEN}", f"ws://a/#{TOKEN}"])
def test_a_token_in_a_url_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(InvalidParams) as refused:
        parse_url(url)
    assert TOKEN not in str(refused.value)
    assert "LOOM_TOKEN" in str(refused.value.hint)


@pytest.mark.requirement("BRIDGE-URL")
@pytest.mark.parametrize("text", ["", "7420", "a:", ":1", "a:-1", "a:65536", "a b:1"])
def test_a_place_to_listen_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidParams) as refused:
        parse_bind(text)
    assert refused.value.field == "bind"
    assert parse_bind("[::1]:0") == ("::1", 0)


@pytest.fixture
def node(tmp_path: Path) -> Generator[NodeFile]:
    """A node that runs for this user, as far as its files tell."""
    secret = tmp_path / "token"
    secret.write_text(TOKEN + "\n")
    secret.chmod(0o600)
    told = NodeFile(
        urls=("loom://127.0.0.1:5000", f"unix://{tmp_path}/s"),
        token_file=str(secret),
        pid=os.getpid(),
        boot="00",
        data=None,
    )
    file = tmp_path / NODE_FILE
    file.write_bytes(encode(told.as_json))
    file.chmod(0o600)
    lock = os.open(tmp_path / LOCK_FILE, os.O_CREAT | os.O_RDWR, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    yield told
    os.close(lock)


@pytest.mark.requirement("NODE-FOUND")
def test_the_running_node_is_found_with_its_token(node: NodeFile, tmp_path: Path) -> None:
    assert find_node(tmp_path) == node
    for url in (None, "local", "loom://local", "ws://localhost:5000"):
        found, token = settle(url, None, runtime=tmp_path, variables={})
        assert parse_url(found).port == 5000
        assert token == TOKEN
    assert settle(node.urls[1], None, runtime=tmp_path, variables={}) == (node.urls[1], TOKEN)


@pytest.mark.requirement("NODE-FOUND")
def test_what_is_given_goes_before_the_environment_and_that_before_the_node(
    node: NodeFile, tmp_path: Path
) -> None:
    variables = {"LOOM_URL": "loom://b:1", "LOOM_TOKEN": OTHER}
    assert settle(None, None, runtime=tmp_path, variables=variables) == ("loom://b:1", OTHER)
    assert settle("loom://c:2", TOKEN, runtime=tmp_path, variables=variables) == (
        "loom://c:2",
        TOKEN,
    )


@pytest.mark.requirement("NODE-FOUND")
def test_a_node_that_is_gone_is_not_believed(node: NodeFile, tmp_path: Path) -> None:
    (tmp_path / LOCK_FILE).unlink()
    assert find_node(tmp_path) is None
    (tmp_path / LOCK_FILE).touch()  # left behind, and nobody holds it
    assert find_node(tmp_path) is None
    with pytest.raises(NotFound) as refused:
        settle(None, None, runtime=tmp_path, variables={})
    assert "loom up" in str(refused.value.hint)


@pytest.mark.requirement("NODE-FOUND")
def test_the_token_of_the_running_node_goes_to_no_other(node: NodeFile, tmp_path: Path) -> None:
    for url in ("loom://127.0.0.1:5001", "loom://example.org:5000", "unix:///other"):
        with pytest.raises(Unauthenticated) as refused:
            settle(url, None, runtime=tmp_path, variables={})
        assert refused.value.field == "token"


@pytest.mark.requirement("NODE-FOUND")
def test_a_token_file_that_others_may_read_is_not_used(node: NodeFile, tmp_path: Path) -> None:
    Path(node.token_file).chmod(0o604)
    with pytest.raises(Denied):
        settle(None, None, runtime=tmp_path, variables={})


@pytest.mark.requirement("NODE-FOUND")
def test_what_is_no_token_is_refused_and_not_shown(tmp_path: Path) -> None:
    with pytest.raises(Unauthenticated) as refused:
        settle("loom://a", "sesame", runtime=tmp_path, variables={})
    assert "sesame" not in str(refused.value)
