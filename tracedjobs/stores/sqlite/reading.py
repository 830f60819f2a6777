"""Rows of the file as records, and what is asked for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tracedjobs._core.clock import wall_time
from tracedjobs._core.records import (
    CONTROL_COLUMNS,
    JOB_COLUMNS,
    RECORD_VERSION,
    RUN_COLUMNS,
    STEP_COLUMNS,
    ControlRecord,
    JobRecord,
    RunRecord,
    Status,
    StepRecord,
    Stored,
)
from tracedjobs.stores.base import written_by_newer

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

__all__ = ["JOB", "KEPT", "job_of", "listed", "loaded", "stored_of"]


def listed(columns: Sequence[str]) -> str:
    """Those columns, as they stand in a statement."""
    return ", ".join(f'"{column}"' for column in columns)


JOB: Final = listed(JOB_COLUMNS)
KEPT: Final = "(expires_at IS NULL OR expires_at > ?)"
_LOAD: Final = f"SELECT seq, {JOB} FROM jobs WHERE id = ? AND {KEPT}"  # noqa: S608


def job_of(row: tuple[object, ...]) -> JobRecord:
    """The record in a row of `JOB`."""
    values = dict(zip(JOB_COLUMNS, row, strict=True))
    version = values["version"]
    if not isinstance(version, int) or version > RECORD_VERSION:
        raise written_by_newer(values["id"], version)
    values["status"] = Status(str(values["status"]))
    return JobRecord(**values)  # type: ignore[arg-type]  # the schema holds their types


def stored_of(raw: sqlite3.Connection, row: tuple[object, ...]) -> Stored:
    """The job of a row of `seq` and `JOB`, with all that belongs to it."""
    seq, *columns = row

    def parts(table: str, columns: Sequence[str], order: str) -> list[tuple[object, ...]]:
        query = f"SELECT {listed(columns)} FROM {table} WHERE job = ? ORDER BY {order}"  # noqa: S608
        return raw.execute(query, (seq,)).fetchall()

    runs = parts("runs", RUN_COLUMNS, "number")
    resumed = RUN_COLUMNS.index("resumed")
    return Stored(
        job=job_of(tuple(columns)),
        steps=tuple(StepRecord(*each) for each in parts("steps", STEP_COLUMNS, "position")),  # type: ignore[arg-type]  # as above
        runs=tuple(
            RunRecord(*(bool(value) if at == resumed else value for at, value in enumerate(each)))  # type: ignore[arg-type]  # as above
            for each in runs
        ),
        controls=tuple(
            ControlRecord(*each)  # type: ignore[arg-type]  # as above
            for each in parts("controls", CONTROL_COLUMNS, "position")
        ),
    )


def loaded(raw: sqlite3.Connection, job_id: str) -> Stored | None:
    """The job of that id, or `None`."""
    row = raw.execute(_LOAD, (job_id, wall_time())).fetchone()
    return None if row is None else stored_of(raw, row)
