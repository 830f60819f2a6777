"""Cases that were once wrong, each a small one: options, arguments, sources, and broken bodies."""

from __future__ import annotations

import math
import os
import signal
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

import tracedjobs
from tests.loop_jobs import over
from tests.processes import until
from tracedjobs import AsyncContext, Context, Runtime, job
from tracedjobs.errors import InvalidStepError, JobConflictError, SourceChangedError
from tracedjobs.testing import interrupt_after, interrupt_during

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.both_ways import Lab


# -- durations ---


@pytest.mark.parametrize(
    "option",
    ["retention", "deadline", "resume_delay", "checkpoint_every", "max_runtime", "stall_after"],
)
def test_a_duration_that_no_clock_can_add_is_refused_by_its_name(option: str) -> None:
    options: dict[str, Any] = {option: timedelta(days=3_000_000)}
    with pytest.raises(ValueError, match=rf"^{option}=.* is longer than .*a hundred years"):
        job(**options)(_nothing)


@pytest.mark.parametrize(
    "option", ["deadline", "resume_delay", "checkpoint_every", "max_runtime", "stall_after"]
)
def test_only_retention_may_be_endless(option: str) -> None:
    options: dict[str, Any] = {option: math.inf}
    with pytest.raises(ValueError, match=f"^{option}=inf is longer than"):
        job(**options)(_nothing)


def _nothing(ctx: Context) -> None: ...


@pytest.mark.parametrize("ttl", [math.inf, timedelta(days=3_000_000)])
def test_a_lease_cannot_be_endless(ttl: Any) -> None:
    with pytest.raises(ValueError, match=r"^lease_ttl=.* is longer than"):
        Runtime("memory://", lease_ttl=ttl)


def test_a_job_of_endless_retention_is_shown_and_kept(lab: Lab) -> None:
    async def kept(ctx: AsyncContext, how: str) -> None:
        if how == "fails":
            raise ValueError(how)

    completed = lab.submit(kept, "completes", retention=math.inf)
    failed = lab.submit(kept, "fails", retention=math.inf)
    cancelled = lab.submit(kept, "never", retention=math.inf)
    assert lab.perform(completed).ok
    with pytest.raises(ValueError, match="fails"):
        lab.perform(failed)
    lab.runtime.cancel(cancelled)
    shown = {found.id: found.status for found in lab.runtime.list()}
    assert shown == {completed: "completed", failed: "failed", cancelled: "cancelled"}
    assert lab.runtime.purge() == 0
    for job_id in shown:
        found = lab.get(job_id)
        assert found.ended_at is not None
        assert found.expires_at is None


# -- arguments ---


def test_the_order_of_a_dict_does_not_make_other_arguments(lab: Lab) -> None:
    async def takes(ctx: AsyncContext, options: object) -> None: ...

    made = lab.job(takes)
    lab.runtime.submit(made, {"a": 1, "b": {"x": [1], "y": None}}, job_id="one")
    same = {"b": {"y": None, "x": [1]}, "a": 1}
    assert lab.runtime.submit(made, same, job_id="one") == "one"
    assert len(lab.runtime.list()) == 1
    with pytest.raises(JobConflictError, match="exists already with other arguments"):
        lab.runtime.submit(made, {"b": {"y": None, "x": [2]}, "a": 1}, job_id="one")


@pytest.mark.parametrize("first", [1, 1.0, True, "1", (1,), [1]], ids=repr)
def test_arguments_of_another_type_are_other_arguments(lab: Lab, first: object) -> None:
    async def takes(ctx: AsyncContext, value: object) -> None: ...

    made = lab.job(takes)
    lab.runtime.submit(made, first, job_id="one")
    assert lab.runtime.submit(made, first, job_id="one") == "one"
    others = [each for each in (1, 1.0, True, "1", (1,), [1]) if type(each) is not type(first)]
    assert len(others) == 5
    for other in others:
        with pytest.raises(JobConflictError, match="exists already with other arguments"):
            lab.runtime.submit(made, other, job_id="one")


async def test_the_wrong_one_of_run_and_run_async_leaves_no_record(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    @job
    def plain(ctx: Context) -> str:
        return "plain"

    @job
    async def later(ctx: AsyncContext) -> str:
        return "later"

    monkeypatch.setattr("tracedjobs._core.runtime._configured", runtime)
    with pytest.raises(TypeError, match="is an async def job; use run_async"):
        later.run()
    with pytest.raises(TypeError, match="is a def job; use run"):
        await plain.run_async()
    assert list(runtime.list()) == []
    assert (plain.run().result, (await later.run_async()).result) == ("plain", "later")


# -- loops that are done, and sources that change ---


def test_a_loop_that_is_skipped_stands_where_it_was_completed(lab: Lab) -> None:
    async def loops(ctx: AsyncContext) -> None:
        numbers = ctx.each("numbers", range(7))
        letters: Any = None
        async for _ in numbers:
            pass
        letters = ctx.each("letters", pairs, start="", total=9)
        async for _ in letters:
            pass
        seen.append([(each.cursor, each.items, each.total) for each in (numbers, letters)])
        await ctx.step("after", str)

    def pairs(cursor: str) -> Iterator[tuple[str, str]]:
        return ((letter, letter) for letter in "abc" if letter > cursor)

    seen: list[list[tuple[object, int, int | None]]] = []
    job_id = lab.submit(loops)
    assert lab.perform(job_id, stopping=interrupt_after("letters")).reason == "stopping"
    assert lab.perform(job_id).ok
    assert seen == [[(7, 7, 7), ("c", 3, 9)]] * 2


class Editions:
    """A source of one's own that may become another one."""

    def __init__(self) -> None:
        self.edition = "first"

    def __call__(self, cursor: int | None) -> Iterator[tuple[int, int]]:
        return ((number, number + 1) for number in range(cursor or 0, 9))

    def fingerprint(self) -> object:
        return self.edition

    def check_fingerprint(self, stored: object) -> None:
        if stored != self.edition:
            msg = f"{stored} became {self.edition}"
            raise SourceChangedError(msg)


def test_after_a_rewind_to_a_cursor_a_source_may_be_another_one_from_there_on(lab: Lab) -> None:
    source = Editions()
    seen: list[int] = []
    job_id = lab.submit(over(source, seen))
    lab.perform(job_id, stopping=interrupt_during("loop", 5))
    lab.runtime.rewind(job_id, "loop", 2)
    source.edition = "second"  # what the rewind was for
    assert lab.perform(job_id, stopping=interrupt_during("loop", 4)).reason == "stopping"
    assert seen == [0, 1, 2, 3, 4, 2, 3]
    source.edition = "third"
    with pytest.raises(SourceChangedError, match="second became third"):
        lab.perform(job_id)
    source.edition = "second"
    lab.runtime.retry(job_id)
    assert lab.perform(job_id).ok
    assert seen[7:] == [4, 5, 6, 7, 8]


# -- bodies that are wrong ---


@pytest.mark.parametrize("given", [(), (None,)], ids=["nothing", "None"])
@pytest.mark.parametrize("then", ["a step", "a loop", "a decorator", "the return"])
def test_a_step_that_was_given_no_function_is_noticed(
    runtime: Runtime, given: tuple[Any, ...], then: str
) -> None:
    @job
    def forgets(ctx: Context) -> None:
        ctx.step("validate", *given)
        if then == "a step":
            ctx.step("next", seen.append, "next")
        elif then == "a loop":
            seen.extend(ctx.each("next", ["next"]))
        elif then == "a decorator":

            @ctx.step("next")
            def following() -> None:
                seen.append("next")

    seen: list[str] = []
    job_id = runtime.submit(forgets)
    with pytest.raises(InvalidStepError) as caught:
        runtime.perform(job_id)
    assert str(caught.value).startswith("ctx.step('validate') was given no function, so nothing")
    assert (seen, runtime.get(job_id).status) == ([], "failed")


def test_a_step_whose_error_was_swallowed_is_not_done_when_the_job_returns(lab: Lab) -> None:
    async def swallows(ctx: AsyncContext) -> str:
        try:
            await ctx.step("one", fails)
        except ValueError:
            if ctx.run == 1:
                return "as if it were done"
            raise
        return "done"

    def fails(step: tracedjobs.Step) -> None:
        calls.append(step.resumed)
        if len(calls) == 1:
            raise ValueError("the step")

    calls: list[bool] = []
    job_id = lab.submit(swallows)
    with pytest.raises(InvalidStepError) as caught:
        lab.perform(job_id)
    assert str(caught.value) == (
        "The job returned though step 'one' was left before it was done: its error was caught. "
        "Let the error pass, so that the step is resumed."
    )
    found = lab.get(job_id)
    assert (found.status, [(step.name, step.status) for step in found.steps]) == (
        "failed",
        [("one", "failed")],
    )
    lab.runtime.retry(job_id)
    assert lab.perform(job_id).result == "done"
    assert calls == [False, True]


# -- what is expected ---


def test_a_job_is_expected_to_have_as_many_steps_as_the_last_of_its_name(lab: Lab) -> None:
    async def steps(ctx: AsyncContext, count: int) -> None:
        for number in range(count):
            await ctx.step(f"step {number}", str)

    made = lab.job(steps)
    first = lab.runtime.submit(made, 2)
    assert lab.get(first).steps_expected is None
    assert lab.perform(first).ok
    second = lab.runtime.submit(made, 3)
    assert lab.get(second).steps_expected == 2
    assert lab.perform(second).ok
    assert lab.get(lab.runtime.submit(made, 1)).steps_expected == 3
    other = lab.job(steps, name="expects:other")
    assert lab.get(lab.runtime.submit(other, 1)).steps_expected is None


# -- requests that meet ---


@pytest.mark.parametrize("order", ["pause, signal", "signal, pause"])
def test_a_pause_that_is_taken_back_does_not_take_a_sigterm_with_it(lab: Lab, order: str) -> None:
    async def both(ctx: AsyncContext) -> None:
        run = ctx._run
        async for item in ctx.each("items", range(10)):
            seen.append(item)
            if item == 3:
                for what in order.split(", "):
                    asks[what](ctx.id)
                until(lambda: run._wish == "paused", "the run knows of the pause")
                lab.runtime.resume(ctx.id)
                until(lambda: run._wish is None, "the run knows that it is taken back")

    asks: dict[str, Callable[[str], object]] = {
        "pause": lab.runtime.pause,
        "signal": lambda _: os.kill(os.getpid(), signal.SIGTERM),
    }
    seen: list[int] = []
    job_id = lab.submit(both, checkpoint_every=0.1)
    outcome = lab.perform(job_id)
    assert (outcome.status, outcome.reason) == ("interrupted", "stopping")
    assert seen == [0, 1, 2, 3]
    assert lab.get(job_id).steps[0].cursor == 4
