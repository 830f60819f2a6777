"""What is read of a dead process's flight recorder: its own runs' true positions, and no more."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import struct
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.killed_runs import (
    AT,
    KINDS,
    SIZE,
    SOURCES,
    at,
    changed,
    die,
    do,
    done,
    file_of,
    loaded,
    perform,
    taken,
    taken_async,
    wrecked,
)
from tests.processes import PERFORM, Children, until
from tracedjobs import AsyncContext, Context, Job, Runtime, Status, job
from tracedjobs._core import owner
from tracedjobs._core.cell_layout import CELL, COUNT, KIND
from tracedjobs._core.records import Position, StepRecord, Stored
from tracedjobs._core.takeover import Takeover, forget, jobs_of_the_dead, takeover

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# From Python 3.12 on a fork warns where there are other threads, and the saver is one.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")


@pytest.fixture
def runtime(tmp_path: Path, run_dir: Path) -> Iterator[Runtime]:
    with Runtime(f"sqlite:///{tmp_path}/jobs.db") as made:
        yield made


@pytest.fixture
def children(tmp_path: Path) -> Iterator[Children]:
    with Children(tmp_path) as made:
        yield made


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
