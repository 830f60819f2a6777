"""What an item of `ctx.each` costs over the bare loop, beside what tqdm costs on the same loop.

The body is empty. tqdm draws into /dev/null; its first 0.1 s, in which it asks the clock at every
item, is why it takes millions of them.
"""

from __future__ import annotations

import asyncio
import os
from functools import cache
from statistics import median
from typing import TYPE_CHECKING, Final

from benchmarks.harness import Figure, Plan, cpu, interleaved, overhead, ratios, scratch, shown
from tracedjobs import AsyncContext, Context, Runtime, job

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

__all__ = ["measure"]

GOALS: Final = {"range": 0.4, "list": 0.5, "pairs": 0.5, "async for": 0.5, "async pairs": 0.5}


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
