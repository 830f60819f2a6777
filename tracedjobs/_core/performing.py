"""One run of a job: take the lease, call the function, and judge how it ended."""

from __future__ import annotations

import warnings
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from tracedjobs._core import trace, values
from tracedjobs._core.context import typed_context
from tracedjobs._core.ending import Ending, finish, lease_lost_error, storable
from tracedjobs._core.lease import limit_error, loaded, over_limit, take_lease
from tracedjobs._core.loop import Loop
from tracedjobs._core.order import check_returned_complete
from tracedjobs._core.outcome import Outcome
from tracedjobs._core.records import (
    JobRecord,
    Status,
)
from tracedjobs._core.run import LeaseLost, Run, Stopping
from tracedjobs._core.saver import WISHES, saver
from tracedjobs._core.stepping import check_applied, left_message
from tracedjobs._core.telling import tell
from tracedjobs._core.waiting import Call, Flow, drive
from tracedjobs.errors import (
    Interrupt,
    InvalidStepError,
    StoreError,
    TracedJobsError,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracedjobs._core.job import Job
    from tracedjobs._core.lease import Taken
    from tracedjobs.stores.base import Store

__all__ = ["Stop", "perform", "perform_taken", "release"]


class Stop(Protocol):
    """Who is told of stops, and asks the runs that there are to end."""

    @property
    def came(self) -> bool:
        """Whether one has come that a run which begins now is to see."""
        ...


def perform(
    *,
    store: Store,
    job: Job[..., Any],
    job_id: str,
    worker: str,
    lease_ttl: float,
    stopping: Sequence[Stopping],
    signals: Stop | None,
) -> Flow[Outcome]:
    """One run of the job, from its lease to its outcome."""
    stored = yield from loaded(store, job_id)
    taken = yield from take_lease(store, stored, job, worker, lease_ttl)
    if isinstance(taken, Outcome):
        return taken
    return (
        yield from perform_taken(
            taken, store=store, job=job, lease_ttl=lease_ttl, stopping=stopping, signals=signals
        )
    )


def perform_taken(
    taken: Taken,
    *,
    store: Store,
    job: Job[..., Any],
    lease_ttl: float,
    stopping: Sequence[Stopping],
    signals: Stop | None,
    errors: tuple[type[BaseException], ...] = (Exception,),
) -> Flow[Outcome]:
    """The run of a job whose lease was taken: what is raised here is the job's, no refusal.

    `errors` is what counts as an error of the job; all else that is raised ends the process too.
    """
    run = Run(
        store=store,
        stored=taken.stored,
        options=job.options,
        token=taken.token,
        cell=taken.cell,
        lease_ttl=lease_ttl,
        lease_deadline=taken.lease_deadline,
        stopping=stopping,
        is_async=job.is_async,
    )
    try:
        trace.tell(lambda tracing: tracing.began(run))
        saver.add(run)
        if signals is not None and signals.came:
            run.request_stop("stopping")  # it came before there was a run to stop
        wish = taken.stored.job.wish
        if wish is not None:
            run.request_stop(WISHES[wish])  # the run before was killed before it saw it
        ending, late = (yield from _call(run, job, errors)), None
        if isinstance(run.current, Loop):
            try:
                yield from run.current.abandon()
            except BaseException as error:
                if isinstance(error, GeneratorExit):
                    raise
                late = error  # such as a second Ctrl-C: how the run ends is recorded all the same
        outcome = yield from finish(run, ending)
    except GeneratorExit as error:
        # The event loop was closed under a suspended job. `yield from` raises this here whatever
        # `_call` returned, and nothing may be yielded any more.
        drive(finish(run, Ending(Status.INTERRUPTED, "GeneratorExit", error=error)))
        raise
    finally:
        _leave(run)
    if late is not None:
        raise late
    if ending.raises is not None:
        try:
            raise ending.raises
        finally:
            del ending  # as in `Run._raise`
    return outcome


def release(run: Run) -> None:
    """Record the run as interrupted, in this thread, while its own goes on or hangs.

    Its cell of the flight recorder stays its own until its own thread is done with it, for that
    may write there at any moment: it is only found by nobody any more.
    """
    saver.remove(run)
    try:
        drive(finish(run, Ending(Status.INTERRUPTED, "exit")))
    except (TracedJobsError, LeaseLost):
        return  # the lease ends by itself, and the job is found lost
    finally:
        run.lose("its runtime was closed, or its process was about to end, while it ran")
        if run.recorded:
            run.cell.clear()
        trace.tell(lambda tracing: tracing.released(run))


def _leave(run: Run) -> None:
    # Whatever is raised here, by a signal's handler say, the cell is given back or kept.
    try:
        saver.remove(run)
        run.ended = True
        run.want_attention()
        run.let_go()
        trace.tell(lambda tracing: tracing.ended(run))
    finally:
        run.ended = True
        run.let_go()
        run.ctx = run.raised = None  # which hold the run, as it them
        if run.recorded:
            run.cell.free()
        else:
            run.cell.keep()
    current = run.current
    if current is not None:
        # A loop that was left, which holds the run too: where it stood is told all the same.
        with suppress(TracedJobsError):  # of a cursor that cannot be stored
            run.progress.leave(current.position(), advanced=current.advanced)
            run.current = None


saver.release = release


def _call(run: Run, job: Job[..., Any], errors: tuple[type[BaseException], ...]) -> Flow[Ending]:
    try:
        args, kwargs = bound_arguments(job, run.record)
        run.ctx = ctx = typed_context(run)
        tell(run, "job_resumed" if run.resumed else "job_started")
        value = yield Call(lambda: job.fn(ctx, *args, **kwargs))
        return _judge_return(run, value)
    except BaseException as error:
        return _judge_error(run, job, error, errors)


def bound_arguments(job: Job[..., Any], head: JobRecord) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The job's stored arguments, as the function of today takes them; `TypeError` if it cannot."""
    stored = values.decode(head.arguments)
    given = stored if isinstance(stored, dict) else {}
    if tuple(given) == job.plain_parameters:
        return tuple(given.values()), {}  # as nearly always: all of them, in their order
    from inspect import BoundArguments  # noqa: PLC0415 - a slow import

    signature = job.signature
    ctx_name, *names = signature.parameters
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
    check_applied(run)
    if isinstance(run.current, Loop):
        raise InvalidStepError(left_message(run.current, "The job returned"))
    check_returned_complete(run.progress)
    run.take_state()
    return Ending(Status.COMPLETED, result=values.encode(value, path="result"), value=value)


def _judge_error(
    run: Run, job: Job[..., Any], error: BaseException, errors: tuple[type[BaseException], ...]
) -> Ending:
    swallowed = run.raised
    interrupt = error if isinstance(error, Interrupt) else swallowed
    if isinstance(interrupt, LeaseLost) or run.lost is not None:
        return Ending(Status.INTERRUPTED, "lease_lost", raises=lease_lost_error(run, error))
    if interrupt is not None:
        # What else came out while it was on its way (a group, a driver's own error) is its doing;
        # but a Ctrl-C or a cancellation is meant for more than the job.
        other = None if _is_interrupt(error) else error
        ending = _interruption(run, job, interrupt.reason, error=other)
        if isinstance(error, (Exception, Interrupt, BaseExceptionGroup)):
            return ending
        return replace(ending, raises=error)
    if not isinstance(error, errors):
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
    if over_limit(job, run.record):
        limit = limit_error(job)
        limit.__cause__ = error
        return Ending(Status.FAILED, reason, error=limit, raises=limit)
    return Ending(Status.INTERRUPTED, reason, error=error)
