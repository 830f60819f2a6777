"""Taking a job: who may, what taking it changes, and giving back what was taken in vain."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from tracedjobs import events
from tracedjobs._core import counting, trace, values
from tracedjobs._core.clock import boot_time
from tracedjobs._core.first_run import FirstRun
from tracedjobs._core.flight_recorder import Cell, take_cell
from tracedjobs._core.lost import close_lost, fail_lost, looked_at, taken_up_late
from tracedjobs._core.outcome import Outcome
from tracedjobs._core.owner import owner_name
from tracedjobs._core.records import (
    Change,
    JobRecord,
    RunEnd,
    RunRecord,
    Status,
    Stored,
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

__all__ = [
    "Taken",
    "begin",
    "limit_error",
    "loaded",
    "over_limit",
    "take_lease",
]


class Taken(NamedTuple):
    """A lease: what was found, the token to write with, and until when at least it holds.

    `cell` is the run's own in the flight recorder.
    """

    stored: Stored
    token: str
    cell: Cell
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
        found = yield Ask(lambda stored=stored: looked_at(store, stored))  # type: ignore[misc]  # a default binds
        stored, lost = cast("tuple[Stored, bool]", found)
        head = stored.job
        if head.status is Status.COMPLETED:
            return _outcome_of_completed(stored)
        yield from _check_may_start(store, head, lost=lost)
        if (lost or head.reason == "lost") and over_limit(job, head):
            yield from fail_lost(store, stored, limit_error(job), job.options.retention, lost=lost)
        token = os.urandom(8).hex()
        # Before the lease: whoever is killed with it has left a cell, and a warning that there is
        # none, which may be made an error, comes while there is nothing to give back.
        cell = take_cell(head.id, token)
        ours = False
        try:
            change = _start(
                store,
                stored,
                job,
                worker=worker,
                token=token,
                lease_ttl=lease_ttl,
                lost=lost,
            )
            began = boot_time()
            stored = yield from _changed(store, stored, change, token, lost=lost)
            ours = stored.job.token == token
        finally:
            if not ours:
                cell.free()
        if ours:
            return Taken(stored, token, cell, began + lease_ttl)


def begin(
    store: Store, job: Job[..., Any], job_id: str, worker: str, lease_ttl: float
) -> Flow[Taken | Stored | None]:
    """Begin the first run of a job that is new, in one step with reading it; or what was read.

    For `take_lease` to judge what is not new: it was read as it would be for that.
    """
    token = os.urandom(8).hex()
    first = FirstRun(job.name, token, worker, owner_name(), lease_ttl, store.time())
    cell = take_cell(job_id, token)  # before the lease, as in `take_lease`
    ours = False
    try:
        began = boot_time()
        try:
            found = yield Ask(lambda: store.begin(job_id, first))
            stored, begun = cast("tuple[Stored | None, bool]", found)
            if stored is None or not begun:
                return stored
            stored = yield from _completed(store, stored, job, token)
        except BaseException as error:
            yield from _give_back(store, job_id, token, type(error).__name__)
            raise
        ours = stored.job.token == token
    finally:
        if not ours:
            cell.free()
    return Taken(stored, token, cell, began + lease_ttl) if ours else stored


def _completed(store: Store, stored: Stored, job: Job[..., Any], token: str) -> Flow[Stored]:
    """A new job that runs, with what its publisher did not know; as a rule there is nothing to add.

    It may have been of another deploy, or without telemetry.
    """
    while stored.job.token == token:
        columns = _unknown_to_publisher(stored.job, job)
        if not columns:
            break
        revision = stored.job.revision
        change = Change(stored.job.id, revision, columns, if_token=token, known=stored)
        if (yield Ask(lambda change=change: store.change(change))):  # type: ignore[misc]  # a default binds
            return _begun(stored, change)
        stored = yield from loaded(store, stored.job.id)
    return stored


def _unknown_to_publisher(head: JobRecord, job: Job[..., Any]) -> dict[str, object]:
    steps, columns = job.options.steps or head.steps_expected, dict[str, object]()
    if steps != head.steps_expected:
        columns["steps_expected"] = steps
    if head.trace is None:
        traced = trace.tell(lambda tracing: tracing.new_trace(head, job.options.trace))
        if traced is not None:
            columns["trace"] = traced
    return columns


def _changed(
    store: Store, stored: Stored, change: Change, token: str, *, lost: bool
) -> Flow[Stored]:
    """The job after that change, which was made, or refused since somebody else was faster."""
    head = stored.job
    try:
        if (yield Ask(lambda: store.change(change))):
            forget(head)
            if not lost:
                return _begun(stored, change)
            # Of a lost run it is read again: it may have completed a step since it was read.
            events.notify_of(head, "job_lost")
        return (yield from loaded(store, head.id))
    except BaseException as error:
        yield from _give_back(store, head.id, token, type(error).__name__)
        raise


def _begun(stored: Stored, change: Change) -> Stored:
    """The job after that change of one that had no run: nobody else can have written to it.

    But for its lease, which is on the store's clock; the run keeps account of it on its own.
    """
    head = stored.job.changed({**change.columns, "revision": change.revision + 1})
    opened = () if change.open_run is None else (change.open_run,)
    return stored._replace(job=head, runs=(*stored.runs, *opened))


def _give_back(store: Store, job_id: str, token: str, reason: str) -> Flow[None]:
    """Let go of a lease that may have been taken, for a run that will not begin."""

    def work() -> None:
        stored = store.load(job_id)
        if stored is None or stored.job.token != token:
            return
        now = store.time()
        ends = {"status": Status.INTERRUPTED, "reason": reason, "resume_at": now, "token": None}
        store.change(
            Change(
                job_id,
                stored.job.revision,
                {**ends, "owner": None, "lease_until": 0.0},
                close_run=RunEnd(stored.job.run, str(Status.INTERRUPTED), reason, now),
                counts=tuple(
                    counting.ended(
                        stored.job,
                        status=Status.INTERRUPTED,
                        reason=reason,
                        started_at=stored.runs[-1].started_at,
                        now=now,
                        position=None,
                        counted=0,
                    )
                ),
            )
        )

    try:
        yield Ask(work)
    except StoreError:
        return  # the lease ends by itself, and the job is found lost


def _check_may_start(store: Store, head: JobRecord, *, lost: bool) -> Flow[None]:
    if head.status is Status.RUNNING and not lost:
        with suppress(StoreError):
            refused = tuple(counting.Tally(head).add("duplicates_refused"))
            yield Ask(lambda: store.count(refused))
        events.notify_of(head, "job_duplicate_refused")
        msg = f"The job {head.id} is running already: run {head.run} on {head.worker}."
        raise JobRunningError(msg)
    if head.status is Status.PAUSED:
        msg = f"The job {head.id} is paused; `resume` it before it can run."
        raise InvalidTransitionError(msg)
    if head.status is Status.CANCELLED:
        msg = f"The job {head.id} is cancelled and cannot run any more; submit a new one."
        raise InvalidTransitionError(msg)


def _start(
    store: Store,
    stored: Stored,
    job: Job[..., Any],
    *,
    worker: str,
    token: str,
    lease_ttl: float,
    lost: bool,
) -> Change:
    head = stored.job
    now = store.time()
    goes_on = takeover(stored) if lost else taken_up_late(stored, now)
    resumed = bool(stored.steps) or goes_on.position is not None
    counts = resumed or lost or head.reason == "lost"  # or a job that kills its process never ends
    tally = counting.started(head, now)
    if counts:
        tally.add("resumptions")
    closed = close_lost(tally, store, stored, goes_on) if lost else None
    counting.items(tally, head, goes_on.position, goes_on.redone, goes_on.redone_in)
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
            "run_started_at": now,
            "lease_ttl": lease_ttl,
            "stall": None,
            **columns_of(stored, goes_on),
            **_unknown_to_publisher(head, job),
        },
        lease_ttl=lease_ttl,
        # A lost run may renew, late, until the last moment: then it is not lost.
        if_lease_until=head.lease_until if lost else None,
        open_run=RunRecord(head.run + 1, worker, now, resumed),
        close_run=closed,
        counts=tuple(tally),
        known=stored,
    )


def over_limit(job: Job[..., Any], head: JobRecord) -> bool:
    """Whether the job may not be resumed once more."""
    limit = job.options.max_resumptions
    return limit is not None and head.resumptions >= limit


def limit_error(job: Job[..., Any]) -> ResumeLimitError:
    """The error of a job that is over its limit, in Rails' words."""
    return ResumeLimitError(f"Job was resumed a maximum of {job.options.max_resumptions} times")


def _outcome_of_completed(stored: Stored) -> Outcome:
    head = stored.job
    result = None if head.result is None else values.decode(head.result)
    return Outcome(
        head.id, head.run, Status.COMPLETED, result=result, items_redone=head.items_redone
    )
