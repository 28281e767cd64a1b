"""Figures as a table for the terminal, as a page for the docs, and as JSON."""

import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import Results, Spread
from benchmarks.model import UNITS, Metric, Target

_HERE = Path(__file__).parent
_REASONS = _HERE / "reasons.toml"
_PAGE = _HERE / "page.md"
_LABELS: Mapping[Metric, str] = {
    "rate": "",
    "p50": "P50 ",
    "p99": "P99 ",
    "longest": "its sender waited once ",
    "lost": "it lost ",
    "kept": "handled ",
    "cost": "",
    "time": "",
    "memory": "",
}


def as_table(all_results: Sequence[Results]) -> str:
    """Return the figures and the verdicts as plain text."""
    lines: list[str] = []
    for results in all_results:
        lines += ["", results.case.title]
        rows = [(name, " · ".join(cells)) for name, cells in _figures(results)]
        width = max(len(name) for name, _ in rows)
        lines += [f"  {name:<{width}}  {cells}" for name, cells in rows]
    lines += ["", "promised"]
    for results in all_results:
        for target in results.case.targets:
            promise, measured, bound, verdict = _verdict(results, target)
            lines += [f"  {verdict:<12} {measured:<26} {bound:<9} {promise}"]
    return "\n".join(lines).lstrip("\n")


def as_page(all_results: Sequence[Results], machine: Mapping[str, str], rounds: int) -> str:
    """Return the page ``docs/benchmarks.md``."""
    reasons: Mapping[str, str] = tomllib.loads(_REASONS.read_text(encoding="utf-8"))
    found = {
        "{machine}": _markdown(("", ""), [(name.capitalize(), v) for name, v in machine.items()]),
        "{promised}": _markdown(
            ("Promise", "Measured", "Wanted", ""),
            [_verdict(r, target) for r in all_results for target in r.case.targets],
        ),
        "{missed}": _missed(all_results, reasons),
        "{figures}": _markdown(
            ("Case", "Side", "Median [least..greatest]"),
            [
                (results.case.title if number == 0 else "", name, "<br>".join(cells))
                for results in all_results
                for number, (name, cells) in enumerate(_figures(results))
            ],
        ),
        "{rounds}": str(rounds),
    }
    page = _PAGE.read_text(encoding="utf-8")
    for place, text in found.items():
        page = page.replace(place, text.strip())
    return page


def as_json(all_results: Sequence[Results], machine: Mapping[str, str]) -> str:
    """Return every sample, for programs."""
    cases = [
        {
            "case": results.case.name,
            "rounds": results.rounds,
            "targets": [_target_as_json(results, target) for target in results.case.targets],
        }
        for results in all_results
    ]
    return json.dumps({"machine": dict(machine), "cases": cases}, indent=2)


def without_reason(all_results: Iterable[Results]) -> list[str]:
    """Return the targets that were missed and of which nobody has said why."""
    reasons: Mapping[str, str] = tomllib.loads(_REASONS.read_text(encoding="utf-8"))
    return [
        target.name
        for results in all_results
        for target in results.case.targets
        if (found := results.outcome(target)) is not None
        and not target.is_met(found.median)
        and target.name not in reasons
    ]


def _target_as_json(results: Results, target: Target) -> dict[str, Any]:
    found = results.outcome(target)
    return {
        "target": target.name,
        "bound": target.bound,
        "median": None if found is None else found.median,
        "least": None if found is None else found.least,
        "greatest": None if found is None else found.greatest,
        "met": None if found is None else target.is_met(found.median),
    }


def _figures(results: Results) -> list[tuple[str, list[str]]]:
    rows: list[tuple[str, list[str]]] = []
    for side in results.case.sides:
        cells = [
            f"{_LABELS[metric]}{_shown(found)} {UNITS[metric]}"
            for metric in UNITS
            if (found := results.spread(side, metric)) is not None
        ]
        rows.append((side.name, cells or ["not installed"]))
    return rows


def _verdict(results: Results, target: Target) -> tuple[str, str, str, str]:
    found = results.outcome(target)
    if found is None:
        return target.promise, "", target.bound, "not measured"
    verdict = "met" if target.is_met(found.median) else "missed"
    return target.promise, f"{_shown(found)}{target.unit}", target.bound, verdict


def _missed(all_results: Iterable[Results], reasons: Mapping[str, str]) -> str:
    lines: list[str] = []
    for results in all_results:
        for target in results.case.targets:
            found = results.outcome(target)
            if found is not None and not target.is_met(found.median):
                why = reasons.get(target.name, "not looked into yet.").strip()
                lines.append(f"- **{target.promise}**: {why}")
    return "\n".join(lines) if lines else "Nothing in this run."


def _shown(spread: Spread) -> str:
    return f"{_number(spread.median)} [{_number(spread.least)}..{_number(spread.greatest)}]"


def _number(value: float) -> str:
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [_row(head), _row(["---"] * len(head)), *(_row(row) for row in rows)]
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
