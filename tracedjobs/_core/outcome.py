"""What `perform` gives back, and how the end of a run is judged."""

from __future__ import annotations

from dataclasses import dataclass

from tracedjobs._core.records import Status

__all__ = ["Outcome"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one run ended.

    `status` is the job's after it; `reason` why it was interrupted; `resume_in` the seconds after
    which it should run again, or `None` when it should not by itself; `result` what the job
    returned; `error` the exception behind reason `error`.
    """

    job_id: str
    run: int
    status: Status
    reason: str | None = None
    resume_in: float | None = None
    result: object = None
    error: BaseException | None = None
    items_redone: int = 0
    """Items that were done again, in all runs so far, because a run before was killed."""

    @property
    def ok(self) -> bool:
        """Whether the job is completed."""
        return self.status is Status.COMPLETED
