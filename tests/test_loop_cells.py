"""What a loop leaves in its cell of the flight recorder, between any two of its instructions."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.killed_runs import die
from tracedjobs import Context, Runtime, job
from tracedjobs._core import flight_recorder, pairs_loop
from tracedjobs._core.cell_layout import (
    AHEAD,
    CELL,
    EMPTY,
    INTEGER,
    KIND,
    LENGTHS,
    OFFSET,
    integers_of,
    private_numbers,
    slots_of,
    view_of,
)
from tracedjobs._core.flight_recorder import MOST_LENT, take_cell
from tracedjobs._core.records import Position

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import FrameType

ITEMS: Final = 3 * CELL // 8 + 5
HUGE: Final = 1 << 70
LONG: Final = "i" * 255
ROOM: Final[dict[str, tuple[str, str]]] = {
    "many slots": ("short", "items"),
    "few slots": (LONG, "items"),
    "none": (LONG, "items" * 25),
    "lent to others": ("short", "items"),
}
"""An id and the name of a step, and how much room they leave."""


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


@pytest.mark.parametrize("room", ROOM)
@pytest.mark.parametrize("kind", SOURCES)
def test_between_any_two_instructions_the_cell_says_what_is_done_and_no_more(
    runtime: Runtime, kind: str, room: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if room == "lent to others":
        monkeypatch.setattr(flight_recorder, "MOST_LENT", 0)
        monkeypatch.setattr(pairs_loop, "PATIENCE", 30)
    source, cursor_after = SOURCES[kind]
    job_id, step = ROOM[room]
    seen: set[int] = set()
    wrong: list[object] = []
    done = 0
    rooms: list[int] = []

    @job(name=f"watched {kind}", checkpoint_every=1000)
    def watched(ctx: Context) -> int:
        nonlocal done
        items = iter(ctx.each(step, source))
        numbers = ctx._run.cell.numbers
        rooms.append(len(slots_of(numbers[LENGTHS])))

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
    fewest, most = {"few slots": (8, 30), "none": (0, 7)}.get(room, (40, 56))
    assert fewest <= rooms[0] <= most


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
    for fatal in (1, 2, 3, 20, *range(40, 58), 95, 99, 103, ITEMS - 1):
        job_id = f"{kind} {fatal}"
        runtime.submit(killed_at, kind, fatal, job_id=job_id)
        die(runtime, job_id)
        outcome = runtime.perform(job_id)
        # Where its last cursor is no integer that fits, the job goes on at its last save, which
        # is its start here.
        cursor = SOURCES[kind][1](fatal - 1)
        exact = type(cursor) is int and cursor < HUGE
        assert outcome.result == [*range(fatal if exact else 0, ITEMS)], fatal
        assert outcome.items_redone == (0 if exact else fatal)


def test_a_loop_too_many_has_its_slots_once_another_is_done(run_dir: Path) -> None:
    numbers = private_numbers()
    numbers[AHEAD] = EMPTY
    cells = [take_cell(f"job {at}", "token") for at in range(MOST_LENT + 1)]
    for cell in cells:
        cell.open_step(Position("items", "null", 0), numbers)
    *lent, none = [cell.slots() for cell in cells]
    assert all(lent)
    assert none == ()
    assert cells[0].slots() is lent[0]
    lent[0][0][()] = 7
    assert cells[0].numbers[slots_of(cells[0].numbers[LENGTHS]).start] == 7
    cells[0].close_step()
    with pytest.raises(ValueError, match="released"):
        lent[0][0][()] = 8
    assert cells[-1].slots()
    for cell in cells:
        cell.free()
    assert not flight_recorder._lent


def opened_cell(step: str = "items") -> flight_recorder.Cell:
    cell = take_cell("job", "token")
    numbers = private_numbers()
    numbers[AHEAD] = EMPTY
    cell.open_step(Position(step, "null", 0), numbers)
    return cell


@pytest.mark.parametrize("step", ["i", "items" * 10], ids=["shorter", "longer"])
def test_the_slots_of_a_step_that_was_not_closed_are_not_those_of_the_next(
    run_dir: Path, step: str
) -> None:
    cell = opened_cell("items" * 5)
    old = cell.slots()
    numbers = private_numbers()
    numbers[AHEAD] = EMPTY
    cell.open_step(Position(step, "null", 0), numbers)
    with pytest.raises(ValueError, match="released"):
        old[0][()] = 7
    slots = cell.slots()
    places = slots_of(cell.numbers[LENGTHS])
    assert len(slots) == len(places)
    slots[0][()] = 8
    assert cell.numbers[places.start] == 8
    cell.free()


@pytest.mark.parametrize("when", [0, 20, -1], ids=["first", "midway", "last"])
def test_a_run_that_ends_while_a_thread_takes_its_slots_leaves_none_lent(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, when: int
) -> None:
    cell = opened_cell()
    fatal = slots_of(cell.numbers[LENGTHS])[when]

    def view_while_it_ends(numbers: memoryview, at: int) -> memoryview:
        view = view_of(numbers, at)
        if at == fatal:
            cell.free()
        return view

    monkeypatch.setattr(flight_recorder, "view_of", view_while_it_ends)
    with pytest.raises(ValueError, match="released"):
        cell.slots()
    assert not flight_recorder._lent
    assert not cell._slots


class AskedOnce:
    """Pairs that may not be asked for again once they have ended."""

    def __init__(self, size: int) -> None:
        self._left = iter(range(size))
        self._over = False

    def __iter__(self) -> AskedOnce:
        return self

    def __next__(self) -> tuple[int, int]:
        assert not self._over
        for at in self._left:
            return at, at + 1
        self._over = True
        raise StopIteration


@pytest.mark.parametrize(
    ("size", "answered"),
    [(0, ""), (1, ""), (2, "-"), (1001, "-"), (1002, "-"), (1003, "--"), (2500, "--+")],
)
def test_a_loop_without_slots_asks_for_them_seldom_and_has_them_once_there_are_some(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch, size: int, answered: str
) -> None:
    monkeypatch.setattr(flight_recorder, "MOST_LENT", 0)
    answers: list[str] = []
    ask = flight_recorder.Cell.slots

    def slots(cell: flight_recorder.Cell) -> tuple[memoryview, ...]:
        found = ask(cell)
        answers.append("+" if found else "-")
        return found

    monkeypatch.setattr(flight_recorder.Cell, "slots", slots)

    @job(name="one too many", checkpoint_every=1000)
    def one_too_many(ctx: Context) -> int:
        done = 0
        for item in ctx.each("items", lambda _: AskedOnce(size)):
            assert item == done
            done += 1
            if done == 1500:
                monkeypatch.setattr(flight_recorder, "MOST_LENT", 1)
        return done

    runtime.submit(one_too_many, job_id="job")
    outcome = runtime.perform("job")
    assert outcome.result == size
    assert "".join(answers) == answered
    assert not flight_recorder._lent
