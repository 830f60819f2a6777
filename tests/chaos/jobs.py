"""The job functions that do a plan, and write a journal of all they do.

Entries: `begin` (the run, with the steps it found done), `open` (a step, at which item, with
state's count of its items), `item`, `past` (a step is behind the run, with its result).
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING, Any, Final

from tests.chaos.journal import Journal
from tests.chaos.plan import CHECKPOINT_EVERY, WIDTH, Part, Plan, make_plan
from tracedjobs import AsyncContext, Context, Job, Step, job

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, MutableMapping

__all__ = ["JOBS"]


class Work:
    """What a run does for one part."""

    def __init__(
        self, part: Part, plan: Plan, state: Callable[[], MutableMapping[Any, Any]], log: Journal
    ) -> None:
        self.part = part
        self._state = state if plan.has_state else dict
        self._log = log

    def opened(self, cursor: object) -> None:
        index = self.part.index(cursor)
        counted = self._state().get(self.part.name, 0)
        self._log.write("open", self.part.name, f"{index}/{counted}")

    def done(self, index: int) -> None:
        state = self._state()
        state[self.part.name] = state.get(self.part.name, 0) + 1
        self._log.write("item", self.part.name, index)

    def past(self, result: object) -> None:
        self._log.write("past", self.part.name, result)

    # -- in `def` jobs ---

    def item(self, index: int) -> None:
        if self.part.pace:
            time.sleep(self.part.pace)
        self.done(index)

    def call(self) -> str:
        self.opened(None)
        self.item(0)
        return os.urandom(6).hex()

    def nested(self, step: Step) -> None:
        self.opened(step.cursor)
        for index in range(self.part.index(step.cursor), self.part.size):
            self.item(index)
            step.set([*divmod(index + 1, WIDTH)])

    # -- in `async def` jobs ---

    async def item_async(self, index: int) -> None:
        await asyncio.sleep(self.part.pace)
        self.done(index)

    async def call_async(self) -> str:
        self.opened(None)
        await self.item_async(0)
        return os.urandom(6).hex()

    async def nested_async(self, step: Step) -> None:
        self.opened(step.cursor)
        for index in range(self.part.index(step.cursor), self.part.size):
            await self.item_async(index)
            await step.set([*divmod(index + 1, WIDTH)])

    def source_async(self) -> Any:
        """The part's source; its pairs come from an async generator."""
        if self.part.kind != "pairs":
            return self.part.source()

        async def pairs(cursor: object) -> AsyncIterator[tuple[int, object]]:
            for index in range(self.part.index(cursor), self.part.size):
                yield index, divmod(index + 1, WIDTH)

        return pairs


def do_plan(ctx: Context, seed: int, path: str, stretch: float = 1.0) -> str:
    plan, log = make_plan(seed, stretch), Journal(path, ctx.run)
    log.write("begin", value=",".join(ctx.completed) or "-")
    results = []
    for part in plan.parts:
        work = Work(part, plan, lambda: ctx.state, log)
        result = "-"
        if part.kind == "call":
            result = ctx.step(part.name, work.call)
            results.append(result)
        elif part.kind == "nested":
            ctx.step(part.name, work.nested, start=[0, 0], total=part.size)
        else:
            loop = ctx.each(part.name, part.source())
            if part.name not in ctx.completed:
                work.opened(loop.cursor)
            for index in loop:
                work.item(index)
        work.past(result)
    return ",".join(results)


async def do_plan_async(ctx: AsyncContext, seed: int, path: str, stretch: float = 1.0) -> str:
    plan, log = make_plan(seed, stretch), Journal(path, ctx.run)
    log.write("begin", value=",".join(ctx.completed) or "-")
    results = []
    for part in plan.parts:
        work = Work(part, plan, lambda: ctx.state, log)
        result = "-"
        if part.kind == "call":
            result = await ctx.step(part.name, work.call_async)
            results.append(result)
        elif part.kind == "nested":
            await ctx.step(part.name, work.nested_async, start=[0, 0], total=part.size)
        else:
            loop = ctx.each(part.name, work.source_async())
            if part.name not in ctx.completed:
                work.opened(loop.cursor)
            async for index in loop:
                await work.item_async(index)
        work.past(result)
    return ",".join(results)


def _make_jobs() -> dict[str, Job[..., Any]]:
    made = {}
    for every in CHECKPOINT_EVERY:
        for kind, function in (("sync", do_plan), ("async", do_plan_async)):
            name = f"chaos-{kind}-{every}"
            made[name] = job(name=name, checkpoint_every=every)(function)
    return made


JOBS: Final = _make_jobs()
