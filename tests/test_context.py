"""What a job can ask of `ctx`, the options that show in it, and a `ctx` of a test's own.

Its steps and loops are in `test_steps` and `test_loops`.
"""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

import tracedjobs
from tracedjobs import AsyncContext, Context
from tracedjobs.errors import (
    ResumeLimitError,
    TracedJobsError,
)
from tracedjobs.testing import interrupt_after, interrupt_during

if TYPE_CHECKING:
    from tests.both_ways import Lab
    from tracedjobs.events import Event


# -- ctx ---


def test_ctx_tells_where_the_job_stands(lab: Lab) -> None:
    async def look(ctx: AsyncContext) -> None:
        facts.append((ctx.id, ctx.name, ctx.run, ctx.resumptions, ctx.resumed, ctx.completed))
        await ctx.step("one", str)
        await ctx.step("two", str)

    facts: list[tuple[object, ...]] = []
    job_id = lab.submit(look, name="look-around")
    lab.perform(job_id, stopping=interrupt_after("one"))
    lab.perform(job_id)
    assert facts == [
        (job_id, "look-around", 1, 0, False, ()),
        (job_id, "look-around", 2, 1, True, ("one",)),
    ]


def test_ctx_checkpoint_interrupts_between_steps_and_in_them(lab: Lab) -> None:
    async def check(ctx: AsyncContext) -> None:
        async def inside() -> None:
            done.append("in")
            await ctx.checkpoint()

        done.append("before")
        await ctx.checkpoint()
        await ctx.step("inside", inside)

    done: list[str] = []
    job_id = lab.submit(check)
    assert lab.perform(job_id, stopping=lambda ctx: ctx.current is None).reason == "stopping"
    assert done == ["before"]
    assert lab.perform(job_id, stopping=interrupt_during("inside")).reason == "stopping"
    assert done == ["before", "before", "in"]


def test_ctx_interrupt_ends_the_run_with_a_reason_of_one_s_own(lab: Lab) -> None:
    async def wait(ctx: AsyncContext) -> None:
        await ctx.step("one", str)
        if not ctx.resumed:
            ctx.interrupt("waiting for the file")
        await ctx.step("two", str)

    job_id = lab.submit(wait)
    outcome = lab.perform(job_id)
    assert (outcome.status, outcome.reason, outcome.error) == (
        "interrupted",
        "waiting for the file",
        None,
    )
    assert not outcome.ok
    assert lab.perform(job_id).ok


@pytest.mark.parametrize("reason", ["paused", "cancelled", "error", "stopping"])
def test_a_reason_of_one_s_own_never_ends_the_job(lab: Lab, reason: str) -> None:
    async def wait(ctx: AsyncContext) -> None:
        if ctx.run == 1:
            ctx.interrupt(reason)

    job_id = lab.submit(wait)
    assert lab.perform(job_id).status == "interrupted"
    assert lab.perform(job_id).ok


@pytest.mark.parametrize("reason", ["", None, 7])
def test_an_interruption_needs_a_reason(lab: Lab, reason: object) -> None:
    async def wait(ctx: AsyncContext) -> None:
        ctx.interrupt(reason)  # type: ignore[arg-type]  # what is tested

    with pytest.raises(TypeError, match="the reason must be a text that is not empty"):
        lab.run(wait)


def test_ctx_notify_tells_the_reporter_with_the_position(lab: Lab, told: list[Event]) -> None:
    async def tell(ctx: AsyncContext) -> None:
        ctx.notify("outside", mine=1)
        await ctx.step("work", lambda: ctx.notify("inside", mine=2), start=7)

    job_id = lab.submit(tell, name="teller")
    lab.perform(job_id)
    own = {each.name: dict(each.payload) for each in told if each.name in {"outside", "inside"}}
    common = {"job": "teller", "job_id": job_id, "run": 1}
    assert own["outside"] == {**common, "mine": 1}
    assert own["inside"] == {**common, "mine": 2, "step": "work", "cursor": "7"}


def test_a_run_that_has_ended_can_do_nothing_more(lab: Lab) -> None:
    async def leak(ctx: AsyncContext) -> None:
        leaked.append(ctx)

    leaked: list[AsyncContext] = []
    assert lab.run(leak).ok
    for use in (
        leaked[0].checkpoint,
        lambda: leaked[0].state,
        lambda: leaked[0].each("a", [1]),
        lambda: leaked[0].interrupt("late"),
        lambda: leaked[0].notify("late"),
    ):
        with pytest.raises(TracedJobsError, match=r"Run 1 of job .* has ended"):
            use()


# -- options ---


def test_a_run_longer_than_max_runtime_is_interrupted_at_its_next_checkpoint(lab: Lab) -> None:
    async def slow(ctx: AsyncContext) -> None:
        def wait() -> None:
            # Until the limit is over and seen; nobody else asks this run to stop.
            for _ in range(1000):
                if ctx._run.stop_reason is not None:
                    return
                threading.Event().wait(0.01)

        await ctx.step("one", wait)
        await ctx.step("two", str)

    job_id = lab.submit(slow, max_runtime=timedelta(seconds=0.05))
    outcome = lab.perform(job_id)
    assert (outcome.status, outcome.reason) == ("interrupted", "max_runtime")
    assert [step.name for step in lab.get(job_id).steps] == ["one"]
    assert lab.perform(job_id).ok


def test_max_runtime_stops_a_loop_after_at_least_one_item(lab: Lab) -> None:
    async def endless(ctx: AsyncContext) -> None:
        async for _ in ctx.each("count", range(10**9)):
            pass

    job_id = lab.submit(endless, max_runtime=0.05)
    assert lab.perform(job_id).reason == "max_runtime"
    assert lab.get(job_id).steps[0].items > 0


def test_every_job_s_steps_to_come_are_known_from_its_option_or_the_last_completed(
    lab: Lab,
) -> None:
    async def two(ctx: AsyncContext) -> None:
        await ctx.step("one", str)
        await ctx.step("two", str)

    assert lab.get(lab.submit(two, name="named", steps=["one", "two", "three"])).steps_expected == 3
    first = lab.submit(two, name="learnt")
    assert lab.get(first).steps_expected is None
    lab.perform(first)
    assert lab.get(lab.submit(two, name="learnt")).steps_expected == 2


def test_a_limit_of_resumptions_counts_only_runs_that_had_something_to_resume(lab: Lab) -> None:
    async def hesitant(ctx: AsyncContext) -> None:
        if ctx.run < 4:
            ctx.interrupt("not yet")
        await ctx.step("one", str)
        if ctx.run < 6:
            ctx.interrupt("not yet")

    job_id = lab.submit(hesitant, max_resumptions=1)
    for _ in range(4):
        assert lab.perform(job_id).reason == "not yet"
    with pytest.raises(ResumeLimitError):
        lab.perform(job_id)


# -- in a unit test ---


def test_a_job_s_function_can_be_called_with_a_ctx_of_one_s_own() -> None:
    class FakeContext:
        def step(self, name: str, fn: object, *args: object) -> object:
            assert callable(fn)
            return fn(*args)

        def each(self, name: str, source: object) -> object:
            return source

    @tracedjobs.job
    def total_of(ctx: Context, numbers: list[int]) -> int:
        seen = [number for number in ctx.each("numbers", numbers)]  # noqa: C416 - a loop
        return ctx.step("sum", sum, seen)

    assert total_of.fn(FakeContext(), [1, 2, 3]) == 6
    with pytest.raises(TypeError, match=r"total_of.run\(…\)"):
        total_of([1, 2, 3])
