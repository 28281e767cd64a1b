"""The documents on this machine: Python's reference, its library's docstrings, packages.

Sources are read as text and parsed; no module is imported for its documentation.
"""

import ast
import builtins
import functools
import hashlib
import inspect
import itertools
import math
import re
import sys
import sysconfig
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Final, cast

from loom.tools.plain import paragraphs

PYTHON_DOCS: Final = "Python documentation on this machine"
PACKAGE_DOCS: Final = "description of a package installed on this machine"

_COMPILED: Final[tuple[ModuleType, ...]] = (builtins, functools, itertools, math, sys, time)
_SKIPPED: Final = frozenset(
    {"test", "tests", "idlelib", "lib2to3", "turtledemo", "ensurepip", "pydoc_data", "distutils"}
    | {"site-packages", "dist-packages", "encodings"}
)
_SOURCE_BYTES: Final = 1_000_000
_DESCRIPTION_CHARACTERS: Final = 64_000
_HISTORY: Final = re.compile(
    r"^\W*(?:change ?log|changes|release (?:history|notes)|history|what's (?:new|changed))\W*$",
    re.IGNORECASE | re.MULTILINE,
)
_SIGNATURE: Final = re.compile(r"^[\w.]+\([^\n]*?\)\s*-+>\s*")

_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True, slots=True)
class Document:
    """One thing that is explained somewhere on this machine."""

    ref: str
    title: str
    source: str
    paragraphs: Sequence[str]


def documents() -> Iterator[Document]:
    """Yield every document that has prose in it, each reference once."""
    seen: set[str] = set()
    for document in itertools.chain(_topics(), _compiled(), _library(), _packages()):
        if document.paragraphs and document.ref not in seen:
            seen.add(document.ref)
            yield document


def fingerprint() -> str:
    """Return what changes when the documents do: by versions of Python and installed packages."""
    installed = {f"{found.name}=={found.version}" for found in metadata.distributions()}
    told = "\n".join([sys.version, *sorted(installed)])
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def _topics() -> Iterator[Document]:
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions of Python leave it out
        return
    for name, text in topics.items():
        heading, _, body = text.lstrip().partition("\n")
        title = heading.replace('"', "").strip().rstrip("*=-") or name
        yield Document(f"pydoc:topic/{name}", title, PYTHON_DOCS, paragraphs(body))


def _compiled() -> Iterator[Document]:
    """Yield what has no Python source: built-ins, and a few modules that every Python loads."""
    for module in _COMPILED:
        prefix = "" if module is builtins else f"{module.__name__}."
        for name in sorted(vars(module)):
            thing: object = getattr(module, name)
            if name.startswith("_") or not callable(thing) or inspect.isfunction(thing):
                continue
            yield _docstring(prefix + name, thing.__doc__)
            if not prefix and inspect.isclass(thing) and not issubclass(thing, BaseException):
                for attribute, method in sorted(
                    cast("dict[str, object]", dict(vars(thing))).items()
                ):
                    if not attribute.startswith("_"):
                        yield _docstring(f"{name}.{attribute}", method.__doc__)


def _library() -> Iterator[Document]:
    root = Path(sysconfig.get_path("stdlib"))
    exports: dict[str, _Exports] = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        package = parts[-1] == "__init__"
        parts = parts[:-1] if package else parts
        hidden = any(part in _SKIPPED or part.startswith("_") or "-" in part for part in parts)
        if hidden or not parts or path.stat().st_size > _SOURCE_BYTES:
            continue
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            continue
        module = ".".join(parts)
        if package:
            exports[module] = _Exports.of(tree)
        above = exports.get(module.rpartition(".")[0], _Exports(frozenset(), frozenset()))
        yield _docstring(module, ast.get_docstring(tree))
        yield from _definitions(tree.body, module, above)


@dataclass(frozen=True, slots=True)
class _Exports:
    """What a package takes over from its modules: all of ``everything``, and single ``names``."""

    everything: frozenset[str]
    names: frozenset[str]

    @classmethod
    def of(cls, tree: ast.Module) -> "_Exports":
        everything: set[str] = set()
        names: set[str] = set()
        for node in tree.body:
            if isinstance(node, ast.ImportFrom) and node.module is not None:
                for alias in node.names:
                    if alias.name == "*":
                        everything.add(node.module.rpartition(".")[2])
                    else:
                        names.add(alias.name)
        return cls(frozenset(everything), frozenset(names))

    def have(self, module: str, name: str) -> bool:
        return name in self.names or module.rpartition(".")[2] in self.everything


def _definitions(body: Sequence[ast.stmt], module: str, above: _Exports) -> Iterator[Document]:
    for node in body:
        if not isinstance(node, _Definition) or node.name.startswith("_"):
            continue
        home = module.rpartition(".")[0] if above.have(module, node.name) else module
        name = f"{home}.{node.name}"
        yield _docstring(name, ast.get_docstring(node))
        if isinstance(node, ast.ClassDef):
            for part in node.body:
                if isinstance(part, _Definition) and not part.name.startswith("_"):
                    yield _docstring(f"{name}.{part.name}", ast.get_docstring(part))


def _docstring(name: str, text: object) -> Document:
    told = inspect.cleandoc(text) if isinstance(text, str) else ""
    if signature := _SIGNATURE.match(told):
        told = told[signature.end() :]
        returned, _, rest = told.partition("\n\n")
        told = told if returned.endswith(".") else rest  # only the type it returns
    return Document(f"python:{name}", name, PYTHON_DOCS, paragraphs(told))


def _packages() -> Iterator[Document]:
    for found in metadata.distributions():
        about = found.metadata
        name = about["Name"]
        if not name:
            continue
        body = str(about.json.get("description", ""))[:_DESCRIPTION_CHARACTERS]
        body = _HISTORY.split(body, maxsplit=1)[0]
        summary = (about["Summary"] or "").strip()
        prose = [summary] if summary else []
        yield Document(
            f"dist:{name} {found.version}",
            f"{name} {found.version}",
            PACKAGE_DOCS,
            prose + [told for told in paragraphs(body) if told.strip(".") != summary.strip(".")],
        )
