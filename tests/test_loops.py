"""`ctx.each`: what a loop goes over, what counts as done, and how it may be left."""

from __future__ import annotations

import sys
from collections import deque
from typing import TYPE_CHECKING, Any

import pytest

import tracedjobs
from tests.both_ways import Lab
from tests.loop_jobs import Letters, Squares, at_item, over
from tracedjobs import AsyncContext, Context, Loop, Runtime
from tracedjobs.errors import SerializationError, SourceChangedError
from tracedjobs.testing import interrupt_after, interrupt_during

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence
    from pathlib import Path


# -- what it goes over ---


@pytest.mark.parametrize(
    "source",
    [
        range(10),
        range(50, 0, -5),
        list("abcdefghij"),
        tuple("abcdefghij"),
        deque("abcdefghij"),
        Squares(10),
        [None] * 10,
    ],
    ids=["range", "range with a step", "list", "tuple", "deque", "one's own", "of None"],
)
def test_a_sequence_is_resumed_after_the_last_item_that_is_done(
    lab: Lab, source: Sequence[object]
) -> None:
    seen: list[object] = []
    job_id = lab.submit(over(source, seen))
    assert lab.perform(job_id, stopping=interrupt_during("loop", 3)).reason == "stopping"
    assert seen == list(source)[:3]
    stored = lab.get(job_id).steps[0]
    assert (stored.cursor, stored.items, stored.total) == (3, 3, 10)
    assert lab.perform(job_id, stopping=interrupt_during("loop", 7)).reason == "stopping"
    assert lab.perform(job_id).ok
    assert seen == list(source)
    assert lab.get(job_id).steps[0].items == 10


def test_resuming_reads_nothing_that_is_done(lab: Lab) -> None:
    source = Squares(1000)
    job_id = lab.submit(over(source, []))
    lab.perform(job_id, stopping=interrupt_during("loop", 990))
    source.read.clear()
    lab.perform(job_id)
    assert source.read[0] == 990


def test_a_source_of_pairs_is_called_with_the_cursor_after_the_last_item_done(lab: Lab) -> None:
    source, seen = Letters(), []  # type: ignore[var-annotated]  # letters
    job_id = lab.submit(over(source, seen, start="a"))
    lab.perform(job_id, stopping=interrupt_during("loop", "c"))
    stored = lab.get(job_id).steps[0]
    assert (seen, stored.cursor, stored.items, stored.total) == (["B", "C"], "c", 2, 5)
    assert lab.perform(job_id).ok
    assert seen == ["B", "C", "D", "E"]
    assert source.asked == ["a", "c"]
    assert lab.get(job_id).steps[0].cursor == "e"


def test_a_source_may_be_asynchronous_in_an_async_job(runtime: Runtime) -> None:
    async def source(cursor: object) -> AsyncIterator[tuple[int, object]]:
        asked.append(cursor)
        for number in range(cursor if isinstance(cursor, int) else 0, 5):
            yield number, number + 1

    asked: list[object] = []
    seen: list[int] = []
    lab = Lab(runtime, "async def")
    job_id = lab.submit(over(source, seen))
    lab.perform(job_id, stopping=interrupt_during("loop", 2))
    assert lab.perform(job_id).ok
    assert (seen, asked) == ([0, 1, 2, 3, 4], [None, 2])


def test_an_asynchronous_source_in_a_def_job_is_refused(runtime: Runtime) -> None:
    async def source(cursor: object) -> AsyncIterator[tuple[int, object]]:
        yield 1, 1

    with pytest.raises(TypeError, match="make the job an async def function"):
        Lab(runtime, "def").run(over(source, []))


def test_an_empty_source_completes_its_step(lab: Lab) -> None:
    async def empty(ctx: AsyncContext) -> None:
        async for _ in ctx.each("list", []):
            raise AssertionError
        async for _ in ctx.each("pairs", lambda cursor: ()):
            raise AssertionError

    job_id = lab.submit(empty)
    assert lab.perform(job_id).ok
    assert [(step.items, step.status) for step in lab.get(job_id).steps] == [(0, "completed")] * 2


def test_a_loop_that_is_done_has_no_items_in_later_runs(lab: Lab) -> None:
    seen: list[int] = []
    job_id = lab.submit(over([1, 2], seen))
    assert lab.perform(job_id, stopping=interrupt_after("loop")).reason == "stopping"
    assert lab.perform(job_id).ok
    assert seen == [1, 2]


def test_start_is_an_offset_for_sequences_and_the_total_counts_from_there(lab: Lab) -> None:
    seen: list[int] = []
    job_id = lab.submit(over(range(10), seen, start=6))
    lab.perform(job_id, stopping=interrupt_during("loop", 8))
    stored = lab.get(job_id).steps[0]
    assert (stored.cursor, stored.items, stored.total) == (8, 2, 4)
    assert lab.perform(job_id).ok
    stored = lab.get(job_id).steps[0]
    assert (seen, stored.items, stored.total) == ([6, 7, 8, 9], 4, 4)


def test_a_total_may_be_given_and_set_late(lab: Lab) -> None:
    async def late(ctx: AsyncContext) -> None:
        loop = ctx.each("loop", Letters(), total=4)
        assert loop.total == 4
        async for _ in loop:
            loop.total = 9

    job_id = lab.submit(late)
    lab.perform(job_id)
    assert lab.get(job_id).steps[0].total == 9


def test_a_sequence_that_became_shorter_than_what_is_done_is_refused(lab: Lab) -> None:
    rows = list(range(10))
    job_id = lab.submit(over(rows, []))
    lab.perform(job_id, stopping=interrupt_during("loop", 5))
    del rows[3:]
    with pytest.raises(SourceChangedError, match="has 3 items, fewer than the 5 that were done"):
        lab.perform(job_id)
    assert lab.get(job_id).steps[0].cursor == 5


# -- what counts as done ---


def test_an_item_is_done_when_the_loop_asks_for_the_next_one(lab: Lab) -> None:
    async def look(ctx: AsyncContext) -> None:
        loop = ctx.each("loop", ["a", "b"])
        async for _ in loop:
            look_at(loop)
        look_at(loop)

    def look_at(loop: Loop[str]) -> None:
        seen.append((loop.cursor, loop.items))

    seen: list[tuple[object, int]] = []
    lab.run(look)
    assert seen == [(0, 0), (1, 1), (2, 2)]


def test_the_item_in_hand_is_done_again_after_an_error(lab: Lab) -> None:
    async def fail_once(ctx: AsyncContext) -> None:
        async for item in ctx.each("loop", Letters()):
            seen.append(item)
            if item == "C" and not ctx.resumed:
                raise ValueError(item)

    seen: list[str] = []
    job_id = lab.submit(fail_once)
    assert lab.perform(job_id).reason == "error"
    assert lab.get(job_id).steps[0].cursor == "b"
    assert lab.perform(job_id).ok
    assert "".join(seen) == "ABCCDE"


def test_a_checkpoint_within_an_item_has_that_item_done_again(lab: Lab) -> None:
    async def check(ctx: AsyncContext) -> None:
        async for item in ctx.each("loop", range(3)):
            seen.append(item)
            await ctx.checkpoint()
            if item == 2 and ctx.run == 2:
                ctx.interrupt("mine")

    seen: list[int] = []
    job_id = lab.submit(check)
    assert lab.perform(job_id, stopping=lambda ctx: len(seen) == 2).reason == "stopping"
    assert lab.perform(job_id).reason == "mine"
    assert lab.perform(job_id).ok
    assert seen == [0, 1, 1, 2, 2]


@pytest.mark.parametrize("source", [range(3), Letters()], ids=["sequence", "pairs"])
def test_a_stop_that_is_seen_when_no_item_is_left_completes_the_step(lab: Lab, source: Any) -> None:
    seen: list[object] = []
    last = 3 if isinstance(source, range) else 5
    job_id = lab.submit(over(source, seen))
    assert lab.perform(job_id, stopping=at_item(last)).reason == "stopping"
    stored = lab.get(job_id)
    assert [(step.name, step.status) for step in stored.steps] == [("loop", "completed")]
    assert lab.perform(job_id).ok
    assert len(seen) == last


def test_a_stop_after_the_last_item_of_the_last_step_completes_the_job(lab: Lab) -> None:
    async def loop(ctx: AsyncContext) -> None:
        async for _ in ctx.each("loop", range(3)):
            pass

    assert lab.perform(lab.submit(loop), stopping=at_item(3)).ok


def test_each_run_does_at_least_one_item_whatever_stopping_says(lab: Lab) -> None:
    seen: list[int] = []
    job_id = lab.submit(over(range(3), seen))
    for expected in (1, 2, 3):
        assert lab.perform(job_id, stopping=lambda ctx: True).reason == "stopping"
        assert len(seen) == expected
    assert lab.perform(job_id, stopping=lambda ctx: True).ok
    assert seen == [0, 1, 2]


def test_an_error_of_the_source_counts_the_item_before_it_as_done(lab: Lab) -> None:
    def source(cursor: object) -> Iterator[tuple[int, int]]:
        for number in range(cursor if isinstance(cursor, int) else 0, 4):
            if number == 2 and not repaired:
                raise OSError("the disk is gone")
            yield number, number + 1

    repaired: list[bool] = []
    seen: list[int] = []
    job_id = lab.submit(over(source, seen))
    assert isinstance(lab.perform(job_id).error, OSError)
    repaired.append(True)
    assert lab.perform(job_id).ok
    assert seen == [0, 1, 2, 3]


def test_a_cursor_too_large_is_refused_before_its_item_is_worked_on(lab: Lab) -> None:
    def source(cursor: object) -> Iterator[tuple[int, object]]:
        yield 1, "x"
        yield 2, "x" * 65_536

    seen: list[int] = []
    job_id = lab.submit(over(source, seen))
    with pytest.raises(SerializationError, match="cursor cannot be stored"):
        lab.perform(job_id)
    assert seen == [1]
    assert lab.get(job_id).steps[0].cursor == "x"


def test_an_integer_cursor_too_large_after_small_ones_stops_the_loop_at_its_item(
    runtime: Runtime,
) -> None:
    def source(cursor: object) -> Iterator[tuple[int, int]]:
        for number in range(10**9):
            yield number, huge if number > 1 else number

    huge = 10**160_000

    endless = Lab(runtime, "def").job(over(source, deque(maxlen=1)), checkpoint_every=0.05)
    with pytest.raises(SerializationError, match="and 65536 are allowed"):
        runtime.perform(runtime.submit(endless))


def test_a_source_is_closed_when_its_loop_ends_or_is_left(runtime: Runtime) -> None:
    source = Letters()
    lab = Lab(runtime, "def")
    job_id = lab.submit(over(source, []))
    lab.perform(job_id, stopping=interrupt_during("loop", "b"))
    assert source.closed == 1
    lab.perform(job_id)
    assert source.closed == 2


# -- saving ---


@pytest.mark.parametrize("source", [range(4), Letters()], ids=["sequence", "pairs"])
@pytest.mark.parametrize("flavour", ["def", "async def"])
def test_with_checkpoint_every_0_the_cursor_is_saved_before_the_next_item(
    tmp_path: Path, flavour: Any, source: Any
) -> None:
    async def watched(ctx: AsyncContext) -> None:
        loop = ctx.each("loop", source)
        async for _ in loop:
            steps = other.get(ctx.id).steps
            saved.append(steps[0].items if steps else 0)
            live.append(loop.items)

    saved: list[int] = []
    live: list[int] = []
    url = f"sqlite:///{tmp_path}/jobs.db"
    with Runtime(url) as runtime, Runtime(url) as other:
        assert Lab(runtime, flavour).run(watched, checkpoint_every=0).ok
    assert saved == live == list(range(len(live)))


def test_with_checkpoint_every_0_set_saves_before_it_returns(tmp_path: Path) -> None:
    @tracedjobs.job(checkpoint_every=0)
    def watched(ctx: Context) -> None:
        @ctx.step("work", start=0)
        def work(step: tracedjobs.Step) -> None:
            for cursor in ("a", ("b", 1), None):
                step.set(cursor)
                assert other.get(ctx.id).steps[0].cursor == cursor

    url = f"sqlite:///{tmp_path}/jobs.db"
    with Runtime(url) as runtime, Runtime(url) as other:
        assert runtime.perform(runtime.submit(watched)).ok


def test_a_loop_leaves_nothing_behind_in_memory(runtime: Runtime) -> None:
    @tracedjobs.job
    def loop(ctx: Context) -> None:
        item = object()
        before = sys.getrefcount(item)
        for each in ctx.each("loop", [item] * 3):
            del each
        assert sys.getrefcount(item) == before

    assert runtime.perform(runtime.submit(loop)).ok
