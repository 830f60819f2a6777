"""One run of a job, as flows: take the lease, call the function, judge its end, record it."""

from __future__ import annotations

import os
import random
import traceback
import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from tracedjobs import events
from tracedjobs._core import values
from tracedjobs._core.clock import boot_time, wall_time
from tracedjobs._core.context import left_message, typed_context
from tracedjobs._core.loop import Loop
from tracedjobs._core.order import check_returned_complete
from tracedjobs._core.outcome import Outcome
from tracedjobs._core.owner import owner_is_dead, owner_name
from tracedjobs._core.records import (
    Change,
    JobRecord,
    Position,
    RunRecord,
    Status,
    Stored,
    expiry,
    position_columns,
)
from tracedjobs._core.run import LeaseLost, Run, Stopping
from tracedjobs._core.saver import saver
from tracedjobs._core.waiting import Ask, Call, Flow, Pause, drive
from tracedjobs.errors import (
    Interrupt,
    InvalidStepError,
    InvalidTransitionError,
    JobNotFoundError,
    JobRunningError,
    LeaseLostError,
    ResumeLimitError,
    StoreError,
    StoreUnavailableError,
    TracedJobsError,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracedjobs._core.job import Job
    from tracedjobs._core.signals import StopSignals
    from tracedjobs.stores.base import Store

__all__ = ["Ending", "finish", "is_lost", "perform", "release"]

TRACEBACK_LIMIT: Final = 16_384


@dataclass(frozen=True, slots=True)
class Ending:
    """How a run ends: what is recorded, and what is raised to the caller afterwards."""

    status: Status
    reason: str | None = None
    result: str | None = None
    value: object = None
    error: BaseException | None = None
    raises: BaseException | None = None


def perform(
    *,
    store: Store,
    job: Job[..., Any],
    job_id: str,
    worker: str,
    lease_ttl: float,
    stopping: Sequence[Stopping],
    signals: StopSignals | None,
) -> Flow[Outcome]:
    """One run of the job, from its lease to its outcome."""
    stored = yield from _loaded(store, job_id)
    taken = yield from _take_lease(store, stored, job, worker, lease_ttl)
    if isinstance(taken, Outcome):
        return taken
    run = Run(
        store=store,
        stored=taken.stored,
        options=job.options,
        token=taken.token,
        lease_ttl=lease_ttl,
        lease_deadline=taken.lease_deadline,
        stopping=stopping,
        is_async=job.is_async,
    )
    saver.add(run)
    if signals is not None and signals.seen is not None:
        run.request_stop("stopping")  # it came before there was a run to stop
    try:
        ending = yield from _call(run, job)
        if isinstance(run.current, Loop):
            yield from run.current.abandon()
        outcome = yield from finish(run, ending)
    except GeneratorExit as error:
        # The event loop was closed under a suspended job. `yield from` raises this here whatever
        # `_call` returned, and nothing may be yielded any more.
        drive(finish(run, Ending(Status.INTERRUPTED, "GeneratorExit", error=error)))
        raise
    finally:
        saver.remove(run)
        run.ended = True
        run.attention = True
    if ending.raises is not None:
        raise ending.raises
    return outcome


def release(run: Run) -> None:
    """Record the run as interrupted, in this thread, while its own goes on or hangs."""
    saver.remove(run)
    try:
        drive(finish(run, Ending(Status.INTERRUPTED, "exit")))
    except (TracedJobsError, LeaseLost):
        return  # the lease ends by itself, and the job is found lost
    finally:
        run.lose("its runtime was closed, or its process was about to end, while it ran")


saver.release = release


def is_lost(store: Store, job: JobRecord) -> bool:
    """Whether the job is recorded as running and its process is gone, as far as one can tell."""
    return job.status is Status.RUNNING and (
        not store.lease_alive(job) or owner_is_dead(job.owner, job.lease_boot)
    )


# -- the lease ---


@dataclass(frozen=True, slots=True)
class _Taken:
    stored: Stored
    token: str
    lease_deadline: float


def _loaded(store: Store, job_id: str) -> Flow[Stored]:
    stored = yield Ask(lambda: store.load(job_id))
    if not isinstance(stored, Stored):
        msg = f"There is no job {job_id!r} in {store.url}."
        raise JobNotFoundError(msg)
    return stored


def _take_lease(
    store: Store, stored: Stored, job: Job[..., Any], worker: str, lease_ttl: float
) -> Flow[_Taken | Outcome]:
    while True:
        head = stored.job
        if head.status is Status.COMPLETED:
            return _outcome_of_completed(stored)
        lost = yield Ask(lambda head=head: is_lost(store, head))  # type: ignore[misc]  # a default binds
        _check_may_start(head, lost=bool(lost))
        if (lost or head.reason == "lost") and _over_limit(job, head):
            yield from _fail_lost(store, stored, job, lost=bool(lost))
        token = os.urandom(8).hex()
        change = _start(stored, job, worker, token, lease_ttl, lost=bool(lost))
        began = boot_time()
        try:
            if (yield Ask(lambda change=change: store.change(change))) and lost:  # type: ignore[misc]  # as above
                _tell_lost(head)
            stored = yield from _loaded(store, head.id)
        except BaseException as error:
            yield from _give_back(store, head.id, token, type(error).__name__)
            raise
        if stored.job.token == token:
            return _Taken(stored, token, began + lease_ttl)


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
    resumed = bool(stored.steps) or stored.open_position is not None
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
            "saved_seq": 0,
            "steps_expected": job.options.steps or head.steps_expected,
            **position_columns(stored.open_position),
        },
        lease_ttl=lease_ttl,
        # A lost run may renew, late, until the last moment: then it is not lost.
        if_lease_until=head.lease_until if lost else None,
        open_run=RunRecord(head.run + 1, worker, now, resumed),
        close_run=(head.run, "lost", "lost", now) if lost else None,
    )


def _over_limit(job: Job[..., Any], head: JobRecord) -> bool:
    limit = job.options.max_resumptions
    return limit is not None and head.resumptions >= limit


def _limit_error(job: Job[..., Any]) -> ResumeLimitError:
    return ResumeLimitError(f"Job was resumed a maximum of {job.options.max_resumptions} times")


def _fail_lost(store: Store, stored: Stored, job: Job[..., Any], *, lost: bool) -> Flow[None]:
    # A job that kills its process each time would otherwise be tried for ever.
    head = stored.job
    error = _limit_error(job)
    now = wall_time()
    change = Change(
        job_id=head.id,
        revision=head.revision,
        columns={
            "status": Status.FAILED,
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
        if lost:
            _tell_lost(head)
        raise error


def _tell_lost(head: JobRecord) -> None:
    events.notify("job_lost", job=head.name, job_id=head.id, run=head.run)


def _outcome_of_completed(stored: Stored) -> Outcome:
    head = stored.job
    result = None if head.result is None else values.decode(head.result)
    return Outcome(head.id, head.run, Status.COMPLETED, result=result)


# -- the call ---


def _call(run: Run, job: Job[..., Any]) -> Flow[Ending]:
    try:
        args, kwargs = bound_arguments(job, run.record)
        run.ctx = ctx = typed_context(run)
        run.emit("job_resumed" if run.resumed else "job_started")
        value = yield Call(lambda: job.fn(ctx, *args, **kwargs))
        return _judge_return(run, value)
    except BaseException as error:
        return _judge_error(run, job, error)


def bound_arguments(job: Job[..., Any], head: JobRecord) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The job's stored arguments, as the function of today takes them; `TypeError` if it cannot."""
    from inspect import BoundArguments  # noqa: PLC0415 - a slow import

    stored = values.decode(head.arguments)
    signature = job.signature
    ctx_name, *names = signature.parameters
    given = dict(stored) if isinstance(stored, dict) else {}
    unknown = sorted(set(given) - set(names))
    if unknown:
        msg = (
            f"The job {head.id} was submitted with the argument '{unknown[0]}', which "
            f"{job.name} does not take any more."
        )
        raise TypeError(msg)
    bound = BoundArguments(
        signature,
        {ctx_name: None, **{name: given[name] for name in names if name in given}},
    )
    args, kwargs = bound.args[1:], bound.kwargs
    signature.bind(None, *args, **kwargs)
    return args, kwargs


def _judge_return(run: Run, value: object) -> Ending:
    if run.raised is not None:
        warnings.warn(
            f"The job {run.record.name} swallowed its interruption ({run.raised.reason}) and "
            f"returned; look for a bare `except`, a `suppress(BaseException)` or a `return` in a "
            f"`finally`. It counts as interrupted.",
            RuntimeWarning,
            stacklevel=2,
        )
        raise run.raised
    if run.lost is not None:
        run.check()
    if isinstance(run.current, Loop):
        raise InvalidStepError(left_message(run.current, "The job returned"))
    check_returned_complete(run.progress)
    run.take_state()
    return Ending(Status.COMPLETED, result=values.encode(value, path="result"), value=value)


def _judge_error(run: Run, job: Job[..., Any], error: BaseException) -> Ending:
    swallowed = run.raised
    interrupt = error if isinstance(error, Interrupt) else swallowed
    if isinstance(interrupt, LeaseLost) or run.lost is not None:
        return Ending(Status.INTERRUPTED, "lease_lost", raises=_lease_lost(run, error))
    if interrupt is not None:
        # What else came out while it was on its way (a group, a driver's own error) is its doing;
        # but a Ctrl-C or a cancellation is meant for more than the job.
        other = None if _is_interrupt(error) else error
        ending = _interruption(run, job, interrupt.reason, error=other)
        if isinstance(error, (Exception, Interrupt, BaseExceptionGroup)):
            return ending
        return replace(ending, raises=error)
    if not isinstance(error, Exception):
        return Ending(Status.INTERRUPTED, type(error).__name__, error=error, raises=error)
    resumable = not isinstance(error, TracedJobsError) or isinstance(error, StoreError)
    if resumable and run.advanced and job.options.resume_errors_after_advancing:
        return _interruption(run, job, "error", error=error)
    return Ending(Status.FAILED, error=error, raises=error)


def _is_interrupt(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return error.split(Interrupt)[1] is None
    return isinstance(error, Interrupt)


def _interruption(
    run: Run, job: Job[..., Any], reason: str, *, error: BaseException | None
) -> Ending:
    reason = storable(reason)
    if reason in {"paused", "cancelled"}:
        # By an operator's wish, which may have changed since: `finish` looks at it.
        return Ending(Status.INTERRUPTED, reason)
    if _over_limit(job, run.record):
        limit = _limit_error(job)
        limit.__cause__ = error
        return Ending(Status.FAILED, reason, error=limit, raises=limit)
    return Ending(Status.INTERRUPTED, reason, error=error)


def _lease_lost(run: Run, cause: BaseException) -> LeaseLostError:
    error = LeaseLostError(
        f"Run {run.number} of job {run.record.id} lost its lease: {run.lost}. Nothing it did "
        f"after its last save is recorded; the job goes on elsewhere."
    )
    error.__cause__ = None if isinstance(cause, LeaseLost) else cause
    return error


# -- the end ---


def finish(run: Run, ending: Ending) -> Flow[Outcome]:
    """Record the end of the run and give the lease back.

    While the store is away it is tried again until the lease ends. An exception that comes while
    it waits, such as a second Ctrl-C, is kept until the end is recorded, and then raised.
    """
    if isinstance(ending.raises, LeaseLostError):
        run.emit("job_lease_lost")
        return Outcome(run.record.id, run.number, Status.INTERRUPTED, "lease_lost")
    head, late, pause = run.record, None, 0.02
    tried: set[object] = set()
    while True:
        final = _with_wish(ending, head.wish)
        change = _end(run, head, final)
        tried.add(change.columns["saved_seq"])
        try:
            if (yield Ask(lambda change=change: run.store.change(change))):  # type: ignore[misc]  # a default binds
                break
            stored = yield Ask(lambda: run.store.load(run.record.id))
        except StoreUnavailableError:
            if boot_time() + pause >= run.lease_deadline:
                return _unrecorded(run, ending)
            yield Pause(pause * random.uniform(0.5, 1.0))  # noqa: S311 - spreads retries
            pause = min(pause * 2, 1.0)
            continue
        except Exception:
            raise
        except BaseException as error:
            late = error
            continue
        if not isinstance(stored, Stored):
            return _unrecorded(run, ending)
        head = stored.job
        if head.token != run.token:
            if head.run == run.number and head.saved_seq in tried:
                final = replace(final, status=head.status, reason=head.reason)
                break  # the write whose answer did not arrive had got through
            run.lose("another run has taken it over")
            raise _lease_lost(run, ending.error or LeaseLost("lease_lost"))
    _tell_end(run, final)
    if late is not None:
        raise late
    return _outcome(run, final)


def _with_wish(ending: Ending, wish: str | None) -> Ending:
    # An operator's wish that the run had not seen yet is met by how the run ends.
    if ending.status is not Status.INTERRUPTED or wish is None:
        return ending
    if wish == "cancel":
        return replace(ending, status=Status.CANCELLED, reason="cancelled")
    return replace(ending, status=Status.PAUSED, reason="paused")


def _end(run: Run, head: JobRecord, ending: Ending) -> Change:
    now = wall_time()
    position, state = _last_position(run)
    columns: dict[str, object] = {
        "status": ending.status,
        "token": None,
        "owner": None,
        "wish": None,
        "lease_until": 0.0,
        "reason": ending.reason,
        "error": None if ending.error is None else described(ending.error),
        "saved_seq": next(run.seq),
        **position_columns(position),
    }
    if position != run.record.position:
        columns["progressed_at"] = run.take_save().progressed_at
    if state is not None:
        columns["state"] = state
    if ending.status is Status.INTERRUPTED:
        columns["resume_at"] = now + run.options.resume_delay
    elif ending.status is not Status.PAUSED:
        columns["ended_at"] = now
        columns["expires_at"] = expiry(now, run.options.retention)
    if ending.status is Status.COMPLETED:
        columns["result"] = ending.result
    return Change(
        job_id=head.id,
        revision=head.revision,
        columns=columns,
        close_run=(run.number, str(ending.status), ending.reason, now),
    )


def _last_position(run: Run) -> tuple[Position | None, str | None]:
    if run.state_touched:
        return run.pair
    return run.live_position(), None


def _unrecorded(run: Run, ending: Ending) -> Outcome:
    run.emit("job_interrupted", reason="store_unavailable")
    return Outcome(
        run.record.id,
        run.number,
        Status.INTERRUPTED,
        "store_unavailable",
        resume_in=run.options.resume_delay,
        error=ending.error,
    )


def _tell_end(run: Run, ending: Ending) -> None:
    if isinstance(run.current, Loop) and ending.status is not Status.COMPLETED:
        failed = ending.status is Status.FAILED
        run.step_event("job_step_failed" if failed else "job_step_interrupted", run.current)
    run.emit(f"job_{ending.status}", reason=ending.reason)


def _outcome(run: Run, ending: Ending) -> Outcome:
    interrupted = ending.status is Status.INTERRUPTED
    return Outcome(
        run.record.id,
        run.number,
        ending.status,
        ending.reason,
        resume_in=run.options.resume_delay if interrupted else None,
        result=ending.value,
        error=ending.error if interrupted else None,
    )


def described(error: BaseException) -> str:
    """What is stored of an error: its type, its message, and where it came from."""
    trace = "".join(traceback.format_exception(error))
    return values.encode(
        {
            "type": f"{type(error).__module__}.{type(error).__qualname__}".removeprefix(
                "builtins."
            ),
            "message": storable(str(error)),
            "traceback": storable(trace[-TRACEBACK_LIMIT:]),
        }
    )


def storable(text: str) -> str:
    """`text` without the lone surrogates that no store takes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
