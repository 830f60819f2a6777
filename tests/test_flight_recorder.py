"""The flight recorder's file: whose it is, how large it gets, when it goes, what it survives."""

from __future__ import annotations

import asyncio
import errno
import mmap
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tests.processes import PATIENCE, PERFORM, PRELUDE, ROOT, Children, count, counted, until
from tracedjobs import AsyncContext, Context, Runtime, job
from tracedjobs._core import flight_recorder, owner
from tracedjobs._core.cell_layout import CELL
from tracedjobs._core.flight_recorder import SEGMENT, take_cell

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# From Python 3.12 on a fork warns where there are other threads, and the saver is one.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")

MANY: Final = 1000
SLACK: Final = 0.5
"""Seconds that a save, and whoever else is on the machine, may take."""


@pytest.fixture
def runtime(tmp_path: Path, run_dir: Path) -> Iterator[Runtime]:
    with Runtime(f"sqlite:///{tmp_path}/jobs.db") as made:
        yield made


@pytest.fixture
def children(tmp_path: Path, run_dir: Path) -> Iterator[Children]:
    with Children(tmp_path) as made:
        yield made


def forked(work: Callable[[], object]) -> int:
    """How a child ends that does that work."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException as error:
            sys.excepthook(type(error), error, error.__traceback__)
        finally:
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# -- whose it is ---

FORKS: Final = """
@job(name="count", checkpoint_every=1000)
def count(ctx: Context, path: str, items: int, pace: float) -> None:
    if ctx.id != JOB_ID:
        for item in ctx.each("items", range(3)):
            say("files", len(os.listdir(os.environ["TRACEDJOBS_RUN_DIR"])))
            return os._exit(0) if len(sys.argv) > 4 else None
    with open(path, "a", buffering=1) as file:
        iterator = iter(ctx.each("items", KIND))
        for item in iterator:
            if item == 5 and os.fork() == 0:
                in_child(ctx, iterator)
            if item == 5:
                while not os.path.exists(path + ".done"):
                    time.sleep(0.005)
            if item == 9:
                say("dies")
                os.kill(os.getpid(), signal.SIGKILL)
            file.write(f"{ctx.run} {item}\\n")

def pairs(cursor):
    for item in range(cursor or 0, 12):
        yield item, item + 1

KIND = {"range": range(12), "list": list(range(12)), "pairs": pairs}[sys.argv[4]]

def in_child(ctx, iterator):
    cell = ctx._run.cell
    for attempt in (
        lambda: next(iterator),
        lambda: cell.numbers.__setitem__(0, 11),
        lambda: cell.note(11, 11),
        lambda: cell.open_step(ctx._run.live_position(), None),
        lambda: cell.close_step(),
        lambda: cell.free(),
        lambda: ctx._run.current.finish(),
    ):
        try:
            attempt()
            say("let")
        except BaseException as error:
            say("refused", type(error).__name__)
    own = runtime.submit(one, path_of := sys.argv[5])
    say("own", runtime.perform(own).result)
    open(sys.argv[5] + ".done", "w").close()
    say("pid", os.getpid())
    time.sleep(600)

@job
def one(ctx: Context, path: str) -> int:
    for item in ctx.each("items", range(1)):
        return_ = len([f for f in os.listdir(os.environ["TRACEDJOBS_RUN_DIR"])])
    return return_

with Runtime(URL) as runtime:
    runtime.perform(JOB_ID)
"""


@pytest.mark.parametrize("kind", ["range", "list", "pairs"])
def test_a_forked_child_cannot_write_into_its_parents_cell_nor_hold_its_lock(
    runtime: Runtime, run_dir: Path, children: Children, tmp_path: Path, kind: str
) -> None:
    log = tmp_path / "log"
    job_id = runtime.submit(count, str(log), 12, 0.0)
    child = children.start(FORKS, runtime.store.url, job_id, 30, kind, log)
    assert child.process.wait(PATIENCE) == -signal.SIGKILL, child.text()
    lines = child.text().splitlines()
    # Only what has no effect may pass in silence.
    assert lines[:7] == [
        "refused LeaseLost",
        "refused ValueError",
        "refused ValueError",
        "refused ValueError",
        "let",
        "let",
        "refused LeaseLost",
    ]
    assert "own 2" in lines, "a file of its own, beside its parent's"
    (forked_pid,) = [int(line.split()[1]) for line in lines if line.startswith("pid")]
    try:
        os.kill(forked_pid, 0)
        assert runtime.get(job_id).lost
        assert runtime.perform(job_id).ok
    finally:
        os.kill(forked_pid, signal.SIGKILL)
    assert counted(log) == [(1, item) for item in range(9)] + [(2, item) for item in range(9, 12)]


# -- how large it gets, and when it goes ---


def test_ten_thousand_runs_of_one_process_are_in_one_segment(run_dir: Path) -> None:
    @job(name="short")
    def short(ctx: Context) -> None:
        for _ in ctx.each("items", range(2)):
            pass

    with Runtime("memory://") as runtime:
        for _ in range(100):
            assert runtime.perform(runtime.submit(short)).ok
    for number in range(10_000):
        cell = take_cell(f"job {number}", "token")
        cell.numbers[0] = number
        cell.free()
    (file,) = run_dir.iterdir()
    assert file.stat().st_size == SEGMENT
    data = file.read_bytes()
    assert not any(data[at + 48 : at + 56] != bytes(8) for at in range(CELL, SEGMENT, CELL))


def test_a_thousand_runs_at_once_have_a_cell_each_and_leave_it_to_others(run_dir: Path) -> None:
    for _ in range(3):
        cells = [take_cell(f"job {number}", "token") for number in range(MANY)]
        for number, cell in enumerate(cells):
            cell.numbers[0] = number
        assert [cell.numbers[0] for cell in cells] == list(range(MANY))
        for cell in cells:
            cell.free()
    (file,) = run_dir.iterdir()
    assert file.stat().st_size <= (MANY * CELL // SEGMENT + 1) * SEGMENT <= 1024 * 1024


DEATHS: Final = """
import os, sys
from pathlib import Path
from tracedjobs._core import owner
from tracedjobs._core.flight_recorder import (take_cell)
from tracedjobs._core.records import JobRecord
from tracedjobs._core.takeover import forget

run_dir, many = Path(os.environ["TRACEDJOBS_RUN_DIR"]), int(sys.argv[1])

def dies(job_id: str, idle: bool) -> str:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            name = owner.owner_name()
            cell = take_cell(job_id, "token")
            if idle:
                cell.free()
            os.write(writing, name.encode())
            code = 0
        except BaseException as error:
            sys.excepthook(type(error), error, error.__traceback__)
        finally:
            sys.stderr.flush()
            os._exit(code)
    os.close(writing)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    name = os.read(reading, 64).decode()
    os.close(reading)
    return name

names = set()
for batch in range(many // 50):
    left = {}
    for number in range(50):
        idle = number % 2 == 0
        name = dies(f"job {number}", idle)
        names.add(name)
        if not idle:
            left[name] = f"job {number}"
    # Those that died idle were removed by the next one; the last of a batch was not idle.
    assert {path.stem for path in run_dir.iterdir()} == set(left), batch
    for name, job_id in left.items():
        forget(JobRecord(job_id, "a job", "{}", 0.0, owner=name, token="token"))
    assert list(run_dir.iterdir()) == [], batch
print(len(names))
"""


def test_a_thousand_dead_processes_leave_no_file(run_dir: Path, children: Children) -> None:
    # Forks of a small process: one of this process, with all that it has loaded, takes its time.
    run_dir.mkdir(mode=0o700)
    text = children.start(DEATHS, MANY, prelude="").ends()
    assert text.split() == [str(MANY)]
    assert list(run_dir.iterdir()) == []


ENDS: Final = """
with Runtime(URL) as runtime:
    runtime.perform(JOB_ID)
say("files", len(os.listdir(os.environ["TRACEDJOBS_RUN_DIR"])))
if sys.argv[3] == "raise":
    raise ValueError("it fails")
sys.exit(0 if sys.argv[3] == "return" else 3)
"""


@pytest.mark.parametrize(("how", "code"), [("return", 0), ("raise", 1), ("exit", 3)])
def test_a_process_that_ends_leaves_no_file(
    runtime: Runtime, run_dir: Path, children: Children, how: str, code: int
) -> None:
    job_id = runtime.submit(count, "/dev/null", 3, 0.0)
    text = children.start(ENDS, runtime.store.url, job_id, how).ends(code)
    assert "files 1" in text
    assert list(run_dir.iterdir()) == []


def test_the_file_of_a_long_run_does_not_look_old_where_writes_do_not_show(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On a tmpfs the time of a mapped file stays at its first write, so the saver sets it.
    from tracedjobs._core import saver  # noqa: PLC0415 - the module, beside its object

    monkeypatch.setattr(saver, "PURGE_EVERY", 0.0)
    old = time.time() - 2 * owner.STALE_AFTER

    @job(name="long-run", checkpoint_every=0.02)
    def long_run(ctx: Context) -> None:
        os.utime(owner.held_path(), (old, old))
        until(lambda: owner.held_path().stat().st_mtime > old + 1, "the saver says it is in use")

    with Runtime("memory://") as runtime:
        assert runtime.perform(runtime.submit(long_run)).ok


# -- many at once ---


@job(name="one-of-many", checkpoint_every=1000)
async def one_of_many(ctx: AsyncContext, number: int) -> None:
    """Does so many items, and waits for its process to be killed."""
    async for item in ctx.each("items", range(2 * MANY)):
        if item == number:
            standing.append(number)
            if len(standing) == MANY:
                os.kill(os.getpid(), signal.SIGKILL)
            await asyncio.Event().wait()


standing: list[int] = []


def test_a_thousand_runs_of_one_killed_process_are_adopted_each_at_its_item(
    runtime: Runtime, run_dir: Path
) -> None:
    job_ids = [runtime.submit(one_of_many, number) for number in range(MANY)]

    async def all_of_them() -> None:
        await asyncio.gather(*map(runtime.perform_async, job_ids))

    assert forked(lambda: asyncio.run(all_of_them())) == -signal.SIGKILL
    assert sorted(runtime.recover()) == sorted(job_ids)
    cursors = {}
    for job_id in job_ids:
        stored = runtime.store.load(job_id)
        assert stored is not None
        cursors[job_id] = (stored.job.cursor, stored.job.items, stored.job.step)
    assert cursors == {
        job_id: (str(number), number, "items") for number, job_id in enumerate(job_ids)
    }
    assert list(run_dir.iterdir()) == []


# -- where there is no room for it ---


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def warned(runtime: Runtime) -> list[str]:
    """What two runs warn of, which do their work."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for _ in range(2):
            assert runtime.perform(runtime.submit(count, "/dev/null", 3, 0.0)).ok
    return [str(each.message) for each in found if each.category is RuntimeWarning]


@pytest.mark.parametrize(
    ("module", "name"), [(os, "posix_fallocate"), (mmap, "mmap")], ids=["full", "not mapped"]
)
def test_a_full_directory_is_warned_of_once_and_jobs_run_on(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, module: object, name: str
) -> None:
    monkeypatch.setattr(module, name, full)
    with Runtime("memory://") as runtime:
        (message,) = warned(runtime)
        assert message.startswith("No flight recorder, so a killed job resumes from its last save")
        monkeypatch.undo()
        # It is tried again: the disk may have room by now.
        assert warned(runtime) == []
    assert flight_recorder._file is not None
    assert owner.held_path().stat().st_size == SEGMENT


def test_a_limit_to_the_size_of_files_is_warned_of_once_and_jobs_run_on(run_dir: Path) -> None:
    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        with Runtime("memory://") as runtime:
            (message,) = warned(runtime)
        assert message.startswith("No flight recorder")

    assert forked(limited) == 0


def test_a_directory_that_is_read_only_is_warned_of_once_and_jobs_run_on(run_dir: Path) -> None:
    def unprivileged() -> None:
        if os.getuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        folder = Path(tempfile.mkdtemp(dir="/tmp"))
        try:
            directory = folder / "run"
            directory.mkdir(mode=0o500)
            os.environ["TRACEDJOBS_RUN_DIR"] = str(directory)
            with Runtime("memory://") as runtime:
                (message,) = warned(runtime)
            assert message.startswith("No run directory, so a killed job is found only when")
            directory.rmdir()
        finally:
            folder.rmdir()

    assert forked(unprivileged) == 0


FULL: Final = """
import warnings
warnings.simplefilter("ignore")

def full(*_):
    raise OSError(28, "No space left on device")

os.posix_fallocate = full
"""


def test_where_there_is_no_room_a_killed_job_is_found_and_begins_at_its_last_save(
    runtime: Runtime, children: Children, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    job_id = runtime.submit(count, str(log), 40, 0.01)
    child = children.start(FULL + PERFORM, runtime.store.url, job_id, 0.5)
    until(lambda: len(counted(log)) > 5, "items are done")
    child.kill()
    until(lambda: runtime.get(job_id).lost, "it is found")
    saved = runtime.get(job_id).current
    assert runtime.perform(job_id).ok
    again = [item for run, item in counted(log) if run == 2]
    assert again == list(range(0 if saved is None else int(str(saved.cursor)), 40))


# -- containers ---

CONTAINED: Final = """
@job(name="contained", checkpoint_every=0.1)
def contained(ctx: Context, path: str) -> None:
    with open(path, "a", buffering=1) as file:
        for item in ctx.each("items", range(200)):
            file.write(f"{ctx.run} {item} {time.monotonic()}\\n")
            time.sleep(0.005 if ctx.run == 1 else 0)

say("pid", os.getpid())
give_up = time.monotonic() + 20
with Runtime(URL, lease_ttl=4) as runtime:  # longer than it takes to start
    while True:
        try:
            say(runtime.perform(JOB_ID).status)
            break
        except JobRunningError:
            say("running")
            assert time.monotonic() < give_up
            time.sleep(0.05)
"""
UNSHARE: Final = (
    "unshare",
    *(() if os.getuid() == 0 else ("--user", "--map-root-user")),
    *("--pid", "--fork", "--kill-child", "--mount-proc"),
)


@job(name="contained", checkpoint_every=0.1)
def contained(ctx: Context, path: str) -> None:
    """Stands for the job of the same name in the containers."""


@pytest.fixture(scope="module")
def container() -> tuple[str, ...]:
    """What a command of another PID namespace begins with."""
    try:
        tried = subprocess.run([*UNSHARE, "true"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no unshare here")
    if tried.returncode:
        pytest.skip(f"unshare is not permitted: {tried.stderr.strip()}")
    return UNSHARE


def in_container(
    container: tuple[str, ...], folder: Path, run_dir: Path, *arguments: str
) -> subprocess.Popen[str]:
    script = folder / "contained.py"
    script.write_text(PRELUDE + CONTAINED, "utf-8")
    return subprocess.Popen(
        [*container, sys.executable, "-W", "error", str(script), *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TRACEDJOBS_RUN_DIR": str(run_dir)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.parametrize("same", [True, False], ids=["same directory", "another directory"])
@pytest.mark.parametrize("killed_in", ["container", "host"])
def test_a_container_adopts_where_it_shares_the_directory_and_else_begins_at_the_last_save(
    runtime: Runtime,
    run_dir: Path,
    tmp_path: Path,
    container: tuple[str, ...],
    killed_in: str,
    *,
    same: bool,
) -> None:
    log = tmp_path / "log"
    job_id = runtime.submit(contained, str(log))
    arguments = (runtime.store.url, job_id)

    def lines() -> list[list[str]]:
        return [line.split() for line in log.read_text().splitlines()] if log.exists() else []

    begins = container if killed_in == "container" else ()
    with in_container(begins, tmp_path, run_dir, *arguments) as first:
        until(lambda: len(lines()) > 90, "items are done and saved")
        first.kill()  # unshare takes its child with it
        first.communicate(timeout=PATIENCE)  # until the last who holds its output is dead
    killed_at = time.monotonic()
    seen = lines()
    other = run_dir if same else tmp_path / "other"
    with in_container(container, tmp_path, other, *arguments) as second:
        text, _ = second.communicate(timeout=PATIENCE)
    assert text.splitlines()[0] == "pid 1"
    assert text.splitlines()[-1] == "completed"
    assert ("running" in text) is (not same)
    again = int(next(item for run, item, _ in lines() if run != "1"))
    if same:
        assert len(seen) - again in {0, 1}
    else:
        assert 0 < again < len(seen) - 1
        assert killed_at - float(seen[again][2]) <= 0.1 + SLACK
    assert {int(item) for _, item, _ in lines()} == set(range(200))
