"""The order of steps, isolated steps, and what is told of them: on both stores, as in Rails.

https://github.com/rails/rails/blob/main/activejob/test/cases/continuation_test.rb
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.rails_jobs import (
    counting,
    linear,
    renaming,
)
from tracedjobs.errors import InvalidStepError
from tracedjobs.testing import interrupt_after, interrupt_during

if TYPE_CHECKING:
    from tests.both_ways import Body, Lab
    from tracedjobs import AsyncContext, Outcome
    from tracedjobs.events import Event


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
    skipped = told[1].payload
    assert (skipped["cursor"], skipped["items"], skipped["total"]) == ("null", 0, None)
    assert skipped["duration_s"] > 0
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
