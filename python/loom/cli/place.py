"""Where the log is that a command looks into: ``--data``, the configuration, ``--namespace``."""

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from loom.errors import InvalidParams, NotFound

_DEFAULT = "default"

DataOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="DIR",
        help="The data directory. Default: [log] dir of the configuration.",
        show_default=False,
    ),
]
NamespaceOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--namespace",
        metavar="NAME",
        help="Whose log, where the directory has several.",
        show_default=False,
    ),
]


@dataclass(frozen=True, slots=True)
class Place:
    """One namespace's log in a data directory."""

    data: Path
    namespace: str


def data_directory(data: str | None) -> Path:
    """Return the data directory that a command is about.

    Raises:
        InvalidParams: neither ``--data`` nor the configuration names one.
    """
    if data is not None:
        if not data:
            raise InvalidParams("--data is empty", field="data", hint="give a directory")
        return Path(data)
    from loom.config import load

    found = load().log.dir
    if found is None:
        raise InvalidParams(
            "no data directory was named",
            field="data",
            hint="give --data DIR, or set [log] dir in loom.toml or LOOM_LOG__DIR",
        )
    return found


def find_log(data: str | None, namespace: str | None) -> Place:
    """Return the log that a command is about.

    Without ``--namespace`` it is the only one there is, else that of ``default``.

    Raises:
        InvalidParams: no directory was named, or no namespace of several.
        NotFound: the directory is no log, or has no such namespace.
    """
    from loom.link.view import namespaces

    directory = data_directory(data)
    there = namespaces(directory)
    if namespace is None:
        if len(there) == 1:
            return Place(directory, there[0])
        if _DEFAULT in there or not there:
            return Place(directory, _DEFAULT)
        raise InvalidParams(
            f"{directory} has the logs of {len(there)} namespaces",
            field="namespace",
            hint=f"give --namespace: {', '.join(there)}",
        )
    if namespace not in there:
        close = get_close_matches(namespace, there, 3) or there[:5]
        raise NotFound(
            f"{directory} has no log of namespace {namespace!r}",
            field="namespace",
            hint=f"there is: {', '.join(close)}" if close else "nothing was logged there yet",
        )
    return Place(directory, namespace)
