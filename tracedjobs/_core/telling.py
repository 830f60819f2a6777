"""Tells of what the saver's thread sees, in a thread of its own.

The leases of all runs hang on the saver: a subscriber that takes long, or waits for a pipe that
nobody reads, must not hold it up. What jobs tell themselves is told in their own threads.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from typing import TYPE_CHECKING, Final

from tracedjobs import events

if TYPE_CHECKING:
    from tracedjobs._core.records import JobRecord

__all__ = ["tell_in_order", "tell_later"]

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
