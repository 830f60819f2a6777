"""What operators ask of a job: pause, resume, cancel, retry, rewind, recover.

Each is a rule from the record as it is to the change that is wanted; `_apply` makes the change, or
reads the record again where somebody else was faster.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tracedjobs import events
from tracedjobs._core import counting, values
from tracedjobs._core.lost import close_lost, looked_at
from tracedjobs._core.records import (
    FINISHED,
    Change,
    ControlRecord,
    JobRecord,
    Position,
    Status,
    Stored,
    position_columns,
)
from tracedjobs._core.retention import expiry
from tracedjobs._core.takeover import (
    columns_of,
    forget,
    jobs_of_the_dead,
    left_for_others,
    takeover,
)
from tracedjobs.errors import InvalidTransitionError, JobNotFoundError

if TYPE_CHECKING:
    from tracedjobs.stores.base import Store

__all__ = ["FROM_START", "cancel", "pause", "recover", "recover_here", "resume", "retry", "rewind"]

Columns = dict[str, object]


@dataclass(frozen=True, slots=True)
class _Seen:
    stored: Stored
    lost: bool


Rule = Callable[[_Seen], Columns | None]


class _FromStart:
    def __repr__(self) -> str:
        return "…"


FROM_START: Final = _FromStart()
"""The cursor of a rewind that names none: the step begins as if it had never run."""


def pause(store: Store, job_id: str, by: str | None) -> None:
    """An idle job is paused at once; a running one at its next checkpoint."""

    def rule(seen: _Seen) -> Columns | None:
        head = seen.stored.job
        if head.wish == "cancel":
            _refuse(head, "is being cancelled")
        if head.status is Status.RUNNING and not seen.lost:
            return None if head.wish == "pause" else {"wish": "pause"}
        if head.status is Status.PAUSED:
            return None
        _refuse_finished(head, "paused")
        return {
            "status": Status.PAUSED,
            "resume_at": None,
            "reason": "paused",
            **_freed(lost=seen.lost),
        }

    if "status" in _apply(store, job_id, "pause", by, rule):
        _tell(store, job_id, "job_paused")  # a running one tells so when it is


def resume(store: Store, job_id: str, by: str | None) -> None:
    """A paused job may run again; a wish to pause that was not seen yet is taken back."""

    def rule(seen: _Seen) -> Columns | None:
        head = seen.stored.job
        if head.wish == "cancel":
            _refuse(head, "is being cancelled")
        if head.status is Status.RUNNING:
            return {"wish": None} if head.wish == "pause" else None
        if head.status is Status.PAUSED:
            return {"status": _idle(head), "reason": "paused", "resume_at": store.time()}
        if head.status in FINISHED:
            way_out = {Status.FAILED: "see `retry`", Status.COMPLETED: "see `rewind`"}
            _refuse(head, f"cannot be resumed; {way_out.get(head.status, 'submit a new one')}")
        return None

    _apply(store, job_id, "resume", by, rule)


def cancel(store: Store, job_id: str, by: str | None) -> None:
    """An idle job is cancelled at once; a running one at its next checkpoint."""

    def rule(seen: _Seen) -> Columns | None:
        head = seen.stored.job
        if head.status is Status.CANCELLED:
            return None
        if head.status is Status.RUNNING and not seen.lost:
            return None if head.wish == "cancel" else {"wish": "cancel"}
        _refuse_finished(head, "cancelled")
        now = store.time()
        return {
            "status": Status.CANCELLED,
            "reason": "cancelled",
            "resume_at": None,
            "ended_at": now,
            "expires_at": expiry(head, now, head.retention),
            **_freed(lost=seen.lost),
        }

    if "status" in _apply(store, job_id, "cancel", by, rule):
        _tell(store, job_id, "job_cancelled")  # a running one tells so when it is


def retry(store: Store, job_id: str, by: str | None) -> None:
    """A failed job may run again, from where it failed."""

    def rule(seen: _Seen) -> Columns | None:
        head = seen.stored.job
        if head.status is not Status.FAILED:
            _refuse(head, "only a failed job can be retried")
        return {
            "status": Status.INTERRUPTED,
            "reason": "retry",
            "resume_at": store.time(),
            "ended_at": None,
            "expires_at": None,
        }

    _apply(store, job_id, "retry", by, rule)


def rewind(store: Store, job_id: str, step: str, cursor: object, by: str | None) -> None:
    """An idle job goes back to `cursor` of `step`; that step and later ones are done again."""
    text = None if cursor is FROM_START else values.encode_cursor(cursor)
    dropped: tuple[str, ...] = ()

    def rule(seen: _Seen) -> Columns | None:
        nonlocal dropped
        head = seen.stored.job
        if head.status is Status.RUNNING and not seen.lost:
            _refuse(head, "cannot be rewound while it runs; `pause` it first")
        if head.status is Status.CANCELLED:
            _refuse(head, "cannot be rewound; submit a new one")
        if head.wish == "cancel":
            _refuse(head, "is being cancelled")
        position, dropped = _rewound(seen.stored, step, text)
        columns: Columns = {**position_columns(position), **_freed(lost=seen.lost)}
        columns |= {
            "counted": 0,
            "meter": None,
            "saved_seq": 0,
            "rewinds": head.rewinds + 1,
            "lost_token": None,
        }
        if head.status not in {Status.PAUSED, Status.PENDING}:
            columns |= {
                "status": Status.PAUSED if head.wish == "pause" else Status.INTERRUPTED,
                "reason": "rewound",
                "resume_at": store.time(),
                "ended_at": None,
                "expires_at": None,
                "result": None,
            }
        return columns

    detail = f"to step {step}" + ("" if text is None else f", cursor {text}")
    _apply(store, job_id, "rewind", by, rule, detail=detail, drop=lambda: dropped)
    _tell(store, job_id, "job_rewound", step=step, cursor=text)


def recover_here(store: Store, by: str | None) -> list[str]:
    """Mark as interrupted what dead processes of this run directory were running; their ids."""
    return [job_id for job_id in jobs_of_the_dead() if _recover(store, job_id, by)]


def recover(store: Store, by: str | None, *, limit: int = 1000) -> list[str]:
    """Mark each lost job as interrupted, so that it can be resumed; their ids."""
    found = recover_here(store, by)
    while len(found) < limit:
        page = [each.id for each in store.expired(limit=100) if _recover(store, each.id, by)]
        found += page
        if not page:
            break
    return found


def _recover(store: Store, job_id: str, by: str | None) -> bool:
    heads: list[JobRecord] = []

    def rule(seen: _Seen) -> Columns | None:
        wish = seen.stored.job.wish
        heads[:] = [seen.stored.job]
        if not seen.lost:
            return None  # somebody else was faster
        if wish == "cancel":
            now, head = store.time(), seen.stored.job
            ends: Columns = {"ended_at": now, "expires_at": expiry(head, now, head.retention)}
            return {"status": Status.CANCELLED, "reason": "cancelled", **ends, **_freed(lost=True)}
        if wish == "pause":
            return {"status": Status.PAUSED, "reason": "paused", **_freed(lost=True)}
        return {
            "status": Status.INTERRUPTED,
            "reason": "lost",
            "resume_at": store.time(),
            **_freed(lost=True),
        }

    try:
        if not _apply(store, job_id, "recover", by, rule):
            return False
    except JobNotFoundError:
        return False  # of another store, or it ended, and its retention was short
    for head in heads:
        events.notify_of(head, "job_lost")
    return True


# -- shared ---


def _apply(
    store: Store,
    job_id: str,
    action: str,
    by: str | None,
    rule: Rule,
    *,
    detail: str | None = None,
    drop: Callable[[], tuple[str, ...]] = tuple,
) -> Columns:
    """What was changed: nothing when the rule wants nothing."""
    while True:
        stored = store.load(job_id)
        if stored is None:
            msg = f"There is no job {job_id!r} in {store.url}."
            raise JobNotFoundError(msg)
        stored, lost = looked_at(store, stored)
        head = stored.job
        columns = rule(_Seen(stored, lost))
        if columns is None:
            return {}
        now = store.time()
        ends_run = lost and "status" in columns
        tally, closed = counting.Tally(head), None
        if ends_run:
            taken = takeover(stored)
            columns = {**columns_of(stored, taken), **left_for_others(head, taken), **columns}
            closed = close_lost(tally, store, stored, taken)
            counting.items(tally, head, taken.position, taken.redone, taken.redone_in)
        if columns.get("status") is Status.CANCELLED:
            counting.finished(tally, head, Status.CANCELLED, now)
        change = Change(
            job_id=job_id,
            revision=head.revision,
            columns=columns,
            if_lease_until=head.lease_until if lost else None,
            close_run=closed,
            drop_steps=drop(),
            control=ControlRecord(now, action, by or _somebody(), detail),
            counts=tuple(tally),
        )
        if store.change(change):
            if ends_run and columns["lost_token"] is None:
                forget(head)
            return columns


def _freed(*, lost: bool) -> Columns:
    # The token goes with the lost run: should it wake up, it finds no row to write to.
    return {"token": None, "wish": None, "lease_until": 0.0} if lost else {}


def _idle(head: JobRecord) -> Status:
    # A queue may have dropped the message of one that was paused before its first run, and a
    # pending job is nobody's to send.
    return Status.PENDING if head.run == 0 and head.queue is None else Status.INTERRUPTED


def _rewound(
    stored: Stored, step: str, cursor: str | None
) -> tuple[Position | None, tuple[str, ...]]:
    names = [each.name for each in stored.steps]
    position = stored.open_position
    if step in names:
        at = names.index(step)
        dropped = tuple(names[at:])
        begun = stored.steps[at].started_at
    elif position is not None and position.step == step:
        dropped = ()
        begun = position.started_at
    else:
        known = [*names, *([position.step] if position else [])]
        msg = (
            f"The job {stored.job.id} has not begun a step '{step}'; it can go back to "
            f"{', '.join(repr(name) for name in known) or 'none yet'}."
        )
        raise InvalidTransitionError(msg)
    if cursor is None:
        return None, dropped
    return Position(step=step, cursor=cursor, started_at=begun), dropped


def _refuse_finished(head: JobRecord, word: str) -> None:
    if head.status in FINISHED:
        _refuse(head, f"cannot be {word} any more")


def _refuse(head: JobRecord, what: str) -> None:
    msg = f"The job {head.id} is {head.status}: {what}."
    raise InvalidTransitionError(msg)


def _somebody() -> str:
    import getpass  # noqa: PLC0415 - for who gives orders

    try:
        return f"{getpass.getuser()}@{os.uname().nodename}"
    except (OSError, KeyError):
        return f"somebody@{os.uname().nodename}"


def _tell(store: Store, job_id: str, event: str, **payload: object) -> None:
    stored = store.load(job_id)
    if stored is not None:
        events.notify_of(stored.job, event, **payload)
