"""Who has a job: leases, takeovers, and owners that were stopped or killed."""

from __future__ import annotations

import signal
import sqlite3
import threading
import time
from contextlib import closing
from typing import TYPE_CHECKING, Final

import pytest

from tests.processes import PERFORM, Children, count, counted, state_of, until
from tracedjobs import Context, Runtime, Status, job
from tracedjobs.errors import JobRunningError, LeaseLostError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from tests.processes import Child
    from tracedjobs._core.records import Save
    from tracedjobs.events import Event
    from tracedjobs.stores.base import Saved

LEASE: Final = 1.0
LONG: Final = 600.0
"""Seconds of a lease that no test waits for."""


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/jobs.db"


@pytest.fixture
def files(url: str) -> Iterator[Runtime]:
    """A runtime on a file, for tests with other processes."""
    with Runtime(url, lease_ttl=LEASE) as made:
        yield made


@pytest.fixture
def children(tmp_path: Path) -> Iterator[Children]:
    with Children(tmp_path) as made:
        yield made


def lease_ended(runtime: Runtime, job_id: str) -> None:
    """Wait until the lease of the job is over on the store's clock."""

    def over() -> bool:
        stored = runtime.store.load(job_id)
        assert stored is not None
        return not runtime.store.lease_alive(stored.job)

    until(over, "the lease has ended")


def test_a_job_that_runs_is_not_run_again(
    files: Runtime, children: Children, url: str, tmp_path: Path, told: list[Event]
) -> None:
    job_id = files.submit(count, str(tmp_path / "log"), 100_000, 0.001)
    child = children.start(PERFORM, url, job_id)
    child.says("run 1")
    with pytest.raises(JobRunningError, match=f"The job {job_id} is running already: run 1 on .*:"):
        files.perform(job_id)
    assert [event.name for event in told if event.name == "job_duplicate_refused"]
    child.send(signal.SIGTERM)
    child.says("outcome interrupted stopping")
    assert {run for run, _ in counted(tmp_path / "log")} == {1}


def test_a_killed_job_goes_on_at_once_on_the_same_host(
    files: Runtime, children: Children, url: str, tmp_path: Path, told: list[Event]
) -> None:
    log = tmp_path / "log"
    job_id = files.submit(count, str(log), 60, 0.005)
    child = children.start(PERFORM, url, job_id, LONG)
    until(lambda: len(counted(log)) > 5, "some items")
    child.kill()
    assert files.get(job_id).lost
    assert [found.id for found in files.list(status="lost")] == [job_id]
    assert files.perform(job_id).ok
    items = [item for _, item in counted(log)]
    assert sorted(set(items)) == list(range(60))
    found = files.get(job_id)
    assert [(run.number, run.outcome) for run in found.runs] == [(1, "lost"), (2, "completed")]
    assert [event.payload["run"] for event in told if event.name == "job_lost"] == [1]


def test_a_zombie_is_dead(files: Runtime, children: Children, url: str, tmp_path: Path) -> None:
    job_id = files.submit(count, str(tmp_path / "log"), 1000, 0.005)
    child = children.start(PERFORM, url, job_id, LONG)
    child.says("run 1")
    child.send(signal.SIGKILL)
    until(lambda: state_of(child.pid) == "Z", "the child is a zombie")
    # A zombie whose last thread is not quite gone still holds its files.
    until(lambda: files.get(job_id).lost, "the job is found lost", within=5)
    assert state_of(child.pid) == "Z"
    assert files.recover() == [job_id]


def test_in_another_run_directory_a_killed_job_is_found_when_its_lease_ends(
    files: Runtime, children: Children, url: str, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    job_id = files.submit(count, str(tmp_path / "log"), 400, 0.001)
    child = children.start(PERFORM, url, job_id, 3.0)
    until(lambda: len(counted(tmp_path / "log")) > 5, "some items")
    child.kill()
    env = {"TRACEDJOBS_RUN_DIR": str(elsewhere)}
    children.start(PERFORM, url, job_id, env=env).says("raised JobRunningError")
    assert files.get(job_id).lost  # here, where the owner's lock can be seen
    lease_ended(files, job_id)
    children.start(PERFORM, url, job_id, env=env).says("outcome completed None")


HELD: Final = """
GATE = sys.argv[4]

@job(name="held", checkpoint_every=0.05)
def held(ctx: Context, log: str) -> None:
    # Counts until the gate is there; says what it saw of each item afterwards.
    with open(log, "a", buffering=1) as file:
        say("run", ctx.run)
        for item in ctx.each("items", range(10**9)):
            file.write(f"{ctx.run} {item}\\n")
            time.sleep(0.005)
            if os.path.exists(GATE):
                break_off()

def break_off():
    raise SystemExit("the gate was opened")
"""


@job(name="held", checkpoint_every=0.05)
def held(ctx: Context, log: str) -> None:
    """Stands for the job of the same name in the children."""


def stopped_between_writes(child: Child, url: str) -> None:
    """Stop it, but not while it has the file's write lock, which nobody frees then."""
    path = url.removeprefix("sqlite:///")
    while True:
        child.stop()
        with closing(sqlite3.connect(path, timeout=0.2, isolation_level=None)) as raw:
            try:
                raw.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                child.cont()
            else:
                raw.execute("ROLLBACK")
                return


def test_a_stopped_run_whose_job_was_taken_over_can_write_nothing_more(
    files: Runtime, children: Children, url: str, tmp_path: Path
) -> None:
    log, gate = tmp_path / "log", tmp_path / "gate"
    job_id = files.submit(held, str(log))
    old = children.start(HELD + PERFORM, url, job_id, LEASE, gate)
    old.says("run 1")
    until(lambda: len(counted(log)) > 5, "some items")
    stopped_between_writes(old, url)
    at_stop = len(counted(log))
    lease_ended(files, job_id)
    new = children.start(HELD + PERFORM, url, job_id, LEASE, gate)
    new.says("run 2")
    before = files.get(job_id)
    old.cont()
    old.says("raised LeaseLostError")
    old.ends()
    # It did little more than the item in hand: its saver looked at the clock before all else.
    assert sum(run == 1 for run, _ in counted(log)[at_stop:]) < 50
    after = files.get(job_id)
    assert (after.status, after.run, after.worker) == (Status.RUNNING, 2, before.worker)
    until(lambda: _cursor(files, job_id) > _cursor_of(before), "the new run's saves are there")
    second = [item for run, item in counted(log) if run == 2]
    assert second == list(range(second[0], second[0] + len(second)))
    gate.touch()
    new.ends(1)
    found = files.get(job_id)
    assert [(run.outcome, run.reason) for run in found.runs] == [
        ("lost", "lost"),
        ("interrupted", "SystemExit"),
    ]
    assert found.steps[0].cursor == max(item for run, item in counted(log) if run == 2)


def _cursor(runtime: Runtime, job_id: str) -> int:
    return _cursor_of(runtime.get(job_id))


def _cursor_of(found: object) -> int:
    steps = getattr(found, "steps", ())
    return int(steps[0].cursor) if steps else 0


def test_a_run_whose_lease_ended_goes_on_where_nobody_took_the_job(
    files: Runtime, children: Children, url: str, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    job_id = files.submit(count, str(log), 100, 0.005)
    child = children.start(PERFORM, url, job_id, 0.5)
    until(lambda: len(counted(log)) > 5, "some items")
    child.stop()
    lease_ended(files, job_id)
    assert files.get(job_id).lost
    child.cont()
    child.says("outcome completed None")
    assert counted(log) == [(1, item) for item in range(100)]
    assert [run.outcome for run in files.get(job_id).runs] == ["completed"]


def test_a_run_that_was_recovered_while_it_was_stopped_is_over(
    files: Runtime, children: Children, url: str, tmp_path: Path
) -> None:
    job_id = files.submit(count, str(tmp_path / "log"), 1000, 0.005)
    child = children.start(PERFORM, url, job_id, 0.5)
    child.says("run 1")
    stopped_between_writes(child, url)
    lease_ended(files, job_id)
    assert files.recover() == [job_id]
    before = files.store.load(job_id)
    child.cont()
    child.says("raised LeaseLostError")
    child.ends()
    assert files.store.load(job_id) == before


FORKS: Final = """
@job(name="forks")
def forks(ctx: Context, how: str) -> None:
    for item in ctx.each("items", range(10)):
        if item == 3:
            if how == "fork":
                if os.fork() == 0:
                    time.sleep(600)
            elif how == "subprocess":
                subprocess.Popen(["sleep", "600"])
            else:
                import multiprocessing
                multiprocessing.get_context(how).Process(target=time.sleep, args=(600,)).start()
            say("forked")
            time.sleep(600)
"""


@job(name="forks")
def forks(ctx: Context, how: str) -> str:
    """As in `FORKS`, without the forks."""
    return ",".join(str(item) for item in ctx.each("items", range(10)))


@job(name="leases:short_steps")
def short_steps(ctx: Context, seconds: float) -> int:
    give_up, done = time.monotonic() + seconds, 0
    while time.monotonic() < give_up:
        ctx.step(f"step {done}", time.sleep, 0.002)
        done += 1
    return done


def test_a_run_whose_steps_are_shorter_than_its_saves_take_keeps_its_lease(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Runtime(store_url, lease_ttl=LEASE, handle_signals=False) as runtime:
        store, save, refused = runtime.store, runtime.store.save, 0

        def slow(saves: Sequence[Save]) -> Mapping[str, Saved]:
            nonlocal refused
            time.sleep(0.1)  # meanwhile a step is completed
            stored = store.load(saves[0].job_id)
            refused += stored is not None and stored.job.saved_seq > saves[0].seq
            return save(saves)

        monkeypatch.setattr(store, "save", slow)
        job_id = runtime.submit(short_steps, 2.5 * LEASE)
        left: list[bool] = []
        thread = threading.Thread(target=runtime.perform, args=(job_id,))
        thread.start()
        while thread.is_alive():
            stored = store.load(job_id)
            assert stored is not None
            if stored.job.status is Status.RUNNING:
                left.append(store.lease_alive(stored.job))
            time.sleep(0.02)
        assert runtime.get(job_id).status is Status.COMPLETED
    assert len(left) > 10
    assert all(left)
    assert refused > 2


@pytest.mark.parametrize("how", ["fork", "subprocess", "spawn"])
def test_a_child_that_outlives_its_parent_does_not_hold_the_job(
    files: Runtime, children: Children, url: str, how: str
) -> None:
    job_id = files.submit(forks, how)
    child = children.start(
        FORKS + f"if __name__ == '__main__':\n    {_indented(PERFORM)}", url, job_id, LONG
    )
    child.says("forked")
    child.kill()
    # A child that was forked a moment ago may not have let go of what it inherited.
    until(lambda: files.get(job_id).lost, "the job is found lost", within=5)
    assert files.perform(job_id).ok


def _indented(source: str) -> str:
    return source.replace("\n", "\n    ")


def test_a_job_that_never_returns_keeps_its_lease(
    files: Runtime, children: Children, url: str, tmp_path: Path
) -> None:
    job_id = files.submit(count, str(tmp_path / "log"), 2, 600.0)
    child = children.start(PERFORM, url, job_id, 0.6)
    until(lambda: counted(tmp_path / "log"), "the first item")
    give_up = time.monotonic() + 2.0
    while time.monotonic() < give_up:
        assert not files.get(job_id).lost
        time.sleep(0.02)
    child.kill()


def test_closing_a_runtime_saves_a_job_that_hangs_and_fences_it_off(tmp_path: Path) -> None:
    reached, go_on = threading.Event(), threading.Event()
    raised: list[BaseException] = []

    @job(name="leases:hangs")
    def hangs(ctx: Context) -> None:
        for item in ctx.each("items", range(10)):
            if item == 4:
                reached.set()
                assert go_on.wait(20)

    runtime = Runtime(f"sqlite:///{tmp_path}/jobs.db", lease_ttl=0.6)
    job_id = runtime.submit(hangs)

    def perform() -> None:
        try:
            runtime.perform(job_id)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=perform)
    thread.start()
    assert reached.wait(20)
    runtime.close()
    with Runtime(f"sqlite:///{tmp_path}/jobs.db") as second:
        found = second.get(job_id)
        assert (found.status, found.reason, found.steps[0].cursor) == ("interrupted", "exit", 4)
        go_on.set()
        thread.join(20)
        assert [type(error) for error in raised] == [LeaseLostError]
        assert second.get(job_id) == found
