"""What a run in this process is doing now, read from another thread, without a stop for it."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Self

from tracedjobs import events
from tracedjobs._core import values
from tracedjobs._core.saver import saver
from tracedjobs.cli.phrases import Span, rate, safe, spans, worked
from tracedjobs.cli.steps import StepLine, ahead
from tracedjobs.errors import TracedJobsError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from tracedjobs._core.records import Position, StepRecord
    from tracedjobs._core.run import Run
    from tracedjobs._core.snapshot import JobSnapshot
    from tracedjobs.stores import Store

__all__ = ["Follower", "Pace", "View"]

_STARTS: Final = frozenset({"job_started", "job_resumed"})
WINDOW: Final = 10.0
"""Seconds over which a rate is taken."""


@dataclass(frozen=True, slots=True)
class View:
    """A run at one moment: the steps begun, the last of them perhaps open, and those ahead."""

    steps: tuple[StepLine, ...]
    ahead: tuple[str, ...]

    @property
    def open(self) -> StepLine | None:
        """The step that is not done yet."""
        return self.steps[-1] if self.steps and self.steps[-1].status != "completed" else None


class Follower:
    """Follows the run of one job that this process performs, or is about to."""

    def __init__(self, store: Store, job: JobSnapshot, names: Sequence[str]) -> None:
        """Take the job as it was before the run; `names` are the steps that it may have."""
        self._store = store
        self._job = job
        self._names = names
        self._spans = spans(job)
        self._run: Run | None = None
        self._lines: dict[str, StepLine] = {}

    def __enter__(self) -> Self:
        """Be told when the run starts, for it may be over before anybody looks."""
        events.subscribe(self._notice, lambda event: event.name in _STARTS)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Be told no more."""
        events.unsubscribe(self._notice)

    def look(self) -> View | None:
        """The run as it is now; as it was at its end, when it is over; `None` before it."""
        run = self._run
        if run is None:
            run = self._run = self._found()
            if run is None:
                return None
        now = datetime.now(UTC)
        spans = [*self._spans, (_moment(run.started_at), now)]
        done = [
            self._completed(run.progress.completed[name], spans)
            for name in tuple(run.progress.order)
        ]
        position = run.live_position()
        if position is not None and all(position.step != each.name for each in done):
            done.append(_open(position, spans, now, run.time_left))
        begun = [each.name for each in done]
        return View(tuple(done), ahead(begun, self._names, run.record.steps_expected))

    def _notice(self, _event: events.Event) -> None:
        self._run = self._run or self._found()

    def _found(self) -> Run | None:
        for run in saver.runs():
            if run.store is self._store and run.record.id == self._job.id:
                return run
        return None

    def _completed(self, step: StepRecord, spans: Sequence[Span]) -> StepLine:
        line = self._lines.get(step.name)
        if line is None:
            line = self._lines[step.name] = StepLine(
                name=safe(step.name),
                status="completed",
                items=step.items,
                total=step.total,
                unit=step.unit,
                cursor=None,
                seconds=worked(_moment(step.started_at), _moment(step.ended_at), spans),
            )
        return line


class Pace:
    """How fast the open step goes, from how far it was in the last seconds."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self._step: str | None = None
        self._seen: deque[tuple[float, int]] = deque()

    def note(self, line: StepLine, now: float | None = None) -> str:
        """Take how far it is now; its rate, empty while that is unknown."""
        now = time.monotonic() if now is None else now
        if line.name != self._step:
            self._step = line.name
            self._seen.clear()
        self._seen.append((now, line.items))
        while len(self._seen) > 2 and now - self._seen[1][0] > WINDOW:  # noqa: PLR2004 - a span has two ends
            self._seen.popleft()
        began, items = self._seen[0]
        passed = now - began
        if passed <= 0 or line.items <= items:
            return ""
        return rate((line.items - items) / passed)


def _open(position: Position, spans: Sequence[Span], now: datetime, left: float | None) -> StepLine:
    try:
        cursor = values.decode(position.cursor)
    except TracedJobsError:
        cursor = None  # of a type that is registered elsewhere
    return StepLine(
        name=safe(position.step),
        status="running",
        items=position.items,
        total=position.total,
        unit=position.unit,
        cursor=cursor,
        seconds=worked(_moment(position.started_at), now, spans),
        left=left,
    )


def _moment(at: float) -> datetime:
    return datetime.fromtimestamp(at, UTC)
