"""A run that was lost: how one tells, how it is closed, and where the next one goes on.

Taking the job is `lease`'s, and reading what the dead process left `takeover`'s.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tracedjobs import events
from tracedjobs._core import counting
from tracedjobs._core.ending import described
from tracedjobs._core.owner import owner_is_dead
from tracedjobs._core.records import Change, JobRecord, Position, RunEnd, Status, Stored
from tracedjobs._core.retention import expiry
from tracedjobs._core.stretch import Entered, left_text
from tracedjobs._core.takeover import Takeover, columns_of, forget, left_for_others, takeover
from tracedjobs._core.waiting import Ask, Flow

if TYPE_CHECKING:
    from tracedjobs.errors import ResumeLimitError
    from tracedjobs.stores.base import Store

__all__ = ["close_lost", "fail_lost", "is_lost", "looked_at", "taken_up_late"]


def is_lost(store: Store, job: JobRecord) -> bool:
    """Whether the job is recorded as running and its process is gone, as far as one can tell."""
    return job.status is Status.RUNNING and (
        not store.lease_alive(job) or owner_is_dead(job.owner, job.lease_boot)
    )


def looked_at(store: Store, stored: Stored) -> tuple[Stored, bool]:
    """The job, and whether its run is lost.

    Of a dead process the job is read once more: `stored` may be from before the death, and not
    know what was done in between, such as a completed step. From then on nobody writes to it but
    who takes it over, which its revision tells.
    """
    dead: str | None = None
    while True:
        head = stored.job
        if head.status is not Status.RUNNING:
            return stored, False
        if not owner_is_dead(head.owner, head.lease_boot):
            return stored, not store.lease_alive(head)
        if head.token == dead:
            return stored, True
        dead = head.token
        again = store.load(head.id)
        if again is None:
            return stored, True  # and what is to be done with it finds that it is gone
        stored = again


def close_lost(tally: counting.Tally, store: Store, stored: Stored, taken: Takeover) -> RunEnd:
    """Count the end of a run that was found lost, and is taken over so; how it is closed."""
    position, run = _taken_up(stored, taken), stored.job.run
    left = left_text(position, run)
    ended_at = _last_sign_of_life(store, stored, position)
    counting.lost(
        tally,
        ended_at,
        stored.runs[-1].started_at if stored.runs else None,
        None if position is None or left is None else position.step,
    )
    return RunEnd(run, "lost", "lost", ended_at, left)


def _last_sign_of_life(store: Store, stored: Stored, left: Position | None) -> float:
    """When a lost run was last known to live, on the store's clock."""
    head = stored.job
    signs = [step.ended_at for step in stored.steps if step.run == head.run]
    signs += [run.started_at for run in stored.runs[-1:]]
    signs += [sign for sign in (head.progressed_at, store.heartbeat(head)) if sign is not None]
    entered = None if left is None else Entered.read(left.entered)
    if entered is not None and entered.run == head.run:
        signs.append(entered.at)
    return min(max(signs, default=head.submitted_at), store.time())


def _taken_up(stored: Stored, taken: Takeover) -> Position | None:
    """The position, with where that run took the step up, if only the flight recorder knows it."""
    position, saved, run = taken.position, stored.open_position, stored.job.run
    entered = None if position is None else Entered.read(position.entered)
    if position is None or not taken.open or (entered is not None and entered.run == run):
        return position
    # Where the run found the step: at what was saved before it, or where the step begins.
    began = stored.runs[-1].started_at if stored.runs else 0.0
    entered = Entered(max(position.started_at, began), run=run)
    if saved is not None:
        entered = entered._replace(cursor=saved.cursor, items=saved.items)
    return position._replace(entered=entered.text())


def taken_up_late(stored: Stored, now: float) -> Takeover:
    """Where the next run of a job without one goes on, and where it takes its step up so.

    A run may be closed as lost while its process lives, frozen, or on another host: as far as it
    was saved, and its spans, which are sent once, say so from then on. When that process has died,
    or its run has ended without being able to record it, its flight recorder may be read after all,
    by the run that begins now, and what was done after that save would be in nobody's span. So this
    run counts as having taken the step up from its first moment on, at what was saved: the items in
    between are in its span, together with its own, whether it comes to the step or ends before.
    That says nothing of where it goes on: its position is the recorder's, never behind the saved
    one, nor past a finished item.

    Each run after it sees a position as any other. Should this one be closed unread in its turn,
    its record has where it took the step up, and so the items in between are told as its own.
    """
    taken, saved = takeover(stored), stored.open_position
    position = taken.position
    if position is None or position == saved:
        return taken
    entered = Entered(now, run=stored.job.run + 1)
    if saved is not None:
        before = Entered.read(saved.entered)
        entered = entered._replace(
            cursor=saved.cursor,
            items=saved.items,
            stall_after=None if before is None else before.stall_after,
        )
    return replace(taken, position=position._replace(entered=entered.text()))


def fail_lost(
    store: Store, stored: Stored, error: ResumeLimitError, retention: float, *, lost: bool
) -> Flow[None]:
    """Fail a job with `error`, which is raised, since its run was lost once too often.

    A job that kills its process each time would otherwise be tried for ever. `lost`: whether the
    run is found lost now, and not closed as that before.
    """
    head = stored.job
    left: dict[str, object] = {}
    now = store.time()
    tally = counting.Tally(head)
    closed = None
    if lost:
        taken = takeover(stored)
        left = {**columns_of(stored, taken), **left_for_others(head, taken)}
        closed = close_lost(tally, store, stored, taken)
        counting.items(tally, head, taken.position, taken.redone, taken.redone_in)
    # Else the run was closed before, and what its recorder knows better stays there for the run of
    # a retry: here is none that could tell of it, see `taken_up_late`.
    counting.finished(tally, head, Status.FAILED, now)
    change = Change(
        job_id=head.id,
        revision=head.revision,
        columns={
            "status": Status.FAILED,
            **left,
            "token": None,
            "wish": None,
            "error": described(error),
            "ended_at": now,
            "expires_at": expiry(head, now, retention),
        },
        if_lease_until=head.lease_until if lost else None,
        close_run=closed,
        counts=tuple(tally),
    )
    if (yield Ask(lambda: store.change(change))):
        if lost:
            if left["lost_token"] is None:
                forget(head)
            events.notify_of(head, "job_lost")
        events.notify_of(head, "job_failed", reason="lost")
        raise error
