"""Where a node is: URLs of the Bridge, and the file by which programs of one user find theirs."""

import fcntl
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, cast
from urllib.parse import SplitResult, urlsplit

from loom.checks import check_text
from loom.codec import decode
from loom.errors import Denied, InvalidParams, NotFound, Unauthenticated

File: TypeAlias = str | os.PathLike[str]
Scheme: TypeAlias = Literal["loom", "looms", "ws", "wss", "unix"]

PORT: Final = 7420
NODE_FILE: Final = "node.json"
LOCK_FILE: Final = "node.lock"
LOCAL: Final = "local"
_SCHEMES: Final = ("loom", "looms", "ws", "wss", "unix")
_LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")
_HOST: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|[0-9A-Fa-f:.]+")
_HINT: Final = "such as loom://127.0.0.1:7420, wss://example.org:7420 or unix:///run/loom.sock"
_LARGEST: Final = 1 << 16  # bytes of a file of ours
_PRIVATE: Final = 0o077  # what nobody but the owner may have


@dataclass(frozen=True, slots=True)
class Address:
    """One way to a node: a host and a port, or the path of a Unix socket."""

    scheme: Scheme
    host: str = ""
    port: int = PORT
    path: str = ""

    @property
    def url(self) -> str:
        """The address as text."""
        if self.scheme == "unix":
            return f"unix://{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"

    @property
    def is_tls(self) -> bool:
        """Whether the connection is encrypted and the node shows a certificate."""
        return self.scheme in {"looms", "wss"}

    @property
    def is_loopback(self) -> bool:
        """Whether it cannot leave this machine."""
        return self.scheme == "unix" or is_loopback(self.host)

    def is_same(self, other: "Address") -> bool:
        """Whether both lead to the same listener, by whichever carrier."""
        if self.scheme == "unix" or other.scheme == "unix":
            return (self.scheme, self.path) == (other.scheme, other.path)
        hosts = {self.host, other.host}
        return self.port == other.port and (len(hosts) == 1 or hosts <= set(_LOOPBACK))


def is_loopback(host: str) -> bool:
    """Whether a host is this machine only."""
    return host in _LOOPBACK or host.startswith("127.")


def parse_url(url: object) -> Address:
    """Return what a URL says.

    Raises:
        InvalidParams: it is none of the Bridge; ``field`` is "url", and the message names the part.
    """
    text = check_text(url, "url")
    scheme, found, _ = text.partition("://")
    if not found or scheme not in _SCHEMES:
        named = f"its scheme is {scheme!r}" if found else "it has no scheme"
        raise _wrong(text, f"{named}, not one of {', '.join(_SCHEMES)}")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise _wrong(text, f"its host or port is wrong: {error}") from None
    _check_parts(text, parts)
    if scheme == "unix":
        if parts.netloc or not parts.path.startswith("/") or "\0" in parts.path:
            raise _wrong(text, "its path is not absolute: three slashes after unix:")
        return Address("unix", path=parts.path)
    if parts.path not in {"", "/", "/v1/ws"}:
        raise _wrong(text, f"its path is {parts.path!r}; a node has none")
    host = parts.hostname or ""
    if not _HOST.fullmatch(host):
        raise _wrong(text, f"its host is {host!r}")
    if port == 0:
        raise _wrong(text, "its port is 0: nobody listens there")
    return Address(cast("Scheme", scheme), host, PORT if port is None else port)


def _check_parts(text: str, parts: SplitResult) -> None:
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        raise InvalidParams(
            f"the url {shown} has something before the host or after the path",
            field="url",
            hint="a token never goes into a url: give token=…, LOOM_TOKEN or --token-file",
        )


def _wrong(text: str, why: str) -> InvalidParams:
    return InvalidParams(f"{text[:200]!r} is no url of a node: {why}", field="url", hint=_HINT)


def parse_bind(text: str, *, field: str = "bind") -> tuple[str, int]:
    """Return the host and the port that ``HOST:PORT`` names; port 0 is any that is free.

    Raises:
        InvalidParams: it is none.
    """
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    is_port = port.isascii() and port.isdecimal() and int(port) < 1 << 16
    if not colon or not is_port or not _HOST.fullmatch(host):
        raise InvalidParams(
            f"{text!r} is not HOST:PORT", field=field, hint="such as 127.0.0.1:7420, or [::1]:0"
        )
    return host, int(port)


def parse_host(text: str, *, field: str = "host") -> str:
    """Return ``HOST`` or ``HOST:PORT``, checked: a name by which a node is reached.

    Raises:
        InvalidParams: it is none.
    """
    name, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        name, port = text, "1"
    is_port = port.isascii() and port.isdecimal() and 0 < int(port) < 1 << 16
    bare = name[1:-1] if name.startswith("[") and name.endswith("]") else name
    if not is_port or not _HOST.fullmatch(bare) or (":" in bare) != (bare != name):
        raise InvalidParams(
            f"{text!r} is no name of a host",
            field=field,
            hint="such as node.example.org, or node.example.org:7420; no https:// before it",
        )
    return text.lower()


# -- the file of a running node -------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFile:
    """What a running node tells the programs of its user."""

    urls: tuple[str, ...]
    token_file: str
    pid: int
    boot: str
    data: str | None

    @property
    def as_json(self) -> dict[str, Any]:
        """As it is written."""
        return {
            "urls": list(self.urls),
            "token_file": self.token_file,
            "pid": self.pid,
            "boot": self.boot,
            "data": self.data,
        }


def find_node(runtime: Path) -> NodeFile | None:
    """Return what the node says that runs for this user; None: none runs.

    A node holds a lock while it lives, so a file that one has left behind is not believed.
    """
    try:
        lock = os.open(runtime / LOCK_FILE, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read_node(runtime / NODE_FILE)
    finally:
        os.close(lock)
    return None


def _read_node(path: Path) -> NodeFile | None:
    try:
        told: dict[str, Any] = decode(read_private(path))
        return NodeFile(
            urls=tuple(str(url) for url in told["urls"]),
            token_file=str(told["token_file"]),
            pid=int(told["pid"]),
            boot=str(told["boot"]),
            data=None if told["data"] is None else str(told["data"]),
        )
    except (NotFound, InvalidParams, KeyError, TypeError, ValueError):
        return None  # it is just being written


def read_private(path: Path, most: int = _LARGEST) -> bytes:
    """Return what a file holds that only its owner may read, up to ``most`` bytes.

    Raises:
        NotFound: there is no such file.
        Denied: somebody else may read or write it, or it belongs to somebody else.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise NotFound(f"{path} cannot be read: {error.strerror}", field="file") from None
    with os.fdopen(file, "rb") as opened:
        found = os.fstat(file)
        if found.st_mode & _PRIVATE or found.st_uid != os.geteuid():
            raise Denied(
                f"{path} is not private: its mode is {found.st_mode & 0o777:o}",
                field="file",
                hint=f"it may have been read: make a new one, or `chmod 600 {path}`",
            )
        return opened.read(most)


def read_token(path: Path) -> str:
    """Return the token in a file.

    Raises:
        NotFound: there is no such file.
        Denied: it is not private.
    """
    return read_private(path).decode("ascii", "replace").strip()


def settle(
    url: str | None, token: str | None, *, runtime: Path, variables: Mapping[str, str]
) -> tuple[str, str]:
    """Return the url and the token to connect with.

    What is given goes before LOOM_URL and LOOM_TOKEN, and these before what a node of this user
    says. ``local`` and ``loom://local`` are that node.

    Raises:
        InvalidParams: the url is none.
        NotFound: no node of this user runs.
        Unauthenticated: there is no token for that url.
        Denied: the file of the token is not private.
    """
    text = url or variables.get("LOOM_URL") or LOCAL
    given = token or variables.get("LOOM_TOKEN")
    node = find_node(runtime)
    if text in {LOCAL, f"loom://{LOCAL}"}:
        if node is None or not node.urls:
            raise NotFound(
                "no node runs for this user",
                field="url",
                hint="`loom up` starts one; url=…, --url or LOOM_URL names one elsewhere",
            )
        text = node.urls[0]
    address = parse_url(text)
    if given is not None:
        return address.url, check_token(given)
    if node is not None and any(address.is_same(parse_url(known)) for known in node.urls):
        return address.url, read_token(Path(node.token_file))
    raise Unauthenticated(
        f"there is no token for {address.url}",
        field="token",
        hint="give token=…, LOOM_TOKEN or --token-file; `loom token create` makes one at the node",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """Files of PEM for a node with TLS.

    ``ca``: who vouches for the node, instead of those whom the system trusts; ``cert`` and
    ``cert_key``: what a node is shown that asks for a certificate.
    """

    ca: File | None = None
    cert: File | None = None
    cert_key: File | None = None

    def settled(self, url: str, variables: Mapping[str, str]) -> "Trust":
        """Return it with LOOM_CA, LOOM_CERT and LOOM_CERT_KEY where nothing was given.

        Raises:
            InvalidParams: the url has no TLS; a certificate has no key, or a key no certificate.
            NotFound: the key is not there.
            Denied: somebody else may read it.
        """
        address = parse_url(url)
        if not address.is_tls:
            for name in ("ca", "cert", "cert_key"):
                if getattr(self, name) is not None:
                    raise InvalidParams(
                        f"{name} is for TLS, and {address.url} has none",
                        field=name,
                        hint="looms:// and wss:// are with TLS",
                    )
            return Trust()
        found = Trust(
            ca=self.ca or variables.get("LOOM_CA") or None,
            cert=self.cert or variables.get("LOOM_CERT") or None,
            cert_key=self.cert_key or variables.get("LOOM_CERT_KEY") or None,
        )
        if (found.cert is None) != (found.cert_key is None):
            raise InvalidParams(
                "a certificate and its key go together",
                field="cert" if found.cert is None else "cert_key",
                hint="give cert=… and cert_key=…, or LOOM_CERT and LOOM_CERT_KEY",
            )
        if found.cert_key is not None:
            try:
                read_private(Path(found.cert_key))
            except (Denied, NotFound) as error:
                error.field = "cert_key"
                raise
        return found

    @property
    def files(self) -> tuple[str | None, tuple[str, str] | None] | None:
        """As the engine takes it; None: the system says whom to trust."""
        own = None
        if self.cert is not None and self.cert_key is not None:
            own = (os.fspath(self.cert), os.fspath(self.cert_key))
        ca = None if self.ca is None else os.fspath(self.ca)
        return None if ca is None and own is None else (ca, own)


def check_token(token: object) -> str:
    """Return a token if it reads as one.

    Raises:
        Unauthenticated: it does not; it is not shown.
    """
    if isinstance(token, str) and re.fullmatch(r"loom_[A-Za-z0-9_-]{43}", token):
        return token
    raise Unauthenticated(
        "that is no token", field="token", hint="a token is loom_ and 43 letters, digits, - and _"
    )
