"""What `Runtime.get` shows of a job: frozen, with its values decoded and its times as dates."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from tracedjobs._core import values
from tracedjobs._core.estimate import estimate
from tracedjobs._core.records import (
    ControlRecord,
    JobRecord,
    Position,
    RunRecord,
    Status,
    StepRecord,
    Stored,
)
from tracedjobs._core.stalls import Stall, is_stalled
from tracedjobs._core.stretch import Entered
from tracedjobs._core.trace import Trace
from tracedjobs.errors import SerializationError

if TYPE_CHECKING:
    from collections.abc import Mapping

_LAST_MOMENT: Final = datetime.max.replace(tzinfo=UTC).timestamp() - 1
"""No date is later; a job may be kept for longer."""

__all__ = [
    "ControlSnapshot",
    "ErrorSnapshot",
    "JobSnapshot",
    "RunSnapshot",
    "StepSnapshot",
    "Unreadable",
    "hangs",
    "snapshot_of",
    "time_left",
]


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A stored value that this process cannot decode, as when its type is not registered here."""

    text: str
    why: str

    def __repr__(self) -> str:
        """The stored text."""
        return self.text


@dataclass(frozen=True, slots=True)
class StepSnapshot:
    """A step that was begun.

    `status` is `completed`, `running`, `interrupted` or `failed`. `cursor` is the position as last
    saved; `items` and `total` count items, unless `unit` says that `total` is in `bytes`.
    """

    name: str
    status: str
    cursor: object
    items: int
    total: int | None
    unit: str | None
    started_at: datetime
    ended_at: datetime | None
    run: int
    result: object = None


@dataclass(frozen=True, slots=True)
class RunSnapshot:
    """A run. `outcome` is `None` while it runs, else `lost` or the status that it left."""

    number: int
    worker: str
    started_at: datetime
    ended_at: datetime | None
    resumed: bool
    outcome: str | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class ControlSnapshot:
    """What an operator asked for, who it was, and when."""

    at: datetime
    action: str
    by: str
    detail: str | None


@dataclass(frozen=True, slots=True)
class ErrorSnapshot:
    """The error that a run ended with."""

    type: str
    message: str
    traceback: str = field(repr=False)

    def __str__(self) -> str:
        """Type and message."""
        return f"{self.type}: {self.message}" if self.message else self.type


@dataclass(frozen=True, slots=True)
class JobSnapshot:
    """A job as it was at one moment.

    `lost` is whether it is recorded as running though its process is gone; `stalled` whether its
    process lives and its cursor has not moved for the step's `stall_after`, where `stall` says what
    hangs, or hung when its process died. `heartbeat_at` is when its run last renewed its lease.
    `time_left` is an estimate for the open step, where its total is known and it is running. Times
    are aware, UTC.
    `arguments` are by the names of the function's parameters. `steps` are those begun, in order;
    `steps_expected` how many there will be, if that is known. `items_redone` counts items that were
    done again because a run was killed after it had done them and before that was saved. `wish` is
    `pause` or `cancel` while the running job has not seen it yet.
    """

    id: str
    name: str
    status: Status
    lost: bool
    stalled: bool
    run: int
    resumptions: int
    reason: str | None
    arguments: Mapping[str, object]
    steps: tuple[StepSnapshot, ...]
    steps_expected: int | None
    items_redone: int
    runs: tuple[RunSnapshot, ...]
    controls: tuple[ControlSnapshot, ...]
    state: object
    result: object
    error: ErrorSnapshot | None
    worker: str | None
    wish: str | None
    queue: str | None
    stall: Stall | None
    time_left: timedelta | None
    trace_id: str | None
    submitted_at: datetime
    started_at: datetime | None
    progressed_at: datetime | None
    heartbeat_at: datetime | None
    ended_at: datetime | None
    resume_at: datetime | None
    deadline_at: datetime | None
    expires_at: datetime | None

    @property
    def current(self) -> StepSnapshot | None:
        """The open step, or `None`."""
        if self.steps and self.steps[-1].status != "completed":
            return self.steps[-1]
        return None

    @property
    def items(self) -> int:
        """Items done in all steps."""
        return sum(step.items for step in self.steps)


def snapshot_of(stored: Stored, *, lost: bool, heartbeat: float | None) -> JobSnapshot:
    """What is stored, for people and programs to look at.

    `heartbeat`: when its run last renewed its lease.
    """
    head = stored.job
    trace = Trace.read(head.trace)
    position = stored.open_position
    stalled = not lost and hangs(head, heartbeat)
    left = None if lost else time_left(head, stalled=stalled)
    steps = tuple(_completed(step) for step in stored.steps)
    if position is not None:
        steps = (*steps, _open(position, head))
    return JobSnapshot(
        id=head.id,
        name=head.name,
        status=head.status,
        lost=lost,
        stalled=stalled,
        run=head.run,
        resumptions=head.resumptions,
        reason=head.reason,
        arguments=_arguments(head),
        steps=steps,
        steps_expected=head.steps_expected,
        items_redone=head.items_redone,
        runs=tuple(_run(run) for run in stored.runs),
        controls=tuple(_control(control) for control in stored.controls),
        state=_readable(head.state),
        result=_readable(head.result),
        error=_error(head.error),
        worker=head.worker,
        wish=head.wish,
        queue=head.queue,
        stall=Stall.from_text(head.stall),
        time_left=None if left is None else timedelta(seconds=left),
        trace_id=None if trace is None else trace.trace_id,
        submitted_at=_moment(head.submitted_at),
        started_at=_moment_or_none(head.started_at),
        progressed_at=_moment_or_none(head.progressed_at),
        heartbeat_at=_moment_or_none(heartbeat if head.status is Status.RUNNING else None),
        ended_at=_moment_or_none(head.ended_at),
        resume_at=_moment_or_none(head.resume_at),
        deadline_at=_moment_or_none(head.deadline_at),
        expires_at=_moment_or_none(head.expires_at),
    )


def hangs(head: JobRecord, heartbeat: float | None) -> bool:
    """Whether a running job whose lease holds has stalled.

    Its own process has seen it hang, and noted where: a save that was on its way while the process
    was stopped says how long ago the cursor had moved, and makes no stall. And it still hangs: both
    times are of the same save.
    """
    if head.status is not Status.RUNNING or head.stall is None:
        return False
    if heartbeat is None or head.progressed_at is None:
        return False
    entered = Entered.read(head.entered)
    return entered is not None and is_stalled(
        progressed_age=heartbeat - head.progressed_at, stall_after=entered.stall_after
    )


def time_left(head: JobRecord, *, stalled: bool) -> float | None:
    """Seconds that the open step of a running job has left, if that can be told."""
    position = head.position
    if head.status is not Status.RUNNING or position is None:
        return None
    return estimate(head.meter, position.done, position.total, stalled=stalled)


def _completed(step: StepRecord) -> StepSnapshot:
    return StepSnapshot(
        name=step.name,
        status="completed",
        cursor=_readable(step.cursor),
        items=step.items,
        total=step.total,
        unit=step.unit,
        started_at=_moment(step.started_at),
        ended_at=_moment(step.ended_at),
        run=step.run,
        result=_readable(step.result),
    )


def _open(position: Position, head: JobRecord) -> StepSnapshot:
    status = {Status.RUNNING: "running", Status.FAILED: "failed"}.get(head.status, "interrupted")
    return StepSnapshot(
        name=position.step,
        status=status,
        cursor=_readable(position.cursor),
        items=position.items,
        total=position.total,
        unit=position.unit,
        started_at=_moment(position.started_at),
        ended_at=None,
        run=head.run,
    )


def _run(run: RunRecord) -> RunSnapshot:
    return RunSnapshot(
        number=run.number,
        worker=run.worker,
        started_at=_moment(run.started_at),
        ended_at=_moment_or_none(run.ended_at),
        resumed=run.resumed,
        outcome=run.outcome,
        reason=run.reason,
    )


def _control(control: ControlRecord) -> ControlSnapshot:
    return ControlSnapshot(_moment(control.at), control.action, control.by, control.detail)


def _error(text: str | None) -> ErrorSnapshot | None:
    found = _readable(text)
    if not isinstance(found, dict):
        return None
    return ErrorSnapshot(str(found["type"]), str(found["message"]), str(found["traceback"]))


def _arguments(head: JobRecord) -> Mapping[str, object]:
    found = _readable(head.arguments)
    if isinstance(found, dict):
        return MappingProxyType(found)
    return MappingProxyType({"*": found})


def _readable(text: str | None) -> object:
    if text is None:
        return None
    try:
        return values.decode(text)
    except SerializationError as error:
        return Unreadable(text, str(error))


def _moment(at: float) -> datetime:
    return datetime.fromtimestamp(min(at, _LAST_MOMENT), UTC)


def _moment_or_none(at: float | None) -> datetime | None:
    return None if at is None else _moment(at)
