"""How a benchmark is measured: interleaved rounds, medians, no garbage collection in between.

It measures nothing itself; each file beside it measures one row, or a group of rows, of the table.
"""

from __future__ import annotations

import gc
import os
import sqlite3
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Final

from tracedjobs import Context, Runtime, job

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping, Sequence

__all__ = [
    "Figure",
    "Plan",
    "bare_update",
    "cpu",
    "interleaved",
    "overhead",
    "ratios",
    "runtime",
    "scratch",
    "shown",
    "shown_each",
    "wall",
]

cpu: Final = time.process_time
"""Of all threads of this process, the saver's too; what others do on the machine matters less."""
wall: Final = time.perf_counter
"""Where waiting for the disk or for another thread is the point."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured: `rounds` of each contestant; `tiny` only shows that it works."""

    rounds: int | None = None
    tiny: bool = False

    def rounds_or(self, default: int) -> int:
        """The rounds asked for, or `default`."""
        return self.rounds or (2 if self.tiny else default)

    def size(self, full: int, tiny: int) -> int:
        """How many items."""
        return tiny if self.tiny else full


@dataclass(frozen=True, slots=True)
class Figure:
    """One row of the table: the median over the rounds, which should be at most `goal`."""

    what: str
    goal: float
    rounds: Sequence[float]
    unit: str = ""
    measured: Mapping[str, str] = field(default_factory=dict)
    """What the figure was made of, peers included, each with its unit."""

    @property
    def figure(self) -> float:
        """The median of the rounds."""
        return median(self.rounds)

    @property
    def met(self) -> bool:
        """Whether the goal is met."""
        return self.figure <= self.goal


Measure = dict[str, list[float]]


def interleaved(rounds: int, contestants: Mapping[str, Callable[[], float]]) -> Measure:
    """Give what each contestant returned in each round: first A B C, then C B A.

    So that a machine that gets slower for a while slows all of them, and none is always first.
    """
    found: Measure = {name: [] for name in contestants}
    order = list(contestants.items())
    for _ in range(rounds):
        for name, contestant in order:
            with _no_collections():
                found[name].append(contestant())
        order.reverse()
    return found


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """One ratio a round, so that what slowed a whole round cancels out."""
    return [a / b for a, b in zip(over, under, strict=True)]


def overhead(of: Sequence[float], bare: Sequence[float]) -> list[float]:
    """What `of` took above `bare`, one difference a round; above zero, so that it can divide."""
    return [max(a - b, 1e-9) for a, b in zip(of, bare, strict=True)]


def shown(seconds: float) -> str:
    """Give the seconds as people read them, such as 133 µs."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if abs(seconds) >= scale:
            value = seconds / scale
            return f"{value:.{0 if value >= 100 else 1}f} {unit}"
    return f"{seconds * 1e9:.{0 if abs(seconds) >= 1e-8 else 1}f} ns"


def shown_each(found: Mapping[str, Sequence[float]], n: int = 1, each: str = "") -> dict[str, str]:
    """The median of each contestant, an item, for people."""
    return {name: f"{shown(median(seconds) / n)} {each}".strip() for name, seconds in found.items()}


@contextmanager
def scratch() -> Generator[Path]:
    """A folder for the stores, on the disk of `TMPDIR`: the cost of a commit is that disk's."""
    with tempfile.TemporaryDirectory(prefix="tracedjobs-bench-") as folder:
        yield Path(folder)


@contextmanager
def runtime(options: str = "", lease_ttl: float = 30.0) -> Generator[Runtime]:
    """A runtime on a SQLite file of its own; the lock files go where the user's jobs have none."""
    os.environ.setdefault("TRACEDJOBS_RUN_DIR", tempfile.mkdtemp(prefix="tracedjobs-bench-run-"))
    with (
        scratch() as folder,
        Runtime(f"sqlite:///{folder}/store.db{options}", lease_ttl=lease_ttl) as made,
    ):
        yield made


@job
def _nothing(ctx: Context) -> None:
    """Do nothing; only its record is wanted."""


@contextmanager
def bare_update(synchronous: str) -> Generator[Callable[[], None]]:
    """What writes a new cursor to the row of a job, durably: the least that a save costs.

    A new one each time: SQLite writes nothing when a row stays as it is. Neither fence nor lease,
    and no library, but the file is one of ours: what the width of the row costs is not measured.
    """
    with scratch() as folder:
        file = folder / "bare.db"
        with Runtime(f"sqlite:///{file}") as made:
            job_id = made.submit(_nothing)
        raw = sqlite3.connect(file, isolation_level=None)
        raw.execute(f"PRAGMA synchronous = {synchronous}")
        numbers = count(1)

        def update() -> None:
            raw.execute(
                "UPDATE jobs SET cursor = ?, items = ? WHERE id = ?",
                (at := next(numbers), at, job_id),
            )

        yield update
        raw.close()


@contextmanager
def _no_collections() -> Generator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
