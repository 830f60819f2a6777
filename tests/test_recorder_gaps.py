"""The flight recorder at its edges: texts too long for a cell, ends that no store knows, races."""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from itertools import count
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.killed_runs import die, loaded
from tests.processes import PATIENCE, Children, until
from tests.processes import count as counting
from tracedjobs import Context, Runtime, Status, Step, job
from tracedjobs._core import flight_recorder, owner, takeover
from tracedjobs._core.clock import boot_time
from tracedjobs._core.flight_recorder import take_cell
from tracedjobs._core.lost import looked_at
from tracedjobs._core.performing import release
from tracedjobs._core.records import JobRecord, Stored
from tracedjobs._core.saver import saver
from tracedjobs.errors import (
    LeaseLostError,
    ResumeLimitError,
    StoreError,
    StoreUnavailableError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

# From Python 3.12 on a fork warns where there are other threads, and the saver is one.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")

SIZE: Final = 12
AT: Final = 7
LONG: Final = "a step of many words, " * 30
LEASE: Final = 0.5


@pytest.fixture
def runtime(tmp_path: Path, run_dir: Path) -> Iterator[Runtime]:
    with Runtime(f"sqlite:///{tmp_path}/jobs.db") as made:
        yield made


@pytest.fixture
def short(tmp_path: Path, run_dir: Path) -> Iterator[Runtime]:
    """With a lease that a test can wait for."""
    with Runtime(f"sqlite:///{tmp_path}/jobs.db", lease_ttl=LEASE) as made:
        yield made


@pytest.fixture
def children(tmp_path: Path, run_dir: Path) -> Iterator[Children]:
    with Children(tmp_path) as made:
        yield made


# -- what does not fit a cell ---


def pairs(cursor: Any) -> Iterator[tuple[int, int]]:
    for at in range(cursor or 0, SIZE):
        yield at, at + 1


def texts(cursor: Any) -> Iterator[tuple[int, str]]:
    for at in range(int(cursor or 0), SIZE):
        yield at, str(at + 1)


@job(name="named after a gap", checkpoint_every=1000)
def named(ctx: Context, name: str, kind: str) -> list[int]:
    """Is killed in its first run, at its seventh item; what it did in this one."""
    done: list[int] = []

    def do(item: int) -> None:
        if ctx.run == 1 and item == AT:
            os.kill(os.getpid(), signal.SIGKILL)
        done.append(item)

    for _ in ctx.each("before", range(3)):
        pass
    if kind == "set":

        def by_hand(step: Step) -> None:
            for item in range(step.cursor, SIZE):
                do(item)
                step.set(item + 1)

        ctx.step(name, by_hand, start=0)
        return done
    sources: dict[str, Any] = {"range": range(SIZE), "pairs": pairs, "text": texts}
    for item in ctx.each(name, sources[kind]):
        do(item)
    return done


FITS: Final = {"Cyrillic": "строки импорта и проверки " * 6, "emoji": "📦" * 70}


@pytest.mark.parametrize("kind", ["range", "pairs", "set"])
@pytest.mark.parametrize("step", [*FITS.values(), LONG], ids=[*FITS, "long"])
def test_a_step_of_any_name_goes_on_at_the_item_in_hand(
    runtime: Runtime, step: str, kind: str
) -> None:
    job_id = runtime.submit(named, step, kind)
    die(runtime, job_id)
    assert (loaded(runtime, job_id).job.step == step) is (step == LONG), "saved where it must be"
    assert runtime.perform(job_id).result == list(range(AT, SIZE))
    assert runtime.get(job_id).items_redone == 0


def test_what_is_done_again_of_a_step_that_does_not_fit_is_counted(runtime: Runtime) -> None:
    job_id = runtime.submit(named, LONG, "text")
    die(runtime, job_id)
    assert runtime.perform(job_id).result == list(range(SIZE))
    assert runtime.get(job_id).items_redone == AT


def test_a_kill_before_such_a_step_is_saved_counts_what_was_done(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    # `set` was called once, and the save that follows it was not begun.
    job_id = runtime.submit(named, LONG, "set")

    def killed(_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(runtime.store, "save_one", killed)
        die(runtime, job_id)
    assert loaded(runtime, job_id).open_position is None
    assert runtime.perform(job_id).result == list(range(SIZE))
    assert runtime.get(job_id).items_redone == 1


def test_a_kill_after_such_a_step_is_completed_counts_nothing(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    @job(name="completes", checkpoint_every=1000)
    def completes(ctx: Context) -> int:
        return sum(1 for _ in ctx.each(LONG, range(SIZE)))

    job_id = runtime.submit(completes)
    complete = runtime.store.complete_step

    def killed(*words: Any, **more: Any) -> bool:
        complete(*words, **more)
        os.kill(os.getpid(), signal.SIGKILL)
        return True

    with monkeypatch.context() as patch:
        patch.setattr(runtime.store, "complete_step", killed)
        die(runtime, job_id)
    assert [step.name for step in loaded(runtime, job_id).steps] == [LONG]
    assert runtime.perform(job_id).result == 0
    assert runtime.get(job_id).items_redone == 0


@pytest.mark.parametrize("kind", ["range", "pairs"])
@pytest.mark.parametrize("job_id", ["i" * 255, "я" * 120])
def test_a_job_with_a_long_id_is_found_at_once(runtime: Runtime, job_id: str, kind: str) -> None:
    runtime.submit(named, "items", kind, job_id=job_id)
    die(runtime, job_id)
    assert runtime.recover() == [job_id]
    assert runtime.perform(job_id).result == list(range(AT, SIZE))


# -- ends that the store does not know ---


class Trouble:
    """What comes over a store while it is on."""

    def __init__(self, runtime: Runtime, patch: pytest.MonkeyPatch, error: Exception) -> None:
        self._store = runtime.store
        self._patch = patch
        self._error = error

    def begins(self) -> None:
        for name in ("change", "save", "save_one", "load"):
            self._patch.setattr(self._store, name, self._fail)

    def _fail(self, *_: object, **__: object) -> None:
        raise self._error


trouble: list[Trouble] = []


@job(name="troubled", checkpoint_every=1000)
def troubled(ctx: Context, kind: str) -> list[int]:
    """Its store fails at the seventh item of its first run, and the job ends there."""
    done: list[int] = []
    sources: dict[str, Any] = {"range": range(SIZE), "pairs": pairs, "text": texts}
    for item in ctx.each("items", sources[kind]):
        if ctx.run == 1 and item == AT:
            trouble[0].begins()
            ctx.interrupt("enough")
        done.append(item)
    return done


ERRORS: Final = [StoreUnavailableError("away"), StoreError("broken"), ZeroDivisionError("a defect")]


@pytest.mark.parametrize("kind", ["range", "pairs", "text"])
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_the_next_run_in_the_same_process_goes_on_where_the_last_one_ended_unrecorded(
    short: Runtime, run_dir: Path, error: Exception, kind: str
) -> None:
    job_id = short.submit(troubled, kind)
    with pytest.MonkeyPatch.context() as patch:
        trouble[:] = [Trouble(short, patch, error)]
        if isinstance(error, StoreUnavailableError):
            assert short.perform(job_id).reason == "store_unavailable"
        else:
            with pytest.raises(type(error)):
                short.perform(job_id)
    assert short.get(job_id).status is Status.RUNNING
    assert loaded(short, job_id).job.items == 0
    assert len(flight_recorder._kept) == 1
    until(lambda: short.get(job_id).lost, "its lease ends")
    outcome = short.perform(job_id)
    assert outcome.result == list(range(0 if kind == "text" else AT, SIZE))
    assert outcome.items_redone == (AT if kind == "text" else 0)
    assert flight_recorder._kept == {}
    assert keys(run_dir) == []


def keys(directory: Path) -> list[int]:
    """What is in the cells of the one file there."""
    (path,) = directory.iterdir()
    with path.open("rb") as file:
        return [key for key in takeover._keys(file.fileno()) if key]


@job(name="outlasts", checkpoint_every=1000)
def outlasts(ctx: Context) -> list[int]:
    """Its store is away from an item of its first run on, and that takes longer than the lease."""
    done: list[int] = []
    for item in ctx.each("items", range(SIZE)):
        done.append(item)
        if ctx.run == 1 and item == AT:
            trouble[0].begins()
            until(lambda: ctx._run.in_doubt, "its lease has ended")
    return done


def test_what_a_run_did_until_it_lost_its_lease_is_not_done_again(short: Runtime) -> None:
    job_id = short.submit(outlasts)
    with pytest.MonkeyPatch.context() as patch:
        trouble[:] = [Trouble(short, patch, StoreUnavailableError("away"))]
        with pytest.raises(LeaseLostError):
            short.perform(job_id)
    until(lambda: short.get(job_id).lost, "its lease ends")
    assert short.perform(job_id).result == list(range(AT + 1, SIZE))
    assert flight_recorder._kept == {}


def test_what_nobody_asks_for_is_kept_for_a_day(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_cell("a job", "token").keep()
    take_cell("another", "token").keep()
    assert len(flight_recorder._kept) == len(keys(run_dir)) == 2
    later = boot_time() + owner.STALE_AFTER + 1
    monkeypatch.setattr("tracedjobs._core.flight_recorder.boot_time", lambda: later)
    take_cell("a third", "token").keep()
    assert len(flight_recorder._kept) == len(keys(run_dir)) == 1


def test_a_kept_cell_is_not_the_forked_childs(run_dir: Path) -> None:
    cell = take_cell("a job", "token")
    before = keys(run_dir)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            cell.keep()
            cell.free()
            code = 0 if not flight_recorder._kept else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert keys(run_dir) == before
    cell.free()


# -- where the file is ---


def test_a_relative_run_directory_is_where_it_was_when_it_was_first_used(
    tmp_path: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner._absolute.cache_clear()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRACEDJOBS_RUN_DIR", "relative")
    assert owner.run_directory() == tmp_path / "relative"
    try:
        with Runtime(f"sqlite:///{tmp_path}/jobs.db") as runtime:
            job_id = runtime.submit(named, "items", "range")
            die(runtime, job_id)
            monkeypatch.chdir(tmp_path / "elsewhere")
            assert runtime.recover() == [job_id]
            assert runtime.perform(job_id).result == list(range(AT, SIZE))
        assert owner.held_path().parent == tmp_path / "relative"
    finally:
        owner._absolute.cache_clear()


MOVES: Final = """
os.environ["TRACEDJOBS_RUN_DIR"] = "runs"
with Runtime(URL) as runtime:
    runtime.perform(JOB_ID)
    os.chdir("/")
    os.environ["TRACEDJOBS_RUN_DIR"] = sys.argv[3]
    runtime.perform(runtime.submit(count, "/dev/null", 3, 0.0))
say("files", len(os.listdir(sys.argv[4])))
"""


def test_a_process_that_goes_elsewhere_removes_its_file_where_it_is(
    runtime: Runtime, run_dir: Path, children: Children, tmp_path: Path
) -> None:
    job_id = runtime.submit(counting, "/dev/null", 3, 0.0)
    other, relative = tmp_path / "other", tmp_path / "runs"
    text = children.start(MOVES, runtime.store.url, job_id, other, relative).ends()
    assert "files 1" in text
    assert list(relative.iterdir()) == []
    assert not other.exists() or list(other.iterdir()) == []


def test_a_directory_that_others_can_list_holds_files_that_they_cannot_read(run_dir: Path) -> None:
    run_dir.mkdir(mode=0o755)
    run_dir.chmod(0o755)
    take_cell("a job", "token").free()
    assert owner.held_path().stat().st_mode & 0o777 == 0o600


# -- runs that are ended from outside ---

DAEMON: Final = """
@job(name="count", checkpoint_every=1000)
def count(ctx: Context, path: str, items: int, pace: float) -> None:
    for item in ctx.each("items", range(10**9)):
        if item == 100:
            begun.set()

begun = threading.Event()
runtime = Runtime(URL)
threading.Thread(target=runtime.perform, args=(JOB_ID,), daemon=True).start()
assert begun.wait(20)
"""


def test_a_process_that_ends_while_a_run_goes_on_in_a_daemon_thread_leaves_no_file(
    runtime: Runtime, run_dir: Path, children: Children
) -> None:
    job_id = runtime.submit(counting, "/dev/null", 3, 0.0)
    children.start(DAEMON, runtime.store.url, job_id).ends()
    found = runtime.get(job_id)
    assert (found.status, found.reason) == (Status.INTERRUPTED, "exit")
    assert list(run_dir.iterdir()) == []


ENDLESS: Final[dict[str, Any]] = {
    "range": range(10**9),
    "list": list(range(10**6)),
    "pairs": lambda cursor: ((at, at + 1) for at in range(cursor or 0, 10**9)),
}


@job(name="goes-on after a gap", checkpoint_every=1000)
def goes_on(ctx: Context, kind: str) -> None:
    """Opens steps and does items for as long as it may."""

    def by_hand(step: Step) -> None:
        for item in range(10**9):
            step.set(item)

    if kind == "set":
        ctx.step("items", by_hand, start=0)
    if kind in ENDLESS:
        for _ in ctx.each("items", ENDLESS[kind]):
            pass
    for number in count(0):
        for _ in ctx.each(f"items {number}", range(3)):
            pass


@pytest.mark.parametrize("kind", [*ENDLESS, "set", "steps"])
def test_a_run_that_is_released_while_it_goes_on_ends_in_lease_lost_alone(
    run_dir: Path, kind: str
) -> None:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(10):
            with Runtime("memory://") as runtime:
                raised = _released(runtime, runtime.submit(goes_on, kind))
            assert [type(error) for error in raised] == [LeaseLostError], raised
            assert keys(run_dir) == []
    finally:
        sys.setswitchinterval(before)


def _released(runtime: Runtime, job_id: str) -> list[BaseException]:
    raised: list[BaseException] = []

    def perform() -> None:
        try:
            runtime.perform(job_id)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=perform)
    thread.start()
    until(lambda: any(run.progress.encountered for run in saver.runs()), "it has begun")
    (run,) = saver.runs()
    release(run)
    thread.join(PATIENCE)
    assert loaded(runtime, job_id).job.reason == "exit"
    return raised


# -- the order of cell and lease ---


def test_a_process_that_dies_with_the_lease_has_a_cell(
    runtime: Runtime, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = runtime.submit(named, "items", "range")
    change = runtime.store.change

    def killed(wanted: Any) -> bool:
        change(wanted)
        os.kill(os.getpid(), signal.SIGKILL)
        return True

    with monkeypatch.context() as patch:
        patch.setattr(runtime.store, "change", killed)
        die(runtime, job_id)
    assert len(keys(run_dir)) == 1
    assert runtime.recover() == [job_id]
    assert list(run_dir.iterdir()) == []


def test_a_lease_that_was_not_taken_leaves_no_cell(
    runtime: Runtime, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = runtime.submit(named, "items", "range")

    def refuses(_: object) -> bool:
        raise StoreError("broken")

    with monkeypatch.context() as patch:
        patch.setattr(runtime.store, "change", refuses)
        with pytest.raises(StoreError):
            runtime.perform(job_id)
    assert keys(run_dir) == []
    assert runtime.get(job_id).status is Status.PENDING


def test_a_warning_that_is_an_error_leaves_the_job_as_it_was(
    runtime: Runtime, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    job_id = runtime.submit(troubled, "text")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeWarning, match="No flight recorder"):
            runtime.perform(job_id)
    assert runtime.get(job_id).status is Status.PENDING
    assert runtime.get(job_id).runs == ()


# -- who is told what ---


def test_a_record_from_before_the_death_is_read_again(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    @job(name="two-steps", checkpoint_every=1000)
    def two_steps(ctx: Context) -> list[int]:
        done = []
        for _ in ctx.each("first", range(3)):
            pass
        for item in ctx.each("second", range(SIZE)):
            if ctx.run == 1 and item == AT:
                os.kill(os.getpid(), signal.SIGKILL)
            done.append(item)
        return done

    job_id = runtime.submit(two_steps)
    complete = runtime.store.complete_step
    old: list[Stored] = []
    reading, writing = os.pipe()
    going, go = os.pipe()

    def waits(*words: Any, **more: Any) -> bool:
        os.write(writing, b"x")
        os.read(going, 1)
        return complete(*words, **more)

    monkeypatch.setattr(runtime.store, "complete_step", waits)
    child = os.fork()
    if child == 0:
        try:
            runtime.perform(job_id)
        finally:
            os._exit(1)
    monkeypatch.undo()
    os.read(reading, 1)
    old.append(loaded(runtime, job_id))  # the first step is open
    assert old[0].steps == ()
    assert looked_at(runtime.store, old[0]) == (old[0], False)
    os.write(go, b"x")
    os.waitpid(child, 0)
    for each in (reading, writing, going, go):
        os.close(each)
    stored, lost = looked_at(runtime.store, old[0])
    assert lost
    assert [step.name for step in stored.steps] == ["first"]
    load = runtime.store.load
    stale = [*old]
    monkeypatch.setattr(runtime.store, "load", lambda key: stale.pop() if stale else load(key))
    assert runtime.perform(job_id).result == list(range(AT, SIZE))
    assert stale == []


@job(name="limited", checkpoint_every=1000, max_resumptions=1)
def limited(ctx: Context) -> list[int]:
    """Is killed in its first two runs, at an item further on."""
    done = []
    for item in ctx.each("items", range(SIZE)):
        if ctx.run <= 2 and item == AT + ctx.run:
            os.kill(os.getpid(), signal.SIGKILL)
        done.append(item)
    return done


def test_a_job_that_another_directory_failed_goes_on_here_where_it_was_killed(
    tmp_path: Path, short: Runtime, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = short.submit(limited)
    die(short, job_id)
    die(short, job_id)
    monkeypatch.setenv("TRACEDJOBS_RUN_DIR", str(tmp_path / "other"))
    until(lambda: short.get(job_id).lost, "its lease ends")
    with pytest.raises(ResumeLimitError):
        short.perform(job_id)
    assert loaded(short, job_id).job.lost_token is not None
    monkeypatch.setenv("TRACEDJOBS_RUN_DIR", str(run_dir))
    short.retry(job_id)
    assert short.perform(job_id).result == list(range(AT + 2, SIZE))


def test_of_two_who_clear_the_last_cells_at_the_same_time_one_removes_the_file(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        take_cell("first", "token")
        take_cell("second", "token")
        os.write(writing, str(owner.owner_name()).encode())
        os._exit(0)
    name = os.read(reading, 100).decode()
    os.waitpid(child, 0)
    os.close(reading)
    os.close(writing)
    pwrite: Callable[..., int] = os.pwrite

    def slow(*words: Any) -> int:
        # The other one comes and goes between this one's look and its write.
        monkeypatch.setattr(os, "pwrite", pwrite)
        takeover.forget(JobRecord("second", "a job", "{}", 0.0, owner=name, token="token"))
        return pwrite(*words)

    assert len(keys(run_dir)) == 2
    monkeypatch.setattr(os, "pwrite", slow)
    takeover.forget(JobRecord("first", "a job", "{}", 0.0, owner=name, token="token"))
    assert list(run_dir.iterdir()) == []
