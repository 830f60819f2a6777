"""What an item of `ctx.each` costs over the bare loop, beside what tqdm costs on the same loop.

With the flight recorder on, as it is unless there is no place for it.

The body is empty. tqdm draws into /dev/null; its first 0.1 s, in which it asks the clock at every
item, is why it takes millions of them.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from benchmarks.harness import (
    Figure,
    Plan,
    cpu,
    interleaved,
    overhead,
    ratios,
    runtime,
    shown_each,
)
from tracedjobs import AsyncContext, Context, job

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator

    from tracedjobs import Job, Runtime

__all__ = ["measure"]


@cache
def _list(n: int) -> list[int]:
    return list(range(n))


def _pairs(n: int) -> Callable[[object], Iterator[tuple[int, int]]]:
    def source(cursor: object) -> Iterator[tuple[int, int]]:
        for item in range(cursor if isinstance(cursor, int) else 0, n):
            yield item, item + 1

    return source


def _async_pairs(n: int) -> Callable[[object], AsyncIterator[tuple[int, int]]]:
    async def source(cursor: object) -> AsyncIterator[tuple[int, int]]:
        for item in range(cursor if isinstance(cursor, int) else 0, n):
            yield item, item + 1

    return source


@job
def _each_range(ctx: Context, n: int) -> float:
    began = cpu()
    for _ in ctx.each("items", range(n)):
        pass
    return cpu() - began


@job
def _each_list(ctx: Context, n: int) -> float:
    items = _list(n)
    began = cpu()
    for _ in ctx.each("items", items):
        pass
    return cpu() - began


@job
def _each_pair(ctx: Context, n: int) -> float:
    began = cpu()
    for _ in ctx.each("items", _pairs(n)):
        pass
    return cpu() - began


@job
async def _each_async(ctx: AsyncContext, n: int) -> float:
    began = cpu()
    async for _ in ctx.each("items", range(n)):
        pass
    return cpu() - began


@job
async def _each_async_pair(ctx: AsyncContext, n: int) -> float:
    began = cpu()
    async for _ in ctx.each("items", _async_pairs(n)):
        pass
    return cpu() - began


class _Bar(Protocol):
    def __call__(self, iterable: object, *, file: object) -> Any: ...


@dataclass(frozen=True, slots=True)
class _Case:
    what: str
    goal: float
    source: Callable[[int], Any]
    """The same loop without a job: what the bare loop and tqdm run over."""
    job: Job[[int], Any]


_CASES = (
    _Case("ctx.each(range), over tqdm", 0.5, range, _each_range),
    _Case("ctx.each(list), over tqdm", 0.6, _list, _each_list),
    _Case("ctx.each of (item, cursor) pairs, over tqdm", 0.9, lambda n: _pairs(n)(0), _each_pair),
    _Case("async for, a range, over tqdm", 0.5, range, _each_async),
    _Case(
        "async for, pairs of an async source, over tqdm",
        2.0,
        lambda n: _async_pairs(n)(0),
        _each_async_pair,
    ),
)


def measure(plan: Plan) -> Iterator[Figure]:
    """The overhead an item, over tqdm's."""
    from tqdm import tqdm  # noqa: PLC0415 - of the bench group
    from tqdm.asyncio import tqdm as async_tqdm  # noqa: PLC0415 - as above

    n = plan.size(3_000_000, 2_000)
    with Path(os.devnull).open("w") as nowhere, runtime() as here:
        for case in _CASES:
            if case.job.is_async:
                bar = partial(_async_seconds, case, n, async_tqdm, nowhere)
                bare = partial(_async_seconds, case, n, None, nowhere)
            else:
                bar = partial(_seconds, case, n, tqdm, nowhere)
                bare = partial(_seconds, case, n, None, nowhere)
            found = interleaved(
                plan.rounds_or(5),
                {"bare": bare, "tqdm": bar, "each": partial(_performed, here, case.job, n)},
            )
            ours = overhead(found["each"], found["bare"])
            theirs = overhead(found["tqdm"], found["bare"])
            yield Figure(
                what=case.what,
                goal=case.goal,
                rounds=ratios(ours, theirs),
                measured=shown_each(
                    {"ours": ours, "tqdm": theirs, "bare loop": found["bare"]}, n, "an item"
                ),
            )


def _seconds(case: _Case, n: int, bar: _Bar | None, nowhere: object) -> float:
    source: Iterable[object] = case.source(n)
    if bar is not None:
        source = bar(source, file=nowhere)
    began = cpu()
    for _ in source:
        pass
    return cpu() - began


def _async_seconds(case: _Case, n: int, bar: _Bar | None, nowhere: object) -> float:
    source = case.source(n)
    if bar is None and not hasattr(source, "__aiter__"):
        return _seconds(case, n, None, nowhere)  # without tqdm or a job it would be a bare `for`

    async def whole() -> float:
        items: AsyncIterable[object] = source if bar is None else bar(source, file=nowhere)
        began = cpu()
        async for _ in items:
            pass
        return cpu() - began

    return asyncio.run(whole())


def _performed(here: Runtime, job: Job[[int], Any], n: int) -> float:
    job_id = here.submit(job, n)
    run = asyncio.run
    outcome = run(here.perform_async(job_id)) if job.is_async else here.perform(job_id)
    return float(str(outcome.result))
