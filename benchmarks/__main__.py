"""``python -m benchmarks``: measure, print the table, write ``docs/benchmarks.md``."""

import argparse
import sys
from pathlib import Path

from benchmarks import machine, measure, report
from benchmarks.registry import CASES, load_all

_PAGE = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"
_ROUNDS = 5
_QUICK = 0.02


def main(arguments: list[str] | None = None) -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--case", action="append", choices=CASES, help="only this one; may be repeated"
    )
    parser.add_argument("--rounds", type=int, default=_ROUNDS, help="how often (default: 5)")
    parser.add_argument(
        "--quick", action="store_true", help="once, with little work: shows that it runs"
    )
    parser.add_argument(
        "--scale", type=float, default=1.0, help="do so many times the work (default: 1)"
    )
    parser.add_argument("--json", action="store_true", help="print every sample as JSON")
    chosen = parser.parse_args(arguments)
    rounds = 1 if chosen.quick else chosen.rounds
    about = machine.describe()
    all_results = [
        measure.run(
            case, rounds=rounds, scale=_QUICK if chosen.quick else chosen.scale, progress=_progress
        )
        for case in load_all(chosen.case or CASES)
    ]
    print(report.as_json(all_results, about) if chosen.json else report.as_table(all_results))
    if chosen.case is None and not chosen.quick and chosen.scale == 1.0:
        _PAGE.parent.mkdir(exist_ok=True)
        _PAGE.write_text(report.as_page(all_results, about, rounds), encoding="utf-8")
        _progress("written to docs/benchmarks.md")
        for name in report.without_reason(all_results):
            _progress(f"{name} was missed: say why in benchmarks/reasons.toml")


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
