"""What a loop leaves in its cell of the flight recorder, between any two of its instructions."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING, Any, Final

import pytest

from tracedjobs import Context, Runtime, job
from tracedjobs._core.flight_recorder import AHEAD, INTEGER, KIND, OFFSET, SLOTS, integers_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import FrameType

ITEMS: Final = 3 * len(SLOTS) + 5
HUGE: Final = 1 << 70
LONG: Final = "i" * 255
"""An id that leaves no room for slots."""


@pytest.fixture
def runtime(tmp_path: Path, run_dir: Path) -> Iterator[Runtime]:
    with Runtime(f"sqlite:///{tmp_path}/jobs.db") as made:
        yield made


def pairs_of(cursor_after: Callable[[int], object]) -> Callable[[object], Iterator[Any]]:
    def source(cursor: object) -> Iterator[tuple[int, object]]:
        places = [None, *map(cursor_after, range(ITEMS))]
        for at in range(places.index(cursor), ITEMS):
            yield at, cursor_after(at)

    return source


def ints(at: int) -> int:
    return 7 * at - 100


def mixed(at: int) -> object:
    """Integers, and now and then what fits no integer of a cell: texts, and ints too large."""
    if at % 45 == 40:
        return f"text {at}"
    return HUGE + at if at % 45 == 44 else ints(at)


def truths(at: int) -> object:
    """A bool among integers, which is none."""
    return True if at == 50 else 2 + at


SOURCES: Final[dict[str, tuple[Any, Callable[[int], object]]]] = {
    "range": (range(ITEMS), lambda at: at + 1),
    "list": ([*range(ITEMS)], lambda at: at + 1),
    "tuple": (tuple(range(ITEMS)), lambda at: at + 1),
    "a part of a range": (range(5, 5 + 2 * ITEMS, 2), lambda at: at + 1),
    "ints": (pairs_of(ints), ints),
    "mixed": (pairs_of(mixed), mixed),
    "truths": (pairs_of(truths), truths),
}


def says(numbers: list[int]) -> tuple[int | None, int]:
    """The cursor, where an integer is kept for it, and the count of items."""
    if numbers[KIND] == OFFSET:
        return numbers[0], numbers[0] - numbers[AHEAD]
    after, count = integers_of(numbers)
    return (after if numbers[KIND] == INTEGER else None), count


def is_kept(cursor: object, integer: int) -> bool:
    """Whether the cell's integer is that cursor; a bool is none."""
    return type(cursor) is int and cursor == integer


@pytest.mark.parametrize("job_id", ["short", LONG], ids=["with slots", "without"])
@pytest.mark.parametrize("kind", SOURCES)
def test_between_any_two_instructions_the_cell_says_what_is_done_and_no_more(
    runtime: Runtime, kind: str, job_id: str
) -> None:
    source, cursor_after = SOURCES[kind]
    seen: set[int] = set()
    wrong: list[object] = []
    done = 0

    @job(name=f"watched {kind}", checkpoint_every=1000)
    def watched(ctx: Context) -> int:
        nonlocal done
        items = iter(ctx.each("items", source))
        numbers = ctx._run.cell.numbers

        def look(frame: FrameType, _event: str, _argument: object) -> Any:
            frame.f_trace_opcodes = True
            cursor, count = says(numbers.tolist())
            seen.add(count)
            is_right = cursor is None or count == 0 or is_kept(cursor_after(count - 1), cursor)
            if count not in {done - 1, done} or not is_right:
                wrong.append((done, cursor, count))
            return look

        frame: Any = items.gi_frame  # type: ignore[attr-defined]  # a generator, as in def jobs
        before = sys.gettrace()
        sys.settrace(lambda *_: None)
        frame.f_trace = look
        frame.f_trace_opcodes = True
        try:
            for _ in items:
                done += 1
        finally:
            sys.settrace(before)
        return done

    runtime.submit(watched, job_id=job_id)
    assert runtime.perform(job_id).result == ITEMS
    assert wrong == []
    assert seen >= set(range(ITEMS))


@job(name="killed at an item", checkpoint_every=1000)
def killed_at(ctx: Context, kind: str, fatal: int) -> list[int]:
    source, _ = SOURCES[kind]
    done: list[int] = []
    for at, item in enumerate(ctx.each("items", source), 0):
        if ctx.run == 1 and at == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        done.append(item)
    return done


@pytest.mark.parametrize("kind", ["ints", "mixed", "truths"])
def test_after_a_kill_at_any_place_among_the_slots_no_item_is_done_again(
    runtime: Runtime, kind: str
) -> None:
    size = len(SLOTS)
    places = (1, 2, size - 1, size, size + 1, size + 2, 41, 42, 46, 51, 2 * size + 1, ITEMS - 1)
    for fatal in places:
        job_id = f"{kind} {fatal}"
        runtime.submit(killed_at, kind, fatal, job_id=job_id)
        if os.fork() == 0:
            try:
                runtime.perform(job_id)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.wait()[1]) == -signal.SIGKILL
        outcome = runtime.perform(job_id)
        # Where its last cursor is no integer that fits, the job goes on at its last save, which
        # is its start here.
        cursor = SOURCES[kind][1](fatal - 1)
        exact = type(cursor) is int and cursor < HUGE
        assert outcome.result == [*range(fatal if exact else 0, ITEMS)], fatal
        assert outcome.items_redone == (0 if exact else fatal)
