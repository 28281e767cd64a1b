"""Where a command looks: ``--data``, the configuration, ``--namespace``."""

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from loom.errors import InvalidParams

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
        help="Whose log, where there are several.",
        show_default=False,
    ),
]

_NODE = ", or --url local for the node that runs for you"


def data_directory(data: str | None, *, or_node: bool = False) -> Path:
    """Return the data directory that a command is about; ``or_node``: it could ask a node.

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
            hint=f"give --data DIR{_NODE if or_node else ''}, or set [log] dir in loom.toml "
            "or LOOM_LOG__DIR",
        )
    return found
