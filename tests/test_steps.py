"""`ctx.step`: results, the `Step`, the block form, and what a job can ask of `ctx`."""

from __future__ import annotations

import functools
import threading
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

import tracedjobs
from tests.both_ways import Lab
from tracedjobs import AsyncContext, Context, Runtime, Step
from tracedjobs.errors import (
    InvalidStepError,
    ResumeLimitError,
    SerializationError,
    TracedJobsError,
)
from tracedjobs.testing import interrupt_after, interrupt_during

if TYPE_CHECKING:
    from tracedjobs.events import Event


# -- results ---


@pytest.mark.parametrize("result", [None, 0, "text", (1, [2, {"k": {3}}]), b"\x00", 2**90])
def test_a_result_is_returned_again_by_later_runs(lab: Lab, result: object) -> None:
    async def two_steps(ctx: AsyncContext) -> None:
        seen.append(await ctx.step("work", work))
        await ctx.step("rest", str)

    def work() -> object:
        calls.append(1)
        return result

    seen: list[object] = []
    calls: list[int] = []
    job_id = lab.submit(two_steps)
    lab.perform(job_id, stopping=interrupt_after("work"))
    assert lab.perform(job_id).ok
    assert seen == [result, result]
    assert type(seen[1]) is type(result)
    assert calls == [1]
    assert lab.get(job_id).steps[0].result == result


def test_the_job_s_own_result_is_stored_and_told(lab: Lab) -> None:
    async def answer(ctx: AsyncContext) -> tuple[str, int]:
        return ("answer", await ctx.step("think", lambda: 42))

    job_id = lab.submit(answer)
    assert lab.perform(job_id).result == ("answer", 42)
    assert lab.get(job_id).result == ("answer", 42)
    again = lab.perform(job_id)  # a completed job is not run again
    assert (again.ok, again.result, again.run) == (True, ("answer", 42), 1)


def test_a_result_that_cannot_be_stored_leaves_the_step_undone(lab: Lab) -> None:
    async def make(ctx: AsyncContext) -> None:
        await ctx.step("first", str)
        await ctx.step("make", lambda: {"made": [object()]})

    job_id = lab.submit(make)
    with pytest.raises(SerializationError) as caught:
        lab.perform(job_id)
    assert "result of step 'make'['made'][0]" in str(caught.value)
    stored = lab.get(job_id)
    assert stored.status == "failed"
    assert [(step.name, step.status) for step in stored.steps] == [
        ("first", "completed"),
        ("make", "failed"),
    ]


def test_a_job_s_result_that_cannot_be_stored_fails_it_and_keeps_its_steps(lab: Lab) -> None:
    async def make(ctx: AsyncContext) -> object:
        await ctx.step("first", str)
        return print

    job_id = lab.submit(make)
    with pytest.raises(SerializationError, match="result"):
        lab.perform(job_id)
    assert [step.status for step in lab.get(job_id).steps] == ["completed"]


# -- what a step's function is given ---


def test_arguments_are_passed_and_step_is_given_wherever_it_is_declared(lab: Lab) -> None:
    class Worker:
        def method(self, step: Step, a: int) -> str:
            return f"{step.name}{a}"

    def last(a: int, b: int, step: Step) -> str:
        return f"{step.name}{a}{b}"

    def first(step: Step, a: int, b: int) -> str:
        return f"{step.name}{a}{b}"

    def by_keyword(a: int, *rest: int, step: Step) -> str:
        return f"{step.name}{a}{rest}"

    def positional(step: Step, /) -> str:
        return step.name

    def after_a_default(a: int, b: int = 5, step: Step | None = None) -> str:
        return f"{step.name if step else None}{a}{b}"

    def without(a: int, **options: object) -> str:
        return f"{a}{options}"

    async def all_kinds(ctx: AsyncContext) -> list[str]:
        return [
            await ctx.step("a", last, 1, 2),
            await ctx.step("b", first, 1, 2),
            await ctx.step("c", by_keyword, 1, 2),
            await ctx.step("d", positional),
            await ctx.step("e", after_a_default, 1),
            await ctx.step("f", Worker().method, 1),
            await ctx.step("g", functools.partial(last, 1, 2)),
            await ctx.step("h", without, 1),
            await ctx.step("i", max, 1, 2) and "builtin",
        ]

    assert lab.run(all_kinds).result == [
        "a12",
        "b12",
        "c1(2,)",
        "d",
        "e15",
        "f1",
        "g12",
        "1{}",
        "builtin",
    ]


def test_a_step_knows_its_name_cursor_total_and_whether_it_was_resumed(lab: Lab) -> None:
    async def one_step(ctx: AsyncContext) -> None:
        async def work(step: Step) -> None:
            current = ctx.current
            assert current is not None
            seen.append((step.name, step.cursor, step.total, step.resumed, current.name))
            step.total = 8
            await step.set("x")

        assert ctx.current is None
        await ctx.step("work", work, start="a", total=5)
        assert ctx.current is None

    seen: list[tuple[object, ...]] = []
    job_id = lab.submit(one_step)
    lab.perform(job_id, stopping=interrupt_during("work", "x"))
    stored = lab.get(job_id).steps[0]
    assert (stored.cursor, stored.items, stored.total) == ("x", 1, 8)
    lab.perform(job_id)
    assert seen == [("work", "a", 5, False, "work"), ("work", "x", 5, True, "work")]


def test_set_and_advance_count_one_item_each_over_all_runs(lab: Lab) -> None:
    async def count(ctx: AsyncContext) -> None:
        async def work(step: Step) -> None:
            await step.set(10)
            await step.advance()
            await step.advance(20)

        await ctx.step("work", work)

    job_id = lab.submit(count)
    lab.perform(job_id, stopping=interrupt_during("work", 11))
    assert lab.get(job_id).steps[0].items == 2
    lab.perform(job_id)
    step = lab.get(job_id).steps[0]
    assert (step.items, step.cursor, step.status) == (5, 21, "completed")


def test_a_refused_cursor_leaves_the_position_as_it_was(lab: Lab) -> None:
    async def refuse(ctx: AsyncContext) -> None:
        async def work(step: Step) -> None:
            await step.set(1)
            with pytest.raises(SerializationError, match="function"):
                await step.set(lambda: None)
            with pytest.raises(
                SerializationError, match="65537 bytes, and 65536 are"
            ):
                await step.set("x" * 65_535)
            assert step.cursor == 1
            await step.set("x" * 65_534)

        await ctx.step("work", work)

    job_id = lab.submit(refuse)
    assert lab.perform(job_id).ok
    assert lab.get(job_id).steps[0].items == 2


def test_a_step_that_is_done_cannot_be_moved(lab: Lab) -> None:
    async def keep(ctx: AsyncContext) -> None:
        kept: list[Step] = []

        def keep_step(step: Step) -> None:
            kept.append(step)

        await ctx.step("one", keep_step)
        with pytest.raises(InvalidStepError, match="Step 'one' is done"):
            await kept[0].set(1)

    assert lab.run(keep).ok


# -- the block form ---


def test_without_a_function_step_is_a_decorator_that_runs_at_once(runtime: Runtime) -> None:
    @tracedjobs.job
    def reindex(ctx: Context) -> int:
        @ctx.step("pages", start=0, total=5)
        def pages(step: Step) -> str:
            assert isinstance(step.cursor, int)
            for page in range(step.cursor, 5):
                indexed.append(page)
                step.advance()
            return "done"

        results.append(pages)
        return 1

    indexed: list[int] = []
    results: list[str] = []
    job_id = runtime.submit(reindex)
    runtime.perform(job_id, stopping=interrupt_during("pages", 3))
    assert (indexed, runtime.get(job_id).steps[0].total) == ([0, 1, 2], 5)
    assert runtime.perform(job_id).ok
    assert (indexed, results) == ([0, 1, 2, 3, 4], ["done"])


def test_in_an_async_job_the_block_form_is_refused_with_the_way_out(runtime: Runtime) -> None:
    @tracedjobs.job
    async def block(ctx: AsyncContext) -> None:
        await ctx.step("work")  # type: ignore[call-overload]  # what is tested

    with pytest.raises(TypeError, match=r"await ctx.step\('work', fn\)"):
        Lab(runtime, "async def").perform(runtime.submit(block))


def test_a_def_job_refuses_an_async_function(runtime: Runtime) -> None:
    async def later() -> None: ...

    @tracedjobs.job
    def plain(ctx: Context) -> None:
        ctx.step("work", later)  # type: ignore[unused-coroutine]  # what is tested

    job_id = runtime.submit(plain)
    with pytest.raises(TypeError, match="make the job an async def function"):
        runtime.perform(job_id)
    assert runtime.get(job_id).steps[0].status == "failed"


async def test_each_kind_of_job_is_performed_by_its_own_method(runtime: Runtime) -> None:
    @tracedjobs.job
    def plain(ctx: Context) -> None: ...

    @tracedjobs.job
    async def later(ctx: AsyncContext) -> None: ...

    with pytest.raises(TypeError, match="use perform_async or run_async"):
        runtime.perform(runtime.submit(later))
    plain_id = runtime.submit(plain)
    with pytest.raises(TypeError, match="use perform or run"):
        await runtime.perform_async(plain_id)
    assert runtime.get(plain_id).status == "pending"


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
