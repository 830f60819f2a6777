"""Changes of a job, with all that belongs to it: inside a transaction that another opened."""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, Final

from tracedjobs._core.clock import boot_id, boot_time
from tracedjobs._core.due import columns_of
from tracedjobs._core.records import (
    ALLOWED,
    CONTROL_COLUMNS,
    JOB_COLUMNS,
    RUN_COLUMNS,
    Change,
    JobRecord,
    Status,
)
from tracedjobs._core.trace import FLAGS_AT
from tracedjobs.errors import InvalidTransitionError
from tracedjobs.stores.sqlite.reading import JOB, listed
from tracedjobs.stores.sqlite.totals import add

if TYPE_CHECKING:
    import sqlite3

__all__ = ["change_job", "columns_after", "delete", "insert"]

# dataclasses.astuple copies every value, and takes ten times as long.
_COLUMNS_OF_JOB: Final = attrgetter(*JOB_COLUMNS)

_INSERT_JOB: Final = (
    f"INSERT INTO jobs ({JOB}) VALUES ({', '.join('?' * len(JOB_COLUMNS))}) "  # noqa: S608
    "ON CONFLICT (id) DO NOTHING"
)
_COUNT_STEPS: Final = (
    "INSERT INTO names (name, steps) SELECT name, (SELECT count(*) FROM steps WHERE job = seq) "
    "FROM jobs WHERE seq = ? ON CONFLICT (name) DO UPDATE SET steps = excluded.steps"
)
_SAMPLED: Final = f"substr(trace, {FLAGS_AT}, 2) = '01'"
_FORGET_SENT: Final = (
    "UPDATE jobs SET steps_sent = min(steps_sent, (SELECT count(*) FROM steps WHERE job = seq)), "
    "spans_due = CASE WHEN spans_due IS NOT NULL THEN 0 END WHERE seq = ?"
)


def insert(raw: sqlite3.Connection, job: JobRecord) -> bool:
    """Add the job; `False` when one of that id is there."""
    return raw.execute(_INSERT_JOB, _COLUMNS_OF_JOB(job)).rowcount == 1


def columns_after(change: Change) -> dict[str, object]:
    """What the change writes in the job's own row, but for its revision."""
    columns = columns_of(change)
    if change.lease_ttl is not None:
        columns.update(lease_until=boot_time() + change.lease_ttl, lease_boot=boot_id())
    return columns


def change_job(raw: sqlite3.Connection, change: Change, columns: dict[str, object]) -> bool:
    """Make the change, with those columns in the job's own row; see `Store.change`."""
    status = columns.get("status")
    where = "id = ? AND revision = ?"
    condition: list[object] = [change.job_id, change.revision]
    if isinstance(status, Status):
        sources = [old.value for old, news in ALLOWED.items() if status in news]
        where += f" AND status IN ({', '.join('?' * len(sources))})"
        condition += sources
    if change.if_lease_until is not None:
        where += " AND lease_until = ?"
        condition.append(change.if_lease_until)
    if change.if_token is not None:
        where += " AND token = ?"
        condition.append(change.if_token)
    assigned = "".join(f'"{column}" = ?, ' for column in columns)
    values = [value.value if isinstance(value, Status) else value for value in columns.values()]
    if change.owes_spans:
        assigned += f"spans_due = CASE WHEN {_SAMPLED} THEN coalesce(spans_due, 0) END, "
    update = f"UPDATE jobs SET {assigned}revision = revision + 1 WHERE {where} RETURNING seq"  # noqa: S608
    rows = raw.execute(update, (*values, *condition)).fetchall()
    if not rows:
        _refuse_transition(raw, change, status)
        return False
    _write_parts(raw, change, rows[0][0])
    add(raw, change.counts)
    return True


def _refuse_transition(raw: sqlite3.Connection, change: Change, status: object) -> None:
    row = raw.execute("SELECT revision, status FROM jobs WHERE id = ?", (change.job_id,)).fetchone()
    if row is None or not isinstance(status, Status) or row[0] != change.revision:
        return
    if status not in ALLOWED[Status(row[1])]:
        msg = f"The job {change.job_id} is {row[1]} and cannot become {status.value}."
        raise InvalidTransitionError(msg)


def _write_parts(raw: sqlite3.Connection, change: Change, seq: int) -> None:
    if change.columns.get("status") is Status.COMPLETED:
        raw.execute(_COUNT_STEPS, (seq,))
    for name in change.drop_steps:
        raw.execute("DELETE FROM steps WHERE job = ? AND name = ?", (seq, name))
    if change.drop_steps:
        raw.execute(_FORGET_SENT, (seq,))
    if change.close_run is not None:
        number, *ending = change.close_run
        raw.execute(
            'UPDATE runs SET outcome = ?, reason = ?, ended_at = ?, "left" = ? '
            "WHERE job = ? AND number = ?",
            (*ending, seq, number),
        )
    if change.open_run is not None:
        raw.execute(
            f"INSERT INTO runs (job, {listed(RUN_COLUMNS)}) "  # noqa: S608
            f"VALUES (?{', ?' * len(RUN_COLUMNS)})",
            (seq, *change.open_run),
        )
    if change.control is not None:
        raw.execute(
            f"INSERT INTO controls (job, position, {listed(CONTROL_COLUMNS)}) "  # noqa: S608
            "SELECT ?, (SELECT coalesce(max(position), 0) + 1 FROM controls WHERE job = ?)"
            f"{', ?' * len(CONTROL_COLUMNS)}",
            (seq, seq, *change.control),
        )


def delete(raw: sqlite3.Connection, where: str, bound: tuple[object, ...]) -> int:
    """Delete the jobs that this is true of, and all that belongs to them; how many there were."""
    # One statement a table and not one a job, see `saving`.
    for table in ("steps", "runs", "controls"):
        raw.execute(
            f"DELETE FROM {table} WHERE job IN (SELECT seq FROM jobs WHERE {where})",  # noqa: S608
            bound,
        )
    return raw.execute(f"DELETE FROM jobs WHERE {where}", bound).rowcount  # noqa: S608
