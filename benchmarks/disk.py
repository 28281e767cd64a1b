"""Where the data of a benchmark goes: a new directory on the disk that the repository is on.

The system's directory for temporary files may be memory, and syncing memory costs nothing.
"""

import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

_DATA = Path(__file__).resolve().parent.parent / "target" / "measured-data"


@contextmanager
def directory() -> Generator[Path]:
    """Give an empty directory, and take it away with all that is in it."""
    _DATA.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=_DATA) as path:
        yield Path(path)
