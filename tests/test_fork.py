"""Forks: children run jobs of their own, never write for their parent's, and never hang."""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import TYPE_CHECKING, Final

import pytest

from tests.processes import Children, count, counted, until
from tracedjobs import Runtime, Status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

# From Python 3.12 on a fork warns where there are other threads, and the saver is one.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")


@pytest.fixture(params=["sqlite", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "redis":
        server = request.getfixturevalue("redis_server")
        return f"{server.url}?prefix=tj{os.urandom(6).hex()}"
    return f"sqlite:///{tmp_path}/jobs.db"


@pytest.fixture
def files(url: str) -> Iterator[Runtime]:
    with Runtime(url) as made:
        yield made


@pytest.fixture
def children(tmp_path: Path) -> Iterator[Children]:
    with Children(tmp_path) as made:
        yield made


CHILD: Final = """
def in_child(runtime, ctx, how):
    # What a child of a job may do, and what it may not.
    if how == "own":
        say("own", runtime.perform(runtime.submit(count, "/dev/null", 20, 0.001)).status)
        return
    for call in (
        lambda: ctx.checkpoint(),
        lambda: ctx.state,
        lambda: ctx.step("stolen", lambda: 1),
        lambda: ctx.interrupt("stolen"),
    ):
        try:
            call()
        except BaseException as error:
            say(type(error).__name__, "forked" in str(error))
"""
FORKING: Final = (
    CHILD
    + """
@job(name="forking", checkpoint_every=0.05)
def forking(ctx: Context, how: str) -> None:
    for item in ctx.each("items", range(60)):
        if item == 20:
            child = os.fork()
            if child == 0:
                try:
                    in_child(runtime, ctx, how)
                finally:
                    os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
        time.sleep(0.005)

with Runtime(URL) as runtime:
    job_id = runtime.submit(forking, sys.argv[3], job_id=JOB_ID)
    say("outcome", runtime.perform(job_id).status)
"""
)


def test_a_forked_child_may_not_use_its_parents_ctx_and_the_parent_goes_on(
    files: Runtime, children: Children, url: str
) -> None:
    child = children.start(FORKING, url, "forking", "steal")
    lines = child.ends().splitlines()
    assert lines == ["LeaseLost True"] * 4 + ["outcome completed"]
    found = files.get("forking")
    assert [step.name for step in found.steps] == ["items"]
    assert [run.outcome for run in found.runs] == ["completed"]


def test_a_forked_child_runs_jobs_of_its_own(files: Runtime, children: Children, url: str) -> None:
    child = children.start(FORKING, url, "forking", "own")
    assert child.ends().splitlines() == ["run 1", "own completed", "outcome completed"]
    assert {found.status for found in files.list()} == {Status.COMPLETED}
    assert len({found.worker for found in files.list()}) == 2


LEAVING: Final = """
def records(cursor):
    done = cursor or 0
    while record := os.read(opened, 1):  # whoever reads takes it from the other
        done += 1
        yield int(record), done

def of(how):
    return range(6) if how == "range" else records

@job(name="leaving")
def leaving(ctx: Context) -> None:
    for item in ctx.each("items", of(sys.argv[3])):
        if item == 2 and os.fork() == 0:
            continue  # the child goes on in the parent's loop
        time.sleep(0.05)

with Runtime(URL) as runtime:
    parent = os.getpid()
    opened, into = os.pipe()
    os.write(into, b"012345")
    os.close(into)
    job_id = runtime.submit(leaving, job_id=JOB_ID)
    try:
        outcome = str(runtime.perform(job_id).status)
    except LeaseLostError as error:
        outcome = f"LeaseLostError {'forked' in str(error)}"
    say("parent" if os.getpid() == parent else "child", outcome)
    if os.getpid() != parent:
        os._exit(0)
    os.wait()
"""


@pytest.mark.parametrize("how", ["range", "pairs"])
def test_a_child_that_goes_on_in_its_parents_loop_is_stopped(
    files: Runtime, children: Children, url: str, how: str
) -> None:
    child = children.start(LEAVING, url, "leaving", how)
    assert sorted(child.ends().splitlines()) == ["child LeaseLostError True", "parent completed"]
    found = files.get("leaving")
    assert (found.status, found.steps[0].items) == (Status.COMPLETED, 6)


MULTIPROCESSING: Final = """
import multiprocessing

def one(url, number):
    with Runtime(url) as runtime:
        return str(runtime.perform(runtime.submit(count, "/dev/null", 20, 0.001)).status)

if __name__ == "__main__":
    with Runtime(URL) as runtime:
        print(one(URL, 0))
        with multiprocessing.get_context(sys.argv[3]).Pool(2) as pool:
            print(pool.starmap(one, [(URL, number) for number in range(6)]))
"""


@pytest.mark.parametrize("how", ["fork", "spawn", "forkserver"])
def test_children_of_multiprocessing_run_jobs(
    files: Runtime, children: Children, url: str, how: str
) -> None:
    child = children.start(MULTIPROCESSING, url, "-", how)
    lines = child.ends().splitlines()
    assert [line for line in lines if line != "run 1"] == ["completed", str(["completed"] * 6)]
    assert [found.status for found in files.list()] == [Status.COMPLETED] * 7


def forked(work: Callable[[], object]) -> int:
    """The id of a child that does `work` and ends with 0 when that is well."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException as error:
            sys.stderr.write(f"in the child: {error!r}\n")
        finally:
            os._exit(code)
    return child


def ended(child: int) -> bool:
    found, status = os.waitpid(child, os.WNOHANG)
    assert status == 0
    return found == child


def test_a_fork_while_other_threads_are_inside_the_store_never_hangs(files: Runtime) -> None:
    stop = threading.Event()
    job_id = files.submit(count, "/dev/null", 1, 0.0)

    def hammer() -> None:
        while not stop.is_set():
            files.submit(count, "/dev/null", 1, 0.0)
            files.get(job_id)

    def in_child() -> None:
        assert files.get(job_id).status is Status.PENDING
        files.submit(count, "/dev/null", 1, 0.0)

    def fork_often() -> None:
        for _ in range(15):
            child = forked(in_child)
            until(lambda child=child: ended(child), "the child does its work", within=20)  # type: ignore[misc]  # a default binds

    hammers = [threading.Thread(target=hammer) for _ in range(3)]
    # Two that fork, so that forks meet one another too.
    forkers = [threading.Thread(target=fork_often) for _ in range(2)]
    for thread in (*hammers, *forkers):
        thread.start()
    for thread in forkers:
        thread.join(60)
    stop.set()
    for thread in hammers:
        thread.join(20)
    assert not any(thread.is_alive() for thread in (*hammers, *forkers))
    assert files.get(job_id).status is Status.PENDING


def test_a_memory_store_is_copied_into_the_child() -> None:
    with Runtime("memory://") as runtime:
        job_id = runtime.submit(count, "/dev/null", 3, 0.0)
        child = forked(lambda: runtime.perform(job_id))
        until(lambda: ended(child), "the child's own copy is performed")
        assert runtime.get(job_id).status is Status.PENDING


# -- the end of the interpreter ---


DAEMON: Final = """
runtime = Runtime(URL)

def perform():
    runtime.perform(JOB_ID)

threading.Thread(target=perform, daemon=True).start()
while not os.path.exists(sys.argv[3]) or len(open(sys.argv[3]).readlines()) < 10:
    time.sleep(0.01)
if sys.argv[4] == "raise":
    raise ValueError("the main thread fails")
if sys.argv[4] == "exit":
    sys.exit(3)
"""


@pytest.mark.parametrize(("how", "code"), [("return", 0), ("raise", 1), ("exit", 3)])
def test_a_job_in_a_daemon_thread_is_left_interrupted_at_its_position(
    files: Runtime, children: Children, tmp_path: Path, how: str, code: int
) -> None:
    log = tmp_path / "log"
    url = files.store.url
    job_id = files.submit(count, str(log), 10**6, 0.002)
    began = time.monotonic()
    children.start(DAEMON, url, job_id, log, how).ends(code)
    assert time.monotonic() - began < 10
    found = files.get(job_id)
    assert (found.status, found.reason) == (Status.INTERRUPTED, "exit")
    # An item that was in hand while the record was written may have been finished after it.
    assert 0 <= len(counted(log)) - int(str(found.steps[0].cursor)) <= 2
    assert found.runs[0].ended_at is not None


AT_EXIT: Final = """
runtime = Runtime(URL)
threading.Thread(target=runtime.perform, args=(JOB_ID,), daemon=True).start()
while not os.path.exists(sys.argv[3]) or len(open(sys.argv[3]).readlines()) < 10:
    time.sleep(0.01)
raw = __import__("sqlite3").connect(URL.removeprefix("sqlite:///"), isolation_level=None)
raw.execute("BEGIN IMMEDIATE")  # a store that does not answer while the interpreter ends
"""


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_an_interpreter_whose_store_does_not_answer_ends_all_the_same(
    files: Runtime, children: Children, url: str, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    job_id = files.submit(count, str(log), 10**6, 0.002)
    source = AT_EXIT.replace("Runtime(URL)", "Runtime(URL, lease_ttl=1.0)")
    children.start(source, url, job_id, log).ends()
    until(lambda: files.get(job_id).lost, "it is found lost")
