"""``loom token``: who may attach to a node."""

import re
import sys
import time
from pathlib import Path
from typing import Any, Final

from loom.address import LOCAL
from loom.cli.asked import Where
from loom.cli.place import data_directory
from loom.cli.show import end_with, print_json, print_table, show_times
from loom.config import load
from loom.errors import InvalidParams, NotFound
from loom.node.tokens import Grants, TokenStore, hash_of, new_secret

_HOUR: Final = 60 * 60
_UNITS: Final = {"m": 60, "h": _HOUR, "d": 24 * _HOUR, "w": 7 * 24 * _HOUR}


def create_token(
    where: Where, name: str, grants: dict[str, Any], *, expires: str | None, as_json: bool
) -> None:
    """Make a token and print it, this once."""
    checked = Grants.read(grants)
    seconds = None if expires is None else lifetime(expires)
    secret = new_secret()
    namespace = where.namespace or "default"
    told: dict[str, Any]
    if _is_asked(where):
        told = where.operator.ask(
            "tokens.create",
            name=name,
            sha256=hash_of(secret),
            grants=checked.as_json,
            expires=seconds,
            namespace=namespace,
        )
    else:
        token = _store(where).accept(
            hash_of(secret), name, namespace=namespace, grants=checked, expires=seconds
        )
        told = token.as_json
    if as_json:
        print_json({**told, "token": secret})
        return
    sys.stdout.write(f"{secret}\n")
    sys.stdout.flush()
    sys.stderr.write(f"good at {_whose(where)}\n")
    end_with(
        f"this is token {told['id']} for namespace {told['namespace']}; it is not shown again: "
        "give it as LOOM_TOKEN, never in a url"
    )


def list_tokens(where: Where, *, as_json: bool) -> None:
    """Print the tokens, which are not in it."""
    if _is_asked(where):
        found: list[dict[str, Any]] = where.operator.ask("tokens.list")
    else:
        found = [token.as_json for token in _store(where).tokens()]
    if where.namespace is not None:
        found = [one for one in found if one["namespace"] == where.namespace]
    if as_json:
        for one in found:
            print_json(one)
    elif found:
        _print(found)
    else:
        sys.stderr.write("there are no tokens\n")
    if not as_json:
        sys.stdout.flush()
        sys.stderr.write(f"those of {_whose(where)}\n")


def revoke_token(where: Where, id_: str, *, as_json: bool) -> None:
    """Take a token away."""
    if _is_asked(where):
        told: dict[str, Any] = where.operator.ask("tokens.revoke", id=id_)
    else:
        told = _store(where).revoke(id_).as_json
    if as_json:
        print_json(told)
    else:
        sys.stdout.write(f"{told['id']} ({told['name']}) is revoked: its sessions end\n")


def lifetime(text: str) -> float:
    """Return the seconds of a duration such as 30d.

    Raises:
        InvalidParams: it is none.
    """
    found = re.fullmatch(r"(\d{1,6})([mhdw])", text)
    if found is None:
        raise InvalidParams(
            f"{text!r} is no duration", field="expires", hint="such as 90m, 12h, 30d or 8w"
        )
    return float(int(found[1]) * _UNITS[found[2]])


def _is_asked(where: Where) -> bool:
    """Whether a node is asked: one that was named, or the one that runs for this user."""
    if where.data is not None:
        return False
    return where.node is not None or where.running is not None


def _store(where: Where) -> TokenStore:
    """Return the tokens of a node that does not run, or was named by its directory.

    Raises:
        NotFound: no node has ever been there, so none would know a token that is made there.
    """
    folder = _folder(where)
    store = TokenStore(folder, time.time)
    if not store.file.exists():
        raise NotFound(
            f"no node has been in {folder}",
            field="data",
            hint="--data DIR names the directory of one, --url one that runs; `loom up` starts one",
        )
    return store


def _folder(where: Where) -> Path:
    try:
        return data_directory(where.data)
    except InvalidParams:
        if where.data is not None:
            raise
        return load().state  # where a node without a data directory keeps them


def _whose(where: Where) -> str:
    """Return which node's tokens a command has to do with, for a person to see."""
    if _is_asked(where):
        node = where.node
        return f"the node at {where.running if node in {None, LOCAL} else node}"
    folder = _folder(where)
    if where.data is not None:
        return f"the node of {folder}"
    return f"the node of {folder}, which is that of `loom up` without --data; none runs now"


def _print(found: list[dict[str, Any]]) -> None:
    made = show_times([one["created"] for one in found])
    ends = ["never" if one["expires"] is None else show_times([one["expires"]])[0] for one in found]
    rows = [
        [one["id"], one["name"], one["namespace"], _granted(one["grants"]), at, end]
        for one, at, end in zip(found, made, ends, strict=True)
    ]
    print_table(["id", "name", "namespace", "grants", "created", "expires"], rows, texts=["grants"])


def _granted(grants: dict[str, list[str]]) -> str:
    given = {name: filters for name, filters in grants.items() if filters}
    if all(grants.get(name) == [">"] for name in grants):
        return "everything"
    return "; ".join(f"{name} {' '.join(filters)}" for name, filters in given.items())
