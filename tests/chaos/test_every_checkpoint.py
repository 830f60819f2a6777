"""Random jobs, interrupted once at each of their checkpoints in turn, and at all of them."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.chaos.plan import WIDTH, Part
from tracedjobs import AsyncContext, Context, Job, JobSnapshot, Runtime, Step, job

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tracedjobs._core.context import BaseContext

Effects = list[tuple[str, int]]
Shape = tuple[tuple[str, int, bool], ...]
"""Of each step the kind, the number of items, and whether it is isolated."""

EXAMPLES = 200 if os.environ.get("TRACEDJOBS_CHAOS") == "long" else 40
effects: Effects = []
KINDS = ("call", "range", "list", "pairs", "nested", "checkpoint")
shapes = st.lists(
    st.tuples(st.sampled_from(KINDS), st.integers(0, 5), st.booleans()), max_size=4
).map(tuple)


def do(ctx: BaseContext, part: Part, index: int) -> None:
    effects.append((part.name, index))
    ctx.state[part.name] = [*ctx.state.get(part.name, []), index]


def parts_of(shape: Shape) -> list[tuple[Part, bool]]:
    return [
        (Part(f"s{number}", kind, size, 0.0), isolated)
        for number, (kind, size, isolated) in enumerate(shape)
    ]


@job(name="chaos-every-sync", checkpoint_every=1000, resume_delay=0)
def do_shape(ctx: Context, shape: Shape) -> list[object]:
    results: list[object] = []
    for part, isolated in parts_of(shape):
        if part.kind == "call":

            def call(part: Part = part) -> int:
                do(ctx, part, 0)
                return len(effects)

            results.append(ctx.step(part.name, call, isolated=isolated))
        elif part.kind == "checkpoint":
            ctx.checkpoint()
        elif part.kind == "nested":

            def nested(step: Step, part: Part = part) -> None:
                for index in range(part.index(step.cursor), part.size):
                    step.checkpoint()
                    do(ctx, part, index)
                    step.set([*divmod(index + 1, WIDTH)])

            ctx.step(part.name, nested, start=[0, 0], isolated=isolated)
        else:
            for index in ctx.each(part.name, part.source(), isolated=isolated):
                do(ctx, part, index)
    return results


@job(name="chaos-every-async", checkpoint_every=1000, resume_delay=0)
async def do_shape_async(ctx: AsyncContext, shape: Shape) -> list[object]:
    results: list[object] = []
    for part, isolated in parts_of(shape):
        if part.kind == "call":

            async def call(part: Part = part) -> int:
                await asyncio.sleep(0)
                do(ctx, part, 0)
                return len(effects)

            results.append(await ctx.step(part.name, call, isolated=isolated))
        elif part.kind == "checkpoint":
            await ctx.checkpoint()
        elif part.kind == "nested":

            async def nested(step: Step, part: Part = part) -> None:
                for index in range(part.index(step.cursor), part.size):
                    await step.checkpoint()
                    do(ctx, part, index)
                    await step.set([*divmod(index + 1, WIDTH)])

            await ctx.step(part.name, nested, start=[0, 0], isolated=isolated)
        else:
            source: Any = async_pairs(part) if part.kind == "pairs" else part.source()
            async for index in ctx.each(part.name, source, isolated=isolated):
                do(ctx, part, index)
    return results


def async_pairs(part: Part) -> Callable[[object], AsyncIterator[tuple[int, object]]]:
    async def pairs(cursor: object) -> AsyncIterator[tuple[int, object]]:
        for index in range(part.index(cursor), part.size):
            await asyncio.sleep(0)
            yield index, divmod(index + 1, WIDTH)

    return pairs


def perform_to_its_end(
    runtime: Runtime,
    function: Job[..., Any],
    shape: Shape,
    stopping: Callable[[BaseContext], bool],
) -> tuple[Effects, list[object], JobSnapshot, list[str | None]]:
    """What the job did, its result, how it stands, and why its runs were interrupted."""
    effects.clear()
    job_id = runtime.submit(function, shape)
    reasons: list[str | None] = []
    for _ in range(200):
        if function.is_async:
            outcome = asyncio.run(runtime.perform_async(job_id, stopping=stopping))
        else:
            outcome = runtime.perform(job_id, stopping=stopping)
        if outcome.ok:
            return [*effects], outcome.result, runtime.get(job_id), reasons  # type: ignore[return-value]  # the job returns a list
        reasons.append(outcome.reason)
    pytest.fail(f"the job does not get on: {reasons[-3:]} at {runtime.get(job_id).steps}")


def facts(job: JobSnapshot) -> list[object]:
    return [job.state, *((step.name, step.status, step.cursor, step.items) for step in job.steps)]


@pytest.mark.parametrize("function", [do_shape, do_shape_async], ids=["sync", "async"])
@given(shape=shapes)
@settings(max_examples=EXAMPLES)
def test_an_interruption_at_any_checkpoint_changes_nothing_that_is_done(
    function: Job[..., Any], shape: Shape
) -> None:
    asked = 0

    def count(_: BaseContext, *, stop_at: int | None = None) -> bool:
        nonlocal asked
        asked += 1
        return asked == stop_at

    with Runtime("memory://", handle_signals=False) as runtime:
        whole, result, job, isolating = perform_to_its_end(runtime, function, shape, count)
        assert len(whole) == len(set(whole))
        assert set(isolating) <= {"isolating"}
        unheeded = 0
        for stop_at in range(1, asked + 1):
            asked = 0

            def stop(ctx: BaseContext, stop_at: int = stop_at) -> bool:
                return count(ctx, stop_at=stop_at)

            again = perform_to_its_end(runtime, function, shape, stop)
            assert again[:2] == (whole, result), f"interrupted at checkpoint {stop_at}"
            assert facts(again[2]) == facts(job), f"interrupted at checkpoint {stop_at}"
            unheeded += again[3].count("stopping") != 1
        # Asked after the last item of the last step: there is no checkpoint left to stop at.
        assert unheeded <= 1


@pytest.mark.parametrize("function", [do_shape, do_shape_async], ids=["sync", "async"])
@given(shape=shapes)
@settings(max_examples=EXAMPLES)
def test_a_job_that_is_interrupted_at_each_item_gets_to_its_end(
    function: Job[..., Any], shape: Shape
) -> None:
    # Not at `checkpoint()`, which asks before anything was done in the run.
    shape = tuple(each for each in shape if each[0] not in {"checkpoint", "nested"})
    with Runtime("memory://", handle_signals=False) as runtime:
        whole, result, job, _ = perform_to_its_end(runtime, function, shape, lambda _: False)
        again = perform_to_its_end(runtime, function, shape, lambda _: True)
        assert again[:2] == (whole, result)
        assert facts(again[2]) == facts(job)
