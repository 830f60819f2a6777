"""Whether what came out of the demo is what went in: every figure that the story claims.

The file is read with the `csv` module alone, so that a defect of ours in reading it would show.
"""

from __future__ import annotations

import csv
import hashlib
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING

from tracedjobs.demo.flights import COLUMNS, STEPS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tracedjobs import JobSnapshot
    from tracedjobs.demo.acts import Act
    from tracedjobs.demo.data import Folder

__all__ = ["Finding", "check"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was checked, and whether it is as promised."""

    ok: bool
    text: str


def check(folder: Folder, acts: Sequence[Act], job: JobSnapshot) -> list[Finding]:
    """Every finding about the files of the folder, the runs that made them and their record."""
    with closing(sqlite3.connect(folder.database, timeout=30.0)) as db:
        return [
            *_contents(folder, db),
            *(finding for act in acts for finding in _redone(act, acts)),
            _order_of_rows(acts, db),
            _order_of_steps(job),
            _record(acts, job),
        ]


def _contents(folder: Folder, db: sqlite3.Connection) -> Iterator[Finding]:
    found = _compared(folder, db)
    yield Finding(
        found.in_file == found.in_database,
        f"{found.in_database:,} rows in the database, {found.in_file:,} in the file",
    )
    if found.difference is None:
        text = f"the same content, sha256 {found.sha256[:16]} of both"
    else:
        text = f"the contents differ, first in {found.difference}"
    yield Finding(found.difference is None, text)


@dataclass(frozen=True, slots=True)
class _Comparison:
    in_file: int
    in_database: int
    sha256: str
    difference: str | None


def _compared(folder: Folder, db: sqlite3.Connection) -> _Comparison:
    """Both, row by row; the checksums are of both written as CSV, which the file already is."""
    of_file, of_database = _Checksum(), _Checksum()
    in_file = in_database = 0
    difference = None
    with folder.csv.open(newline="", encoding="utf-8") as file:
        rows = csv.reader(file)
        header = next(rows)
        of_file.writer.writerow(header)
        of_database.writer.writerow(COLUMNS)
        for number, (expected, stored) in enumerate(zip_longest(rows, _stored(db)), start=1):
            if expected is not None:
                in_file += 1
                of_file.writer.writerow(expected)
            if stored is not None:
                in_database += 1
                of_database.writer.writerow(stored)
            if expected != stored and difference is None:
                difference = _difference(number, expected, stored)
    sums = of_file.hash.hexdigest(), of_database.hash.hexdigest()
    if sums[0] != sums[1] and difference is None:
        difference = f"the header: {','.join(header)}"
    return _Comparison(in_file, in_database, sums[1], difference)


class _Checksum:
    """The SHA-256 of rows written as CSV: `sha256sum flights.csv` gives the same."""

    def __init__(self) -> None:
        self.hash = hashlib.sha256()
        self.writer = csv.writer(self, lineterminator="\n")

    def write(self, text: str) -> None:
        self.hash.update(text.encode())


def _stored(db: sqlite3.Connection) -> Iterator[list[str]]:
    columns = ", ".join(f"ifnull({name}, 'NA')" for name in COLUMNS)
    query = f"SELECT {columns} FROM flights ORDER BY starts_at"  # noqa: S608 - the columns above
    for row in db.execute(query):
        yield [str(value) for value in row]


def _difference(number: int, expected: list[str] | None, stored: list[str] | None) -> str:
    if expected is None or stored is None:
        return f"row {number:,}, which the {'file' if expected is None else 'database'} has not"
    pairs = zip_longest(COLUMNS, expected, stored)
    name, theirs, ours = next(each for each in pairs if each[1] != each[2])
    return f"row {number:,}: {name} is {theirs} in the file, {ours} in the database"


def _redone(act: Act, acts: Sequence[Act]) -> Iterator[Finding]:
    """What the run after this one did again, if this one was stopped."""
    if act.ending.kill is None:
        return
    after = next(each for each in acts if each.run == act.run + 1)
    # A kill may come between the row and the note that it is done; a stop does not.
    allowed = 0 if act.exit_code >= 0 else 1
    text = f"after {act.ending.name} {_rows(after.redone)} done again (allowed: {allowed})"
    yield Finding(after.redone <= allowed, text)


def _order_of_rows(acts: Sequence[Act], db: sqlite3.Connection) -> Finding:
    """In each run every row must have come after the one before it in the file."""
    wrong = 0
    for act in acts:
        (found,) = db.execute(
            "SELECT count(*) FROM (SELECT starts_at, lag(starts_at) OVER (ORDER BY id) AS previous "
            "FROM writes WHERE id > ? AND id <= ?) WHERE starts_at <= previous",
            (act.before.writes, act.after.writes),
        ).fetchone()
        wrong += found
    text = "every run wrote its rows in the order of the file"
    return Finding(wrong == 0, text if wrong == 0 else f"{_rows(wrong)} written out of order")


def _order_of_steps(job: JobSnapshot) -> Finding:
    done = tuple(step.name for step in job.steps if step.status == "completed")
    begun = sorted(job.steps, key=lambda step: step.started_at)
    in_order = done == STEPS and tuple(step.name for step in begun) == STEPS
    text = f"each step done once, in order: {', '.join(done)}"
    return Finding(in_order, text if in_order else f"{text}; expected {', '.join(STEPS)}")


def _record(acts: Sequence[Act], job: JobSnapshot) -> Finding:
    expected = [_outcome(act) for act in acts]
    recorded = [(run.outcome, run.reason) for run in job.runs]
    rows = acts[-1].after.rows
    ok = expected == recorded and job.status == "completed" and job.result == rows
    told = ", ".join(str(outcome) for outcome, _ in recorded)
    text = (
        f"recorded: {told}; items done again: {job.items_redone}; the job is {job.status}, its "
        f"result {job.result!r}"
    )
    return Finding(ok, text)


def _outcome(act: Act) -> tuple[str, str | None]:
    if act.ending.kill is None:
        return "completed", None
    return ("interrupted", "stopping") if act.exit_code >= 0 else ("lost", "lost")


def _rows(count: int) -> str:
    return f"{count:,} row{'' if count == 1 else 's'}"
