"""Configuration, and the one reader of files and environment.

What exists stands in ``spec/config.toml``.

Precedence: code > environment (``LOOM_MODELS__DEFAULT``) > ``loom.toml`` (searched upward) >
``[tool.loom]`` in ``pyproject.toml`` > ``config.toml`` in the user's configuration directory >
default.
"""

import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from loom.errors import InvalidParams

MODEL_FACTORY: Final = "loom.models.select:from_environment"
MEMORY_FACTORY: Final = "loom.memory.in_process:InProcessMemory"
_KEYS: Final = {"app": ("target",), "models": ("default",)}
_RESERVED: Final = ("log", "bridge", "control", "memory", "routing", "limits", "mcp", "otel")


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
    values = {"app.target": "", "models.default": "auto"}
    origins = dict.fromkeys(values, "default")
    for path, table in _tables(Path.cwd() if cwd is None else cwd, env):
        for key, value in _flat(table, path):
            values[key], origins[key] = value, str(path)
    _check_variables(env)
    for key in values:
        variable = "LOOM_" + key.upper().replace(".", "__")
        if variable in env:
            values[key], origins[key] = env[variable], variable
    return Config(
        target=values["app.target"],
        model=values["models.default"],
        environment=env,
        origins=origins,
    )


def _check_variables(env: Mapping[str, str]) -> None:
    """Refuse a variable that looks like a key of ours and is none."""
    ours = [f"LOOM_{section}__{key}".upper() for section in _KEYS for key in _KEYS[section]]
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


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidParams(f"{path} is not TOML: {error}", field=str(path)) from None


def _flat(table: Mapping[str, Any], path: Path) -> Iterator[tuple[str, str]]:
    for section, content in table.items():
        if section in _RESERVED:
            continue
        known = _KEYS.get(section)
        if known is None or not isinstance(content, Mapping):
            raise InvalidParams(
                f"{path}: there is no table [{section}]",
                field=section,
                hint=f"tables: {', '.join((*_KEYS, *_RESERVED))}",
            )
        for key, value in cast("Mapping[str, Any]", content).items():
            if key not in known:
                raise InvalidParams(
                    f"{path}: [{section}] has no key {key!r}",
                    field=f"{section}.{key}",
                    hint=f"keys: {', '.join(known)}",
                )
            if not isinstance(value, str):
                raise InvalidParams(
                    f"{path}: {key} in [{section}] is {value!r}, not text", field=f"{section}.{key}"
                )
            yield f"{section}.{key}", value
