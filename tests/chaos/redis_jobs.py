"""The random jobs of a fleet on Redis, and the log that all its workers write to.

A line is one `write` to a file opened for appending: the order of the lines is that of the events.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from tracedjobs import AsyncContext, Context, Job, Step, job

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence
    from pathlib import Path

    from tracedjobs._core.records import Position

__all__ = ["JOBS", "Line", "Log", "Part", "Plan", "make_plan", "read_log"]

CHECKPOINT_EVERY: Final = (0.0, 0.05, 0.2, 1.0)
KINDS: Final = ("call", "range", "text", "nested")
RETENTION: Final = 3600.0


@dataclass(frozen=True, slots=True)
class Line:
    """What happened to a job, in which run of it, when; `began` is when the call of a save began.

    Kinds: `begin` (the place where the run starts), `open` (a step, at which item, with the state's
    count of it), `item`, `saved` (a place that the store has acknowledged), `end`.
    """

    kind: str
    job: str
    run: int
    token: str
    pid: int
    at: float
    step: str
    value: str
    began: float


class Log:
    """The writing end, one a process."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def write(
        self,
        kind: str,
        job_id: str = "-",
        run: int = 0,
        token: str = "-",
        *,
        step: str = "-",
        value: object = "-",
        began: float = 0.0,
    ) -> None:
        at = time.monotonic()
        line = (
            f"\n{kind} {job_id} {run} {token} {os.getpid()} {at:.6f} {step} {value} {began:.6f} ;"
        )
        os.write(self._file, line.encode())


def read_log(path: Path) -> list[Line]:
    """All lines, but for one that a kill has cut in two."""
    found = []
    for line in path.read_text("utf-8").splitlines():
        if line.endswith(" ;"):
            kind, job_id, run, token, pid, at, step, value, began, _ = line.split(" ")
            found.append(
                Line(kind, job_id, int(run), token, int(pid), float(at), step, value, float(began))
            )
    return found


@dataclass(frozen=True, slots=True)
class Part:
    """A step: its kind, how many items it has, and the seconds that each takes."""

    name: str
    kind: str
    size: int
    pace: float

    def index(self, cursor: object) -> int:
        """The number of the item at `cursor`."""
        if isinstance(cursor, str):
            return int(cursor.partition("-")[2])
        assert cursor is None or isinstance(cursor, int), cursor
        return cursor or 0

    def pairs(self, cursor: object) -> Iterator[tuple[int, object]]:
        """Items with cursors of text."""
        for index in range(self.index(cursor), self.size):
            yield index, f"row-{index + 1:04}"


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
        return f"fleet-{'async' if self.is_async else 'sync'}-{self.checkpoint_every}"

    @property
    def size(self) -> int:
        """How many items all parts have together."""
        return sum(part.size for part in self.parts)

    def place(self, name: str, index: int) -> int:
        """The number of an item among those of all parts, in the order in which they are done."""
        before = 0
        for part in self.parts:
            if part.name == name:
                return before + index
            before += part.size
        raise KeyError(name)

    def saved(self, completed: Sequence[str], position: Position | None) -> int:
        """The place that a record stands for."""
        assert list(completed) == [part.name for part in self.parts[: len(completed)]], completed
        if position is not None and position.step not in completed:
            part = next(part for part in self.parts if part.name == position.step)
            return self.place(part.name, 0 if part.kind == "call" else position.items)
        return sum(part.size for part in self.parts[: len(completed)])


@lru_cache(maxsize=64)
def make_plan(seed: int) -> Plan:
    """The job of that seed, always the same: some two seconds of work."""
    chance = random.Random(seed)
    count = chance.randint(2, 6)
    return Plan(
        seed=seed,
        checkpoint_every=chance.choices(CHECKPOINT_EVERY, (3, 4, 3, 1))[0],
        is_async=chance.random() < 0.35,
        has_state=chance.random() < 0.4,
        parts=tuple(_make_part(chance, number, 2.0 / count) for number in range(count)),
    )


def _make_part(chance: random.Random, number: int, budget: float) -> Part:
    kind, pace = chance.choice(KINDS), chance.choice((0.002, 0.005, 0.02))
    size = 1 if kind == "call" else chance.randint(0, 2 * int(budget / pace))
    return Part(f"s{number}", kind, size, pace)


class Work:
    """One run of a job: it does the parts, and writes down what it does."""

    def __init__(self, ctx: Context | AsyncContext, seed: int, path: str) -> None:
        self.plan = make_plan(seed)
        self._ctx = ctx
        self._log = Log(path)
        run = ctx._run
        self._run = (ctx.id, ctx.run, run.token)
        start = self.plan.saved(ctx.completed, run.progress.resume_from)
        self._log.write("begin", *self._run, value=start)

    def opened(self, part: Part, cursor: object) -> int:
        index = part.index(cursor)
        self._log.write("open", *self._run, step=part.name, value=f"{index}/{self._count(part)}")
        return index

    def _count(self, part: Part) -> object:
        return self._ctx.state.get(part.name, 0) if self.plan.has_state else "-"

    def done(self, part: Part, index: int) -> None:
        if self.plan.has_state:
            self._ctx.state[part.name] = self._ctx.state.get(part.name, 0) + 1
        self._log.write("item", *self._run, step=part.name, value=index)

    # -- in `def` jobs ---

    def item(self, part: Part, index: int) -> None:
        time.sleep(part.pace)
        self.done(part, index)

    def call(self, part: Part) -> str:
        self.opened(part, None)
        self.item(part, 0)
        return os.urandom(6).hex()

    def nested(self, part: Part, step: Step) -> None:
        for index in range(self.opened(part, step.cursor), part.size):
            self.item(part, index)
            step.set(index + 1)

    # -- in `async def` jobs ---

    async def item_async(self, part: Part, index: int) -> None:
        await asyncio.sleep(part.pace)
        self.done(part, index)

    async def call_async(self, part: Part) -> str:
        self.opened(part, None)
        await self.item_async(part, 0)
        return os.urandom(6).hex()

    async def nested_async(self, part: Part, step: Step) -> None:
        for index in range(self.opened(part, step.cursor), part.size):
            await self.item_async(part, index)
            await step.set(index + 1)


def do_plan(ctx: Context, seed: int, path: str) -> str:
    work = Work(ctx, seed, path)
    results = []
    for part in work.plan.parts:
        if part.kind == "call":
            results.append(ctx.step(part.name, work.call, part))
        elif part.kind == "nested":
            ctx.step(part.name, work.nested, part, start=0, total=part.size)
        else:
            loop = ctx.each(part.name, part.pairs if part.kind == "text" else range(part.size))
            if part.name not in ctx.completed:
                work.opened(part, loop.cursor)
            for index in loop:
                work.item(part, index)
    return ",".join(results)


async def do_plan_async(ctx: AsyncContext, seed: int, path: str) -> str:
    work = Work(ctx, seed, path)
    results = []
    for part in work.plan.parts:
        if part.kind == "call":
            results.append(await ctx.step(part.name, work.call_async, part))
        elif part.kind == "nested":
            await ctx.step(part.name, work.nested_async, part, start=0, total=part.size)
        else:
            source: Any = range(part.size) if part.kind == "range" else _async_pairs(part)
            loop = ctx.each(part.name, source)
            if part.name not in ctx.completed:
                work.opened(part, loop.cursor)
            async for index in loop:
                await work.item_async(part, index)
    return ",".join(results)


def _async_pairs(part: Part) -> Callable[[object], AsyncIterator[tuple[int, object]]]:
    async def pairs(cursor: object) -> AsyncIterator[tuple[int, object]]:
        for pair in part.pairs(cursor):
            yield pair

    return pairs


def _make_jobs() -> dict[str, Job[..., Any]]:
    made = {}
    for every in CHECKPOINT_EVERY:
        for kind, function in (("sync", do_plan), ("async", do_plan_async)):
            name = f"fleet-{kind}-{every}"
            made[name] = job(name=name, checkpoint_every=every, retention=RETENTION)(function)
    return made


JOBS: Final = _make_jobs()
