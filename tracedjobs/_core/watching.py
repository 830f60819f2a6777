"""What the saver's thread makes of a run's positions: how fast it goes, and whether it hangs.

It looks each time the run is saved, from outside the job, and so sees what hangs in a call. What
holds the interpreter's lock, or stops the process, stops this too: then the lease ends.
"""

from __future__ import annotations

import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from tracedjobs._core.clock import boot_time
from tracedjobs._core.estimate import Estimator
from tracedjobs._core.records import Change, JobRecord, Position, Save
from tracedjobs._core.stalls import Stall, is_stalled, stack_of_task, stack_of_thread
from tracedjobs._core.stretch import Entered
from tracedjobs._core.telling import tell_in_order, tell_later, told_of
from tracedjobs.errors import StoreError, TracedJobsError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tracedjobs._core.run import Run

__all__ = ["Watcher"]

METER_EVERY: Final = 2.0
"""Seconds between two saves of the estimate: a kill loses what came after the last."""


class _Seen(NamedTuple):
    """A stall, and where the job stood: since when, on the boot's clock."""

    stall: Stall
    position: Position
    moved_at: float


class Watcher:
    """Watches one run. Made in the job's own thread or task, used in the saver's thread."""

    def __init__(self, begun: JobRecord, *, is_async: bool) -> None:
        """Watch the run of the job that was `begun`; each method is given that run, or its record.

        It is kept nowhere here: then what a run holds is free as soon as that is over.
        """
        self._meter = begun.meter
        self._thread = threading.get_ident()
        self._task = _current_task() if is_async else None
        self._estimator: Estimator | None = None
        """Made at the first look: most runs are over before it."""
        self._step = begun.step
        self._metered_at = boot_time()
        self._moved_at = self._looked_at = boot_time()
        self._last: Position | None = None
        self._stalls: list[_Seen] = []
        """The stall that goes on, if one does. A list, for taking the last of it is atomic: the
        saver's thread and the job's own may both see it end, and one of them tells."""
        self.kept = False
        """Whether the record may hold a stall of this run, which the run's end then clears."""
        self._stale = False
        """Whether what it holds is over, and the saver has not cleared it yet."""
        self._recorded = False
        """Whether the record is known to hold the stall that goes on."""
        self._closed = False
        self.time_left: float | None = None
        """Seconds that the open step has left as of the last look, if that can be told."""

    def look(self, run: Run, save: Save) -> str | None:
        """Look at a position that is to be saved; the text of the estimate when that is due."""
        now, position = boot_time(), save.position
        unseen, self._looked_at = now - self._looked_at, now
        if not self._stalls and _slept(run.lease_ttl, unseen, position):
            # The process was stopped, or suspended with its host: the job did not hang meanwhile.
            self._moved_at = now
            with suppress(StoreError):
                run.progressed_at = run.store.time()
        if position != self._last:
            self._last = position
            self._moved_at = now
            self._end_stall(run.record, position, tell_later)
        if self._stale and not self._stalls:
            self._stale = self._recorded = False
            _keep(run, None)
        if position is None:
            self.time_left = None
            return None
        estimator = self._estimator_of(position)
        estimator.feed(position.done, now)
        if now > self._moved_at and not self._stalls:
            entered = Entered.read(position.entered)
            if entered is not None and is_stalled(
                progressed_age=now - self._moved_at, stall_after=entered.stall_after
            ):
                self._begin_stall(run, position)
        for seen in self._stalls[:] if not self._recorded else ():
            self._recorded = _keep(run, seen.stall.text())  # what could not be kept at first
        self.time_left = (
            None if self._stalls else estimator.time_left(position.done, position.total)
        )
        if now - self._metered_at < METER_EVERY:
            return None
        self._metered_at = now
        return estimator.text()

    def _estimator_of(self, position: Position) -> Estimator:
        if position.step != self._step:
            self._step = position.step
            self._estimator = Estimator()
        elif self._estimator is None:
            self._estimator = Estimator.from_text(self._meter)
        return self._estimator

    def end_stall(self, record: JobRecord, position: Position | None) -> None:
        """Tell that the stall is over, if there was one. For the job's own thread."""
        self._end_stall(record, position, tell_in_order)

    def close(self, record: JobRecord, position: Position | None) -> None:
        """Look no more: the run ends, at `position`, and with it its stall."""
        self._closed = True
        self.end_stall(record, position)

    def _end_stall(
        self, record: JobRecord, position: Position | None, tell: Callable[..., None]
    ) -> None:
        if not self._stalls:
            return
        try:
            seen = self._stalls.pop()
        except IndexError:  # another thread was faster
            return
        at = seen.position
        if position is not None and position.step == at.step:
            at = position
        tell(
            record,
            "job_stall_ended",
            **told_of(at),
            duration_s=boot_time() - seen.moved_at,
            stack=list(seen.stall.stack),
        )

    def _begin_stall(self, run: Run, position: Position) -> None:
        stack = stack_of_thread(self._thread) if self._task is None else stack_of_task(self._task)
        stall = Stall(run.store.time(), position.step, position.cursor, tuple(stack))
        self.kept = self._stale = True
        self._recorded = _keep(run, stall.text())
        if self._closed:
            return
        tell_later(
            run.record,
            "job_stalled",
            **told_of(position),
            duration_s=boot_time() - self._moved_at,
            stack=list(stack),
        )
        self._stalls.append(_Seen(stall, position, self._moved_at))
        if self._closed:  # meanwhile: then nobody else ends it
            self._end_stall(run.record, position, tell_later)


def _current_task() -> Any:
    asyncio = sys.modules.get("asyncio")  # who awaits a job with it has it
    try:
        return None if asyncio is None else asyncio.current_task()
    except RuntimeError:  # driven by other means than a task
        return None


def _slept(lease_ttl: float, unseen: float, position: Position | None) -> bool:
    """Whether nobody looked for so long that this tells of the process, and not of the job.

    A store that answers late is waited for much shorter than half a lease, see `Runtime`.
    """
    if unseen <= lease_ttl / 2:
        return False
    entered = None if position is None else Entered.read(position.entered)
    stall_after = None if entered is None else entered.stall_after
    return unseen > lease_ttl or (stall_after is not None and unseen >= stall_after)


def _keep(run: Run, text: str | None) -> bool:
    # With the job, for whoever looks at it while it hangs, or after its process was killed.
    try:
        for _ in range(3):  # an operator may change the job at the same time
            stored = run.store.load(run.record.id)
            if stored is None or stored.job.token != run.token:
                break
            change = Change(run.record.id, stored.job.revision, {"stall": text}, if_token=run.token)
            if run.store.change(change):
                return True
    except TracedJobsError:
        pass  # the event tells of it all the same
    return False
