"""Tokens: who may attach to a node, in which namespace, and what they may do there.

A token is shown once, when it is made; what is kept is its hash. The file is written anew as a
whole, under a lock, so that a command and a running node can both change it.
"""

import base64
import contextlib
import fcntl
import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

from loom.address import read_private, read_token
from loom.checks import check_text
from loom.codec import decode, encode
from loom.errors import Exhausted, Internal, InvalidParams, LoomError, NotFound
from loom.limits import GRANT_FILTERS, NAME_BYTES, TOKENS
from loom.link.local import Credential
from loom.topics import check_filter, check_name

LISTS: Final = ("publish", "subscribe", "call", "provide", "observe", "admin")
"""What a token can grant, each a list of filters. Names of events: the first two; the others of
capabilities and agents."""

ANYWHERE: Final = "*"
EVERYTHING: Final = ">"
ADMIN: Final = "admin"  # the name of the token that a node makes for its user
_FORMAT: Final = 1
_LARGEST: Final = 16 << 20  # bytes of the file
_ID_BYTES: Final = 4
_SECRET_BYTES: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Grants:
    """What a token allows: six lists of filters. An empty list is nothing, ``>`` is everything."""

    publish: tuple[str, ...] = ()
    subscribe: tuple[str, ...] = ()
    call: tuple[str, ...] = ()
    provide: tuple[str, ...] = ()
    observe: tuple[str, ...] = ()
    admin: tuple[str, ...] = ()

    @classmethod
    def everything(cls) -> "Grants":
        """Return what an administrator has."""
        return cls(**dict.fromkeys(LISTS, (EVERYTHING,)))

    @classmethod
    def read(cls, told: Mapping[str, Any]) -> "Grants":
        """Return the grants that a mapping of lists says.

        Raises:
            InvalidParams: a list or a filter is none; ``field`` names the list.
        """
        unknown = sorted(set(told) - set(LISTS))
        if unknown:
            raise InvalidParams(
                f"there is no grant {unknown[0]!r}",
                field="grants",
                hint=f"grants: {', '.join(LISTS)}",
            )
        return cls(**{name: _filters(name, told.get(name, ())) for name in LISTS})

    @property
    def as_json(self) -> dict[str, list[str]]:
        """The lists by name."""
        return {name: list(getattr(self, name)) for name in LISTS}


def _filters(name: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise InvalidParams(
            f"{name} is {value!r}, not a list of filters", field=name, hint=f'{name}=["order.>"]'
        )
    found = cast("Sequence[Any]", value)
    if len(found) > GRANT_FILTERS:
        raise InvalidParams(
            f"{len(found)} filters of at most {GRANT_FILTERS}",
            field=name,
            limit="grant_filters",
            hint="a filter with * or > stands for many names",
        )
    for one in found:
        # a capability of a server has a colon in its name
        check_filter(check_text(one, name).replace(":", ".", 1), field=name)
    return tuple(dict.fromkeys(found))


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """One token as it is kept. Times in seconds since 1970; ``expires`` None: it does not."""

    id: str
    sha256: str = field(repr=False)
    name: str
    namespace: str
    grants: Grants
    created: float
    expires: float | None

    @property
    def as_json(self) -> dict[str, Any]:
        """What may be shown of it."""
        return {
            "id": self.id,
            "name": self.name,
            "namespace": self.namespace,
            "grants": self.grants.as_json,
            "created": self.created,
            "expires": self.expires,
        }

    @property
    def credential(self) -> Credential:
        """As the engine takes it."""
        given = self.grants
        return (
            self.id,
            bytes.fromhex(self.sha256),
            self.namespace,
            (
                given.publish,
                given.subscribe,
                given.call,
                given.provide,
                given.observe,
                given.admin,
            ),
            None if self.expires is None else int(self.expires * 1000),
        )


class TokenStore:
    """The tokens of one node, in a file of their own.

    Args:
        folder: the data directory, or where a node without one keeps its state; made if need be.
        wall: seconds since 1970.
    """

    def __init__(self, folder: Path, wall: Callable[[], float]) -> None:
        self.folder = folder
        self.file: Path = folder / "tokens.json"
        self.admin_file: Path = folder / "admin.token"
        self._wall = wall

    def tokens(self, namespace: str | None = None) -> Sequence[Token]:
        """Return the tokens, the oldest first, of a namespace or of all; also those that ended.

        Raises:
            Denied: the file is not private.
            Internal: the file is damaged.
        """
        return tuple(one for one in self._read() if namespace in {None, one.namespace})

    def create(
        self,
        name: str,
        *,
        namespace: str,
        grants: Grants,
        expires: float | None = None,
    ) -> tuple[Token, str]:
        """Make a token; return it as it is kept, and itself, which is shown this once.

        Args:
            name: who it is for, in words; not unique.
            namespace: where it is good, ``*``: anywhere.
            grants: what it allows.
            expires: seconds from now until it ends, None: never.

        Raises:
            InvalidParams: a name is none, it grants nothing, or it has ended already.
            Exhausted: there are too many.
        """
        secret = new_secret()
        token = self.accept(
            hash_of(secret), name, namespace=namespace, grants=grants, expires=expires
        )
        return token, secret

    def accept(
        self,
        sha256: str,
        name: str,
        *,
        namespace: str,
        grants: Grants,
        expires: float | None = None,
    ) -> Token:
        """Keep a token that somebody else has made, who tells its hash only.

        One that is kept already stays as it is.

        Raises:
            InvalidParams, Exhausted: as ``create`` does; or it is no hash.
        """
        if not re.fullmatch(r"[0-9a-f]{64}", sha256):
            raise InvalidParams("that is no SHA-256 in hex", field="sha256")
        _check_label(name)
        if namespace != ANYWHERE:
            check_name(namespace, field="namespace")
        if grants == Grants():
            raise InvalidParams(
                "a token that grants nothing is of no use",
                field="grants",
                hint="give --publish, --subscribe, --call, --provide, --observe, --admin, or --all",
            )
        if expires is not None and not expires > 0:
            raise InvalidParams(f"it ends {-expires:g} s ago", field="expires", hint="such as 30d")
        now = self._wall()
        with self._changing() as tokens:
            for known in tokens:
                if known.sha256 == sha256:
                    return known
            if len(tokens) >= TOKENS:
                raise Exhausted(
                    f"there are {TOKENS} tokens",
                    limit="tokens",
                    hint="`loom token list` shows them; revoke what is not used",
                )
            taken = {one.id for one in tokens}
            ids = iter(lambda: secrets.token_hex(_ID_BYTES), "")
            token = Token(
                id=next(one for one in ids if one not in taken),
                sha256=sha256,
                name=name,
                namespace=namespace,
                grants=grants,
                created=now,
                expires=None if expires is None else now + expires,
            )
            tokens.append(token)
        return token

    def revoke(self, id_: str, *, namespace: str | None = None) -> Token:
        """Take a token away; return what it was.

        Raises:
            NotFound: there is no such token, in that namespace if one is given.
        """
        with self._changing() as tokens:
            for token in tokens:
                if token.id == id_ and namespace in {None, token.namespace}:
                    tokens.remove(token)
                    return token
        raise NotFound(
            f"there is no token {id_!r}",
            field="id",
            hint="`loom token list` shows their ids, which are no secrets",
        )

    def credentials(self) -> Sequence[Credential]:
        """Return those that are good now, as the engine takes them."""
        now = self._wall()
        return [one.credential for one in self._read() if one.expires is None or one.expires > now]

    def admin(self) -> Path:
        """Return the file with the token of the user who runs the node, made where there is none.

        Raises:
            Denied: the file is there, and not private.
        """
        self._make_folder()
        try:
            kept = hash_of(read_token(self.admin_file))
        except NotFound:
            kept = ""
        now = self._wall()
        for one in self._read():
            is_good = one.expires is None or one.expires > now
            if is_good and hmac.compare_digest(one.sha256, kept):
                return self.admin_file
        everything = Grants.everything()
        _, secret = self.create(ADMIN, namespace=ANYWHERE, grants=everything)
        write_private(self.admin_file, secret.encode() + b"\n")
        return self.admin_file

    # -- the file ---------------------------------------------------------------------------------

    def _make_folder(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def _read(self) -> list[Token]:
        try:
            told: Any = decode(read_private(self.file, _LARGEST))
        except NotFound:
            return []
        except InvalidParams:
            told = None
        try:
            if told["format"] != _FORMAT:
                raise Internal(
                    f"{self.file} was written by another version: format {told['format']}",
                    hint="use the version that wrote it",
                )
            return [_token(entry) for entry in told["tokens"]]
        except LoomError:
            raise
        except (KeyError, TypeError, ValueError):
            raise Internal(
                f"{self.file} is damaged",
                hint="take it from a backup, or remove it: all tokens are to be made anew then",
            ) from None

    @contextlib.contextmanager
    def _changing(self) -> Generator[list[Token]]:
        """Give the tokens to be changed, and write them; nobody else writes meanwhile."""
        self._make_folder()
        lock = os.open(self.folder / "tokens.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            tokens = self._read()
            yield tokens
            entries = [{**one.as_json, "sha256": one.sha256} for one in tokens]
            write_private(self.file, encode({"format": _FORMAT, "tokens": entries}) + b"\n")
        finally:
            os.close(lock)


def new_secret() -> str:
    """Return a token that nobody has."""
    drawn = base64.urlsafe_b64encode(secrets.token_bytes(_SECRET_BYTES))
    return "loom_" + drawn.decode().rstrip("=")


def hash_of(token: str) -> str:
    """Return what is kept of a token: its SHA-256 in hex. It has 256 random bits: no salt."""
    return hashlib.sha256(token.encode("ascii", "replace")).hexdigest()


def write_private(path: Path, content: bytes) -> None:
    """Put a file in its place, whole, on the disk, and for its owner only."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    file = os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(file, "wb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        partial.rename(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _check_label(name: str) -> None:
    check_text(name, "name")
    if not name or not name.isprintable() or len(name.encode()) > NAME_BYTES:
        raise InvalidParams(
            f"{name[:40]!r} is no name for a token",
            field="name",
            limit="name_bytes",
            hint=f"printable text of at most {NAME_BYTES} bytes: who it is for",
        )


def _token(entry: Mapping[str, Any]) -> Token:
    expires = entry["expires"]
    if len(bytes.fromhex(entry["sha256"])) != hashlib.sha256().digest_size:
        raise ValueError("no hash")
    return Token(
        id=str(entry["id"]),
        sha256=str(entry["sha256"]),
        name=str(entry["name"]),
        namespace=str(entry["namespace"]),
        grants=Grants.read(entry["grants"]),
        created=float(entry["created"]),
        expires=None if expires is None else float(expires),
    )
