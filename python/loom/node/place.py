"""One namespace's log in a data directory."""

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from loom.errors import InvalidParams, NotFound
from loom.link.view import namespaces

_DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class Place:
    """One namespace's log in a data directory."""

    data: Path
    namespace: str


def find_log(directory: Path, namespace: str | None) -> Place:
    """Return a log in a directory.

    Without ``--namespace`` it is the only one there is, else that of ``default``.

    Raises:
        InvalidParams: no namespace of several was named.
        NotFound: the directory is no log, or has no such namespace.
    """
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
