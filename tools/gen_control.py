"""Write the schemas of what a node offers into ``python/loom/node/control.json``.

They are what Pydantic makes of the hints. A node reads them from there: so Pydantic is loaded, and
takes its memory, once an operator asks for something.

``python tools/gen_control.py`` writes; with ``--check`` it only says whether they are up to date.
"""

import json
import sys
from pathlib import Path
from typing import Any, Final

from loom.capabilities import Capability, MethodCapability
from loom.node.control import SCHEMAS, Control

_NOBODY: Final = object.__new__(Control)  # whose methods take no `self`


def text() -> str:
    """Return the file, a capability a line."""
    made: dict[str, Any] = {}
    for attribute, declared in vars(Control).items():
        if isinstance(declared, MethodCapability):
            one: Capability[..., Any] = getattr(_NOBODY, attribute)
            made[one.name] = {"input": one.input_schema(), "output": one.output_schema()}
    lines = [f"{json.dumps(name)}: {json.dumps(made[name])}" for name in sorted(made)]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def main(arguments: list[str]) -> int:
    """Write the file, or with ``--check`` say whether it is out of date."""
    made = text()
    if SCHEMAS.exists() and SCHEMAS.read_text(encoding="utf-8") == made:
        return 0
    if "--check" in arguments:
        print(f"out of date, run `make gen`: {SCHEMAS.name}", file=sys.stderr)
        return 1
    SCHEMAS.write_text(made, encoding="utf-8")
    print(f"wrote {SCHEMAS.relative_to(Path.cwd())}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
