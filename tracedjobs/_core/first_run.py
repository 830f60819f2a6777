"""The first run of a job: what it changes is known before the job is read.

So a store may look at a new job and take its lease in one atomic step, where every other run needs
two: of one that ran before it must be known first how far it came, and whether it may go on.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from tracedjobs._core import counting
from tracedjobs._core.records import JOB_COLUMNS, Change, JobRecord, RunRecord, Status, Stored

__all__ = ["SUBMITTED", "FirstRun"]

SUBMITTED: Final = (
    # The columns that a submission sets. All others stand at their defaults until something
    # happens to the job.
    "version",
    "arguments",
    "submitted_at",
    "deadline_at",
    "retention",
    "queue",
    "steps_expected",
    "message",
    "trace",
    "hand_at",
)
_UNTOUCHED: Final = JobRecord("", "", "", 0.0)
_LATER: Final = tuple(
    (column, getattr(_UNTOUCHED, column))
    for column in JOB_COLUMNS
    if column not in {"id", "name", *SUBMITTED}
)


def _is_new(stored: Stored) -> bool:
    """Whether nothing has happened to the job since it was submitted."""
    job = stored.job
    return not (stored.steps or stored.runs or stored.controls) and all(
        getattr(job, column) == value for column, value in _LATER
    )


class FirstRun(NamedTuple):
    """The first run of a job of that name, from `now` on the store's clock."""

    job_name: str
    token: str
    worker: str
    owner: str | None
    lease_ttl: float
    now: float

    @property
    def record(self) -> RunRecord:
        """The run, as it is kept."""
        return RunRecord(1, self.worker, self.now, resumed=False)

    @property
    def columns(self) -> dict[str, object]:
        """What taking the lease of a new job changes, but for the lease itself."""
        return {
            "status": Status.RUNNING,
            "run": 1,
            "token": self.token,
            "worker": self.worker,
            "owner": self.owner,
            "started_at": self.now,
            "progressed_at": self.now,
            "run_started_at": self.now,
            "lease_ttl": self.lease_ttl,
        }

    def change(self, stored: Stored) -> Change | None:
        """The change that begins it; `None` where the job is another's, or not new."""
        job = stored.job
        if job.name != self.job_name or not _is_new(stored):
            return None
        return Change(
            job.id,
            job.revision,
            self.columns,
            lease_ttl=self.lease_ttl,
            open_run=self.record,
            counts=tuple(counting.started(job, self.now)),
            known=stored,
        )
