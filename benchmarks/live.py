"""Many live runs in one process: what their records take, and what a tick of the saver takes.

They are async jobs in one event loop, as a worker for I/O has them: each has done four steps and
stands in its fifth, a loop, holding its lease.
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, cast

from benchmarks.harness import (
    Figure,
    Plan,
    interleaved,
    ratios,
    runtime,
    shown_each,
    wall,
)
from tracedjobs import AsyncContext, Runtime, job
from tracedjobs._core.saver import saver

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator, Iterator

    from tracedjobs._core.run import Run
    from tracedjobs.stores.sqlite import SQLiteStore

__all__ = ["measure_space", "measure_tick"]

_STEPS = ("validate", "download", "unpack", "check")
_at_work: set[str] = set()
_gates: list[asyncio.Event] = []


@job
async def _import_users(ctx: AsyncContext, path: str) -> None:
    for name in _STEPS:
        await ctx.step(name, len, path)
    async for number in ctx.each("import_rows", range(1_000_000)):
        _at_work.add(ctx.id)
        if number == len(_gates):
            _gates.append(asyncio.Event())
        await _gates[number].wait()


def measure_space(plan: Plan) -> Iterator[Figure]:
    """The growth of the database file, a live job."""
    n = plan.size(2_000, 5)
    with runtime("?synchronous=normal") as here:
        before = _bytes(here)
        after = asyncio.run(_bytes_with(here, n))
    yield Figure(
        what="database bytes a live job with five steps",
        goal=2048.0,
        rounds=[(after - before) / n],
        unit=" B",
        measured={"empty": f"{before / 1024:.0f} KiB", f"{n:,} jobs": f"{after / 1024:.0f} KiB"},
    )


def measure_tick(plan: Plan) -> Iterator[Figure]:
    """A tick that saves all of them beside a thread that computes, over one that has no company."""
    n = plan.size(1_000, 5)
    with runtime(lease_ttl=600.0) as here:
        found = asyncio.run(_ticks(here, n, plan.rounds_or(15)))
    yield Figure(
        what=f"a tick of the saver, {n:,} live runs, beside a busy thread, over alone",
        goal=5.0,
        rounds=ratios(found["busy"], found["alone"]),
        measured=shown_each(found),
    )


async def _bytes_with(here: Runtime, n: int) -> int:
    async with _live(here, n):
        return _bytes(here)


async def _ticks(here: Runtime, n: int, rounds: int) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {"alone": [], "busy": []}
    async with _live(here, n):
        for _ in range(rounds):
            for name, seconds in interleaved(1, {"alone": _tick, "busy": _tick_in_company}).items():
                await _move_all_on(n)
                found[name] += seconds
    return found


def _tick() -> float:
    """How long the saver's own thread takes for a tick in which all runs are due."""
    tick, ended, took = saver._tick, threading.Event(), [0.0]

    def timed(runs: list[tuple[Run, float]]) -> None:
        began = wall()
        tick(runs)
        took[0] = wall() - began
        if all(due == 0.0 for _, due in runs):
            ended.set()

    vars(saver)["_tick"] = timed
    try:
        while not ended.is_set():
            with saver._changed:
                saver._due.update(dict.fromkeys(saver._due, 0.0))
                saver._changed.notify_all()
            ended.wait(10.0)
    finally:
        del vars(saver)["_tick"]
    return took[0]


def _tick_in_company() -> float:
    with _busy_thread():
        return _tick()


@contextmanager
def _busy_thread() -> Generator[None]:
    ended, begun = threading.Event(), threading.Event()

    def compute() -> None:
        begun.set()
        number = 0
        while not ended.is_set():
            for number in range(1_000):  # noqa: B007 - what it computes does not matter
                pass

    thread = threading.Thread(target=compute)
    thread.start()
    begun.wait()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@asynccontextmanager
async def _live(here: Runtime, n: int) -> AsyncGenerator[None]:
    _gates.clear()
    _at_work.clear()
    tasks = [
        asyncio.create_task(here.perform_async(here.submit(_import_users, f"users-{number}.csv")))
        for number in range(n)
    ]
    await _all_at_work(n)
    try:
        yield
    finally:
        for run in saver.runs():
            run.request_stop("measured")
        await _move_all_on(0)
        await asyncio.gather(*tasks)


async def _move_all_on(n: int) -> None:
    _at_work.clear()
    _gates[-1].set()
    await _all_at_work(n)


async def _all_at_work(n: int) -> None:
    while len(_at_work) < n:  # noqa: ASYNC110 - a thousand of them set it
        await asyncio.sleep(0.001)


def _bytes(here: Runtime) -> int:
    database = cast("SQLiteStore", here.store)._db
    pages = database.run(lambda raw: raw.execute("PRAGMA page_count").fetchone()[0])
    size = database.run(lambda raw: raw.execute("PRAGMA page_size").fetchone()[0])
    return int(pages) * int(size)
