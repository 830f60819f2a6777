"""What `Runtime.get` shows of a job: frozen, with its values decoded and its times as dates."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from tracedjobs._core import values
from tracedjobs._core.records import (
    ControlRecord,
    JobRecord,
    Position,
    RunRecord,
    Status,
    StepRecord,
    Stored,
)
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
    "snapshot_of",
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

    `lost` is whether it is recorded as running though its process is gone. Times are aware, UTC.
    `arguments` are by the names of the function's parameters. `steps` are those begun, in order;
    `steps_expected` how many there will be, if that is known. `items_redone` counts items that were
    done again because a run was killed after it had done them and before that was saved. `wish` is
    `pause` or `cancel` while the running job has not seen it yet.
    """

    id: str
    name: str
    status: Status
    lost: bool
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
    trace_id: str | None
    submitted_at: datetime
    started_at: datetime | None
    progressed_at: datetime | None
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


def snapshot_of(stored: Stored, *, lost: bool) -> JobSnapshot:
    """What is stored, for people and programs to look at."""
    head = stored.job
    position = stored.open_position
    steps = tuple(_completed(step) for step in stored.steps)
    if position is not None:
        steps = (*steps, _open(position, head))
    return JobSnapshot(
        id=head.id,
        name=head.name,
        status=head.status,
        lost=lost,
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
        trace_id=None,
        submitted_at=_moment(head.submitted_at),
        started_at=_moment_or_none(head.started_at),
        progressed_at=_moment_or_none(head.progressed_at),
        ended_at=_moment_or_none(head.ended_at),
        resume_at=_moment_or_none(head.resume_at),
        deadline_at=_moment_or_none(head.deadline_at),
        expires_at=_moment_or_none(head.expires_at),
    )


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
