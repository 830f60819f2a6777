"""The cases of Rails' `continuation_test.rb`, on both stores and for both kinds of job.

https://github.com/rails/rails/blob/main/activejob/test/cases/continuation_test.rb
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, cast

import pytest

from tests.rails_jobs import (
    SORTED,
    BoomError,
    counting,
    deleting,
    linear,
    raising_during,
    renaming,
)
from tracedjobs.errors import ResumeLimitError, UnadvanceableCursorError
from tracedjobs.testing import interrupt_after, interrupt_during

if TYPE_CHECKING:
    from tests.both_ways import Lab
    from tracedjobs import AsyncContext, Step
    from tracedjobs._core.context import BaseContext


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
