"""The cases of Rails' `continuation_test.rb`, on both stores and for both kinds of job.

https://github.com/rails/rails/blob/main/activejob/test/cases/continuation_test.rb
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, cast

import pytest

from tracedjobs.errors import InvalidStepError, ResumeLimitError, UnadvanceableCursorError
from tracedjobs.testing import interrupt_after, interrupt_during

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.both_ways import Body, Lab
    from tracedjobs import AsyncContext, Outcome, Step
    from tracedjobs._core.context import BaseContext
    from tracedjobs.events import Event

IDS = [123, 432, 6565, 3243, 234, 13, 22]
SORTED = [13, 22, 123, 234, 432, 3243, 6565]


class BoomError(Exception):
    pass


def renaming(renamed: list[int], fail_at: int | None = None) -> Body:
    """Goes through records by their ids, and leaves the cursor behind the last one renamed."""

    async def rename_all(ctx: AsyncContext) -> None:
        async def rename(step: Step) -> None:
            for number in sorted(IDS):
                start = step.cursor
                if isinstance(start, int) and number < start:
                    continue
                if fail_at is not None and start == fail_at:
                    raise BoomError("cursor error")
                renamed.append(number)
                await step.advance(number)

        await ctx.step("rename", rename)

    return rename_all


def linear(items: list[str]) -> Body:
    """Four steps one after the other."""

    async def four_steps(ctx: AsyncContext) -> None:
        for number in ("one", "two", "three", "four"):
            await ctx.step(f"step_{number}", items.append, number)

    return four_steps


def deleting(items: list[int]) -> Body:
    """Consumes its items: there is no cursor, only checkpoints."""

    async def delete_all(ctx: AsyncContext) -> None:
        async def delete(step: Step) -> None:
            while items:
                items.pop(0)
                await step.checkpoint()

        await ctx.step("delete", delete)

    return delete_all


def counting(limit: int) -> Body:
    """Advances an integer up to a limit."""

    async def count(ctx: AsyncContext) -> None:
        async def iterate(step: Step) -> None:
            assert isinstance(step.cursor, int)
            for _ in range(step.cursor, limit):
                await step.advance()

        await ctx.step("iterate", iterate, start=0)

    return count


def raising_during(step: str, cursor: object = ...) -> Callable[[BaseContext], bool]:
    """A stopping callable that raises, which counts as raised by the job."""
    during = interrupt_during(step) if cursor is ... else interrupt_during(step, cursor)

    def stopping(ctx: BaseContext) -> bool:
        if during(ctx):
            raise BoomError("boom")
        return False

    return stopping


# -- cursors ---


def test_a_step_goes_through_all_its_records(lab: Lab) -> None:
    renamed: list[int] = []
    assert lab.run(renaming(renamed)).ok
    assert renamed == SORTED


def test_an_interrupted_step_goes_on_from_its_cursor(lab: Lab) -> None:
    renamed: list[int] = []
    job_id = lab.submit(renaming(renamed))
    outcome = lab.perform(job_id, stopping=interrupt_during("rename", cursor=433))
    assert (outcome.status, outcome.reason) == ("interrupted", "stopping")
    assert renamed == [13, 22, 123, 234, 432]
    assert lab.perform(job_id).ok
    assert renamed == SORTED


def test_nested_cursors_are_tuples_set_by_hand(lab: Lab) -> None:
    async def update(ctx: AsyncContext, sizes: list[int]) -> None:
        async def sub_items(step: Step) -> None:
            outer, inner = cast("tuple[int, int]", step.cursor)
            for row in range(outer, len(sizes)):
                for column in range(inner, sizes[row]):
                    done.append((row, column))
                    await step.set((row, column + 1))
                inner = 0
                await step.set((row + 1, 0))

        await ctx.step("update", sub_items, start=(0, 0))

    done: list[tuple[int, int]] = []
    job_id = lab.submit(update, [3, 1, 2])
    outcome = lab.perform(job_id, stopping=interrupt_during("update", cursor=(0, 2)))
    assert outcome.reason == "stopping"
    assert done == [(0, 0), (0, 1)]
    assert lab.perform(job_id).ok
    assert done == [(0, 0), (0, 1), (0, 2), (1, 0), (2, 0), (2, 1)]


def test_a_list_of_mixed_values_is_gone_through_by_offset(lab: Lab) -> None:
    async def iterate(ctx: AsyncContext, objects: list[object]) -> None:
        async def append(step: Step) -> None:
            assert isinstance(step.cursor, int)
            for each in objects[step.cursor :]:
                seen.append(each)
                await step.advance()

        await ctx.step("iterate", append, start=0)

    objects = ["world", 1, 1.2, None, True, False, [1, 2, 3], {"a": 1}]
    seen: list[object] = []
    job_id = lab.submit(iterate, objects)
    lab.perform(job_id, stopping=interrupt_during("iterate", cursor=3))
    assert seen == objects[:3]
    assert lab.perform(job_id).ok
    assert seen == objects


def test_a_cursor_comes_back_with_its_type(lab: Lab) -> None:
    async def scan(ctx: AsyncContext) -> None:
        async def look(step: Step) -> None:
            if step.resumed:
                cursors.append(step.cursor)
            else:
                await step.set(date(2026, 7, 6))

        await ctx.step("scan", look)

    cursors: list[object] = []
    job_id = lab.submit(scan)
    lab.perform(job_id, stopping=interrupt_during("scan", cursor=date(2026, 7, 6)))
    assert lab.perform(job_id).ok
    assert cursors == [date(2026, 7, 6)]
    assert type(cursors[0]) is date


@pytest.mark.parametrize(
    ("start", "from_", "after"),
    [
        (1, None, 2),
        (None, 1, 2),
        (-1, None, 0),
        (2**80, None, 2**80 + 1),
        (date(2026, 12, 31), None, date(2027, 1, 1)),
        (None, date(2024, 2, 28), date(2024, 2, 29)),
        (7, 0, 1),
    ],
)
def test_ints_and_dates_advance_to_their_successor(
    lab: Lab, start: object, from_: object, after: object
) -> None:
    async def advance(ctx: AsyncContext) -> None:
        async def once(step: Step) -> None:
            await step.advance(from_)
            cursors.append(step.cursor)

        await ctx.step("advance", once, start=start)

    cursors: list[object] = []
    assert lab.run(advance).ok
    assert cursors == [after]


@pytest.mark.parametrize(
    ("start", "from_", "named"),
    [
        (None, None, "None of type 'NoneType'"),
        (1.1, None, "1.1 of type 'float'"),
        (None, 1.1, "1.1 of type 'float'"),
        (True, None, "True of type 'bool'"),
        (1, False, "False of type 'bool'"),
        ("a", None, "'a' of type 'str'"),
        (datetime(2026, 7, 6, tzinfo=UTC), None, "of type 'datetime'"),
        ((1, 2), None, "(1, 2) of type 'tuple'"),
    ],
)
def test_what_has_no_successor_does_not_advance(
    lab: Lab, start: object, from_: object, named: str
) -> None:
    async def advance(ctx: AsyncContext) -> None:
        async def once(step: Step) -> None:
            await step.advance(from_)

        await ctx.step("advance", once, start=start)

    job_id = lab.submit(advance)
    with pytest.raises(UnadvanceableCursorError, match=re.escape(named)) as caught:
        lab.perform(job_id)
    assert "set(cursor)" in str(caught.value)
    assert lab.get(job_id).status == "failed"


# -- steps and checkpoints ---


def test_steps_are_done_in_their_order(lab: Lab) -> None:
    items: list[str] = []
    assert lab.run(linear(items)).ok
    assert items == ["one", "two", "three", "four"]


@pytest.mark.parametrize("last", ["one", "two", "three"])
def test_a_job_interrupted_between_steps_goes_on_with_the_next(lab: Lab, last: str) -> None:
    items: list[str] = []
    job_id = lab.submit(linear(items))
    outcome = lab.perform(job_id, stopping=interrupt_after(f"step_{last}"))
    assert outcome.reason == "stopping"
    assert items[-1] == last
    assert lab.get(job_id).steps[-1].name == f"step_{last}"
    assert lab.perform(job_id).ok
    assert items == ["one", "two", "three", "four"]


def test_there_is_no_checkpoint_after_the_last_step(lab: Lab) -> None:
    items: list[str] = []
    assert lab.perform(lab.submit(linear(items)), stopping=interrupt_after("step_four")).ok
    assert items == ["one", "two", "three", "four"]


def test_there_is_no_checkpoint_before_the_first_step_that_a_run_executes(lab: Lab) -> None:
    items: list[str] = []
    job_id = lab.submit(linear(items))
    for expected in (1, 2, 3):
        assert lab.perform(job_id, stopping=lambda ctx: True).reason == "stopping"
        assert len(items) == expected
    assert lab.perform(job_id, stopping=lambda ctx: True).ok
    assert items == ["one", "two", "three", "four"]


def test_stopping_is_given_the_running_ctx_and_its_text_is_the_reason(lab: Lab) -> None:
    def stopping(ctx: BaseContext) -> str | None:
        asked.append(ctx.completed)
        return "queue_paused" if ctx.completed == ("step_one", "step_two") else None

    asked: list[tuple[str, ...]] = []
    job_id = lab.submit(linear([]))
    assert lab.perform(job_id, stopping=stopping).reason == "queue_paused"
    assert asked == [("step_one",), ("step_one", "step_two")]
    assert lab.get(job_id).runs[0].reason == "queue_paused"


def test_a_step_without_a_cursor_is_interrupted_at_its_checkpoints(lab: Lab) -> None:
    items = list(range(10))
    job_id = lab.submit(deleting(items))
    assert lab.perform(job_id, stopping=interrupt_during("delete")).reason == "stopping"
    assert len(items) == 9
    assert lab.perform(job_id).ok
    assert items == []


# -- errors ---


def test_an_error_before_any_progress_fails_the_job(lab: Lab) -> None:
    items = list(range(10))
    job_id = lab.submit(deleting(items))
    with pytest.raises(BoomError):
        lab.perform(job_id, stopping=raising_during("delete"))
    assert lab.get(job_id).status == "failed"
    assert items == list(range(1, 10))


def test_an_error_after_progress_interrupts_and_keeps_the_cursor(lab: Lab) -> None:
    renamed: list[int] = []
    job_id = lab.submit(renaming(renamed))
    outcome = lab.perform(job_id, stopping=raising_during("rename", 433))
    assert (outcome.status, outcome.reason) == ("interrupted", "error")
    assert isinstance(outcome.error, BoomError)
    assert renamed == [13, 22, 123, 234, 432]
    assert lab.perform(job_id).ok
    assert renamed == SORTED


def test_a_second_error_without_progress_in_between_fails_the_job(lab: Lab) -> None:
    renamed: list[int] = []
    job_id = lab.submit(renaming(renamed, fail_at=433))
    assert lab.perform(job_id).reason == "error"
    stored = lab.get(job_id)
    assert stored.error is not None
    assert stored.error.message == "cursor error"
    assert stored.error.type.endswith("BoomError")
    with pytest.raises(BoomError, match="cursor error"):
        lab.perform(job_id)
    assert lab.get(job_id).status == "failed"
    assert renamed == [13, 22, 123, 234, 432]


def test_a_cursor_set_to_where_it_was_is_no_progress(lab: Lab) -> None:
    async def stand(ctx: AsyncContext) -> None:
        async def still(step: Step) -> None:
            await step.set(step.cursor)
            raise BoomError

        await ctx.step("still", still, start=5)

    with pytest.raises(BoomError):
        lab.run(stand)


def test_an_error_after_a_completed_step_interrupts(lab: Lab) -> None:
    async def two(ctx: AsyncContext) -> None:
        await ctx.step("one", str)
        raise BoomError

    job_id = lab.submit(two)
    assert lab.perform(job_id).reason == "error"
    with pytest.raises(BoomError):
        lab.perform(job_id)  # the step was skipped: nothing was done in this run


def test_errors_after_progress_fail_the_job_where_it_says_so(lab: Lab) -> None:
    job_id = lab.submit(counting(10), resume_errors_after_advancing=False)
    with pytest.raises(BoomError, match="boom"):
        lab.perform(job_id, stopping=raising_during("iterate", 5))
    stored = lab.get(job_id)
    assert stored.status == "failed"
    assert stored.steps[0].cursor == 5


# -- resumptions ---


def test_the_resumption_beyond_the_limit_fails_the_job(lab: Lab) -> None:
    job_id = lab.submit(counting(10), max_resumptions=2)
    for cursor in (1, 2):
        outcome = lab.perform(job_id, stopping=interrupt_during("iterate", cursor))
        assert outcome.reason == "stopping"
    with pytest.raises(ResumeLimitError) as caught:
        lab.perform(job_id, stopping=interrupt_during("iterate", 3))
    assert str(caught.value) == "Job was resumed a maximum of 2 times"
    stored = lab.get(job_id)
    assert (stored.status, stored.resumptions, stored.run) == ("failed", 2, 3)
    assert stored.steps[0].cursor == 3


def test_resumptions_after_errors_count_too(lab: Lab) -> None:
    job_id = lab.submit(counting(10), max_resumptions=2)
    for cursor in (1, 2):
        assert lab.perform(job_id, stopping=raising_during("iterate", cursor)).reason == "error"
    with pytest.raises(ResumeLimitError) as caught:
        lab.perform(job_id, stopping=raising_during("iterate", 3))
    assert str(caught.value) == "Job was resumed a maximum of 2 times"
    assert isinstance(caught.value.__cause__, BoomError)


def test_no_resumption_at_all_may_be_allowed(lab: Lab) -> None:
    job_id = lab.submit(counting(3), max_resumptions=0)
    with pytest.raises(ResumeLimitError, match="a maximum of 0 times"):
        lab.perform(job_id, stopping=interrupt_during("iterate", 1))


def test_the_outcome_asks_for_the_resume_delay(lab: Lab) -> None:
    job_id = lab.submit(counting(10), resume_delay=8)
    outcome = lab.perform(job_id, stopping=interrupt_during("iterate", 1))
    assert outcome.resume_in == 8
    stored = lab.get(job_id)
    assert stored.resume_at is not None
    ended_at = stored.runs[0].ended_at
    assert ended_at is not None
    assert (stored.resume_at - ended_at).total_seconds() == pytest.approx(8, abs=0.1)
    assert lab.perform(job_id).resume_in is None


# -- order ---


def test_a_name_met_twice_is_refused(lab: Lab) -> None:
    async def twice(ctx: AsyncContext) -> None:
        await ctx.step("duplicate", str)
        await ctx.step("duplicate", str)

    with pytest.raises(InvalidStepError) as caught:
        lab.run(twice)
    assert str(caught.value) == "Step 'duplicate' has already been encountered"


def test_a_step_inside_a_step_is_refused(lab: Lab) -> None:
    async def nested(ctx: AsyncContext) -> None:
        async def outer() -> None:
            await ctx.step("inner_step", str)

        await ctx.step("outer_step", outer)

    with pytest.raises(InvalidStepError) as caught:
        lab.run(nested)
    assert str(caught.value) == "Step 'inner_step' is nested inside step 'outer_step'"


def test_a_name_that_is_no_text_is_refused(lab: Lab) -> None:
    async def numbered(ctx: AsyncContext) -> None:
        await ctx.step(7, str)  # type: ignore[call-overload]  # what is tested

    with pytest.raises(InvalidStepError) as caught:
        lab.run(numbered)
    assert str(caught.value) == "Step 7 must be named by a str, found 'int'"


def test_another_step_than_the_interrupted_one_is_refused_and_nothing_is_lost(lab: Lab) -> None:
    async def wrong(ctx: AsyncContext) -> None:
        if ctx.resumed and not repaired:
            await ctx.step("unexpected", str)
        else:
            await counting(4)(ctx)

    repaired: list[bool] = []
    job_id = lab.submit(wrong)
    lab.perform(job_id, stopping=interrupt_during("iterate", 2))
    with pytest.raises(InvalidStepError) as caught:
        lab.perform(job_id)
    assert str(caught.value) == "Step 'unexpected' found, expected to resume from 'iterate'"
    stored = lab.get(job_id)
    assert (stored.status, stored.steps[0].cursor) == ("failed", 2)
    repaired.append(True)
    lab.runtime.retry(job_id)
    assert lab.perform(job_id).ok


def test_completed_steps_in_another_order_are_refused_and_nothing_is_lost(lab: Lab) -> None:
    async def changed(ctx: AsyncContext) -> None:
        await ctx.step("step_one", str)
        await ctx.step("step_two", str)
        if ctx.resumed:
            await ctx.step("step_two_and_a_half", str)
        await ctx.step("step_three", str)
        await ctx.step("step_four", str)

    job_id = lab.submit(changed)
    lab.perform(job_id, stopping=interrupt_after("step_three"))
    with pytest.raises(InvalidStepError) as caught:
        lab.perform(job_id)
    assert str(caught.value) == "Step 'step_two_and_a_half' found, expected to see 'step_three'"
    completed = [step.name for step in lab.get(job_id).steps]
    assert completed == ["step_one", "step_two", "step_three"]


def test_order_errors_are_never_turned_into_interruptions(lab: Lab) -> None:
    async def twice(ctx: AsyncContext) -> None:
        await ctx.step("one", str)  # progress, after which other errors would interrupt
        await ctx.step("one", str)

    job_id = lab.submit(twice)
    with pytest.raises(InvalidStepError):
        lab.perform(job_id)
    assert lab.get(job_id).status == "failed"


# -- isolation ---


def isolated(items: list[str], *alone: str) -> Body:
    async def four_steps(ctx: AsyncContext) -> None:
        for number in ("one", "two", "three", "four"):
            await ctx.step(number, items.append, number, isolated=number in alone)

    return four_steps


def runs_of(lab: Lab, items: list[str], job_id: str) -> list[list[str]]:
    """What each run did, until the job is completed."""
    done: list[list[str]] = []
    while True:
        before = len(items)
        outcome: Outcome = lab.perform(job_id)
        done.append(items[before:])
        if outcome.ok:
            return done
        assert outcome.reason == "isolating"


@pytest.mark.parametrize(
    ("alone", "runs"),
    [
        (["three"], [["one", "two"], ["three"], ["four"]]),
        (["one", "four"], [["one"], ["two", "three"], ["four"]]),
        (["two", "three"], [["one"], ["two"], ["three"], ["four"]]),
        (["one"], [["one"], ["two", "three", "four"]]),
    ],
)
def test_an_isolated_step_has_a_run_of_its_own(
    lab: Lab, alone: list[str], runs: list[list[str]]
) -> None:
    items: list[str] = []
    assert runs_of(lab, items, lab.submit(isolated(items, *alone))) == runs


def test_an_isolated_loop_has_a_run_of_its_own(lab: Lab) -> None:
    async def mixed(ctx: AsyncContext) -> None:
        await ctx.step("before", items.append, "before")
        async for number in ctx.each("alone", range(2), isolated=True):
            await append(str(number))
        await ctx.step("after", items.append, "after")

    async def append(item: str) -> None:
        items.append(item)

    items: list[str] = []
    assert runs_of(lab, items, lab.submit(mixed)) == [["before"], ["0", "1"], ["after"]]


# -- what is told ---


def names_of(told: list[Event], *attributes: str) -> list[tuple[object, ...]]:
    return [(each.name, *(each.payload.get(key) for key in attributes)) for each in told]


def test_interruptions_between_steps_are_told(lab: Lab, told: list[Event]) -> None:
    job_id = lab.submit(linear([]))
    lab.perform(job_id, stopping=interrupt_after("step_one"))
    assert names_of(told, "step", "reason") == [
        ("job_submitted", None, None),
        ("job_started", None, None),
        ("job_step_started", "step_one", None),
        ("job_step_completed", "step_one", None),
        ("job_interrupted", None, "stopping"),
    ]
    told.clear()
    lab.perform(job_id)
    assert names_of(told, "step")[:3] == [
        ("job_resumed", None),
        ("job_step_skipped", "step_one"),
        ("job_step_started", "step_two"),
    ]
    assert names_of(told, "step")[-1] == ("job_completed", None)
    assert {each.payload["job_id"] for each in told} == {job_id}
    assert {each.payload["run"] for each in told} == {2}


def test_interruptions_in_a_step_are_told_with_its_cursor(lab: Lab, told: list[Event]) -> None:
    job_id = lab.submit(renaming([]))
    lab.perform(job_id, stopping=interrupt_during("rename", cursor=433))
    steps = [each for each in told if each.name.startswith("job_step_")]
    assert names_of(steps, "step", "items") == [
        ("job_step_started", "rename", 0),
        ("job_step_interrupted", "rename", 5),
    ]
    assert str(steps[1].payload["cursor"]) == "433"
    told.clear()
    lab.perform(job_id)
    assert names_of(told, "resumed")[:2] == [("job_resumed", None), ("job_step_started", True)]
    assert str(told[1].payload["cursor"]) == "433"
