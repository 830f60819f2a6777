"""Writes `version_1.sqlite`, a file of schema version 1 with a job in every status.

It was run once, by the code of version 0.1.0; the file is kept so that later code proves that it
still reads it. Run it again only while version 1 is not released: `python -m` this module.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Final

from tracedjobs._core import values
from tracedjobs._core.records import (
    Change,
    ControlRecord,
    JobRecord,
    Position,
    RunEnd,
    RunRecord,
    Save,
    Status,
    StepRecord,
)
from tracedjobs.stores.sqlite import SQLiteStore

FILE: Final = Path(__file__).with_name("version_1.sqlite")
TOKEN: Final = "0123456789abcdef"
NOON: Final = 1_700_000_000.0


def main() -> None:
    FILE.unlink(missing_ok=True)
    store = SQLiteStore(str(FILE))
    for status in Status:
        write_job(store, status)
    store.close()
    raw = sqlite3.connect(FILE, isolation_level=None)
    raw.execute("VACUUM")
    raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    raw.close()


def write_job(store: SQLiteStore, status: Status) -> None:
    """A job that did a step, got to row 433 of the next, and then came to `status`."""
    job_id = status.value
    arguments = values.encode({"path": "users.csv", "since": (1, 2)}, path="arguments")
    store.create(JobRecord(job_id, "shop:import_users", arguments, NOON, steps_expected=3))
    if status is Status.PENDING:
        return
    start = {"status": Status.RUNNING, "token": TOKEN, "run": 1, "worker": "host:7"}
    run = RunRecord(1, "host:7", NOON + 1, resumed=False)
    store.change(Change(job_id, 0, start, lease_ttl=0.0, open_run=run))
    step = StepRecord("validate", '"valid"', "null", 0, None, None, NOON + 1, NOON + 2, 1)
    store.complete_step(job_id, TOKEN, step, position=0, seq=1, state='{"seen": 1}')
    position = Position("import_rows", "433", 433, 31_053_850, "bytes", NOON + 2, '"print"')
    store.save([Save(job_id, TOKEN, 2, 0.0, position, NOON + 3, '{"seen": 433}')])
    if status is Status.RUNNING:
        return
    ends = {"status": status, "token": None, "reason": "stopping", "lease_until": 0.0}
    control = ControlRecord(NOON + 4, "pause", "ann@host", "a detail")
    closed = RunEnd(1, status.value, "stopping", NOON + 4)
    store.change(Change(job_id, 1, ends, close_run=closed, control=control))


if __name__ == "__main__":
    main()
