"""Pause, resume, cancel, retry, rewind, recover: on every status, and while a job runs."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final

import pytest

from tests.processes import PERFORM, Children, count, until
from tracedjobs import Context, Runtime, Status, job
from tracedjobs._core.clock import boot_id
from tracedjobs._core.records import (
    Change,
    JobRecord,
    Position,
    RunEnd,
    RunRecord,
    StepRecord,
    position_columns,
)
from tracedjobs._core.saver import saver
from tracedjobs.errors import InvalidTransitionError, JobNotFoundError, JobRunningError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tracedjobs.events import Event

SOON: Final = 2.0
"""Seconds within which a running job sees what an operator asks for."""


@job(name="controls:walk")
def walk(ctx: Context) -> str:
    ctx.step("first", lambda: 1)
    for _ in ctx.each("second", range(10)):
        pass
    return "walked"


def put(runtime: Runtime, standing: str) -> str:
    """The id of a job that stands so: one step done, the next at item 4 of 10."""
    status = Status.RUNNING if standing == "lost" else Status(standing)
    begun = status is not Status.PENDING
    head = JobRecord(
        id=standing,
        name="controls:walk",
        arguments="{}",
        submitted_at=time.time(),
        run=1 if begun else 0,
    )
    runtime.store.create(head)
    if not begun:
        return standing
    start = Change(
        standing,
        0,
        {
            "status": Status.RUNNING,
            "token": "t",
            "lease_until": 0.0,
            "lease_boot": boot_id(),
        },
        lease_ttl=30.0 if standing == "running" else None,
        open_run=RunRecord(1, "here", 1.0, resumed=False),
    )
    assert runtime.store.change(start)
    step = StepRecord("first", "1", "null", 0, None, None, 1.0, 2.0, 1)
    runtime.store.complete_step(standing, "t", step, position=0, seq=1, state=None)
    second = Position("second", "4", 4, started_at=1.0)
    assert runtime.store.change(Change(standing, 1, position_columns(second)))
    if status is not Status.RUNNING:
        ends = {"status": status, "token": None, "reason": "before"}
        assert runtime.store.change(
            Change(standing, 2, ends, close_run=RunEnd(1, status.value, None, 3.0))
        )
    return standing


# What each action makes of each status. "refused" leaves the record as it was, "same" too but is
# no error; "wish" is for the run to see.
TABLE: Final[dict[str, dict[str, str]]] = {
    "perform": {
        "pending": "completed",
        "running": "refused",
        "lost": "completed",
        "interrupted": "completed",
        "paused": "refused",
        "completed": "same",
        "failed": "completed",
        "cancelled": "refused",
    },
    "pause": {
        "pending": "paused",
        "running": "wish pause",
        "lost": "paused",
        "interrupted": "paused",
        "paused": "same",
        "completed": "refused",
        "failed": "refused",
        "cancelled": "refused",
    },
    "resume": {
        "pending": "same",
        "running": "same",
        "lost": "same",
        "interrupted": "same",
        "paused": "interrupted",
        "completed": "refused",
        "failed": "refused",
        "cancelled": "refused",
    },
    "cancel": {
        "pending": "cancelled",
        "running": "wish cancel",
        "lost": "cancelled",
        "interrupted": "cancelled",
        "paused": "cancelled",
        "completed": "refused",
        "failed": "refused",
        "cancelled": "same",
    },
    "retry": {
        "pending": "refused",
        "running": "refused",
        "lost": "refused",
        "interrupted": "refused",
        "paused": "refused",
        "completed": "refused",
        "failed": "interrupted",
        "cancelled": "refused",
    },
    "rewind": {
        "pending": "refused",
        "running": "refused",
        "lost": "interrupted",
        "interrupted": "interrupted",
        "paused": "paused",
        "completed": "interrupted",
        "failed": "interrupted",
        "cancelled": "refused",
    },
    "recover": {
        "pending": "same",
        "running": "same",
        "lost": "interrupted",
        "interrupted": "same",
        "paused": "same",
        "completed": "same",
        "failed": "same",
        "cancelled": "same",
    },
}
PAIRS: Final = [
    (action, standing, wanted) for action, row in TABLE.items() for standing, wanted in row.items()
]


def act(runtime: Runtime, action: str, job_id: str) -> None:
    actions: dict[str, Callable[[], object]] = {
        "perform": lambda: runtime.perform(job_id),
        "pause": lambda: runtime.pause(job_id, by="ann"),
        "resume": lambda: runtime.resume(job_id, by="ann"),
        "cancel": lambda: runtime.cancel(job_id, by="ann"),
        "retry": lambda: runtime.retry(job_id, by="ann"),
        "rewind": lambda: runtime.rewind(job_id, "first", by="ann"),
        "recover": lambda: runtime.recover(by="ann"),
    }
    actions[action]()


def test_the_table_is_of_every_status_and_every_action() -> None:
    for row in TABLE.values():
        assert set(row) == {*(str(status) for status in Status), "lost"}


@pytest.mark.parametrize(("action", "standing", "wanted"), PAIRS)
def test_every_action_on_every_status_works_or_is_refused(
    runtime: Runtime, action: str, standing: str, wanted: str
) -> None:
    job_id = put(runtime, standing)
    before = runtime.store.load(job_id)
    assert before is not None
    if wanted == "refused":
        with pytest.raises(InvalidTransitionError) as caught:
            act(runtime, action, job_id)
        assert job_id in str(caught.value)
        if (action, standing) == ("perform", "running"):
            assert isinstance(caught.value, JobRunningError)
    else:
        act(runtime, action, job_id)
    after = runtime.store.load(job_id)
    assert after is not None
    if wanted in {"refused", "same"}:
        assert after == before
        return
    if wanted.startswith("wish"):
        assert after.job.status is Status.RUNNING
        assert after.job.wish == wanted.split()[1]
    else:
        assert after.job.status is Status(wanted)
        assert after.job.wish is None
    if action != "perform":
        (control,) = after.controls
        assert (control.action, control.by) == (action, "ann")
        assert abs(control.at - time.time()) < 60
    if standing == "lost":
        assert (after.runs[0].outcome, after.runs[0].reason) == ("lost", "lost")
        assert after.job.token is None
    assert (after.job.expires_at is None) == (wanted not in {"completed", "cancelled"})


@pytest.mark.parametrize("action", ["pause", "resume", "cancel", "retry", "rewind"])
def test_an_unknown_id_is_named(runtime: Runtime, action: str) -> None:
    with pytest.raises(JobNotFoundError, match="There is no job 'nobody' in"):
        act(runtime, action, "nobody")


def test_who_asked_is_the_user_and_host_when_nobody_is_named(runtime: Runtime) -> None:
    runtime.pause(put(runtime, "pending"))
    (control,) = runtime.get("pending").controls
    assert "@" in control.by


def test_a_paused_job_that_never_ran_is_pending_again(runtime: Runtime) -> None:
    put(runtime, "pending")
    runtime.pause("pending")
    assert runtime.resume("pending").status is Status.PENDING


@pytest.mark.parametrize("action", ["pause", "resume", "rewind"])
def test_a_job_that_is_being_cancelled_is_not_called_back(runtime: Runtime, action: str) -> None:
    put(runtime, "running")
    runtime.cancel("running")
    before = runtime.store.load("running")
    with pytest.raises(InvalidTransitionError):
        act(runtime, action, "running")
    assert runtime.store.load("running") == before


def test_a_cancellation_comes_after_a_pause_that_was_not_seen_yet(runtime: Runtime) -> None:
    put(runtime, "running")
    runtime.pause("running")
    assert runtime.cancel("running").wish == "cancel"


def test_a_pause_that_was_not_seen_yet_is_taken_back(runtime: Runtime) -> None:
    put(runtime, "running")
    runtime.pause("running")
    assert runtime.resume("running").wish is None


@pytest.mark.parametrize(("wish", "status"), [("pause", "paused"), ("cancel", "cancelled")])
def test_a_wish_that_the_dead_run_did_not_see_is_met_by_recover(
    runtime: Runtime, wish: str, status: str
) -> None:
    put(runtime, "lost")
    assert runtime.store.change(Change("lost", 2, {"wish": wish}))
    assert runtime.recover() == ["lost"]
    found = runtime.get("lost")
    assert (found.status, found.wish) == (Status(status), None)


@pytest.mark.parametrize(("action", "status"), [("pause", "paused"), ("cancel", "cancelled")])
def test_what_was_asked_of_a_run_that_died_may_be_asked_again(
    runtime: Runtime, action: str, status: str
) -> None:
    put(runtime, "lost")
    assert runtime.store.change(Change("lost", 2, {"wish": action}))
    act(runtime, action, "lost")
    assert runtime.get("lost").status is Status(status)


def test_recover_goes_through_all_lost_jobs_and_leaves_the_rest(runtime: Runtime) -> None:
    for standing in ("running", "paused", "completed"):
        put(runtime, standing)
    lost = [f"lost{number}" for number in range(120)]
    for each in lost:
        runtime.store.create(
            JobRecord(each, "controls:walk", "{}", 1.0, status=Status.RUNNING, token="t")
        )
    assert [each.id for each in runtime.list(status="lost", limit=300)] == lost[::-1]
    assert sorted(runtime.recover()) == sorted(lost)
    assert runtime.recover() == []
    assert {each.status for each in runtime.list(status="interrupted", limit=300)} == {
        Status.INTERRUPTED
    }


# -- rewind ---


def test_a_rewind_drops_the_step_and_later_ones_and_sets_the_cursor(runtime: Runtime) -> None:
    @job(name="controls:rewound")
    def three(ctx: Context) -> None:
        for name in ("a", "b", "c"):
            for item in ctx.each(name, range(5)):
                seen.append((name, item))  # noqa: PERF401 - the loop is what is tested

    seen: list[tuple[str, int]] = []
    job_id = runtime.submit(three)
    assert runtime.perform(job_id).ok
    found = runtime.rewind(job_id, "b", 3)
    assert [(step.name, step.status, step.cursor) for step in found.steps] == [
        ("a", "completed", 5),
        ("b", "interrupted", 3),
    ]
    assert (found.result, found.ended_at, found.expires_at) == (None, None, None)
    seen.clear()
    assert runtime.perform(job_id).ok
    assert seen == [("b", 3), ("b", 4), *(("c", item) for item in range(5))]


def test_a_rewind_to_a_step_that_was_not_begun_names_those_that_were(runtime: Runtime) -> None:
    put(runtime, "interrupted")
    with pytest.raises(InvalidTransitionError) as caught:
        runtime.rewind("interrupted", "third")
    assert "has not begun a step 'third'; it can go back to 'first', 'second'" in str(caught.value)
    assert runtime.get("interrupted").controls == ()


# -- while it runs ---


@pytest.fixture
def file_runtime(tmp_path: Path) -> Iterator[Runtime]:
    with Runtime(f"sqlite:///{tmp_path}/jobs.db") as made:
        yield made


@pytest.mark.parametrize(("action", "status"), [("pause", "paused"), ("cancel", "cancelled")])
def test_a_job_that_runs_in_another_process_stops_soon_after_it_was_asked(
    file_runtime: Runtime, children: Children, tmp_path: Path, action: str, status: str
) -> None:
    job_id = file_runtime.submit(count, str(tmp_path / "log"), 1_000_000, 0.001)
    child = children.start(PERFORM, f"sqlite:///{tmp_path}/jobs.db", job_id)
    child.says("run 1")
    asked = time.monotonic()
    act(file_runtime, action, job_id)
    until(lambda: file_runtime.get(job_id).status is Status(status), status, within=SOON * 5)
    assert time.monotonic() - asked < SOON
    child.says(f"outcome {status} {status}")
    child.ends()
    found = file_runtime.get(job_id)
    done = len((tmp_path / "log").read_text().splitlines())
    assert found.steps[0].cursor == done > 0
    assert (found.runs[0].outcome, found.wish) == (status, None)
    assert [(control.action, control.by) for control in found.controls] == [(action, "ann")]


def test_a_job_that_was_paused_goes_on_where_it_was(
    file_runtime: Runtime, children: Children, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/jobs.db"
    job_id = file_runtime.submit(count, str(tmp_path / "log"), 400, 0.005)
    child = children.start(PERFORM, url, job_id)
    child.says("run 1")
    file_runtime.pause(job_id)
    child.ends()
    file_runtime.resume(job_id)
    second = children.start(PERFORM, url, job_id)
    second.says("run 2")
    second.ends()
    assert "outcome completed None" in second.text()
    items = [int(line.split()[1]) for line in (tmp_path / "log").read_text().splitlines()]
    assert items == list(range(400))


class Item:
    """An item of a job that a test holds as long as it wants."""

    def __init__(self, runtime: Runtime, *, after: int = 0) -> None:
        self.reached = threading.Event()
        self.go_on = threading.Event()
        self.outcome: object = None
        self.after = after
        made = job(name="controls:held")(self._held)
        self.job_id = runtime.submit(made)
        self.thread = threading.Thread(target=self._perform, args=(runtime,))
        self.thread.start()
        assert self.reached.wait(20)

    def _perform(self, runtime: Runtime) -> None:
        try:
            self.outcome = runtime.perform(self.job_id)
        except BaseException as error:
            self.outcome = error

    def _held(self, ctx: Context) -> None:
        for item in ctx.each("items", range(10)):
            if item == self.after:
                self.reached.set()
                assert self.go_on.wait(20)

    def end(self) -> object:
        self.go_on.set()
        self.thread.join(20)
        assert not self.thread.is_alive()
        return self.outcome


def stop_reason(runtime: Runtime, job_id: str) -> str | None:
    (run,) = [run for run in saver.runs() if run.record.id == job_id]
    return run.stop_reason


def test_a_pause_that_is_taken_back_before_the_job_sees_it_stops_nothing(runtime: Runtime) -> None:
    item = Item(runtime)
    runtime.pause(item.job_id)
    until(lambda: stop_reason(runtime, item.job_id) == "paused", "the run was asked to pause")
    runtime.resume(item.job_id)
    until(lambda: stop_reason(runtime, item.job_id) is None, "the request was withdrawn")
    item.end()
    assert runtime.get(item.job_id).status is Status.COMPLETED


def test_a_pause_that_is_taken_back_takes_no_other_stop_with_it(runtime: Runtime) -> None:
    item = Item(runtime)
    runtime.pause(item.job_id)
    until(lambda: stop_reason(runtime, item.job_id) == "paused", "the run was asked to pause")
    for run in saver.runs():
        run.request_stop("stopping")
    runtime.resume(item.job_id)
    item.end()
    assert (runtime.get(item.job_id).status, runtime.get(item.job_id).reason) == (
        Status.INTERRUPTED,
        "stopping",
    )


def test_a_resume_between_the_pause_and_its_record_is_heeded(runtime: Runtime) -> None:
    item = Item(runtime)
    runtime.pause(item.job_id)
    until(lambda: stop_reason(runtime, item.job_id) == "paused", "the run was asked to pause")
    change = runtime.store.change
    resumed = threading.Event()

    def late(wanted: Change) -> bool:
        if "saved_seq" in wanted.columns and not resumed.is_set():
            resumed.set()
            runtime.resume(item.job_id)
        return change(wanted)

    runtime.store.change = late  # type: ignore[method-assign,assignment]  # with a resume before it
    item.end()
    found = runtime.get(item.job_id)
    assert resumed.is_set()
    assert (found.status, found.reason) == (Status.INTERRUPTED, "paused")
    assert found.resume_at is not None


def test_a_cancellation_between_a_pause_and_its_record_is_heeded(runtime: Runtime) -> None:
    item = Item(runtime)
    runtime.pause(item.job_id)
    until(lambda: stop_reason(runtime, item.job_id) == "paused", "the run was asked to pause")
    change = runtime.store.change
    cancelled = threading.Event()

    def late(wanted: Change) -> bool:
        if "saved_seq" in wanted.columns and not cancelled.is_set():
            cancelled.set()
            runtime.cancel(item.job_id)
        return change(wanted)

    runtime.store.change = late  # type: ignore[method-assign,assignment]  # with a cancel before it
    item.end()
    assert runtime.get(item.job_id).status is Status.CANCELLED


def test_a_running_job_tells_of_its_pause_when_it_is_paused(
    runtime: Runtime, told: list[Event]
) -> None:
    item = Item(runtime)
    runtime.pause(item.job_id)
    until(lambda: stop_reason(runtime, item.job_id) == "paused", "the run was asked to pause")
    assert "job_paused" not in [event.name for event in told]
    item.end()
    assert [event.name for event in told].count("job_paused") == 1


@pytest.mark.parametrize("reason", ["paused", "cancelled"])
def test_a_reason_of_the_jobs_own_is_only_a_reason(runtime: Runtime, reason: str) -> None:
    @job(name="controls:reason")
    def stops(ctx: Context) -> None:
        ctx.interrupt(reason)

    outcome = runtime.perform(runtime.submit(stops))
    assert (outcome.status, outcome.reason) == (Status.INTERRUPTED, reason)


def test_a_reason_that_no_store_takes_is_recorded_all_the_same(runtime: Runtime) -> None:
    @job(name="controls:surrogate")
    def stops(ctx: Context) -> None:
        ctx.interrupt("\ud800")

    outcome = runtime.perform(runtime.submit(stops))
    assert (outcome.status, outcome.reason) == (Status.INTERRUPTED, "\\ud800")


# -- everybody at once ---


CROWD: Final = """
import random
rng = random.Random(int(sys.argv[4]))
names = ("submit", "perform", "pause", "resume", "retry", "rewind", "recover")

@job(name="crowd")
def crowd(ctx: Context, path: str) -> None:
    with open(path, "a", buffering=1) as file:
        file.write(f"begin {ctx.run} {os.getpid()}\\n")
        try:
            for item in ctx.each("items", range(30)):
                time.sleep(0.002)
        finally:
            file.write(f"end {ctx.run} {os.getpid()}\\n")

with Runtime(URL) as runtime:
    give_up = time.monotonic() + 3.0
    action = ""
    while action != "cancel":
        going_on = time.monotonic() < give_up
        action = rng.choices(names, (4, 10, 3, 4, 3, 2, 2))[0] if going_on else "cancel"
        try:
            if action == "submit":
                runtime.submit(crowd, sys.argv[3], job_id=JOB_ID)
            elif action == "recover":
                runtime.recover()
            elif action == "rewind":
                runtime.rewind(JOB_ID, "items")
            else:
                getattr(runtime, action)(JOB_ID)
        except (InvalidTransitionError, JobNotFoundError):
            pass
    say("done")
"""


def test_eight_processes_that_do_everything_at_once_run_the_job_once_at_a_time(
    file_runtime: Runtime, children: Children, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    url = f"sqlite:///{tmp_path}/jobs.db?synchronous=normal"
    crowd = [children.start(CROWD, url, "the-one", log, number) for number in range(8)]
    for child in crowd:
        child.ends()
        assert child.text() == "done\n"
    stored = file_runtime.store.load("the-one")
    assert stored is not None
    numbers = [run.number for run in stored.runs]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) > 3
    lines = [line.split() for line in log.read_text().splitlines()]
    # No run begins before the one before it has ended: their lines come in pairs, in order.
    for begin, end in zip(lines[::2], lines[1::2], strict=True):
        assert (begin[0], end[0]) == ("begin", "end")
        assert begin[1:] == end[1:]
    assert [int(line[1]) for line in lines[::2]] == numbers
    assert all(run.ended_at is not None for run in stored.runs)
    # All have asked for a cancellation at the end: it came, or was too late.
    assert stored.job.status in {Status.CANCELLED, Status.COMPLETED}
