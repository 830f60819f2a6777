"""The stretch of a step that one run did: where it took the step up, and where it left it open.

It is kept with the job as text, and its span is made from it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final, NamedTuple

from tracedjobs._core.compact import compact

if TYPE_CHECKING:
    from tracedjobs._core.records import Position

__all__ = ["LONGEST_TOLD", "Entered", "Left", "left_text"]

LONGEST_TOLD: Final = 1024
"""Characters of a cursor that is told in a span."""


class Entered(NamedTuple):
    """Where a run took a step up, which is the beginning of its span."""

    at: float
    cursor: str = "null"
    items: int = 0
    stall_after: float | None = None
    """Seconds without progress after which the step counts as stalled; `None` where not at all."""
    run: int = 0

    def text(self) -> str:
        """As it is kept in a record."""
        return compact(self)

    @classmethod
    def read(cls, text: str | None) -> Entered | None:
        """What `text` made of it; `None` where there is none, or it does not hold together."""
        try:
            at, cursor, items, stall_after, run = json.loads(text or "")
            return cls(
                float(at),
                str(cursor),
                int(items),
                None if stall_after is None else float(stall_after),
                int(run),
            )
        except (ValueError, TypeError, OverflowError, RecursionError):
            return None


class Left(NamedTuple):
    """The step that a run left open when it ended: what its span is made from."""

    step: str
    cursor: str
    """Where it left it; `null` for a cursor that is too long to tell."""
    items: int
    entered: str
    """Where it took it up: an `Entered` as text."""

    def text(self) -> str:
        """As it is kept in a record."""
        return compact(self)

    @classmethod
    def read(cls, text: str | None) -> Left | None:
        """What `text` made of it; `None` where there is none, or it does not hold together."""
        try:
            step, cursor, items, entered = json.loads(text or "")
            return cls(str(step), str(cursor), int(items), str(entered))
        except (ValueError, TypeError, OverflowError, RecursionError):
            return None


def left_text(position: Position | None, run: int) -> str | None:
    """What is kept of the step that is open at `position`, if the run that ends took it up."""
    entered = None if position is None else Entered.read(position.entered)
    if position is None or entered is None or entered.run != run:
        return None
    cursor = position.cursor if len(position.cursor) <= LONGEST_TOLD else "null"
    if len(entered.cursor) > LONGEST_TOLD:
        entered = entered._replace(cursor="null")
    return Left(position.step, cursor, position.items, entered.text()).text()
