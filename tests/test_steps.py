"""`ctx.step`: results, the `Step`, and the block form; other rules are in `test_context`."""

from __future__ import annotations

import functools

import pytest

import tracedjobs
from tests.both_ways import Lab
from tracedjobs import AsyncContext, Context, Runtime, Step
from tracedjobs.errors import (
    InvalidStepError,
    SerializationError,
)
from tracedjobs.testing import interrupt_after, interrupt_during

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
            with pytest.raises(SerializationError, match="65537 bytes, and 65536 are"):
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
