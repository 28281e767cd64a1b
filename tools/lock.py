"""Write ``requirements/*.txt`` from their sources: all with hashes, no index named."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
UV = Path(sys.executable).with_name("uv")
COMMON = (
    *("--universal", "--python-version", "3.11", "--generate-hashes", "--quiet"),
    *("--no-emit-index-url", "--no-header", "--no-annotate"),
)
LOCKS = {
    "requirements/runtime.txt": ("pyproject.toml",),
    "requirements/dev.txt": ("pyproject.toml", "--all-extras", "requirements/dev.in"),
    "requirements/bench.txt": ("requirements/bench.in",),
}


def main() -> int:
    """Run uv once for each lock file; versions that are locked stay unless they no longer fit."""
    for path, options in LOCKS.items():
        command = [UV, "pip", "compile", *COMMON, *options, "--output-file", path]
        subprocess.run(command, cwd=ROOT, check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
