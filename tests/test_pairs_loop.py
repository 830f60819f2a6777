"""Loops over pairs, as the saver's thread sees them, and cursors whose type changes on the way."""

from __future__ import annotations

import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Final

import pytest

import tracedjobs
from tests.loop_jobs import over
from tracedjobs._core import values
from tracedjobs.errors import SerializationError
from tracedjobs.testing import interrupt_during

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.both_ways import Lab
    from tracedjobs import AsyncContext, Context


LOOKS: Final = 200
"""Places that the other thread is to see; the loop goes on for it, for a while."""


@pytest.fixture
def eager_threads() -> Iterator[None]:
    """Threads that take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("eager_threads")
@pytest.mark.parametrize(
    ("make", "count"), [(int, 200_000), (str, 20_000)], ids=["int cursors", "text cursors"]
)
def test_another_thread_never_sees_a_cursor_without_its_count(
    lab: Lab, make: Callable[[int], object], count: int
) -> None:
    def source(cursor: Any) -> Iterator[tuple[int, object]]:
        give_up = time.monotonic() + 2
        number = int(cursor) // 3
        while number < count or (len(seen) < LOOKS and time.monotonic() < give_up):
            number += 1
            yield number, make(3 * number)

    async def loop(ctx: AsyncContext) -> None:
        pairs = ctx.each("loop", source, start=make(0))
        assert ctx.current is not None
        watched.append(ctx.current)
        ready.set()
        async for _ in pairs:
            pass
        over_.set()

    def look() -> None:
        assert ready.wait(20)
        position = watched[0].position
        while not over_.is_set():
            place = position()
            cursor = int(str(values.decode(place.cursor)))
            seen.add(place.items)
            if cursor != 3 * place.items:
                wrong.append((cursor, place.items))

    watched: list[Any] = []
    seen: set[int] = set()
    wrong: list[tuple[int, int]] = []
    ready, over_ = threading.Event(), threading.Event()
    thread = threading.Thread(target=look)
    thread.start()
    try:
        outcome = lab.run(loop)
    finally:
        ready.set()
        over_.set()
        thread.join(20)
    assert outcome.ok
    assert wrong == []
    assert len(seen) > LOOKS / 10, "it looked too seldom to find anything"
    done = lab.get(outcome.job_id).steps[0]
    assert done.items >= count
    assert done.cursor == make(3 * done.items)


def ints_then(*later: object) -> Callable[[object], Iterator[tuple[int, object]]]:
    """A source whose cursors are 1, 2, 3, and then these."""

    def source(cursor: object) -> Iterator[tuple[int, object]]:
        cursors: list[object] = [None, 1, 2, 3, *later]
        done = cursors.index(cursor)
        return enumerate(cursors[done + 1 :], done)

    return source


@pytest.mark.parametrize("every", [1.0, 0], ids=["now and then", "at every item"])
def test_a_cursor_that_cannot_be_stored_after_ints_does_not_complete_the_step(
    lab: Lab, every: float
) -> None:
    seen: list[int] = []
    job_id = lab.submit(over(ints_then(lambda: None), seen), checkpoint_every=every)
    with pytest.raises(SerializationError):
        lab.perform(job_id)
    assert seen in ([0, 1, 2], [0, 1, 2, 3])
    found = lab.get(job_id)
    assert found.status == "failed"
    assert [(step.name, step.status) for step in found.steps] == [("loop", "failed")]
    assert found.steps[0].cursor in (None, 1, 2, 3)


@pytest.mark.parametrize("later", ["letters", ("a", 7), 4.5, True, None, b"x"], ids=repr)
def test_cursors_that_are_no_ints_after_ints_are_resumed_with_their_type(
    lab: Lab, later: object
) -> None:
    asked: list[object] = []
    seen: list[int] = []

    def source(cursor: object) -> Iterator[tuple[int, object]]:
        asked.append(cursor)
        start = 0 if len(asked) == 1 else 3
        yield from [(0, 1), (1, 2), (2, later), (3, 10)][start:]

    def stopping(ctx: Any) -> bool:
        return len(asked) == 1 and ctx.current is not None and ctx.current.items == 3

    job_id = lab.submit(over(source, seen))
    assert lab.perform(job_id, stopping=stopping).reason == "stopping"
    stored = lab.get(job_id).steps[0]
    assert (stored.cursor, type(stored.cursor), stored.items) == (later, type(later), 3)
    assert lab.perform(job_id).ok
    assert (asked[1], type(asked[1])) == (later, type(later))
    assert seen == [0, 1, 2, 3]
    assert (lab.get(job_id).steps[0].cursor, lab.get(job_id).steps[0].items) == (10, 4)


@pytest.mark.parametrize("at", [0, 1, 2, 20, 32, 33, 34, 70])
def test_a_stop_that_comes_while_the_source_works_is_seen_before_its_item(
    lab: Lab, at: int
) -> None:
    def source(cursor: Any) -> Iterator[tuple[int, int]]:
        for number in range(cursor or 0, 80):
            if number == at and not asked:
                asked.append(True)
                held[0]._run.request_stop("stopping")
            yield number, number + 1

    async def loop(ctx: AsyncContext) -> None:
        held[:] = [ctx]
        async for item in ctx.each("loop", source):
            seen.append(item)  # noqa: PERF401 - the loop is what is tested

    asked: list[bool] = []
    held: list[Any] = []
    seen: list[int] = []
    job_id = lab.submit(loop)
    assert lab.perform(job_id).reason == "stopping"
    assert seen == [*range(at)]
    assert lab.perform(job_id).ok
    assert seen == [*range(80)]


def test_a_text_that_looks_like_json_is_a_cursor_like_any_other(lab: Lab) -> None:
    for text in ("1", "null", '"1"', "[1]"):
        asked: list[object] = []

        def source(cursor: object, text: str = text, asked: list[object] = asked) -> Any:
            asked.append(cursor)
            return [(0, 1), (1, text), (2, "end")] if cursor is None else [(2, "end")]

        job_id = lab.submit(over(source, []))
        lab.perform(job_id, stopping=interrupt_during("loop", text))
        assert lab.perform(job_id).ok
        assert asked == [None, text]


def test_the_cursor_in_a_loop_has_the_type_that_the_source_gave(
    runtime: tracedjobs.Runtime,
) -> None:
    @tracedjobs.job
    def looks(ctx: Context) -> None:
        loop = ctx.each("loop", ints_then("four", ("five",), 6))
        for _ in loop:
            seen.append(loop.cursor)  # noqa: PERF401 - the loop is what is tested
        seen.append(loop.cursor)

    seen: list[object] = []
    assert runtime.perform(runtime.submit(looks)).ok
    assert seen == [None, 1, 2, 3, "four", ("five",), 6]
