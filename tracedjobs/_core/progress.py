"""What of a job is done, as one run sees it: pure, no store and no clock.

Holds the completed steps, the position to resume from, and the names met so far in this run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tracedjobs._core.records import Position, StepRecord, Stored

__all__ = ["Progress"]


class Progress:
    """The progress that a run found, and what it adds to it.

    `encountered` are the steps that this run has met, in order; `advanced` is whether it got
    anything done: completed a step, or moved a cursor.
    """

    __slots__ = (
        "advanced",
        "completed",
        "encountered",
        "isolating",
        "order",
        "resume_from",
        "running",
    )

    def __init__(self, stored: Stored) -> None:
        self.completed: dict[str, StepRecord] = {step.name: step for step in stored.steps}
        self.order: list[str] = list(self.completed)
        self.resume_from: Position | None = stored.open_position
        self.encountered: dict[str, None] = {}
        self.running: str | None = None
        self.advanced = False
        self.isolating = False

    @property
    def started(self) -> bool:
        """Whether there is anything to resume from (Rails: `started?`)."""
        return bool(self.completed) or self.resume_from is not None

    def open(self, name: str) -> Position | None:
        """Begin or resume the step; the position to resume it from, if there is one."""
        self.running = name
        position, self.resume_from = self.resume_from, None
        return position

    def complete(self, step: StepRecord) -> None:
        """Count the open step as done."""
        self.completed[step.name] = step
        self.order.append(step.name)
        self.running = None
        self.advanced = True

    def leave(self, position: Position, *, advanced: bool) -> None:
        """Note that the open step was left at `position` before it was done."""
        self.resume_from = position
        self.running = None
        self.advanced = self.advanced or advanced
