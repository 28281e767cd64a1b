"""``python -m loom``."""

from loom.cli.main import main

main()
