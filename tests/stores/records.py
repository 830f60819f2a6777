"""Records of jobs for the tests of stores, and what they are saved with."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from tracedjobs._core.clock import wall_time
from tracedjobs._core.first_run import FirstRun
from tracedjobs._core.records import (
    Change,
    JobRecord,
    Position,
    RunRecord,
    Save,
    Status,
    StepRecord,
    Stored,
)
from tracedjobs._core.trace import Trace

if TYPE_CHECKING:
    from tracedjobs.stores import Store

TOKEN: Final = "0123456789abcdef"
HOUR: Final = 3600.0
TRACE: Final = Trace("1" * 32, "2" * 16, sampled=True).text()


def a_job(job_id: str = "a", **columns: object) -> JobRecord:
    return replace(
        JobRecord(id=job_id, name="job", arguments="{}", submitted_at=wall_time()),
        **columns,  # type: ignore[arg-type]  # columns of the record
    )


def a_step(name: str = "one", **columns: object) -> StepRecord:
    step = StepRecord(name, '"result"', "7", 7, 10, None, 1.5, 2.5, 1)
    return step._replace(**columns)  # type: ignore[arg-type]  # columns of the record


def running(store: Store, job_id: str = "a", ttl: float = 30.0) -> JobRecord:
    """A job that runs with `TOKEN`."""
    store.create(a_job(job_id))
    assert store.change(
        Change(
            job_id,
            0,
            {"status": Status.RUNNING, "token": TOKEN, "run": 1},
            lease_ttl=ttl,
            open_run=RunRecord(1, "here", 5.0, resumed=False),
        )
    )
    return loaded(store, job_id).job


def loaded(store: Store, job_id: str = "a") -> Stored:
    stored = store.load(job_id)
    assert stored is not None
    return stored


def a_save(seq: int, cursor: str = "3", **columns: object) -> Save:
    position = Position("one", cursor, int(cursor), 10, "bytes", 4.25, '"print"')
    save = Save("a", TOKEN, seq, 30.0, position, 6.5)
    return save._replace(**columns)  # type: ignore[arg-type]  # columns of the record


def a_first(store: Store, **columns: object) -> FirstRun:
    first = FirstRun("job", TOKEN, "here", "owner", 30.0, store.time())
    return first._replace(**columns)  # type: ignore[arg-type]  # columns of it
