"""Resuming at item 1,000,000 over resuming at item 0: to open, to seek, to have the first item.

Each run is interrupted at its first item, so that the next one resumes at the same place.
"""

from __future__ import annotations

from functools import cache, partial
from typing import TYPE_CHECKING, Any

from benchmarks.harness import Figure, Plan, interleaved, ratios, runtime, scratch, shown_each, wall
from tracedjobs import Context, job
from tracedjobs.sources import csv_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tracedjobs import Job, Runtime

__all__ = ["measure"]

_took: list[float] = []


@cache
def _list(n: int) -> list[int]:
    return list(range(n))


@job
def _over_range(ctx: Context, n: int, stop: int) -> None:
    began = wall()
    for at in ctx.each("items", range(n)):
        if at >= stop:
            _interrupt(ctx, began)


@job
def _over_list(ctx: Context, n: int, stop: int) -> None:
    items = _list(n)
    began = wall()
    for at in ctx.each("items", items):
        if at >= stop:
            _interrupt(ctx, began)


@job
def _over_csv(ctx: Context, path: str, stop: int) -> None:
    began = wall()
    for row in ctx.each("rows", csv_rows(path)):
        if int(row["at"]) >= stop:
            _interrupt(ctx, began)


def _interrupt(ctx: Context, began: float) -> None:
    _took.append(wall() - began)
    ctx.interrupt("measured")


def measure(plan: Plan) -> Iterator[Figure]:
    """A range, a list and a CSV file."""
    at = plan.size(1_000_000, 1_000)
    n = at + at // 10
    with runtime() as here, scratch() as folder:
        table = _table(folder / "table.csv", n)
        cases: dict[str, tuple[Job[[Any, int], Any], int | str]] = {
            "range": (_over_range, n),
            "list": (_over_list, n),
            "csv file": (_over_csv, str(table)),
        }
        for name, (over, argument) in cases.items():
            yield _figure(plan, here, name, at, partial(here.submit, over, argument))


def _figure(plan: Plan, here: Runtime, name: str, at: int, submit: Callable[[int], str]) -> Figure:
    late, early = submit(at), submit(0)
    for job_id in (late, early):
        here.perform(job_id)  # goes up to there, once
    found = interleaved(
        plan.rounds_or(51),
        {"item 0": partial(_resumed, here, early), "item 1,000,000": partial(_resumed, here, late)},
    )
    return Figure(
        what=f"resume at item 1,000,000 over item 0, {name}",
        goal=2.0,
        rounds=ratios(found["item 1,000,000"], found["item 0"]),
        measured=shown_each(found),
    )


def _resumed(here: Runtime, job_id: str) -> float:
    here.perform(job_id)
    return _took[-1]


def _table(path: Path, n: int) -> Path:
    with path.open("w", encoding="utf-8") as file:
        file.write("at,text\n")
        file.writelines(f"{at},some text\n" for at in range(n))
    return path
