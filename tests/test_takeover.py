"""What is read of a dead process's flight recorder: its own runs' true positions, and no more."""

from __future__ import annotations

import asyncio
import fcntl
import itertools
import json
import os
import shutil
import signal
import struct
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.processes import PERFORM, Children, until
from tests.run_directories import own_run_directory
from tracedjobs import AsyncContext, Context, Job, Runtime, Status, Step, job
from tracedjobs._core import owner
from tracedjobs._core.flight_recorder import (
    CELL,
    CHECK,
    COUNT,
    HEADER,
    INTEGER,
    KEY,
    KIND,
    LENGTHS,
    NUMBERS,
    OFFSET,
    check_of,
    key_of,
    slots_of,
)
from tracedjobs._core.records import Position, StepRecord, Stored
from tracedjobs._core.takeover import Takeover, forget, jobs_of_the_dead, takeover
from tracedjobs.errors import TracedJobsError

if TYPE_CHECKING:
    from collections.abc import Iterator

# From Python 3.12 on a fork warns where there are other threads, and the saver is one.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")

KINDS: Final = ("range", "part of a range", "list", "tuple", "pairs", "set", "advance")
SIZE: Final = 12
AT: Final = 7
"""The item at which the process of a run is killed, which is then done again."""


def pairs(cursor: Any) -> Iterator[tuple[int, int]]:
    for at in range(cursor or 0, SIZE):
        yield at, at + 1


SOURCES: Final[dict[str, Any]] = {
    "range": range(SIZE),
    "part of a range": range(20, 20 + 2 * SIZE, 2),
    "list": list(range(SIZE)),
    "tuple": tuple(range(SIZE)),
    "pairs": pairs,
}
done: list[int] = []


def do(item: int, *, deadly: bool) -> None:
    if deadly and len(done) == AT:
        os.kill(os.getpid(), signal.SIGKILL)
    done.append(item)


@job(name="takeover", checkpoint_every=1000)
def taken(ctx: Context, kind: str) -> list[int]:
    """Is killed in its first run; what it did in this one."""
    done.clear()
    if kind in SOURCES:
        for item in ctx.each("items", SOURCES[kind]):
            do(item, deadly=ctx.run == 1)
        return [*done]

    def by_hand(step: Step) -> None:
        for item in range(step.cursor, SIZE):
            do(item, deadly=ctx.run == 1)
            if kind == "set":
                step.set(item + 1)
            else:
                step.advance()

    ctx.step("items", by_hand, start=0)
    return [*done]


@job(name="takeover-async", checkpoint_every=1000)
async def taken_async(ctx: AsyncContext, kind: str) -> list[int]:
    """The same."""
    done.clear()
    if kind in SOURCES:
        async for item in ctx.each("items", SOURCES[kind]):
            do(item, deadly=ctx.run == 1)
        return [*done]

    async def by_hand(step: Step) -> None:
        for item in range(step.cursor, SIZE):
            do(item, deadly=ctx.run == 1)
            await (step.set(item + 1) if kind == "set" else step.advance())

    await ctx.step("items", by_hand, start=0)
    return [*done]


def perform(runtime: Runtime, job_id: str) -> Any:
    if runtime.get(job_id).name.endswith("async"):
        return asyncio.run(runtime.perform_async(job_id)).result
    return runtime.perform(job_id).result


def die(runtime: Runtime, job_id: str) -> None:
    """Perform the job in a process, which it kills."""
    child = os.fork()
    if child == 0:
        try:
            perform(runtime, job_id)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL


def wrecked(runtime: Runtime, kind: str = "range", function: Job[..., Any] = taken) -> str:
    """A job whose process was killed when seven items were done, none of them saved."""
    job_id = runtime.submit(function, kind)
    die(runtime, job_id)
    return job_id


def loaded(runtime: Runtime, job_id: str) -> Stored:
    stored = runtime.store.load(job_id)
    assert stored is not None
    return stored


@pytest.fixture
def runtime(tmp_path: Path, run_dir: Path) -> Iterator[Runtime]:
    with Runtime(f"sqlite:///{tmp_path}/jobs.db") as made:
        yield made


@pytest.fixture
def children(tmp_path: Path) -> Iterator[Children]:
    with Children(tmp_path) as made:
        yield made


def file_of(runtime: Runtime, job_id: str) -> Path:
    name = loaded(runtime, job_id).job.owner
    assert name is not None
    return owner.lock_path(name)


# -- what is adopted ---


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("function", [taken, taken_async], ids=["def", "async def"])
def test_a_run_goes_on_at_the_item_at_which_its_process_was_killed(
    runtime: Runtime, run_dir: Path, kind: str, function: Job[..., Any]
) -> None:
    job_id = wrecked(runtime, kind, function)
    assert runtime.get(job_id).steps == ()
    items = list(SOURCES[kind]) if kind in SOURCES and kind != "pairs" else list(range(SIZE))
    assert perform(runtime, job_id) == items[AT:]
    found = runtime.get(job_id)
    assert (found.status, found.items, found.items_redone) == (Status.COMPLETED, SIZE, 0)
    assert found.steps[0].total == (SIZE if kind in SOURCES and kind != "pairs" else None)
    (mine,) = run_dir.iterdir()
    assert mine == owner.held_path()


def test_recover_adopts_in_the_same_run_directory(runtime: Runtime, run_dir: Path) -> None:
    job_id = wrecked(runtime)
    assert runtime.recover() == [job_id]
    found = runtime.get(job_id)
    assert (found.status, found.current and found.current.cursor) == (Status.INTERRUPTED, AT)
    assert list(run_dir.iterdir()) == []
    assert perform(runtime, job_id) == list(range(AT, SIZE))


def test_what_another_run_directory_recovered_is_adopted_in_this_one_later(
    tmp_path: Path, runtime: Runtime, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Runtime(runtime.store.url, lease_ttl=0.5) as short:
        job_id = wrecked(short)
    monkeypatch.setenv("TRACEDJOBS_RUN_DIR", str(tmp_path / "other"))
    assert list(jobs_of_the_dead()) == []
    until(lambda: runtime.recover() == [job_id], "its lease ends")
    assert loaded(runtime, job_id).job.lost_token is not None
    assert runtime.get(job_id).current is None
    monkeypatch.setenv("TRACEDJOBS_RUN_DIR", str(run_dir))
    assert perform(runtime, job_id) == list(range(AT, SIZE))
    assert loaded(runtime, job_id).job.lost_token is None


def test_what_another_run_directory_performs_begins_at_the_last_save(
    tmp_path: Path, runtime: Runtime, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Runtime(runtime.store.url, lease_ttl=0.5) as short:
        job_id = wrecked(short)
    monkeypatch.setenv("TRACEDJOBS_RUN_DIR", str(tmp_path / "other"))
    until(lambda: runtime.get(job_id).lost, "its lease ends")
    assert perform(runtime, job_id) == list(range(SIZE))


def test_all_jobs_of_a_process_are_adopted_and_its_file_goes_with_the_last(
    runtime: Runtime, run_dir: Path
) -> None:
    @job(name="two", checkpoint_every=1000)
    async def two(ctx: AsyncContext, until_item: int, after: int) -> int:
        first = None
        async for item in ctx.each("items", range(100)):
            first = item if first is None else first
            if ctx.run == 1 and item == until_item:
                waiting.append(item)
                if len(waiting) == 3:
                    os.kill(os.getpid(), signal.SIGKILL)
                await asyncio.Event().wait()
        return first or 0

    waiting: list[int] = []
    job_ids = [runtime.submit(two, item, 0) for item in (10, 20, 30)]

    async def all_of_them() -> None:
        await asyncio.gather(*map(runtime.perform_async, job_ids))

    child = os.fork()
    if child == 0:
        try:
            asyncio.run(all_of_them())
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    (left,) = run_dir.iterdir()
    assert set(jobs_of_the_dead()) == set(job_ids)
    for job_id, begins in zip(job_ids, (10, 20, 30), strict=True):
        assert left.exists()
        assert asyncio.run(runtime.perform_async(job_id)).result == begins
    assert not left.exists()


# -- what is ignored ---


@pytest.fixture
def lost(runtime: Runtime) -> Stored:
    """A job whose process left a cell that says that seven items are done."""
    stored = loaded(runtime, wrecked(runtime))
    assert at(takeover(stored)) == (str(AT), AT)
    return stored


def at(found: Takeover) -> tuple[str, int] | None:
    return None if found.position is None else (found.position.cursor, found.position.items)


def changed(stored: Stored, **columns: Any) -> Stored:
    return stored._replace(job=replace(stored.job, **columns))


@pytest.mark.parametrize("saved", [0, 3, AT, AT + 1, SIZE])
def test_a_cell_never_moves_a_cursor_backwards(lost: Stored, saved: int) -> None:
    found = takeover(changed(lost, step="items", cursor=str(saved), items=saved))
    assert at(found) == (str(max(saved, AT)), max(saved, AT))
    assert found.redone == 0


@pytest.mark.parametrize(
    "columns",
    [
        {"token": "0123456789abcdef"},
        {"id": "another job"},
        {"token": None},
        {"owner": None},
        {"owner": "0123456789abcdef01234567"},
        {"owner": "../run"},
        {"lease_boot": "another boot"},
        {"lease_boot": None},
        {"step": "another step", "cursor": "1", "items": 1},
    ],
    ids=str,
)
def test_a_cell_of_another_run_or_step_or_boot_is_ignored(
    lost: Stored, columns: dict[str, Any]
) -> None:
    other = changed(lost, **columns)
    found = takeover(other)
    assert found.position == other.open_position
    assert found.redone == 0
    forget(changed(lost, token="0123456789abcdef").job)
    assert at(takeover(lost)) == (str(AT), AT)


def test_a_cell_of_a_completed_step_is_ignored(lost: Stored) -> None:
    step = StepRecord("items", "null", "12", 12, 12, None, 0.0, 0.0, 1)
    found = takeover(lost._replace(steps=(step,)))
    assert found == Takeover(None, found=True)
    other = changed(lost._replace(steps=(step,)), step="next", cursor="2", items=2)
    assert takeover(other) == Takeover(other.open_position, found=True)


def test_a_cell_is_ignored_where_the_store_has_lost_what_was_completed_before_its_step(
    lost: Stored,
) -> None:
    # The other way round, which is the same to the reader: the cell knows of no step before.
    step = StepRecord("before", "null", "null", 0, None, None, 0.0, 0.0, 1)
    assert takeover(lost._replace(steps=(step,))) == Takeover(None, found=True)


def test_a_cell_of_a_process_that_lives_is_ignored(lost: Stored) -> None:
    assert lost.job.owner is not None
    path = owner.lock_path(lost.job.owner)
    handle = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        assert takeover(lost) == Takeover(None)
        assert list(jobs_of_the_dead()) == []
        forget(lost.job)
        owner._remove_stale(path.parent)
    finally:
        os.close(handle)
    assert at(takeover(lost)) == (str(AT), AT)


def test_a_cell_that_was_forgotten_is_no_more(lost: Stored) -> None:
    forget(lost.job)
    assert takeover(lost) == Takeover(None)
    forget(lost.job)


@pytest.mark.parametrize("to", [0, 3, 9])
def test_a_rewound_job_begins_where_it_was_told(runtime: Runtime, to: int) -> None:
    job_id = wrecked(runtime)
    # Its step is not in the store yet, so that there is nothing to rewind before this.
    assert runtime.recover() == [job_id]
    runtime.rewind(job_id, "items", cursor=to)
    assert perform(runtime, job_id) == list(range(to, SIZE))


def test_a_job_that_another_run_directory_recovered_and_was_rewound_begins_where_it_was_told(
    tmp_path: Path, runtime: Runtime, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @job(name="saved-first", checkpoint_every=0)
    def saved_first(ctx: Context) -> list[int]:
        done.clear()
        for item in ctx.each("items", range(SIZE)):
            do(item, deadly=ctx.run == 1)
        return [*done]

    with Runtime(runtime.store.url, lease_ttl=0.5) as short:
        job_id = short.submit(saved_first)
        die(short, job_id)
    monkeypatch.setenv("TRACEDJOBS_RUN_DIR", str(tmp_path / "other"))
    until(lambda: runtime.recover() == [job_id], "its lease ends")
    assert loaded(runtime, job_id).job.lost_token is not None
    runtime.rewind(job_id, "items", cursor=2)
    monkeypatch.setenv("TRACEDJOBS_RUN_DIR", str(run_dir))
    assert perform(runtime, job_id) == list(range(2, SIZE))


STOPPED: Final = """
@job(name="takeover", checkpoint_every=0.02)
def taken(ctx: Context, kind: str):
    for item in ctx.each("items", range(12)):
        if item == 7:
            say("there")
            with runtime.store._db._lock:  # not with the file's write lock, which nobody frees then
                os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(0.05)
"""


def test_a_frozen_process_whose_lease_ended_is_not_read(
    runtime: Runtime, children: Children
) -> None:
    job_id = runtime.submit(taken, "range")
    child = children.start(STOPPED + PERFORM, runtime.store.url, job_id, 0.5)
    child.says("there")
    until(lambda: runtime.get(job_id).lost, "its lease ends")
    stored = loaded(runtime, job_id)
    assert takeover(stored) == Takeover(stored.open_position)
    assert runtime.recover() == [job_id]
    assert takeover(loaded(runtime, job_id)) == Takeover(stored.open_position)
    assert file_of(runtime, job_id).exists()
    child.kill()
    # Nobody has run it since, and what that process has done is done.
    found = takeover(loaded(runtime, job_id))
    assert at(found) == ("7", 7)


# -- what is no flight recorder ---


@dataclass(frozen=True)
class Wreck:
    """A job whose process is dead, and the file that it left."""

    stored: Stored
    path: Path
    data: bytes = field(repr=False)
    store: Path
    folder: Path

    @property
    def key(self) -> int:
        assert self.stored.job.token is not None
        return key_of(self.stored.job.id, self.stored.job.token)


@pytest.fixture(scope="module")
def wreck(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wreck]:
    folder = tmp_path_factory.mktemp("wreck")
    with own_run_directory(folder / "run"):
        with Runtime(f"sqlite:///{folder}/jobs.db") as runtime:
            job_id = wrecked(runtime)
            stored = loaded(runtime, job_id)
            path = file_of(runtime, job_id)
        # Closed, so that all that is stored is in the one file.
        yield Wreck(stored, path, path.read_bytes(), folder / "jobs.db", folder)


def look(wreck: Wreck, data: bytes) -> Takeover:
    """What is read when the file holds that; nothing may be raised."""
    wreck.path.write_bytes(data)
    list(jobs_of_the_dead())
    return takeover(wreck.stored)


def is_true(found: Takeover) -> bool:
    """Whether it is what the run did, or nothing, or how much alone, as of a job with state."""
    return (at(found), found.redone) in {(None, 0), ((str(AT), AT), 0), (None, AT)}


NO_SLOTS: Final[list[int]] = []
HEAD: Final = struct.pack("<2q", *HEADER).ljust(CELL, b"\0")
integers = st.one_of(
    st.sampled_from([0, 1, -1, 2, 7, 2**63 - 1, -(2**63), 1 << 16, (1 << 16) - 1, 447, 448]),
    st.integers(-(2**63), 2**63 - 1),
)


@given(data=st.binary(max_size=3 * CELL))
@settings(max_examples=150)
def test_random_bytes_say_nothing(wreck: Wreck, data: bytes) -> None:
    assert look(wreck, data) == Takeover(None)
    assert look(wreck, HEAD + data) == Takeover(None)
    assert look(wreck, HEAD + data.ljust(3 * CELL, b"\xff")) == Takeover(None)


@given(size=st.integers(0, 2 * CELL))
def test_a_file_that_was_cut_says_the_truth_or_nothing(wreck: Wreck, size: int) -> None:
    assert is_true(look(wreck, wreck.data[:size]))
    assert is_true(look(wreck, wreck.data[:size].ljust(len(wreck.data), b"\0")))


NOT_THE_POSITION: Final = [
    *range(16),
    *range(CELL + 8 * CHECK, CELL + 8 * (NUMBERS + 30)),
]


@given(
    flips=st.dictionaries(
        st.sampled_from(NOT_THE_POSITION), st.integers(1, 255), min_size=1, max_size=8
    )
)
@settings(max_examples=300)
def test_a_file_in_which_bytes_were_changed_says_the_truth_or_nothing(
    wreck: Wreck, flips: dict[int, int]
) -> None:
    data = bytearray(wreck.data)
    for where, flip in flips.items():
        data[where] ^= flip
    assert is_true(look(wreck, bytes(data)))


def cell(wreck: Wreck, numbers: list[int], texts: bytes, *, keyed: bool = True) -> bytes:
    numbers = [*numbers]
    if keyed:
        numbers[KEY] = wreck.key
    return HEAD + struct.pack("<8q", *numbers) + texts[: CELL - 64].ljust(CELL - 64, b"\0")


def with_slots(data: bytes, slots: list[int]) -> bytes:
    """The cell with those in its slots, over and over."""
    (lengths,) = struct.unpack_from("<q", data, CELL + 8 * LENGTHS)
    room = [] if slots == NO_SLOTS else slots_of(lengths)
    filled = [slot for _, slot in zip(room, itertools.cycle(slots), strict=False)]
    return data[: len(data) - 8 * len(filled)] + struct.pack(f"<{len(filled)}q", *filled)


@given(numbers=st.lists(integers, min_size=8, max_size=8), texts=st.binary(max_size=448))
@settings(max_examples=300)
def test_a_cell_with_the_right_key_and_nothing_else_right_says_nothing(
    wreck: Wreck, numbers: list[int], texts: bytes
) -> None:
    found = look(wreck, cell(wreck, numbers, texts))
    assert (found.position, found.redone) == (None, 0)


plain = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just("items")
)
laid_out = st.one_of(
    plain, st.lists(plain, max_size=6), st.lists(plain, min_size=5, max_size=5)
).map(lambda value: json.dumps(value).encode())


def hostile(wreck: Wreck, numbers: list[int], text: bytes, step: str) -> bytes:
    """A cell whose check is right."""
    numbers = [*numbers]
    name = wreck.stored.job.id.encode()
    numbers[LENGTHS] = len(name) | len(text) << 16
    numbers[CHECK] = check_of(wreck.key, step, text, 0)
    return cell(wreck, numbers, name + text)


@given(
    numbers=st.lists(integers, min_size=8, max_size=8),
    text=st.one_of(laid_out, st.binary(max_size=100)),
    step=st.sampled_from(["items", "", "None", "1"]),
    slots=st.one_of(st.just(NO_SLOTS), st.lists(integers, min_size=1, max_size=32)),
)
@example([0] * 8, b'["items", Infinity, null, 0, null]', "items", NO_SLOTS)
@example([0] * 8, b'["items", 1, null, Infinity, null]', "items", NO_SLOTS)
@example([0] * 8, b'["items", 1, null, 1' + b"0" * 370 + b", null]", "items", NO_SLOTS)
@example([0] * 8, b'["items", 1' + b"0" * 370 + b", null, 1, null]", "items", NO_SLOTS)
@example([0] * 8, b'["items", -1, null, NaN, null]', "items", NO_SLOTS)
@example([0] * 8, b'["\\ud800", null, null, 1, null]', "\ud800", NO_SLOTS)
@example([0] * 8, b"[" * 400, "items", NO_SLOTS)
@example(
    [2**63 - 1, 0, 0, OFFSET, -(2**63), 0, 0, 0], b'["items",1,null,1,null]', "items", NO_SLOTS
)
@example([-1, 0, 0, OFFSET, -8, 0, 0, 0], b'["items",1,null,1,null]', "items", NO_SLOTS)
@example([-1, 0, 0, INTEGER, 0, 0, 0, 0], b'["items",1,null,1,null]', "items", NO_SLOTS)
@example([0, 0, -1, INTEGER, 0, 0, 0, 0], b'["items",1,null,1,null]', "items", NO_SLOTS)
@example([0, 0, 2**63 - 1, 0, 0, 0, 0, 0], b'["items",1,null,1,null]', "items", NO_SLOTS)
@example([0, 7, -2, INTEGER, 0, 0, 0, 0], b'["items",1,null,1,null]', "items", [1])
@example([0, 7, -(2**63), INTEGER, 5, 0, 0, 0], b'["items",1,null,1,null]', "items", [1])
@settings(max_examples=60)
def test_a_cell_that_was_forged_crashes_nothing(
    wreck: Wreck, numbers: list[int], text: bytes, step: str, slots: list[int]
) -> None:
    # Whoever can write it is the user. It may say what it likes, and the job's own checks are
    # left; but what is read and stored is sound.
    data = with_slots(hostile(wreck, numbers, text, step), slots)
    found = look(wreck, data)
    position = found.position
    assert position is None or (position.items >= 0 and position.step == step)
    copy = wreck.folder / "copy.db"
    shutil.copy(wreck.store, copy)
    with Runtime(f"sqlite:///{copy}", handle_signals=False) as runtime:
        job_id = wreck.stored.job.id
        before = runtime.get(job_id)
        assert before.lost
        try:
            runtime.perform(job_id)
        except TracedJobsError:
            assert position is not None
        runtime.get(job_id)
        runtime.list()
        look(wreck, data)
        runtime.recover()
    copy.unlink()


def test_a_forged_cell_can_be_recovered(wreck: Wreck) -> None:
    numbers = [2**63 - 1, 0, 0, OFFSET, -(2**63), 0, 0, 0]
    look(wreck, hostile(wreck, numbers, b'["items", 1, null, 1, null]', "items"))
    copy = wreck.folder / "copy.db"
    shutil.copy(wreck.store, copy)
    with Runtime(f"sqlite:///{copy}", handle_signals=False) as runtime:
        assert runtime.recover() == [wreck.stored.job.id]
        assert runtime.get(wreck.stored.job.id).status is Status.INTERRUPTED
    copy.unlink()


def sparse(path: Path) -> None:
    path.touch()
    with path.open("r+b") as file:
        file.write(HEAD)
    os.truncate(path, 1 << 30)


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.symlink_to("/etc/passwd"),
        lambda path: path.symlink_to(path.parent / "nowhere"),
        os.mkfifo,
        Path.mkdir,
        Path.touch,
        sparse,
    ],
    ids=["symlink", "dangling", "fifo", "directory", "empty", "1 GiB"],
)
def test_what_is_no_file_of_cells_is_passed_over_and_the_others_are_read(
    runtime: Runtime, run_dir: Path, make: Any
) -> None:
    job_id = wrecked(runtime)
    other = runtime.submit(taken, "list")
    die(runtime, other)
    path = file_of(runtime, job_id)
    path.unlink()
    make(path)
    for name in ("0" * 24, "f" * 24):
        make(run_dir / f"{name}.lock")
    assert list(jobs_of_the_dead()) == [other]
    stored = loaded(runtime, job_id)
    assert takeover(stored) == Takeover(None)
    forget(stored.job)
    owner._remove_stale(run_dir)
    assert runtime.recover() == [other]
    assert perform(runtime, other) == list(range(AT, SIZE))
    if runtime.get(job_id).lost:
        assert perform(runtime, job_id) == list(range(SIZE))


def test_a_cell_of_a_position_that_is_not_the_integers_keeps_what_was_saved(
    lost: Stored, runtime: Runtime
) -> None:
    path = file_of(runtime, lost.job.id)
    data = bytearray(path.read_bytes())
    place = CELL
    struct.pack_into("<q", data, place + 8 * KIND, 0)
    struct.pack_into("<q", data, place + 8 * COUNT, 9)
    path.write_bytes(data)
    saved = changed(lost, step="items", cursor='"text"', items=4)
    assert takeover(saved) == Takeover(
        Position("items", '"text"', 4, started_at=0.0), redone=5, redone_in="items", found=True
    )
    assert takeover(lost) == Takeover(None, redone=9, redone_in="items", found=True)
