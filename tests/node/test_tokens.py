"""Tokens of a node: what they are made of, what is kept of them, and where."""

import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from loom.address import check_token, read_token
from loom.errors import Denied, Exhausted, Internal, InvalidParams, LoomError, NotFound
from loom.limits import TOKENS
from loom.node.tokens import Grants, TokenStore, hash_of


class Wall:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def wall() -> Wall:
    return Wall()


@pytest.fixture
def store(tmp_path: Path, wall: Wall) -> TokenStore:
    return TokenStore(tmp_path / "data", wall)


HEARS = Grants(subscribe=("order.>",))


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.requirement("TOKEN-HASHED")
def test_a_token_is_shown_once_and_kept_as_its_hash_in_a_private_file(store: TokenStore) -> None:
    token, secret = store.create("web", namespace="shop", grants=HEARS)
    assert check_token(secret) == secret
    content = store.file.read_text()
    assert secret not in content
    assert hash_of(secret) in content
    assert secret not in repr(token)
    assert hash_of(secret) not in repr(token)
    assert mode(store.file) == 0o600
    assert [one.as_json for one in store.tokens()] == [token.as_json]
    assert "sha256" not in token.as_json


@pytest.mark.requirement("TOKEN-HASHED")
def test_no_two_tokens_are_alike(store: TokenStore) -> None:
    made = [store.create("web", namespace="shop", grants=HEARS) for _ in range(50)]
    assert len({secret for _, secret in made}) == len({token.id for token, _ in made}) == 50


@pytest.mark.requirement("TOKEN-HASHED")
def test_a_file_that_others_may_read_is_not_used(store: TokenStore) -> None:
    store.create("web", namespace="shop", grants=HEARS)
    store.file.chmod(0o640)
    with pytest.raises(Denied) as refused:
        store.tokens()
    assert str(store.file) in refused.value.message


@pytest.mark.requirement("TOKEN-GRANTS")
def test_the_engine_gets_what_was_granted_and_until_when(store: TokenStore) -> None:
    grants = Grants.read({"publish": ["a.*", "a.*"], "call": ["shell:run", "web.>"]})
    token, secret = store.create("web", namespace="shop", grants=grants, expires=60)
    assert store.credentials() == [
        (
            token.id,
            bytes.fromhex(hash_of(secret)),
            "shop",
            (("a.*",), (), ("shell:run", "web.>"), (), (), ()),
            int((token.created + 60) * 1000),
        )
    ]


@pytest.mark.requirement("TOKEN-GRANTS")
@pytest.mark.parametrize(
    ("told", "field"),
    [
        ({"publish": "order.>"}, "publish"),
        ({"subscribe": ["order..x"]}, "subscribe"),
        ({"call": ["a"] * 65}, "call"),
        ({"admin": [1]}, "admin"),
        ({"everything": [">"]}, "grants"),
    ],
)
def test_a_grant_that_is_none_is_refused_by_its_list(told: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidParams) as refused:
        Grants.read(told)
    assert refused.value.field == field


@pytest.mark.requirement("TOKEN-GRANTS")
@pytest.mark.parametrize(
    ("other", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"namespace": "Shop"}, "namespace"),
        ({"grants": Grants()}, "grants"),
        ({"expires": 0.0}, "expires"),
    ],
)
def test_a_token_that_makes_no_sense_is_refused(
    other: dict[str, Any], field: str, store: TokenStore
) -> None:
    asked: dict[str, Any] = {"name": "web", "namespace": "shop", "grants": HEARS, **other}
    with pytest.raises(InvalidParams) as refused:
        store.create(**asked)
    assert refused.value.field == field
    assert not store.tokens()


@pytest.mark.requirement("TOKEN-ENDS")
def test_a_token_that_has_expired_or_was_revoked_is_none_for_the_engine(
    store: TokenStore, wall: Wall
) -> None:
    short, _ = store.create("short", namespace="shop", grants=HEARS, expires=60)
    long, _ = store.create("long", namespace="shop", grants=HEARS)
    wall.now += 60
    assert [one[0] for one in store.credentials()] == [long.id]
    assert [one.id for one in store.tokens()] == [short.id, long.id]
    assert store.revoke(long.id) == long
    assert store.credentials() == []


@pytest.mark.requirement("TOKEN-ENDS")
def test_a_token_of_another_namespace_looks_as_if_it_were_not_there(store: TokenStore) -> None:
    token, _ = store.create("web", namespace="shop", grants=HEARS)
    with pytest.raises(NotFound) as foreign:
        store.revoke(token.id, namespace="bank")
    with pytest.raises(NotFound) as absent:
        store.revoke("00000000", namespace="bank")
    assert str(foreign.value).replace(token.id, "") == str(absent.value).replace("00000000", "")
    assert store.tokens("bank") == ()
    assert store.tokens("shop") == (token,)


@pytest.mark.requirement("TOKEN-BOUNDED")
def test_a_node_keeps_so_many_tokens_as_the_limit_says(store: TokenStore) -> None:
    store.create("first", namespace="shop", grants=HEARS)
    one = store.file.read_bytes().partition(b"[{")[2].rpartition(b"}]")[0]
    many = b",".join(b"{" + one.replace(b'"id":"', b'"id":"%04x' % n) + b"}" for n in range(TOKENS))
    store.file.write_bytes(b'{"format":1,"tokens":[' + many + b"]}")
    with pytest.raises(Exhausted) as refused:
        store.create("one more", namespace="shop", grants=HEARS)
    assert refused.value.limit == "tokens"
    assert len(store.tokens()) == TOKENS


@pytest.mark.requirement("TOKEN-BOUNDED")
def test_those_who_make_tokens_at_the_same_time_all_keep_theirs(
    store: TokenStore, wall: Wall
) -> None:
    def make() -> None:
        other = TokenStore(store.folder, wall)
        for _ in range(10):
            other.create("web", namespace="shop", grants=HEARS)

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({one.id for one in store.tokens()}) == 40
    assert not [one for one in os.listdir(store.folder) if one.startswith(".")]


@pytest.mark.requirement("TOKEN-ADMIN")
def test_the_user_of_a_node_gets_a_token_in_a_private_file_and_keeps_it(store: TokenStore) -> None:
    file = store.admin()
    secret = read_token(file)
    assert mode(file) == 0o600
    assert mode(store.folder) == 0o700
    assert store.admin() == file
    assert read_token(file) == secret
    (token,) = store.tokens()
    assert token.sha256 == hash_of(secret)
    assert (token.namespace, token.grants) == ("*", Grants.everything())


@pytest.mark.requirement("TOKEN-ADMIN")
def test_a_file_of_that_token_that_others_may_read_is_not_used_again(store: TokenStore) -> None:
    file = store.admin()
    file.chmod(0o644)
    with pytest.raises(Denied) as refused:
        store.admin()
    assert "644" in refused.value.message


@pytest.mark.requirement("TOKEN-ADMIN")
def test_once_it_was_revoked_the_user_gets_another_one(store: TokenStore) -> None:
    old = read_token(store.admin())
    store.revoke(store.tokens()[0].id)
    new = read_token(store.admin())
    assert new != old
    assert [one.sha256 for one in store.tokens()] == [hash_of(new)]


@pytest.mark.requirement("TOKEN-HASHED")
@pytest.mark.parametrize(
    "content", [b"", b"[]", b'{"format":1}', b'{"format":1,"tokens":[{"id":1}]}', b'{"format":2}']
)
def test_a_file_that_is_damaged_or_newer_is_named(content: bytes, store: TokenStore) -> None:
    store.create("web", namespace="shop", grants=HEARS)
    store.file.write_bytes(content)
    with pytest.raises(Internal) as refused:
        store.tokens()
    assert str(store.file) in refused.value.message
    with pytest.raises(LoomError):
        store.create("web", namespace="shop", grants=HEARS)
    assert store.file.read_bytes() == content
