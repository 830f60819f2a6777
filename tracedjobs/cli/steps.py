"""A step as one line, the same while it runs and later: mark, name, how far, how long."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rich.text import Text

from tracedjobs.cli.phrases import (
    Span,
    count,
    duration,
    plural,
    rough,
    safe,
    size,
    value_text,
    worked,
)
from tracedjobs.cli.screen import Marks, bar

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime, timedelta

    from tracedjobs._core.runtime import Runtime
    from tracedjobs._core.snapshot import JobSnapshot, StepSnapshot

__all__ = ["StepLine", "ahead", "expected_names", "fitted", "line_of_snapshot", "name_width"]

LONGEST_NAME: Final = 28
NARROWEST_BAR: Final = 10
WIDEST_BAR: Final = 40


@dataclass(frozen=True, slots=True)
class StepLine:
    """What is shown of a step. `seconds` counts the time in which a run worked on it."""

    name: str
    status: str
    items: int
    total: int | None
    unit: str | None
    cursor: object
    seconds: float
    left: float | None = None
    """Seconds that it has left, where that can be told."""

    @property
    def amount(self) -> int | None:
        """How much is done, in what `total` counts."""
        if self.unit is None:
            return self.items
        return self.cursor if type(self.cursor) is int else None

    @property
    def fraction(self) -> float | None:
        """How much is done, from 0 to 1, if a total is known."""
        if not self.total or self.amount is None:
            return None
        return min(max(self.amount / self.total, 0.0), 1.0)

    @property
    def percent(self) -> str:
        """`36%`, or nothing."""
        return "" if self.fraction is None else f"{int(self.fraction * 100)}%"

    @property
    def time_left(self) -> str:
        """`4 min left`, or nothing."""
        return "" if self.left is None else f"{rough(max(self.left, 1))} left"

    def how_far(self) -> str:
        """`120,000 of 336,776`, `120,000 items, 11.2 MB of 31.1 MB`, `120,000 items`."""
        if self.status == "completed" or self.total is None or self.amount is None:
            return plural(self.items, "item") if self.items else ""
        if self.unit is None:
            return f"{count(self.items)} of {count(self.total)}"
        of = f"{count(self.amount)} of {count(self.total)} {safe(self.unit)}"
        if self.unit == "bytes":
            of = f"{size(self.amount)} of {size(self.total)}"
        return f"{plural(self.items, 'item')}, {of}"

    def where(self) -> str:
        """`cursor 'abc'`, where it says more than the count."""
        if self.cursor is None or (type(self.cursor) is int and self.cursor == self.items):
            return ""
        return f"cursor {value_text(self.cursor)}"


def line_of_snapshot(
    step: StepSnapshot, spans: Iterable[Span], now: datetime, left: timedelta | None = None
) -> StepLine:
    """The line of a saved step, and what it has left if it is the open one."""
    return StepLine(
        name=safe(step.name),
        status=step.status,
        items=step.items,
        total=step.total,
        unit=step.unit,
        cursor=step.cursor,
        seconds=worked(step.started_at, step.ended_at or now, spans),
        left=None if left is None else left.total_seconds(),
    )


def name_width(names: Iterable[str]) -> int:
    """The width of the column of names."""
    return min(max((len(name) for name in names), default=0), LONGEST_NAME)


def fitted(
    line: StepLine, shapes: Marks, *, names: int, width: int, more: Sequence[str] = ()
) -> Text:
    """The line in at most `width` columns.

    `more` are further words on an open step, dearest first; what does not fit is left out, from
    the end. The bar takes what room is left.
    """
    mark, style = {
        "completed": (shapes.done, "green"),
        "failed": (shapes.failed, "red"),
        "running": (shapes.open, "cyan"),
    }.get(line.status, (shapes.open, "yellow"))
    name = line.name
    if len(name) > names:
        name = name[: max(names - len(shapes.ellipsis), 1)] + shapes.ellipsis
    text = Text.assemble("  ", (mark, style), f" {name:<{names}}  ", no_wrap=True)
    if line.status == "completed":
        text.append(f"{duration(line.seconds):>10}", "dim")
        text.append("  " + line.how_far() if line.items else "", "dim")
        text.truncate(width)
        return text
    words = [each for each in (line.percent, line.how_far(), *more) if each]
    least = NARROWEST_BAR + 2 if line.fraction is not None else 0
    while len(words) > 1 and text.cell_len + least + len("  ".join(words)) > width:
        words.pop()
    if line.fraction is not None:
        room = width - text.cell_len - len("  ".join(words)) - 2
        if room >= NARROWEST_BAR:
            text.append_text(bar(line.fraction, min(room, WIDEST_BAR), shapes, style))
            text.append("  ")
    text.append("  ".join(words))
    text.truncate(width)
    return text


def expected_names(runtime: Runtime, job: JobSnapshot) -> tuple[str, ...]:
    """The steps of the last completed job of that name: most likely this one's too."""
    last = runtime.list(status="completed", name=job.name, limit=1)
    return tuple(safe(step.name) for step in last[0].steps) if last else ()


def ahead(begun: Sequence[str], names: Sequence[str], number: int | None) -> tuple[str, ...]:
    """The steps that are still expected: by name where the last job's begin with these."""
    alike = list(names[: len(begun)]) == list(begun) and number in {None, len(names)}
    if alike and len(names) > len(begun):
        return tuple(names[len(begun) :])
    left = (number or 0) - len(begun)
    return (f"{plural(left, 'more step')}",) if left > 0 else ()
