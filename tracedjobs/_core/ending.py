"""The end of a run: what is recorded of it, and giving the lease back."""

from __future__ import annotations

import random
import traceback
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

from tracedjobs._core import counting, values
from tracedjobs._core.clock import boot_time
from tracedjobs._core.loop import Loop
from tracedjobs._core.outcome import Outcome
from tracedjobs._core.records import (
    Change,
    Count,
    Position,
    RunEnd,
    Status,
    Stored,
    position_columns,
)
from tracedjobs._core.retention import expiry
from tracedjobs._core.run import LeaseLost, Run
from tracedjobs._core.stretch import left_text
from tracedjobs._core.telling import tell, tell_step
from tracedjobs._core.waiting import Ask, Flow, Pause
from tracedjobs.errors import (
    LeaseLostError,
    StoreError,
    StoreUnavailableError,
)

__all__ = ["Ending", "described", "finish", "lease_lost_error", "storable", "type_name"]

TRACEBACK_LIMIT: Final = 16_384


@dataclass(slots=True)
class Ending:
    """How a run ends: what is recorded, and what is raised to the caller afterwards."""

    status: Status
    reason: str | None = None
    result: str | None = None
    value: object = None
    error: BaseException | None = None
    raises: BaseException | None = None


def finish(run: Run, ending: Ending) -> Flow[Outcome]:
    """Record the end of the run and give the lease back.

    While the store is away it is tried again until the lease ends. An exception that comes while
    it waits, such as a second Ctrl-C, is kept until the end is recorded, and then raised.
    """
    if isinstance(ending.raises, LeaseLostError):
        yield from _tell_lost_lease(run)
        return Outcome(run.record.id, run.number, Status.INTERRUPTED, "lease_lost")
    known, late, pause = run.begun, None, 0.02
    head = known.job
    pending = run.pending.take(head)
    tried: set[object] = set()
    while True:
        final = _with_wish(ending, head.wish)
        change = _end(run, known, final, pending)
        tried.add(change.columns["saved_seq"])
        try:
            if run.completing:
                # Refused if the completion got through, for it has a higher number: then the state
                # after the step is there, and this one is from before.
                yield Ask(lambda: run.store.save_one(run.take_save()))
                stored = yield Ask(lambda: run.store.load(run.record.id))
                if isinstance(stored, Stored) and _stands_in_step(run, stored):
                    known, head = stored, stored.job
                    change = _end(run, known, final, pending, stands=True)
                    tried.add(change.columns["saved_seq"])
            if (yield Ask(lambda change=change: run.store.change(change))):  # type: ignore[misc]  # a default binds
                break
            stored = yield Ask(lambda: run.store.load(run.record.id))
        except StoreUnavailableError:
            if boot_time() + pause >= run.lease_deadline:
                return _unrecorded(run, ending)
            yield Pause(pause * random.uniform(0.5, 1.0))  # noqa: S311 - spreads retries
            pause = min(pause * 2, 1.0)
            continue
        except BaseException as error:
            if isinstance(error, Exception):
                # A refusal, or a defect: trying again would not help. Its lease ends by itself.
                _tell_step_end(run)
                tell(run, "job_interrupted", reason=type_name(error))
                raise
            late = error
            continue
        if not isinstance(stored, Stored):
            return _unrecorded(run, ending)
        known, head = stored, stored.job
        if head.token != run.token:
            if head.run == run.number and head.saved_seq in tried:
                final = replace(final, status=head.status, reason=head.reason)
                break  # the write whose answer did not arrive had got through
            run.lose("another run has taken it over")
            yield from _tell_lost_lease(run, pending)
            raise lease_lost_error(run, ending.error or LeaseLost("lease_lost"))
    run.recorded = True
    _tell_end(run, final)
    if late is not None:
        raise late
    return _outcome(run, final)


def _stands_in_step(run: Run, stored: Stored) -> bool:
    """Whether the completion that the run asked for has not got through so far."""
    return stored.job.token == run.token and len(stored.steps) == len(run.progress.order)


def _tell_lost_lease(run: Run, pending: tuple[Count, ...] = ()) -> Flow[None]:
    if not run.recorded:
        _tell_step_end(run)
    tell(run, "job_lease_lost")
    lost = counting.Tally(run.record).add("leases_lost")
    counts = (*lost, *pending, *run.pending.take(run.record))
    with suppress(StoreError):
        yield Ask(lambda: run.store.count(counts))


def _with_wish(ending: Ending, wish: str | None) -> Ending:
    # An operator's wish that the run had not seen yet is met by how the run ends.
    if ending.status is not Status.INTERRUPTED or wish is None:
        return ending
    if wish == "cancel":
        return replace(ending, status=Status.CANCELLED, reason="cancelled")
    return replace(ending, status=Status.PAUSED, reason="paused")


def _end(
    run: Run,
    known: Stored,
    ending: Ending,
    pending: tuple[Count, ...],
    *,
    stands: bool = False,
) -> Change:
    """The change that ends the run.

    A run that was `completing` its step does not know whether it has. Where it stands in it, as
    `known` says, the items so far are counted here, unless the completion gets through after all.
    """
    head, now = known.job, run.store.time()
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
    }
    if not run.completing:
        columns |= position_columns(position)
        if position != run.record.position:
            columns["progressed_at"] = run.take_save().progressed_at
        if state is not None:
            columns["state"] = state
        columns["counted"] = 0 if position is None else position.items
    counted_at = None if run.completing else position
    if stands:
        counted_at = head.position
        columns["counted"] = 0 if counted_at is None else counted_at.items
    if run.has_kept_stall:
        columns["stall"] = None  # it is over
    if ending.status is Status.INTERRUPTED:
        columns["resume_at"] = now + run.options.resume_delay
    elif ending.status is not Status.PAUSED:
        columns["ended_at"] = now
        columns["expires_at"] = expiry(run.record, now, run.options.retention)
    if ending.status is Status.COMPLETED:
        columns["result"] = ending.result
    left = left_text(position, run.number)
    tally = counting.ended(
        head,
        status=ending.status,
        reason=ending.reason,
        started_at=run.started_at,
        now=now,
        position=counted_at,
        counted=run.counted,
        left=left is not None,
    )
    if run.stop_seen_at is not None:
        tally.observe("stop_latency", boot_time() - run.stop_seen_at)
    return Change(
        job_id=head.id,
        revision=head.revision,
        columns=columns,
        if_lease_until=head.lease_until if stands else None,
        if_token=run.token,
        close_run=RunEnd(run.number, str(ending.status), ending.reason, now, left),
        counts=(*tally, *pending),
        known=known,
    )


def _last_position(run: Run) -> tuple[Position | None, str | None]:
    if run.state.touched:
        return run.state.pair
    return run.live_position(), None


def _unrecorded(run: Run, ending: Ending) -> Outcome:
    _tell_step_end(run)
    tell(run, "job_interrupted", reason="store_unavailable")
    return Outcome(
        run.record.id,
        run.number,
        Status.INTERRUPTED,
        "store_unavailable",
        resume_in=run.options.resume_delay,
        error=ending.error,
        items_redone=run.record.items_redone,
    )


def _tell_end(run: Run, ending: Ending) -> None:
    _tell_step_end(run, failed=ending.status is Status.FAILED)
    tell(run, f"job_{ending.status}", reason=ending.reason)


def _tell_step_end(run: Run, *, failed: bool = False) -> None:
    run.end_watch()
    # Of a loop, which does not know how its run ends; a step that is called has told by itself.
    if isinstance(run.current, Loop):
        tell_step(run, "job_step_failed" if failed else "job_step_interrupted", run.current)


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
        items_redone=run.record.items_redone,
    )


def described(error: BaseException) -> str:
    """What is stored of an error: its type, its message, and where it came from."""
    trace = "".join(traceback.format_exception(error))
    return values.encode(
        {
            "type": type_name(error),
            "message": storable(str(error)),
            "traceback": storable(trace[-TRACEBACK_LIMIT:]),
        }
    )


def type_name(error: BaseException) -> str:
    """The type of an error, with its module unless it is built in."""
    return f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins.")


def storable(text: str) -> str:
    """`text` without the lone surrogates that no store takes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def lease_lost_error(run: Run, cause: BaseException) -> LeaseLostError:
    """What `perform` raises for a run that lost its lease; `cause` is what came out of the job."""
    error = LeaseLostError(
        f"Run {run.number} of job {run.record.id} lost its lease: {run.lost}. Nothing it did "
        f"after its last save is recorded; the job goes on elsewhere."
    )
    error.__cause__ = None if isinstance(cause, LeaseLost) else cause
    return error
