"""Tells the reporter of runs and their steps, with what the payload of each has.

What jobs tell themselves is told in their own threads. What the saver's thread sees is told in one
of its own: the leases of all runs hang on the saver, and a subscriber that takes long, or waits for
a pipe that nobody reads, must not hold it up.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from typing import TYPE_CHECKING, Final

from tracedjobs import events
from tracedjobs.errors import StoreError

if TYPE_CHECKING:
    from tracedjobs._core.records import JobRecord, Position, Save, StepRecord
    from tracedjobs._core.run import Run
    from tracedjobs._core.step import Step

__all__ = [
    "tell",
    "tell_in_order",
    "tell_later",
    "tell_saved",
    "tell_skipped",
    "tell_step",
    "told_of",
]

MOST: Final = 10_000
"""Events that wait to be told; of more the oldest are dropped, which one line says."""
_log: Final = logging.getLogger("tracedjobs")


class _Teller:
    """The thread, begun with the first event, and those that wait for it."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[JobRecord, str, dict[str, object]]] = deque(maxlen=MOST)
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._dropped = False
        self._telling = False

    def idle(self) -> bool:
        with self._changed:
            return not self._waiting and not self._telling

    def tell(self, job: JobRecord, event: str, payload: dict[str, object]) -> None:
        with self._changed:
            if len(self._waiting) == MOST and not self._dropped:
                self._dropped = True
                _log.warning("A subscriber is slow: events of saves are dropped. Jobs go on.")
            self._waiting.append((job, event, payload))
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(
                    target=self._loop, name="tracedjobs-events", daemon=True
                )
                self._thread.start()
            self._changed.notify()

    def _loop(self) -> None:
        while True:
            with self._changed:
                self._telling = False
                while not self._waiting:
                    self._dropped = False
                    self._changed.wait()
                job, event, payload = self._waiting.popleft()
                self._telling = True
            try:
                events.notify_of(job, event, **payload)
            except BaseException:  # one that exits: there is nobody here whom it could end
                _log.exception("A subscriber failed at %s; the others are told later.", event)

    def after_fork_in_child(self) -> None:
        self.__init__()  # type: ignore[misc]  # what waits is the parent's to tell


_teller: Final = _Teller()
os.register_at_fork(after_in_child=_teller.after_fork_in_child)


def tell_later(job: JobRecord, event: str, **payload: object) -> None:
    """Tell of that job as `events.notify_of` does, soon, and in the order in which it is called."""
    if events.listened():
        _teller.tell(job, event, payload)


def tell_in_order(job: JobRecord, event: str, **payload: object) -> None:
    """Tell of that job at once, in this thread, unless some of what is told later still waits."""
    if not events.listened():
        return
    if _teller.idle():
        events.notify_of(job, event, **payload)
    else:
        _teller.tell(job, event, payload)


def told_of(position: Position) -> dict[str, object]:
    """What every event of a step says of where that stands."""
    return {
        "step": position.step,
        "cursor": position.cursor,
        "items": position.items,
        "total": position.total,
    }


def tell(run: Run, event: str, **payload: object) -> None:
    """Tell of the run."""
    events.notify_of(run.record, event, **payload)


def tell_step(run: Run, event: str, step: Step, **payload: object) -> None:
    """Tell of a step of the run."""
    if not events.listened():
        return
    position = step.position()
    try:
        seconds = run.store.time() - step.started_at
    except StoreError:  # it was closed, and tells the time no more
        seconds = None
    events.notify_of(run.record, event, **told_of(position), duration_s=seconds, **payload)


def tell_skipped(run: Run, done: StepRecord) -> None:
    """Tell that a step was done before, with what is kept of it."""
    tell(
        run,
        "job_step_skipped",
        step=done.name,
        cursor=done.cursor,
        items=done.items,
        total=done.total,
        duration_s=done.ended_at - done.started_at,
    )


def tell_saved(run: Run, save: Save) -> bool:
    """Tell when a newer cursor was saved; the saver's thread does not wait."""
    position = save.position
    if position is None or position == run.told:
        return False
    run.told = position
    if events.listened():
        tell_later(
            run.record,
            "job_cursor_advanced",
            **told_of(position),
            duration_s=run.store.time() - position.started_at,
        )
    return True
