"""`python -m benchmarks [NAME…] [--json FILE] [--rounds N]`: the table of goals, as measured here.

Ends with 1 when a goal is missed.
"""

from __future__ import annotations

import argparse
import json
import platform
import sqlite3
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

from benchmarks.harness import Figure, Plan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["BENCHMARKS", "figures", "main"]

BENCHMARKS: Final = {
    "loops": "benchmarks.loops:measure",
    "durable": "benchmarks.durable:measure",
    "resume": "benchmarks.resume:measure",
    "steps": "benchmarks.steps:measure",
    "imports": "benchmarks.imports:measure",
    "space": "benchmarks.live:measure_space",
    "saver": "benchmarks.live:measure_tick",
    "recorder": "benchmarks.recorder:measure",
    "csv": "benchmarks.csv_rows:measure",
    "telemetry": "benchmarks.telemetry:measure_cost",
    "scrape": "benchmarks.telemetry:measure_scrape",
    "redis-durable": "benchmarks.redis_store:measure_durable",
    "redis-tick": "benchmarks.redis_store:measure_tick",
    "redis-cpu": "benchmarks.redis_store:measure_cpu",
    "redis-space": "benchmarks.redis_store:measure_space",
    "redis-many": "benchmarks.redis_many:measure_many",
    "redis-frozen": "benchmarks.redis_many:measure_frozen",
    "queues": "benchmarks.queues:measure",
}


def figures(name: str, plan: Plan) -> Iterator[Figure]:
    """What the benchmark of that name measures."""
    module, _, function = BENCHMARKS[name].partition(":")
    measure = cast("Callable[[Plan], Iterator[Figure]]", getattr(import_module(module), function))
    return measure(plan)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, show, write; 0 when every goal is met."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds of each contestant")
    given = parser.parse_args(arguments)
    unknown = set(given.names) - set(BENCHMARKS)
    if unknown:
        parser.error(f"there is no {min(unknown)!r}; there are {', '.join(BENCHMARKS)}")
    if given.rounds is not None and given.rounds < 1:
        parser.error("--rounds must be 1 or more")
    found: list[Figure] = []
    for name in given.names or BENCHMARKS:
        print(f"{name} …", file=sys.stderr, flush=True)
        found += figures(name, Plan(rounds=given.rounds))
    _show(found)
    if given.json is not None:
        given.json.write_text(json.dumps(_record(found), indent=2) + "\n", "utf-8")
    return 0 if all(figure.met for figure in found) else 1


def _record(found: Sequence[Figure]) -> dict[str, object]:
    return {
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "machine": platform.platform(),
        "figures": [
            {
                "what": each.what,
                "goal": each.goal,
                "figure": each.figure,
                "unit": each.unit.strip() or "ratio",
                "met": each.met,
                "rounds": list(each.rounds),
                "measured": dict(each.measured),
            }
            for each in found
        ],
    }


def _show(found: Sequence[Figure]) -> None:
    heads = ("what", "goal", "figure", "met", "measured")
    rows = [
        (
            each.what,
            f"≤ {each.goal:g}{each.unit}",
            f"{each.figure:.{0 if each.figure >= 100 else 2}f}{each.unit}",
            "yes" if each.met else "NO",
            "; ".join(f"{name} {text}" for name, text in each.measured.items()),
        )
        for each in found
    ]
    print(f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}")
    if find_spec("rich") is None or not sys.stdout.isatty():
        _show_plainly([heads, *rows])
        return
    from rich.console import Console  # noqa: PLC0415 - of the cli extra
    from rich.table import Table  # noqa: PLC0415 - as above

    table = Table(*heads)
    for row in rows:
        table.add_row(*row, style=None if row[3] == "yes" else "bold red")
    Console().print(table)


def _show_plainly(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[at]) for row in rows) for at in range(4)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        print("  ".join([*cells, row[4]]))


if __name__ == "__main__":
    sys.exit(main())
