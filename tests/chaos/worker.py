"""A process that performs one job: `python -m tests.chaos.worker STORE JOB JOURNAL LEASE_TTL MODE`.

MODE `once` does one run; `until_done` performs again and again until the job is completed. Each
end is written to the journal as `end`, each save as `save` and `saved`.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import sys
import time
from typing import TYPE_CHECKING, Any

from tests.chaos.jobs import JOBS
from tests.chaos.journal import Journal
from tracedjobs import Outcome, Runtime
from tracedjobs.errors import (
    JobRunningError,
    LeaseLostError,
    StoreUnavailableError,
    TracedJobsError,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tracedjobs._core.records import Save
    from tracedjobs.stores.base import Saved

INTERRUPTED = 75
LOOK_AGAIN = 0.02
"""Seconds after which a process that found the job taken looks again."""


def name_the_writer() -> None:
    """Let triggers in the store's file ask which process writes, through `writer()`."""
    connect = sqlite3.connect

    def connect_named(*args: Any, **options: Any) -> sqlite3.Connection:
        raw: sqlite3.Connection = connect(*args, **options)
        raw.create_function("writer", 0, os.getpid)
        return raw

    sqlite3.connect = connect_named  # type: ignore[assignment]  # the same, with one function more


def time_the_saves(runtime: Runtime, journal: Journal) -> None:
    """Write down when each save begins and ends."""
    save = runtime.store.save

    def timed(saves: Sequence[Save]) -> Mapping[str, Saved]:
        journal.write("save")
        try:
            return save(saves)
        finally:
            journal.write("saved")

    runtime.store.save = timed  # type: ignore[method-assign]  # the same, observed


def perform(runtime: Runtime, job_id: str) -> Outcome:
    if JOBS[runtime.get(job_id).name].is_async:
        return asyncio.run(runtime.perform_async(job_id))
    return runtime.perform(job_id)


def once(runtime: Runtime, job_id: str) -> int:
    outcome = perform(runtime, job_id)
    return 0 if outcome.ok else INTERRUPTED


def until_done(runtime: Runtime, job_id: str, journal: Journal) -> int:
    while True:
        try:
            outcome = perform(runtime, job_id)
        except (JobRunningError, LeaseLostError, StoreUnavailableError) as error:
            journal.write("end", step=type(error).__name__, value=time.monotonic())
            time.sleep(LOOK_AGAIN)
        except TracedJobsError as error:
            journal.write("end", step=type(error).__name__, value=time.monotonic())
            raise
        else:
            journal.write("end", step=str(outcome.reason or outcome.status), value=outcome.run)
            if outcome.ok:
                return 0


def main() -> int:
    store, job_id, path, lease_ttl, mode = sys.argv[1:]
    name_the_writer()
    journal = Journal(path)
    with Runtime(store, lease_ttl=float(lease_ttl)) as runtime:
        time_the_saves(runtime, journal)
        if mode == "once":
            return once(runtime, job_id)
        return until_done(runtime, job_id, journal)


if __name__ == "__main__":
    sys.exit(main())
