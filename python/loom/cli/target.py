"""From ``module:app`` or a file to the App it names."""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from loom.app import App
from loom.config import load
from loom.errors import InvalidParams, NotFound


def load_target(target: str | None) -> tuple[App, ModuleType]:
    """Import what ``target`` names and return its App and its module.

    Raises:
        InvalidParams: no target was given, or what it names is no App.
        NotFound: there is no such file or module.
    """
    text = target or load().target
    if not text:
        raise InvalidParams(
            "no app was named",
            field="target",
            hint='give `module:app` or a file, or set [app] target = "…" in loom.toml',
        )
    where, _, name = text.partition(":")
    is_file = where.endswith(".py") or "/" in where
    module = _from_file(Path(where)) if is_file else _from_module(where)
    if name:
        app = getattr(module, name, None)
    else:
        apps = [value for value in vars(module).values() if isinstance(value, App)]
        app = getattr(module, "app", apps[0] if len(apps) == 1 else None)
    if not isinstance(app, App):
        raise InvalidParams(
            f"{text} has no App called {name or 'app'!r}",
            field="target",
            hint="name it: `module:variable`",
        )
    return app, module


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise NotFound(
            f"there is no file {path}", field="target", hint="give the path of a .py file"
        )
    path = path.resolve()
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise InvalidParams(f"{path} is not a Python file", field="target")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def _from_module(name: str) -> ModuleType:
    sys.path.insert(0, str(Path.cwd()))
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
