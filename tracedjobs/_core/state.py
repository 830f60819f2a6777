"""What the job keeps in `ctx.state`, and the pairs of it with a cursor that are saved."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from tracedjobs._core import values

if TYPE_CHECKING:
    from collections.abc import Callable

    from tracedjobs._core.records import Position

__all__ = ["State"]

CHEAP: Final = 50e-6
"""Seconds: a state that is stored faster than this is taken after every item."""
SHARE: Final = 20
"""A dearer state is taken only when the time since the last taking is this many times its cost."""
AGE: Final = 1 / 8
"""Of `checkpoint_every`: a state that is taken is never older, whatever it costs. With the saver's
share, and the save itself, that stays below the whole."""


class State:
    """The mapping, read when it is first asked for, and the last pair that was taken."""

    __slots__ = ("_cost", "_mapping", "_taken_at", "_text", "pair", "touched")

    def __init__(self, text: str | None) -> None:
        """Have what is stored."""
        self._text = text
        self._mapping: dict[object, object] | None = None
        self.touched = False
        """Whether a save holds the pair from now on: set once there is one, see `Run.take_save`."""
        self.pair: tuple[Position | None, str] = (None, "")
        self._taken_at = 0.0
        self._cost = 0.0

    @property
    def mapping(self) -> dict[object, object]:
        """What the job sees, and changes."""
        if self._mapping is None:
            found = None if self._text is None else values.decode(self._text)
            self._mapping = found if isinstance(found, dict) else {}
        return self._mapping

    def touch(self, position: Position | None) -> None:
        """Take pairs from now on, the first of that position and what is stored."""
        # In this order: what the flag promises is there before the flag.
        self.pair = (position, self._text or "{}")
        self.touched = True

    def text(self) -> str:
        """It as it is stored; raises `SerializationError` where it cannot be."""
        return values.encode(self.mapping, path="state")

    def take(self, position: Callable[[], Position | None], *, every: float | None = None) -> None:
        """Take position and state as one pair, between two items.

        With `checkpoint_every` only where that is cheap, or long enough ago: a state of some size
        taken after each item of a fast loop would make the loop slow.
        """
        began = time.perf_counter()
        if (
            every is not None
            and self._cost > CHEAP
            and began - self._taken_at < min(self._cost * SHARE, every * AGE)
        ):
            return
        self.pair = (position(), self.text())
        self._taken_at = time.perf_counter()
        self._cost = self._taken_at - began
