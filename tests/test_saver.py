"""The saver: what it writes and how often, and what it does while the store is away."""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, Self

import pytest

from tests.both_ways import Flavour, Lab
from tests.processes import Children, until
from tracedjobs import AsyncContext, Context, Runtime, Status, events, job
from tracedjobs._core.saver import Saver, saver
from tracedjobs.errors import LeaseLostError, StoreError, StoreUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from tracedjobs._core.records import Save
    from tracedjobs._core.run import Run
    from tracedjobs.events import Event
    from tracedjobs.stores.base import Saved
    from tracedjobs.stores.sqlite import SQLiteStore

LEASE: Final = 1.2


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


@pytest.fixture
def files(path: Path) -> Iterator[Runtime]:
    with Runtime(f"sqlite:///{path}", lease_ttl=LEASE) as made:
        yield made


@pytest.fixture
def children(tmp_path: Path) -> Iterator[Children]:
    with Children(tmp_path) as made:
        yield made


class Lock:
    """The write lock of a file, held by somebody else: what is there can be read, and no more."""

    def __init__(self, path: Path) -> None:
        self._raw = sqlite3.connect(path, isolation_level=None, check_same_thread=False)

    def __enter__(self) -> None:
        until(self._taken, "the write lock")

    def _taken(self) -> bool:
        try:
            self._raw.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return False
        return True

    def __exit__(self, *error: object) -> None:
        self._raw.execute("ROLLBACK")
        self._raw.close()


class Walk:
    """A job in a thread, that goes on from item to item as the test says."""

    def __init__(self, runtime: Runtime, **options: float) -> None:
        self.runtime = runtime
        self.at = -1
        self.pace = 0.002
        self.hold = threading.Event()
        self.release = threading.Event()
        self.finish = False
        self.result: object = None
        made = job(name="saver:walk", **options)(self._walk)  # type: ignore[call-overload]  # options
        self.job_id: str = runtime.submit(made)
        self._thread = threading.Thread(target=self._perform)

    def _walk(self, ctx: Context) -> None:
        for item in ctx.each("items", range(10**9)):
            self.at = item
            if self.finish:
                ctx.interrupt("enough")
            if self.hold.is_set():
                assert self.release.wait(20)
            time.sleep(self.pace)

    def _perform(self) -> None:
        try:
            self.result = self.runtime.perform(self.job_id)
        except BaseException as error:
            self.result = error

    def __enter__(self) -> Self:
        self._thread.start()
        until(lambda: self.at > 3 or not self._thread.is_alive(), "some items")
        return self

    def __exit__(self, *error: object) -> None:
        self.end()

    def end(self) -> object:
        """Let it end; what `perform` returned or raised."""
        self.finish = True
        self.release.set()
        return self.ended()

    def ended(self) -> object:
        """Wait for its end; what `perform` returned or raised."""
        self._thread.join(30)
        assert not self._thread.is_alive()
        return self.result

    @property
    def run(self) -> Run:
        (found,) = [run for run in saver.runs() if run.record.id == self.job_id]
        return found


def saved_cursor(runtime: Runtime, job_id: str) -> int:
    steps = runtime.get(job_id).steps
    return int(str(steps[0].cursor)) if steps else 0


# -- what it writes ---


@pytest.mark.parametrize("every", [0.1, 0.5])
def test_the_saved_cursor_is_never_older_than_checkpoint_every(
    files: Runtime, every: float
) -> None:
    with Walk(files, checkpoint_every=every) as walk:
        until(lambda: saved_cursor(files, walk.job_id), "a first save")
        give_up = time.monotonic() + 2
        late: list[float] = []
        while time.monotonic() < give_up:
            at, looked = walk.at, time.monotonic()
            until(lambda at=at: saved_cursor(files, walk.job_id) >= at, "the item is saved")  # type: ignore[misc]  # a default binds
            late.append(time.monotonic() - looked)
        late.sort()
        # The machine may be busy: all but the odd one, and that one not by much.
        assert late[len(late) * 3 // 4] <= every
        assert late[-1] <= every + 1


def test_a_save_of_a_fast_loop_costs_one_write_a_tick_whatever_the_number_of_runs(
    files: Runtime,
) -> None:
    # Started one after the other, so that they are due at different times.
    statements: list[str] = []
    raw = _raw(files)
    stop = threading.Event()

    @job(name="saver:many", checkpoint_every=0.4)
    def many(ctx: Context) -> None:
        for _ in ctx.each("items", range(10**9)):
            if stop.wait(0.01):
                ctx.interrupt("enough")

    ids = [files.submit(many) for _ in range(30)]
    with ThreadPoolExecutor(30) as pool:
        for job_id in ids:
            pool.submit(files.perform, job_id)
            time.sleep(0.01)
        try:
            until(
                lambda: all(files.get(job_id).steps for job_id in ids), "all have been saved once"
            )
            raw.set_trace_callback(statements.append)
            time.sleep(2.0)
            raw.set_trace_callback(None)
        finally:
            stop.set()
    writes = [each for each in statements if not each.lstrip().startswith("SELECT")]
    assert all(each.startswith("UPDATE jobs SET") for each in writes)
    ticks = 2.0 / (0.4 * 0.75)
    assert ticks / 2 <= len(writes) <= ticks * 2
    assert len(statements) <= 2 * len(writes) + 2  # a write and a look at the wishes


def _raw(runtime: Runtime) -> sqlite3.Connection:
    runtime.list()
    store: SQLiteStore = runtime.store  # type: ignore[assignment]  # a file's
    raw = store._db._raw
    assert raw is not None
    return raw


def test_every_advance_is_saved_before_the_next_item_when_checkpoint_every_is_0(
    files: Runtime,
) -> None:
    seen: dict[int, int] = {}

    @job(name="saver:each", checkpoint_every=0)
    def each(ctx: Context) -> None:
        for item in ctx.each("items", range(20)):
            seen[item] = saved_cursor(files, ctx.id)

    assert files.perform(files.submit(each)).ok
    assert seen == {item: item for item in range(20)}


def test_the_listeners_are_told_of_newer_cursors_and_not_of_items(
    files: Runtime, told: list[Event]
) -> None:
    with Walk(files, checkpoint_every=0.1) as walk:
        until(lambda: len([e for e in told if e.name == "job_cursor_advanced"]) > 3, "some events")
        walk.hold.set()
        items = walk.at
    cursors = [int(str(e.payload["cursor"])) for e in told if e.name == "job_cursor_advanced"]
    assert cursors == sorted(set(cursors))
    assert len(cursors) < items


# -- while the store is away ---


def test_a_store_that_is_locked_for_a_while_loses_nothing(files: Runtime, path: Path) -> None:
    with Walk(files, checkpoint_every=0.05) as walk:
        before = walk.at
        with Lock(path):
            until(lambda: walk.at > before + 100, "the run goes on")
            assert saved_cursor(files, walk.job_id) < before + 100
        at = walk.at
        until(lambda: saved_cursor(files, walk.job_id) >= at, "it is saved again")
        outcome = walk.end()
    assert getattr(outcome, "reason", outcome) == "enough"
    assert [run.outcome for run in files.get(walk.job_id).runs] == ["interrupted"]


def test_a_store_that_stays_away_interrupts_the_run_before_its_lease_ends(
    files: Runtime, path: Path, told: list[Event]
) -> None:
    with Walk(files, checkpoint_every=0.1) as walk, Lock(path):
        locked_at = time.monotonic()
        run = walk.run
        until(lambda: run.raised is not None or run.ended, "the run was interrupted")
        assert time.monotonic() - locked_at < LEASE
        assert walk.run.raised is not None
        assert walk.run.raised.reason == "store_unavailable"
        outcome = walk.ended()
    assert (outcome.status, outcome.reason) == (Status.INTERRUPTED, "store_unavailable")  # type: ignore[attr-defined]  # an Outcome
    assert outcome.resume_in == 5.0  # type: ignore[attr-defined]  # as above
    assert "store_unavailable" in [event.payload.get("reason") for event in told]
    # What could not be recorded is found lost when the lease has ended, and goes on.
    until(lambda: files.recover() == [walk.job_id], "it is found")
    assert files.get(walk.job_id).status is Status.INTERRUPTED


@pytest.mark.parametrize("flavour", ["def", "async def"])
def test_a_run_that_saves_each_item_waits_for_a_store_that_is_away_and_loses_nothing(
    path: Path, flavour: Flavour
) -> None:
    async def each(ctx: AsyncContext) -> None:
        async for item in ctx.each("items", range(12)):
            assert saved_cursor(other, ctx.id) == item
            if item == 5:
                held = Lock(path)
                held.__enter__()
                threading.Timer(0.4, held.__exit__).start()
                began.append(time.monotonic())
            elif item == 6:
                began.append(time.monotonic())

    began: list[float] = []
    url = f"sqlite:///{path}?timeout=0.05"
    with Runtime(url, lease_ttl=20) as runtime, Runtime(url) as other:
        lab = Lab(runtime, flavour)
        job_id = lab.submit(each, checkpoint_every=0)
        assert lab.perform(job_id).ok
        assert began[1] - began[0] > 0.3
        assert [step.items for step in runtime.get(job_id).steps] == [12]


@pytest.mark.parametrize("flavour", ["def", "async def"])
def test_a_run_that_saves_each_item_is_interrupted_while_its_lease_lasts(
    path: Path, flavour: Flavour
) -> None:
    async def each(ctx: AsyncContext) -> None:
        async for item in ctx.each("items", range(12)):
            done.append(item)
            if item == 5:
                held.__enter__()

    done: list[int] = []
    url = f"sqlite:///{path}?timeout=0.05"
    with Runtime(url, lease_ttl=LEASE) as runtime:
        lab = Lab(runtime, flavour)
        job_id = lab.submit(each, checkpoint_every=0)
        held = Lock(path)
        outcome = lab.perform(job_id)
        assert (outcome.status, outcome.reason) == (Status.INTERRUPTED, "store_unavailable")
        held.__exit__()
        until(lambda: runtime.recover() == [job_id], "it is found")
        assert lab.perform(job_id).ok
        assert done == list(range(12))
        assert [step.items for step in runtime.get(job_id).steps] == [12]


def test_the_end_is_recorded_when_the_store_comes_back_in_time(path: Path) -> None:
    with Runtime(f"sqlite:///{path}", lease_ttl=20) as runtime:
        with Walk(runtime) as walk:
            with Lock(path):
                walk.finish = True
                until(lambda: walk.run.raised is not None, "it is about to end")
                time.sleep(0.3)
                assert walk.result is None
            outcome = walk.ended()
        assert outcome.reason == "enough"  # type: ignore[attr-defined]  # an Outcome
        found = runtime.get(walk.job_id)
        assert (found.status, found.steps[0].cursor) == (Status.INTERRUPTED, walk.at)


def test_an_item_that_outlasts_lease_and_store_ends_in_lease_lost(
    files: Runtime, path: Path
) -> None:
    with Walk(files, checkpoint_every=0.1) as walk:
        run = walk.run
        walk.hold.set()
        with Lock(path):
            until(lambda: run.in_doubt, "the lease has ended unrenewed")
            walk.release.set()
            assert isinstance(walk.ended(), LeaseLostError)


def test_a_step_that_outlasts_lease_and_store_ends_in_lease_lost(
    files: Runtime, path: Path
) -> None:
    @job(name="saver:long-call")
    def long_call(ctx: Context) -> None:
        with Lock(path):
            ctx.step("long", lambda: until(lambda: saver.runs()[0].in_doubt, "the lease has ended"))

    with pytest.raises(LeaseLostError):
        files.perform(files.submit(long_call))


def test_a_job_whose_store_is_away_cannot_begin_and_is_left_as_it_was(
    files: Runtime, path: Path
) -> None:
    @job(name="saver:begins")
    def begins(ctx: Context) -> None:
        raise AssertionError

    job_id = files.submit(begins)
    before = files.store.load(job_id)
    with Lock(path), pytest.raises(StoreUnavailableError, match="another process holds its lock"):
        files.perform(job_id)
    assert files.store.load(job_id) == before


def test_a_doubtful_run_asks_and_goes_on_when_the_store_is_back(files: Runtime, path: Path) -> None:
    with Walk(files, checkpoint_every=0.1) as walk:
        run = walk.run
        walk.hold.set()
        with Lock(path):
            until(lambda: run.in_doubt, "the lease has ended unrenewed")
        walk.hold.clear()
        walk.release.set()
        at = walk.at
        until(lambda: walk.at > at + 10 or run.ended, "it goes on, or has ended")
        assert getattr(walk.end(), "reason", None) in {"enough", "store_unavailable"}
    assert files.get(walk.job_id).run == 1


def test_a_full_disk_loses_nothing_and_says_what_to_do(
    files: Runtime, path: Path, told: list[Event]
) -> None:
    raw = _raw(files)
    errors: list[str] = []
    save = files.store.save

    def noted(saves: Sequence[Save]) -> Mapping[str, Saved]:
        try:
            return save(saves)
        except StoreError as error:
            errors.append(f"{type(error).__name__}: {error}")
            raise

    files.store.save = noted  # type: ignore[method-assign]  # the same, observed
    filler = "x" * 100_000
    grow = True

    @job(name="saver:full", checkpoint_every=0.05)
    def full(ctx: Context) -> int:
        for item in ctx.each("items", range(400)):
            ctx.state["filler"] = filler * (item // 20 + 1) if grow else ""
            ctx.state["item"] = item
            time.sleep(0.002)
        return int(ctx.state["item"])

    pages = int(raw.execute("PRAGMA page_count").fetchone()[0])
    raw.execute(f"PRAGMA max_page_count = {pages + 60}")
    outcome = files.perform(files.submit(full, job_id="full"))
    assert (outcome.status, outcome.reason) == (Status.INTERRUPTED, "store_unavailable")
    assert errors
    assert "StoreUnavailableError" in errors[0]
    assert "the disk is full: make room, nothing that was saved is lost" in errors[0]
    kept = files.get("full")
    assert kept.state is not None
    raw.execute("PRAGMA max_page_count = 1000000")
    grow = False
    until(lambda: not files.store.lease_alive(files.store.load("full").job), "the lease has ended")  # type: ignore[union-attr]  # it is there
    outcome = files.perform("full")
    assert outcome.ok
    assert outcome.result == 399


LIMITED: Final = """
import resource
@job(name="fills", checkpoint_every=0.05)
def fills(ctx: Context) -> None:
    say("run", ctx.run)
    size = os.path.getsize(URL.removeprefix("sqlite:///") + "-wal")
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20_000, resource.RLIM_INFINITY))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    for item in ctx.each("items", range(10**9)):
        time.sleep(0.002)

with Runtime(URL, lease_ttl=1.0) as runtime:
    outcome = runtime.perform(JOB_ID)
    say("outcome", outcome.status, outcome.reason)
"""


@job(name="fills")
def fills(ctx: Context) -> None:
    """Goes on where the job of the same name in the child stopped."""
    for item in ctx.each("items", range(10**9)):
        ctx.interrupt(f"at {item}")


def test_a_file_that_may_not_grow_interrupts_the_run_and_keeps_what_was_done(
    files: Runtime, children: Children, path: Path
) -> None:
    job_id = files.submit(fills)
    files.get(job_id)
    child = children.start(LIMITED, f"sqlite:///{path}", job_id)
    child.says("outcome interrupted store_unavailable")
    child.ends()
    cursor = saved_cursor(files, job_id)
    outcome = files.perform(job_id)
    assert outcome.reason is not None
    assert int(outcome.reason.removeprefix("at ")) >= cursor  # the flight recorder knew better


# -- its own defects, and those of others ---


def test_an_error_in_the_saver_is_logged_and_it_goes_on(
    files: Runtime, caplog: pytest.LogCaptureFixture
) -> None:
    save = files.store.save
    failures = 3

    def fails(saves: Sequence[Save]) -> Mapping[str, Saved]:
        nonlocal failures
        if failures:
            failures -= 1
            raise ZeroDivisionError
        return save(saves)

    files.store.save = fails  # type: ignore[method-assign]  # the same, after some failures
    with caplog.at_level(logging.ERROR, "tracedjobs"), Walk(files, checkpoint_every=0.05) as walk:
        until(lambda: saved_cursor(files, walk.job_id), "a save after the failures")
    assert [record.message for record in caplog.records] == ["The saver failed; it goes on."] * 3


def test_a_listener_that_exits_does_not_end_the_saver(
    files: Runtime, caplog: pytest.LogCaptureFixture
) -> None:
    def exits(event: Event) -> None:
        if event.name == "job_cursor_advanced":
            raise SystemExit

    events.subscribe(exits)
    try:
        with Walk(files, checkpoint_every=0.05) as walk:
            until(lambda: caplog.records, "the listener was called")
            at = walk.at
            until(lambda: saved_cursor(files, walk.job_id) >= at, "the saver goes on")
    finally:
        events.unsubscribe(exits)


def test_a_cursor_that_cannot_be_stored_hinders_no_other_run(
    files: Runtime, caplog: pytest.LogCaptureFixture
) -> None:
    with Walk(files, checkpoint_every=0.05) as good, Walk(files, checkpoint_every=0.05) as bad:

        def fails() -> Save:
            raise OverflowError

        broken = bad.run
        take_save = type(broken).take_save

        def taken(run: Run) -> Save:
            return fails() if run is broken else take_save(run)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(broken), "take_save", taken)
            until(lambda: caplog.records, "the failure is logged")
            at = good.at
            until(lambda: saved_cursor(files, good.job_id) >= at, "the other is saved")
    assert f"The position of job {bad.job_id} cannot be saved." in caplog.text


def test_a_total_that_no_store_takes_is_refused_at_once(files: Runtime) -> None:
    @job(name="saver:total")
    def total(ctx: Context) -> None:
        ctx.step("step", lambda: None, total=2**63)

    with pytest.raises(ValueError, match=r"is more than 2\*\*63 - 1, which no store takes"):
        files.perform(files.submit(total))


def test_the_thread_is_started_with_the_first_run_only() -> None:
    made = Saver()
    assert made._thread is None
    assert made.runs() == ()


# -- stops, and which of them holds ---


PASSING: Final = {"paused", "cancelled", "store_unavailable"}


@pytest.mark.parametrize(
    ("asked", "holds"),
    [
        (["stopping", "paused"], "stopping"),
        (["paused", "stopping"], "stopping"),
        (["store_unavailable", "stopping"], "stopping"),
        (["stopping", "cancelled"], "cancelled"),
        (["cancelled", "stopping"], "cancelled"),
        (["paused", "store_unavailable", "max_runtime"], "max_runtime"),
    ],
)
def test_of_several_requests_to_stop_the_one_that_cannot_pass_holds(
    files: Runtime, asked: list[str], holds: str
) -> None:
    with Walk(files) as walk:
        walk.hold.set()
        run = walk.run
        for reason in asked:
            run.request_stop(reason)
        assert run.stop_reason == holds
        run.withdraw_stop()  # the wish and the store's absence, and nothing else
        assert run.stop_reason == next(iter(set(asked) - PASSING))


def test_a_run_that_takes_too_long_is_interrupted_on_time(files: Runtime) -> None:
    began = time.monotonic()
    with Walk(files, max_runtime=0.3) as walk:
        outcome = walk.ended()
    assert outcome.reason == "max_runtime"  # type: ignore[attr-defined]  # an Outcome
    assert 0.3 <= time.monotonic() - began < 2


# -- state ---


def test_state_of_a_completed_step_is_not_overwritten_by_a_save_from_before_it(
    files: Runtime,
) -> None:
    complete = files.store.complete_step
    late: list[Callable[[], object]] = []

    def beside(*args: object, **keywords: object) -> bool:
        # The saver takes a save while the completion is under way, and writes it afterwards.
        (run,) = saver.runs()
        save = run.take_save()
        done = complete(*args, **keywords)  # type: ignore[arg-type]  # passed through
        files.store.save([save])
        late.append(lambda: save)
        return done

    files.store.complete_step = beside  # type: ignore[method-assign]  # the same, with a save beside

    @job(name="saver:state")
    def stateful(ctx: Context) -> None:
        ctx.state["step"] = 0

        def one() -> None:
            ctx.state["step"] = 1

        ctx.step("one", one)
        assert files.get(ctx.id).state == {"step": 1}

    assert files.perform(files.submit(stateful)).ok
    assert late
