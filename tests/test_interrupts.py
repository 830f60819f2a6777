"""What passes through a job, and what swallows an interruption: it counts all the same."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import pytest

import tracedjobs
from tests.both_ways import Lab
from tracedjobs import AsyncContext, Context, Interrupt, Runtime, Step
from tracedjobs.testing import interrupt_after, interrupt_during

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.both_ways import Body

SWALLOWED = "swallowed its interruption"


# -- KeyboardInterrupt, SystemExit, CancelledError ---


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, asyncio.CancelledError])
def test_it_saves_the_progress_and_propagates(lab: Lab, error: type[BaseException]) -> None:
    async def stopped(ctx: AsyncContext) -> None:
        await ctx.step("first", str)
        async for item in ctx.each("loop", range(5)):
            if item == 3 and not ctx.resumed:
                raise error

    job_id = lab.submit(stopped)
    with pytest.raises(error):
        lab.perform(job_id)
    stored = lab.get(job_id)
    assert (stored.status, stored.reason) == ("interrupted", error.__name__)
    assert (stored.runs[0].reason, stored.steps[1].cursor) == (error.__name__, 3)
    assert lab.perform(job_id).ok


def test_it_is_no_error_that_a_limit_of_resumptions_knows(lab: Lab) -> None:
    async def stopped(ctx: AsyncContext) -> None:
        async for item in ctx.each("loop", range(5)):
            if item == ctx.run:
                raise KeyboardInterrupt

    job_id = lab.submit(stopped, max_resumptions=0)
    with pytest.raises(KeyboardInterrupt):
        lab.perform(job_id)
    assert lab.get(job_id).status == "interrupted"


def test_ctrl_c_in_what_cleans_up_after_an_interruption_propagates_too(lab: Lab) -> None:
    async def clean_up(ctx: AsyncContext) -> None:
        async for _ in ctx.each("loop", range(5)):
            try:
                await ctx.checkpoint()
            except Interrupt:
                raise KeyboardInterrupt from None

    job_id = lab.submit(clean_up)
    with pytest.raises(KeyboardInterrupt):
        lab.perform(job_id, stopping=lambda ctx: True)
    stored = lab.get(job_id)
    assert (stored.status, stored.reason) == ("interrupted", "stopping")


async def test_a_cancelled_task_is_cancelled_and_the_job_resumable(runtime: Runtime) -> None:
    @tracedjobs.job
    async def wait(ctx: AsyncContext) -> str:
        async def work(step: Step) -> None:
            await step.set("here")
            if not step.resumed:
                started.set()
                await asyncio.Event().wait()

        await ctx.step("work", work)
        return "done"

    started = asyncio.Event()
    job_id = runtime.submit(wait)
    task = asyncio.create_task(runtime.perform_async(job_id))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()
    stored = runtime.get(job_id)
    assert (stored.status, stored.reason) == ("interrupted", "CancelledError")
    assert stored.steps[0].cursor == "here"
    assert (await runtime.perform_async(job_id)).result == "done"


# -- an interruption that is swallowed ---


def test_every_later_call_on_ctx_raises_it_again(lab: Lab) -> None:
    async def stubborn(ctx: AsyncContext) -> None:
        async for _ in ctx.each("loop", range(5)):
            first = await raised_by(ctx.checkpoint)
            calls: list[Callable[[], object]] = [
                ctx.checkpoint,
                lambda: ctx.step("other", str),
                lambda: ctx.each("other", [1]),
                lambda: ctx.state,
                lambda: ctx.interrupt("other"),
                lambda: ctx.notify("other"),
            ]
            again.extend([await raised_by(call) is first for call in calls])
            assert ctx.current is not None
            again.append(await raised_by(ctx.current.checkpoint) is first)

    async def raised_by(call: Callable[[], object]) -> Interrupt | None:
        try:
            result = call()
            if hasattr(result, "__await__"):
                await result
        except Interrupt as interrupt:
            return interrupt
        return None

    again: list[bool] = []
    job_id = lab.submit(stubborn)
    assert lab.perform(job_id, stopping=lambda ctx: True).reason == "stopping"
    assert again == [True] * 7


def test_a_stop_between_items_that_was_swallowed_is_raised_by_the_next_step(lab: Lab) -> None:
    async def stubborn(ctx: AsyncContext) -> None:
        with contextlib.suppress(BaseException):
            async for _ in ctx.each("loop", range(5)):
                pass
        try:
            await ctx.step("next", str)
        except Interrupt as interrupt:
            seen.append(interrupt.reason)
            raise

    seen: list[str] = []
    job_id = lab.submit(stubborn)
    outcome = lab.perform(job_id, stopping=interrupt_during("loop", 2))
    assert (outcome.reason, seen) == ("stopping", ["stopping"])
    assert lab.get(job_id).steps[0].cursor == 2


def by_bare_except(fn: Callable[[], object]) -> None:
    try:  # noqa: SIM105 - what is tested
        fn()
    except:  # noqa: E722 - what is tested
        pass


def by_suppress(fn: Callable[[], object]) -> None:
    with contextlib.suppress(BaseException):
        fn()


def by_return_in_finally(fn: Callable[[], object]) -> None:
    try:
        fn()
    finally:
        return  # noqa: B012 - what is tested


@pytest.mark.parametrize("swallow", [by_bare_except, by_suppress, by_return_in_finally])
def test_swallowed_in_a_def_job_it_counts_as_interrupted(
    runtime: Runtime, swallow: Callable[[Callable[[], object]], None]
) -> None:
    @tracedjobs.job
    def stubborn(ctx: Context) -> str:
        def loop() -> None:
            for _ in ctx.each("loop", range(5)):
                pass

        swallow(loop)
        return "done"

    job_id = runtime.submit(stubborn)
    with pytest.warns(RuntimeWarning, match=SWALLOWED):
        outcome = runtime.perform(job_id, stopping=interrupt_during("loop", 2))
    assert (outcome.status, outcome.reason, outcome.result) == ("interrupted", "stopping", None)
    assert runtime.get(job_id).steps[0].cursor == 2
    assert runtime.perform(job_id).result == "done"


def test_swallowed_in_an_async_job_it_counts_as_interrupted(runtime: Runtime) -> None:
    async def stubborn(ctx: AsyncContext) -> str:
        async def loop() -> None:
            async for _ in ctx.each("loop", range(5)):
                pass

        await asyncio.gather(loop(), return_exceptions=True)
        return "done"

    lab = Lab(runtime, "async def")
    job_id = lab.submit(stubborn)
    with pytest.warns(RuntimeWarning, match=SWALLOWED):
        outcome = lab.perform(job_id, stopping=interrupt_during("loop", 2))
    assert (outcome.status, outcome.reason) == ("interrupted", "stopping")
    assert lab.perform(job_id).result == "done"


def test_a_warning_that_is_an_error_does_not_fail_the_job(lab: Lab) -> None:
    outcome = lab.perform(lab.submit(swallowing()), stopping=interrupt_during("work"))
    assert (outcome.status, outcome.reason) == ("interrupted", "stopping")


def swallowing() -> Body:
    async def stubborn(ctx: AsyncContext) -> None:
        async def work(step: Step) -> None:
            await step.set(1)

        with contextlib.suppress(BaseException):
            await ctx.step("work", work)

    return stubborn


def test_a_step_that_swallowed_it_is_not_done(lab: Lab) -> None:
    async def stubborn(ctx: AsyncContext) -> int:
        async def work(step: Step) -> int:
            with contextlib.suppress(BaseException):
                await step.set(1)
            return 7

        return await ctx.step("work", work)

    job_id = lab.submit(stubborn)
    assert lab.perform(job_id, stopping=interrupt_during("work")).reason == "stopping"
    step = lab.get(job_id).steps[0]
    assert (step.status, step.cursor) == ("interrupted", 1)
    assert lab.perform(job_id).result == 7


def test_an_error_raised_in_its_place_does_not_hide_it(lab: Lab) -> None:
    async def translating(ctx: AsyncContext) -> None:
        async def work(step: Step) -> None:
            try:
                await step.checkpoint()
            except BaseException as error:
                raise OSError("driver") from error

        await ctx.step("work", work)

    outcome = lab.perform(lab.submit(translating), stopping=interrupt_during("work"))
    assert (outcome.status, outcome.reason) == ("interrupted", "stopping")
    assert isinstance(outcome.error, OSError)


def test_an_except_exception_does_not_swallow_it(lab: Lab) -> None:
    async def careful(ctx: AsyncContext) -> None:
        async for _ in ctx.each("loop", range(5)):
            try:
                await ctx.checkpoint()
            except Exception:
                raise AssertionError from None

    assert lab.perform(lab.submit(careful), stopping=lambda ctx: True).reason == "stopping"


def test_it_passes_through_a_task_group(runtime: Runtime) -> None:
    async def grouped(ctx: AsyncContext) -> None:
        async def other() -> None:
            await asyncio.Event().wait()

        async def loop() -> None:
            async for _ in ctx.each("loop", range(5)):
                pass

        if ctx.resumed:
            await loop()
        else:
            async with asyncio.TaskGroup() as group:
                group.create_task(other())
                group.create_task(loop())

    lab = Lab(runtime, "async def")
    job_id = lab.submit(grouped)
    outcome = lab.perform(job_id, stopping=interrupt_during("loop", 2))
    assert (outcome.status, outcome.reason, outcome.error) == ("interrupted", "stopping", None)
    assert lab.get(job_id).steps[0].cursor == 2
    assert lab.perform(job_id).ok


def test_it_passes_through_timeouts_and_shields(runtime: Runtime) -> None:
    async def wrapped(ctx: AsyncContext) -> None:
        async def loop() -> None:
            async for _ in ctx.each("loop", range(5)):
                pass

        async with asyncio.timeout(60):
            await asyncio.shield(loop())

    lab = Lab(runtime, "async def")
    outcome = lab.perform(lab.submit(wrapped), stopping=interrupt_during("loop", 2))
    assert (outcome.status, outcome.reason) == ("interrupted", "stopping")


def test_what_it_says_names_the_job_the_place_and_the_reason(lab: Lab) -> None:
    async def careful(ctx: AsyncContext) -> None:
        try:
            await ctx.step("one", str)
            await ctx.step("two", str)
        except Interrupt as interrupt:
            said.append(str(interrupt))
            raise

    said: list[str] = []
    job_id = lab.submit(careful, name="speaker")
    lab.perform(job_id, stopping=interrupt_after("one", reason="queue_paused"))
    assert said == [f"Interrupted speaker (job {job_id}) after 'one' (queue_paused)"]
