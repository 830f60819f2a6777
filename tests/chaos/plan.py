"""Random jobs, each made from one number, so that a worker process can make the same one.

No job is run here, and nothing is random but through the seed.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["CHECKPOINT_EVERY", "Part", "Plan", "make_plan"]

CHECKPOINT_EVERY: Final = (0.0, 0.05, 0.2, 1.0)
KINDS: Final = ("call", "range", "list", "pairs", "nested")
WIDTH: Final = 7
"""Items in a row of the cursors that are made of two numbers."""


@dataclass(frozen=True, slots=True)
class Part:
    """A step: its kind, how many items it has, and the seconds that each takes."""

    name: str
    kind: str
    size: int
    pace: float

    def source(self) -> Sequence[int] | Callable[[object], Iterator[tuple[int, object]]]:
        """What a loop over its items reads: the items are the numbers from 0."""
        if self.kind == "range":
            return range(self.size)
        if self.kind == "list":
            return list(range(self.size))

        def pairs(cursor: object) -> Iterator[tuple[int, object]]:
            for index in range(self.index(cursor), self.size):
                yield index, divmod(index + 1, WIDTH)

        return pairs

    def index(self, cursor: object) -> int:
        """The number of the item at `cursor`."""
        if cursor is None:
            return 0
        if isinstance(cursor, (list, tuple)):
            row, column = cursor
            assert isinstance(cursor, tuple if self.kind == "pairs" else list), cursor
            return int(row) * WIDTH + int(column)
        assert isinstance(cursor, int), cursor
        return cursor


@dataclass(frozen=True, slots=True)
class Plan:
    """A job: its parts in order, and the options that matter to what may be done again."""

    seed: int
    checkpoint_every: float
    is_async: bool
    has_state: bool
    parts: tuple[Part, ...]

    @property
    def job_name(self) -> str:
        """The name of the job function that does it."""
        return f"chaos-{'async' if self.is_async else 'sync'}-{self.checkpoint_every}"

    @property
    def size(self) -> int:
        """How many items all parts have together."""
        return sum(part.size for part in self.parts)

    @property
    def seconds(self) -> float:
        """About how long it takes when nobody kills it."""
        return sum(part.size * (part.pace + 0.0002) for part in self.parts)

    def place(self, name: str, index: int) -> int:
        """The number of an item among those of all parts, in the order in which they are done."""
        before = 0
        for part in self.parts:
            if part.name == name:
                return before + index
            before += part.size
        raise KeyError(name)


def make_plan(seed: int, stretch: float = 1.0) -> Plan:
    """The job of that seed, always the same; `stretch` makes it longer."""
    chance = random.Random(seed)
    every = chance.choices(CHECKPOINT_EVERY, (4, 4, 3, 1))[0]
    count = chance.randint(2, 6)
    # Long enough that some runs are saved several times before they are killed.
    budget = (1.8 if every == 1.0 else 0.4 * stretch) / count
    return Plan(
        seed=seed,
        checkpoint_every=every,
        is_async=chance.random() < 0.35,
        has_state=chance.random() < 0.5,
        parts=tuple(_make_part(chance, number, budget) for number in range(count)),
    )


def _make_part(chance: random.Random, number: int, budget: float) -> Part:
    kind = chance.choice(KINDS)
    pace = chance.choice((0.0, 0.0005, 0.002, 0.005))
    if kind == "call":
        return Part(f"s{number}", kind, 1, pace)
    most = max(int(budget / (pace + 0.0003)), 1)
    return Part(f"s{number}", kind, chance.randint(0, min(most * 2, 1000)), pace)
