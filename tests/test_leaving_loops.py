"""How a loop of `ctx.each` may be left, and what is said where it was left in another way.

What it goes over is in `test_loops`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

import tracedjobs
from tests.both_ways import Lab
from tests.loop_jobs import Letters
from tracedjobs import AsyncContext, Context, Runtime
from tracedjobs.errors import InvalidStepError
from tracedjobs.testing import interrupt_after

if TYPE_CHECKING:
    from tests.both_ways import Body


def test_finish_counts_the_item_in_hand_and_completes_the_step_where_it_stands(lab: Lab) -> None:
    async def until_c(ctx: AsyncContext) -> None:
        loop = ctx.each("loop", Letters())
        async for item in loop:
            seen.append(item)
            if item == "C":
                await loop.finish()
                break
        await ctx.step("after", str)

    seen: list[str] = []
    job_id = lab.submit(until_c)
    assert lab.perform(job_id, stopping=interrupt_after("loop")).reason == "stopping"
    step = lab.get(job_id).steps[0]
    assert (step.status, step.cursor, step.items) == ("completed", "c", 3)
    assert lab.perform(job_id).ok
    assert seen == ["A", "B", "C"]


def test_after_finish_the_loop_ends_by_itself_and_finish_may_come_again(lab: Lab) -> None:
    async def first_only(ctx: AsyncContext) -> None:
        loop = ctx.each("loop", range(5))
        async for item in loop:
            seen.append(item)
            await loop.finish()
            await loop.finish()

    seen: list[int] = []
    job_id = lab.submit(first_only)
    assert lab.perform(job_id).ok
    assert (seen, lab.get(job_id).steps[0].items) == ([0], 1)


@pytest.mark.parametrize("source", [range(5), Letters()], ids=["sequence", "pairs"])
def test_finish_after_the_break_counts_the_item_in_hand_too(lab: Lab, source: Any) -> None:
    async def late(ctx: AsyncContext) -> None:
        loop = ctx.each("loop", source)
        async for _ in loop:
            break
        await loop.finish()
        await ctx.step("after", str)

    job_id = lab.submit(late)
    assert lab.perform(job_id).ok
    assert lab.get(job_id).steps[0].items == 1


def test_finish_before_the_first_item_completes_the_step_with_none(lab: Lab) -> None:
    async def none(ctx: AsyncContext) -> None:
        loop = ctx.each("loop", range(5))
        await loop.finish()
        async for _ in loop:
            raise AssertionError

    job_id = lab.submit(none)
    assert lab.perform(job_id).ok
    assert lab.get(job_id).steps[0].items == 0


def leaving(how: str, then: str) -> Body:
    async def leave(ctx: AsyncContext) -> None:
        try:
            async for item in ctx.each("loop", range(5)):
                if item == 2:
                    if how == "break":
                        break
                    raise ValueError(item)
        except ValueError:
            pass
        if then == "step":
            await ctx.step("after", str)
        elif then == "each":
            ctx.each("after", [1])

    return leave


@pytest.mark.parametrize("how", ["break", "exception"])
@pytest.mark.parametrize("then", ["step", "each", "return"])
def test_a_loop_left_early_without_finish_is_told_at_what_comes_next(
    lab: Lab, how: str, then: str
) -> None:
    job_id = lab.submit(leaving(how, then))
    with pytest.raises(InvalidStepError) as caught:
        lab.perform(job_id)
    message = str(caught.value)
    assert "the loop of step 'loop' was left at cursor 2 before its source ended" in message
    assert "Call finish() on the loop object before leaving it early" in message
    assert ("Step 'after'" if then != "return" else "The job returned") in message
    stored = lab.get(job_id)
    assert (stored.status, stored.steps[0].cursor) == ("failed", 2)


@pytest.mark.parametrize("then", ["step", "return"])
def test_a_loop_that_is_never_run_is_told(lab: Lab, then: str) -> None:
    async def forget(ctx: AsyncContext) -> None:
        ctx.each("loop", [1])
        if then == "step":
            await ctx.step("after", str)

    with pytest.raises(InvalidStepError, match="the loop of step 'loop' was never run"):
        lab.run(forget)


def test_a_step_inside_a_loop_is_nested(lab: Lab) -> None:
    async def nested(ctx: AsyncContext) -> None:
        async for _ in ctx.each("outer", [1]):
            await ctx.step("inner", str)

    with pytest.raises(InvalidStepError, match=r"^Step 'inner' is nested inside step 'outer'"):
        lab.run(nested)


def test_a_loop_inside_a_loop_is_nested(lab: Lab) -> None:
    async def nested(ctx: AsyncContext) -> None:
        async for _ in ctx.each("outer", [1]):
            async for _ in ctx.each("inner", [1]):
                pass

    with pytest.raises(InvalidStepError, match=r"^Step 'inner' is nested inside step 'outer'"):
        lab.run(nested)


def test_a_loop_cannot_be_run_twice(runtime: Runtime) -> None:
    @tracedjobs.job
    def twice(ctx: Context) -> None:
        loop = ctx.each("loop", [1, 2])
        for _ in loop:
            for _ in loop:
                pass

    with pytest.raises(InvalidStepError, match="was begun already; it can be run once"):
        runtime.perform(runtime.submit(twice))


def test_the_cursor_of_a_loop_cannot_be_moved_by_hand(lab: Lab) -> None:
    async def move(ctx: AsyncContext) -> None:
        loop = ctx.each("loop", [1, 2])
        async for _ in loop:
            with pytest.raises(InvalidStepError, match="moves its cursor itself"):
                loop.set(5)
            with pytest.raises(InvalidStepError, match="moves its cursor itself"):
                loop.advance()

    assert lab.run(move).ok


def test_the_wrong_kind_of_for_is_told(runtime: Runtime) -> None:
    @tracedjobs.job
    async def for_in_async(ctx: AsyncContext) -> None:
        for _ in ctx.each("loop", [1]):
            pass

    @tracedjobs.job
    def async_for_in_def(ctx: Context) -> None:
        aiter(ctx.each("loop", [1]))

    with pytest.raises(TypeError, match="write `async for … "):
        Lab(runtime, "async def").perform(runtime.submit(for_in_async))
    with pytest.raises(TypeError, match="write `for … "):
        runtime.perform(runtime.submit(async_for_in_def))
