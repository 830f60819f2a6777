"""The time a step has left, from how fast its items were done of late: pure, no store, no clock.

The rate is exponentially weighted over *active* time: only time in which a run was active is fed,
so that pauses and interruptions do not count. It is no measure of items: those are counted.
"""

from __future__ import annotations

import math
import re
from typing import Final, NamedTuple

__all__ = ["HALF_LIFE", "Estimator", "estimate"]

HALF_LIFE: Final = 60.0
"""Seconds of active time after which what was done weighs half."""
ENOUGH: Final = 2.0
"""Seconds of active time before which a rate says nothing."""
LONGEST: Final = 100 * 365.25 * 86400
"""Seconds; a longer estimate is none, and a date that far off might not even be one."""

_TIME_CONSTANT: Final = HALF_LIFE / math.log(2)
_MOST: Final = 1e18  # of items and of seconds: with the next, keeps each sum and quotient finite
_LEAST: Final = 1e-9  # seconds; less is no time
_TEXT: Final = re.compile(
    r"{0} {0} {0}".format(r"\d{1,7}(?:\.\d{1,12})?(?:e[+-]\d{2,3})?"), re.ASCII
)
_MOST_CHARACTERS: Final = 60


class _Rate(NamedTuple):
    """Weighted items over weighted seconds, and the seconds behind them."""

    items: float = 0.0
    seconds: float = 0.0
    active: float = 0.0

    @property
    def value(self) -> float:
        return self.items / self.seconds if self.seconds >= _LEAST else 0.0

    def after(self, items: float, seconds: float) -> _Rate:
        """The rate after `items`, done evenly over `seconds`; those of no time weigh fully."""
        seconds = seconds if seconds >= _LEAST else 0.0
        elapsed = seconds / _TIME_CONSTANT
        kept, added = math.exp(-elapsed), -math.expm1(-elapsed)
        weight = added / elapsed if elapsed > 0 else 1.0
        return _Rate(
            min(self.items * kept + items * weight, _MOST),
            self.seconds * kept + added * _TIME_CONSTANT,
            min(self.active + seconds, _MOST),
        )


class Estimator:
    """The rate of one step's items, fed by the run that does them.

    Not to be fed and read by two threads at once. The next run begins with `from_text` of what
    the last one saved: the time between them is never fed.
    """

    __slots__ = ("_at", "_done", "_idle", "_jump", "_rate")

    def __init__(self) -> None:
        self._rate = _Rate()
        self._begin(None, 0.0)

    def _begin(self, done: int | None, at: float) -> None:
        self._done, self._at = done, at
        self._idle = 0.0  # seconds without an item, which weigh only when the next one is done
        self._jump = 1.0  # how many items the last feed brought that brought any

    def feed(self, done: int, at: float) -> None:
        """Note that `done` items are done at `at`.

        The first call only tells where the run begins.

        Args:
            done: Items so far, or bytes: what the total counts. When it goes back, the step was
                rewound, and the estimate starts anew.
            at: Seconds of a monotonic clock, of this run. When it goes back, it is another
                clock's, and the time between is not known.
        """
        if not math.isfinite(at):
            return
        if self._done is None or at < self._at:
            self._begin(done, at)
        elif done < self._done:
            self._rate = _Rate()
            self._begin(done, at)
        elif done == self._done:
            self._idle = min(at - self._at, _MOST)
        else:
            items = float(min(done - self._done, int(_MOST)))
            self._rate = self._rate.after(items, min(at - self._at, _MOST))
            self._begin(done, at)
            self._jump = items

    def _now(self) -> _Rate:
        # What takes long is no reason to change the estimate until it takes longer than it should.
        # Were idle time to weigh at once, items of minutes would swing it by orders of magnitude.
        expected = min(self._rate.value * self._idle, self._jump)
        return self._rate.after(expected, self._idle)

    @property
    def rate(self) -> float:
        """Items a second of active time, of late; 0.0 when there are none."""
        return self._now().value

    def time_left(self, done: int, total: int | None) -> float | None:
        """Seconds of active time until `total` items are done.

        `None` without a total or over it, before two seconds and an item, and when no end is in
        sight.
        """
        rate = self._now()
        if total is None or done > total or rate.active < ENOUGH or rate.value <= 0:
            return None
        remaining = total - done
        # Compared before it is divided: an integer may be too large for a quotient.
        return None if remaining > rate.value * LONGEST else remaining / rate.value

    def text(self) -> str:
        """The state: weighted items, weighted seconds and active seconds, in at most 60 bytes."""
        return " ".join(f"{number:.6g}" for number in self._now())

    @classmethod
    def from_text(cls, text: str | None) -> Estimator:
        """The estimator that said so of itself; a new one when the text makes no sense."""
        made = cls()
        if text is None or len(text) > _MOST_CHARACTERS or not _TEXT.fullmatch(text):
            return made
        rate = _Rate(*map(float, text.split(" ")))
        # The weight of so many seconds is known, which tells a text of another half-life too.
        weight = -math.expm1(-rate.active / _TIME_CONSTANT) * _TIME_CONSTANT
        if max(rate) <= _MOST and math.isclose(rate.seconds, weight, rel_tol=1e-3):
            made._rate = rate
        return made


def estimate(text: str | None, done: int, total: int | None, *, stalled: bool) -> float | None:
    """Seconds of active time left of a step, from the text saved with its cursor.

    `None` as `Estimator.time_left` says, and while the job is stalled.
    """
    return None if stalled else Estimator.from_text(text).time_left(done, total)
