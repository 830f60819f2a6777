"""Taking a job: who may, what taking it changes, and when the one who had it is lost."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tracedjobs import events
from tracedjobs._core import values
from tracedjobs._core.clock import boot_time, wall_time
from tracedjobs._core.ending import described
from tracedjobs._core.outcome import Outcome
from tracedjobs._core.owner import owner_is_dead, owner_name
from tracedjobs._core.records import (
    Change,
    JobRecord,
    RunRecord,
    Status,
    Stored,
    expiry,
)
from tracedjobs._core.takeover import columns_of, forget, takeover
from tracedjobs._core.waiting import Ask, Flow
from tracedjobs.errors import (
    InvalidTransitionError,
    JobNotFoundError,
    JobRunningError,
    ResumeLimitError,
    StoreError,
)

if TYPE_CHECKING:
    from tracedjobs._core.job import Job
    from tracedjobs.stores.base import Store

__all__ = ["Taken", "is_lost", "limit_error", "loaded", "over_limit", "take_lease"]


def is_lost(store: Store, job: JobRecord) -> bool:
    """Whether the job is recorded as running and its process is gone, as far as one can tell."""
    return job.status is Status.RUNNING and (
        not store.lease_alive(job) or owner_is_dead(job.owner, job.lease_boot)
    )


@dataclass(frozen=True, slots=True)
class Taken:
    """A lease: what was found, the token to write with, and until when at least it holds."""

    stored: Stored
    token: str
    lease_deadline: float


def loaded(store: Store, job_id: str) -> Flow[Stored]:
    """The job of that id; `JobNotFoundError` when there is none."""
    stored = yield Ask(lambda: store.load(job_id))
    if not isinstance(stored, Stored):
        msg = f"There is no job {job_id!r} in {store.url}."
        raise JobNotFoundError(msg)
    return stored


def take_lease(
    store: Store, stored: Stored, job: Job[..., Any], worker: str, lease_ttl: float
) -> Flow[Taken | Outcome]:
    """Begin a run of the job, or the outcome of one that is completed already.

    Raises `JobRunningError`, `InvalidTransitionError` or `ResumeLimitError` when it may not run.
    """
    while True:
        head = stored.job
        if head.status is Status.COMPLETED:
            return _outcome_of_completed(stored)
        lost = bool((yield Ask(lambda head=head: is_lost(store, head))))  # type: ignore[misc]  # a default binds
        _check_may_start(head, lost=lost)
        if (lost or head.reason == "lost") and over_limit(job, head):
            yield from _fail_lost(store, stored, job, lost=lost)
        token = os.urandom(8).hex()
        change = _start(stored, job, worker, token, lease_ttl, lost=lost)
        began = boot_time()
        try:
            if (yield Ask(lambda change=change: store.change(change))):  # type: ignore[misc]  # as above
                forget(head)
                if lost:
                    _tell_lost(head)
            stored = yield from loaded(store, head.id)
        except BaseException as error:
            yield from _give_back(store, head.id, token, type(error).__name__)
            raise
        if stored.job.token == token:
            return Taken(stored, token, began + lease_ttl)


def _give_back(store: Store, job_id: str, token: str, reason: str) -> Flow[None]:
    """Let go of a lease that may have been taken, for a run that will not begin."""

    def work() -> None:
        stored = store.load(job_id)
        if stored is None or stored.job.token != token:
            return
        now = wall_time()
        ends = {"status": Status.INTERRUPTED, "reason": reason, "resume_at": now, "token": None}
        store.change(
            Change(
                job_id,
                stored.job.revision,
                {**ends, "owner": None, "lease_until": 0.0},
                close_run=(stored.job.run, str(Status.INTERRUPTED), reason, now),
            )
        )

    try:
        yield Ask(work)
    except StoreError:
        return  # the lease ends by itself, and the job is found lost


def _check_may_start(head: JobRecord, *, lost: bool) -> None:
    if head.status is Status.RUNNING and not lost:
        events.notify("job_duplicate_refused", job=head.name, job_id=head.id, run=head.run)
        msg = f"The job {head.id} is running already: run {head.run} on {head.worker}."
        raise JobRunningError(msg)
    if head.status is Status.PAUSED:
        msg = f"The job {head.id} is paused; `resume` it before it can run."
        raise InvalidTransitionError(msg)
    if head.status is Status.CANCELLED:
        msg = f"The job {head.id} is cancelled and cannot run any more; submit a new one."
        raise InvalidTransitionError(msg)


def _start(
    stored: Stored, job: Job[..., Any], worker: str, token: str, lease_ttl: float, *, lost: bool
) -> Change:
    head = stored.job
    now = wall_time()
    goes_on = takeover(stored)
    resumed = bool(stored.steps) or goes_on.position is not None
    counts = resumed or lost or head.reason == "lost"  # or a job that kills its process never ends
    return Change(
        job_id=head.id,
        revision=head.revision,
        columns={
            "status": Status.RUNNING,
            "run": head.run + 1,
            "token": token,
            "worker": worker,
            "owner": owner_name(),
            "resumptions": head.resumptions + counts,
            "started_at": now if head.started_at is None else head.started_at,
            "ended_at": None,
            "expires_at": None,
            "resume_at": None,
            "reason": None,
            "progressed_at": now,
            "steps_expected": job.options.steps or head.steps_expected,
            **columns_of(stored, goes_on),
        },
        lease_ttl=lease_ttl,
        # A lost run may renew, late, until the last moment: then it is not lost.
        if_lease_until=head.lease_until if lost else None,
        open_run=RunRecord(head.run + 1, worker, now, resumed),
        close_run=(head.run, "lost", "lost", now) if lost else None,
    )


def over_limit(job: Job[..., Any], head: JobRecord) -> bool:
    """Whether the job may not be resumed once more."""
    limit = job.options.max_resumptions
    return limit is not None and head.resumptions >= limit


def limit_error(job: Job[..., Any]) -> ResumeLimitError:
    """The error of a job that is over its limit, in Rails' words."""
    return ResumeLimitError(f"Job was resumed a maximum of {job.options.max_resumptions} times")


def _fail_lost(store: Store, stored: Stored, job: Job[..., Any], *, lost: bool) -> Flow[None]:
    # A job that kills its process each time would otherwise be tried for ever.
    head = stored.job
    error = limit_error(job)
    now = wall_time()
    change = Change(
        job_id=head.id,
        revision=head.revision,
        columns={
            "status": Status.FAILED,
            **columns_of(stored, takeover(stored)),
            "token": None,
            "wish": None,
            "error": described(error),
            "ended_at": now,
            "expires_at": expiry(now, job.options.retention),
        },
        if_lease_until=head.lease_until if lost else None,
        close_run=(head.run, "lost", "lost", now) if lost else None,
    )
    if (yield Ask(lambda: store.change(change))):
        forget(head)
        if lost:
            _tell_lost(head)
        where = {"job": head.name, "job_id": head.id, "run": head.run}
        events.notify("job_failed", reason="lost", **where)
        raise error


def _tell_lost(head: JobRecord) -> None:
    events.notify("job_lost", job=head.name, job_id=head.id, run=head.run)


def _outcome_of_completed(stored: Stored) -> Outcome:
    head = stored.job
    result = None if head.result is None else values.decode(head.result)
    return Outcome(
        head.id, head.run, Status.COMPLETED, result=result, items_redone=head.items_redone
    )
