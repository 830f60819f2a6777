"""Every exception of tracedjobs, each named for what happened.

All derive from `TracedJobsError`, but for `Interrupt`: that one ends a run at a checkpoint, and
derives from `BaseException` so that a job's `except Exception` does not swallow it.
"""

from __future__ import annotations

__all__ = [
    "Interrupt",
    "InvalidStepError",
    "InvalidTransitionError",
    "JobConflictError",
    "JobNotFoundError",
    "JobRunningError",
    "LeaseLostError",
    "MissingExtraError",
    "ResumeLimitError",
    "SerializationError",
    "SourceChangedError",
    "SourceError",
    "StoreError",
    "StoreUnavailableError",
    "TracedJobsError",
    "UnadvanceableCursorError",
    "UnknownJobError",
]


class TracedJobsError(Exception):
    """Base of every error that tracedjobs raises."""


class InvalidStepError(TracedJobsError):
    """Steps came in an order, or under names, that the saved progress does not allow.

    The saved progress is left as it was: deploy the fixed job and run it again.
    """


class UnadvanceableCursorError(TracedJobsError):
    """`advance` met a cursor that has no successor; use `set(cursor)` instead."""


class ResumeLimitError(TracedJobsError):
    """The job was resumed `max_resumptions` times and has still not completed."""


class SerializationError(TracedJobsError):
    """A value cannot be stored, or a stored text cannot be read; the message names the path."""


class SourceError(TracedJobsError):
    """A source of a loop cannot be read as it was asked to."""


class SourceChangedError(SourceError):
    """What a loop reads is no longer what its saved cursor was taken from."""


class UnknownJobError(TracedJobsError, LookupError):
    """No job function of that name is registered in this process; the job is left as it was."""


class JobNotFoundError(TracedJobsError, LookupError):
    """The store has no job of that id."""


class JobConflictError(TracedJobsError):
    """The id is taken by a job of another name or with other arguments."""


class InvalidTransitionError(TracedJobsError):
    """The job's status does not allow what was asked; the job is left as it was."""


class JobRunningError(InvalidTransitionError):
    """The job is running in another run whose lease is alive."""


class LeaseLostError(TracedJobsError):
    """This run's lease ended and another run has the job, or nobody can tell.

    Nothing this run does from here on is recorded. The job goes on elsewhere.
    """


class StoreError(TracedJobsError):
    """The store refused: a bad address, a newer version, a damaged or read-only file."""


class StoreUnavailableError(StoreError):
    """The store cannot be reached, is locked or full just now; trying again may help."""


class MissingExtraError(TracedJobsError, ImportError):
    """What was asked for is in an extra that is not installed; the message names it."""


class Interrupt(BaseException):
    """Ends a run at a checkpoint; the job stays resumable.

    Do not catch it. Where a bare `except` did, every later call on `ctx` raises it again.

    `reason` says why: `stopping`, `paused`, `isolating`, `max_runtime`, ... or a word of your own
    given to `ctx.interrupt(reason)`.
    """

    def __init__(self, reason: str, description: str = "") -> None:
        """Take the reason and where the job stands."""
        self.reason = reason
        super().__init__(f"Interrupted {description} ({reason})" if description else reason)
