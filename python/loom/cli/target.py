"""From ``module:app`` or a file to the App it names."""

import importlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from loom.app import App
from loom.config import load
from loom.errors import InvalidParams, LoomError, NotFound

_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def load_target(target: str | None, *, or_node: bool = False) -> tuple[App, ModuleType]:
    """Import what ``target`` names and return its App and its module.

    ``or_node``: the command could ask a node instead.

    Raises:
        InvalidParams: no target was given, or what it names is no App.
        NotFound: there is no such file or module.
    """
    config = load() if target is None else None
    text = target if config is None else config.target
    if not text:
        raise InvalidParams(
            "no app was named",
            field="target",
            hint='give `module:app` or a file, or set [app] target = "…" in loom.toml'
            + ("; --url local lists what is at the node that runs for you" if or_node else ""),
        )
    folder = Path.cwd() if config is None else config.target_folder or Path.cwd()
    where, _, name = text.partition(":")
    is_file = where.endswith(".py") or not _MODULE.fullmatch(where)
    module = _from_file(folder / where) if is_file else _from_module(where, folder)
    if name:
        app = getattr(module, name, None)
    else:
        apps = _apps(module)
        app = apps.get("app", next(iter(apps.values())) if len(apps) == 1 else None)
        if app is None and apps:
            raise InvalidParams(
                f"{text} has several Apps: {', '.join(apps)}",
                field="target",
                hint=f"name one of them: {where}:{next(iter(apps))}",
            )
    if not isinstance(app, App):
        raise InvalidParams(
            f"{text} has no App called {name or 'app'!r}",
            field="target",
            hint=f"its Apps: {', '.join(_apps(module)) or 'none'}; name one: `module:variable`",
        )
    return app, module


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "no file that is there"
        raise NotFound(f"{path} is {kind}", field="target", hint="give the path of a .py file")
    path = path.resolve()
    sys.path.insert(0, str(path.parent))
    name = path.stem if path.stem not in sys.modules else f"{path.stem}_target"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InvalidParams(f"{path} is not a Python file", field="target")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    with _own_errors(path):
        spec.loader.exec_module(module)
    return module


@contextmanager
def _own_errors(path: Path) -> Generator[None]:
    """Show what the user's file raises with its own frames only, and leave with exit code 1."""
    try:
        yield
    except LoomError:
        raise
    except Exception as error:  # noqa: BLE001  the root of the user's module
        told = traceback.TracebackException.from_exception(error)
        files = [frame.filename for frame in told.stack]
        if str(path) in files:
            del told.stack[: files.index(str(path))]
        sys.stderr.write("".join(told.format()))
        raise SystemExit(1) from None


def _apps(module: ModuleType) -> dict[str, App]:
    return {key: value for key, value in vars(module).items() if isinstance(value, App)}


def _from_module(name: str, folder: Path) -> ModuleType:
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        raise NotFound(
            f"there is no module {name!r}",
            field="target",
            hint="run it where the module can be imported, or give the path of a file",
        ) from None
