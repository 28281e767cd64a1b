"""Configuration, and the one reader of files and environment.

What exists stands in ``spec/config.toml``.

Precedence: code > environment (``LOOM_MODELS__DEFAULT``) > ``loom.toml`` (searched upward) >
``[tool.loom]`` in ``pyproject.toml`` > ``config.toml`` in the user's configuration directory >
default.
"""

import os
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, cast

from loom.address import PORT, parse_bind, parse_host
from loom.errors import InvalidParams
from loom.limits import CONSUMER_IDLE_SECONDS, CONSUMER_IDLE_SECONDS_MAX
from loom.topics import check_filter

MODEL_FACTORY: Final = "loom.models.select:from_environment"
MEMORY_FACTORY: Final = "loom.memory.in_process:InProcessMemory"
_RESERVED: Final = ("control", "memory", "routing", "limits", "mcp", "otel")
_WHOLE_MAX: Final = 2**53  # what every reader of numbers reads

DataDir: TypeAlias = str | os.PathLike[str]
"""A folder that is the log's own, and made where there is none."""

Recording: TypeAlias = Literal["off", "runs", "all"]
"""What is recorded of turns: nothing, what belongs to runs, or the engine's own events, too."""

RECORD_CODES: Final[Mapping[Recording, int]] = {"off": 0, "runs": 1, "all": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class LogConfig:
    """How the log is kept.

    ``dir`` is the data directory, None: in memory; ``durable`` filters of durable topics; ``ack``
    what such an event must have reached before its publisher goes on; ``record`` what is recorded
    of turns; segments go when the log is larger than ``retention_bytes``, or when they are older
    than ``retention_age`` seconds; a group that nobody has belonged to for ``retention_idle``
    seconds holds none of them any more.
    """

    dir: Path | None = None
    durable: tuple[str, ...] = ()
    ack: Literal["disk", "os"] = "disk"
    record: Recording = "runs"
    retention_bytes: int | None = None
    retention_age: int | None = None
    retention_idle: int = CONSUMER_IDLE_SECONDS


@dataclass(frozen=True, slots=True, kw_only=True)
class BridgeConfig:
    """Where a node listens, and to whom.

    ``bind`` are addresses, ``unix`` is the path of a socket; ``tls_cert``, ``tls_key`` are files,
    ``tls_client_ca`` one that vouches for clients; ``origins`` those that WebSockets may come from,
    ``hosts`` names by which it is reached besides its addresses; ``insecure`` allows what is
    reachable from elsewhere without TLS.
    """

    bind: tuple[str, ...] = (f"127.0.0.1:{PORT}",)
    unix: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    origins: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    insecure: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What one process was configured with.

    ``environment`` is what providers of others look for under the names that those gave them
    (OPENAI_API_KEY …); ``origins`` says for each key where its value came from.
    """

    target: str
    model: str
    environment: Mapping[str, str]
    origins: Mapping[str, str]
    log: LogConfig = LogConfig()
    bridge: BridgeConfig = BridgeConfig()

    @property
    def url(self) -> str | None:
        """The node that LOOM_URL names; None: an engine of this process."""
        return self.environment.get("LOOM_URL") or None

    @property
    def runtime(self) -> Path:
        """The folder for what a running node tells the programs of its user."""
        return _user_folder(self.environment, "XDG_RUNTIME_DIR", ".local/state/loom/run", "run")

    @property
    def state(self) -> Path:
        """The folder for what a node keeps that has no data directory."""
        return _user_folder(self.environment, "XDG_STATE_HOME", ".local/state/loom", "state")

    @property
    def target_folder(self) -> Path | None:
        """The folder of the file that names the target; None where no file does."""
        origin = Path(self.origins["app.target"])
        return origin.parent if origin.suffix == ".toml" else None


def load(*, cwd: Path | None = None, environment: Mapping[str, str] | None = None) -> Config:
    """Read the configuration that holds in ``cwd``.

    Raises:
        InvalidParams: a file is not TOML, or has a key that does not exist; ``field`` names it.
    """
    env = dict(os.environ) if environment is None else dict(environment)
    values: dict[str, Any] = {key: known.default for key, known in _KEYS.items()}
    origins = dict.fromkeys(values, "default")
    for path, table in _tables(Path.cwd() if cwd is None else cwd, env):
        for key, value in _flat(table, path):
            values[key], origins[key] = value, str(path)
    _check_variables(env)
    for key, known in _KEYS.items():
        variable = _variable(key)
        if variable in env:
            values[key], origins[key] = known.read(known.of_text(env[variable]), variable), variable
    return Config(
        target=values["app.target"],
        model=values["models.default"],
        environment=env,
        origins=origins,
        log=LogConfig(
            dir=_directory(values["log.dir"], origins["log.dir"]),
            durable=values["log.durable"],
            ack=values["log.ack"],
            record=values["log.record"],
            retention_bytes=values["log.retention_bytes"] or None,
            retention_age=values["log.retention_age"] or None,
            retention_idle=values["log.retention_idle"],
        ),
        bridge=BridgeConfig(
            bind=values["bridge.bind"],
            **{
                name: _directory(values[f"bridge.{name}"], origins[f"bridge.{name}"])
                for name in ("unix", "tls_cert", "tls_key", "tls_client_ca")
            },
            origins=values["bridge.origins"],
            hosts=values["bridge.hosts"],
            insecure=values["bridge.insecure"],
        ),
    )


def log_of(config: Config, data: DataDir | None) -> LogConfig:
    """Return how the log is kept: as configured, in ``data`` where that is given.

    Raises:
        InvalidParams: ``data`` is no path.
    """
    if data is None:
        return config.log
    path = os.fspath(data) if isinstance(data, os.PathLike) else data
    if not isinstance(path, str) or not path or "\0" in path:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidParams(
            f"the data directory is {data!r}, not a path", field="data", hint='data="./data"'
        )
    return replace(config.log, dir=Path(path))


def _directory(text: str, origin: str) -> Path | None:
    """Return a path; one that a file names is relative to the folder of that file."""
    if not text:
        return None
    return Path(origin).parent / text if origin.endswith(".toml") else Path(text)


def _variable(key: str) -> str:
    return "LOOM_" + key.upper().replace(".", "__")


def _check_variables(env: Mapping[str, str]) -> None:
    """Refuse a variable that looks like a key of ours and is none."""
    ours = [_variable(key) for key in _KEYS]
    for variable in env:
        section, nested, _ = variable.removeprefix("LOOM_").lower().partition("__")
        is_ours = variable.startswith("LOOM_") and nested and section not in _RESERVED
        if is_ours and variable not in ours:
            raise InvalidParams(
                f"the environment variable {variable} is no key of the configuration",
                field=variable,
                hint=f"keys: {', '.join(ours)}",
            )


def _tables(cwd: Path, env: Mapping[str, str]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield what files say, the weakest first."""
    home = env.get("LOOM_HOME") or _user_directory(env)
    if home is not None and (user := Path(home) / "config.toml").is_file():
        yield user, _read(user)
    folders = [cwd.resolve(), *cwd.resolve().parents]
    for name in ("pyproject.toml", "loom.toml"):
        found = next((folder / name for folder in folders if (folder / name).is_file()), None)
        if found is not None:
            table = _read(found)
            if name == "pyproject.toml":
                table = cast("dict[str, Any]", table.get("tool", {}).get("loom", {}))
            yield found, table


def _user_directory(env: Mapping[str, str]) -> str | None:
    if base := env.get("XDG_CONFIG_HOME"):
        return str(Path(base) / "loom")
    return str(Path(env["HOME"]) / ".config" / "loom") if env.get("HOME") else None


def _user_folder(env: Mapping[str, str], variable: str, usual: str, ours: str) -> Path:
    if home := env.get("LOOM_HOME"):
        return Path(home) / ours
    if base := env.get(variable):
        return Path(base) / "loom"
    return Path(env.get("HOME") or ".") / usual


def cache_directory() -> Path:
    """Return the folder for what can be made anew."""
    home = os.environ.get("LOOM_HOME") or os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "loom"


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidParams(f"{path} is not TOML: {error}", field=str(path)) from None


def _flat(table: Mapping[str, Any], path: Path) -> Iterator[tuple[str, Any]]:
    tables = tuple(dict.fromkeys(key.partition(".")[0] for key in _KEYS))
    for section, content in table.items():
        if section in _RESERVED:
            continue
        if section not in tables or not isinstance(content, Mapping):
            raise InvalidParams(
                f"{path}: there is no table [{section}]",
                field=section,
                hint=f"tables: {', '.join((*tables, *_RESERVED))}",
            )
        names = [key.partition(".")[2] for key in _KEYS if key.startswith(f"{section}.")]
        for name, value in cast("Mapping[str, Any]", content).items():
            if name not in names:
                raise InvalidParams(
                    f"{path}: [{section}] has no key {name!r}",
                    field=f"{section}.{name}",
                    hint=f"keys: {', '.join(names)}",
                )
            known = _KEYS[f"{section}.{name}"]
            yield f"{section}.{name}", known.read(value, f"{path}: {name} in [{section}]")


# -- what a value may be --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Key:
    """One key.

    ``read(value, where)`` checks what a file says; ``of_text`` makes that of a variable's text.
    """

    default: Any
    read: Callable[[Any, str], Any]
    of_text: Callable[[str], Any] = str


def _text(field: str, value: Any, where: str) -> str:
    if isinstance(value, str):
        return value
    raise InvalidParams(f"{where} is {value!r}, not text", field=field)


def _choice(field: str, choices: tuple[str, ...], value: Any, where: str) -> str:
    if value in choices:
        return value
    raise InvalidParams(f"{where} is {value!r}", field=field, hint=f"one of: {', '.join(choices)}")


def _filters(field: str, value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(
        isinstance(one, str) for one in cast("list[object]", value)
    ):
        raise InvalidParams(
            f"{where} is {value!r}, not a list of filters",
            field=field,
            hint='durable = ["order.>"], and in the environment order.>,invoice.*',
        )
    found = cast("list[str]", value)
    return tuple(check_filter(one, field=field) for one in found)


def _texts(field: str, value: Any, where: str) -> tuple[str, ...]:
    found = cast("list[object]", value)
    if isinstance(value, list) and all(isinstance(one, str) and one for one in found):
        return tuple(cast("list[str]", value))
    raise InvalidParams(f"{where} is {value!r}, not a list of texts", field=field)


def _binds(field: str, value: Any, where: str) -> tuple[str, ...]:
    found = _texts(field, value, where)
    for one in found:
        parse_bind(one, field=field)
    return found


def _hosts(field: str, value: Any, where: str) -> tuple[str, ...]:
    found = _texts(field, value, where)
    return tuple(parse_host(one, field=field) for one in found)


def _flag(field: str, value: Any, where: str) -> bool:
    if isinstance(value, bool):
        return value
    raise InvalidParams(f"{where} is {value!r}", field=field, hint="write true or false")


def _truth(text: str) -> Any:
    return {"true": True, "false": False}.get(text, text)


def _whole(field: str, value: Any, where: str) -> int:
    if type(value) is int and 0 <= value <= _WHOLE_MAX:
        return value
    raise InvalidParams(f"{where} is {value!r}, not a whole number from 0 on", field=field)


def _within(field: str, most: int, value: Any, where: str) -> int:
    found = _whole(field, value, where)
    if 0 < found <= most:
        return found
    raise InvalidParams(f"{where} is {found}, not between 1 and {most}", field=field)


def _number(text: str) -> Any:
    return int(text) if text.isascii() and text.isdigit() else text


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


_KEYS: Final[Mapping[str, _Key]] = {
    "app.target": _Key("", partial(_text, "app.target")),
    "models.default": _Key("auto", partial(_text, "models.default")),
    "bridge.bind": _Key((f"127.0.0.1:{PORT}",), partial(_binds, "bridge.bind"), _parts),
    "bridge.unix": _Key("", partial(_text, "bridge.unix")),
    "bridge.tls_cert": _Key("", partial(_text, "bridge.tls_cert")),
    "bridge.tls_key": _Key("", partial(_text, "bridge.tls_key")),
    "bridge.tls_client_ca": _Key("", partial(_text, "bridge.tls_client_ca")),
    "bridge.origins": _Key((), partial(_texts, "bridge.origins"), _parts),
    "bridge.hosts": _Key((), partial(_hosts, "bridge.hosts"), _parts),
    "bridge.insecure": _Key(False, partial(_flag, "bridge.insecure"), _truth),
    "log.dir": _Key("", partial(_text, "log.dir")),
    "log.durable": _Key((), partial(_filters, "log.durable"), _parts),
    "log.ack": _Key("disk", partial(_choice, "log.ack", ("disk", "os"))),
    "log.record": _Key("runs", partial(_choice, "log.record", ("runs", "off", "all"))),
    "log.retention_bytes": _Key(0, partial(_whole, "log.retention_bytes"), _number),
    "log.retention_age": _Key(0, partial(_whole, "log.retention_age"), _number),
    "log.retention_idle": _Key(
        CONSUMER_IDLE_SECONDS,
        partial(_within, "log.retention_idle", CONSUMER_IDLE_SECONDS_MAX),
        _number,
    ),
}
