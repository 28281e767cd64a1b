"""``loom --help`` as a whole process, and what it must not load."""

import subprocess
from functools import partial

from benchmarks.model import Case, Sample, Side, Target
from benchmarks.peers.processes import measure_time, python

# Libraries of models, of MCP and of the web: the command line loads none to show its help.
HEAVY = (
    "aiohttp anthropic fastapi grpc h11 httpcore httpcore2 httpx httpx2 mcp openai pydantic"
    " requests sqlite3 starlette torch transformers uvicorn websockets"
)
_LOOM = python("-m", "loom", "--help")
_EMPTY = """
import sys, typer
app = typer.Typer({settings})
@app.command()
def main() -> None:
    pass
sys.argv = ["main", "--help"]
app()
"""
_SAME_SETTINGS = "rich_markup_mode=None, pretty_exceptions_enable=False"
_LOADED = f"""
import sys
from loom.cli.main import app
try:
    app(["--help"], standalone_mode=False)
finally:
    sys.stderr.write(" ".join(sorted(set("{HEAVY}".split()) & set(sys.modules))))
"""


def help_of_loom(count: int) -> Sample:
    """Show the help, and see that it stays light."""
    done = subprocess.run(python("-c", _LOADED), check=True, capture_output=True, text=True)
    if done.stderr:
        raise AssertionError(f"loom --help loads {done.stderr}")
    return measure_time(count, _LOOM)


CASE = Case(
    name="help",
    title="loom --help",
    sides=(
        Side(name="Loom", run=help_of_loom, count=8),
        Side(
            name="an empty Typer application, same settings",
            run=partial(measure_time, command=python("-c", _EMPTY.format(settings=_SAME_SETTINGS))),
            count=8,
        ),
        Side(
            name="an empty Typer application as it comes",
            run=partial(measure_time, command=python("-c", _EMPTY.format(settings=""))),
            count=8,
        ),
    ),
    targets=(
        Target(
            name="help-time",
            promise="time against an empty Typer application with the same settings",
            metric="time",
            of="Loom",
            against="an empty Typer application, same settings",
            at_most=1.5,
        ),
    ),
)
