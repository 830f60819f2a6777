"""`Runtime`: submit, perform, look, purge; and the process's default one."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

import pytest

import tracedjobs
from tests.processes import Children, until
from tracedjobs import AsyncContext, Context, Runtime, Status, job
from tracedjobs._core import job as job_module
from tracedjobs._core import runtime as runtime_module
from tracedjobs._core.records import JobRecord
from tracedjobs.errors import (
    InvalidTransitionError,
    JobConflictError,
    JobNotFoundError,
    JobRunningError,
    SerializationError,
    StoreError,
    TracedJobsError,
    UnknownJobError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tracedjobs._core.records import Change
    from tracedjobs.events import Event


@job(name="runtime:add")
def add(ctx: Context, a: int, b: int = 2, *more: int, scale: int = 1) -> int:
    return ctx.step("add", lambda: (a + b + sum(more)) * scale)


@job(name="runtime:other")
def other(ctx: Context, a: int, b: int = 2) -> None:
    raise ValueError(a)


@job(name="runtime:add-async")
async def add_async(ctx: AsyncContext, a: int) -> int:
    return await ctx.step("add", lambda: a + 1)


@pytest.fixture
def children(tmp_path: Path) -> Iterator[Children]:
    with Children(tmp_path) as made:
        yield made


# -- submit ---


def test_a_submitted_job_is_pending_with_its_arguments_by_name(
    runtime: Runtime, told: list[Event]
) -> None:
    job_id = runtime.submit(add, 1, b=5, scale=3)
    found = runtime.get(job_id)
    assert (found.status, found.run, found.name) == (Status.PENDING, 0, "runtime:add")
    assert dict(found.arguments) == {"a": 1, "b": 5, "scale": 3}
    assert (found.steps, found.runs, found.controls) == ((), (), ())
    assert [(event.name, event.payload["job_id"]) for event in told] == [("job_submitted", job_id)]


def test_ids_are_different_when_none_is_given(runtime: Runtime) -> None:
    assert runtime.submit(add, 1) != runtime.submit(add, 1)


def test_submitting_again_under_an_id_changes_nothing(runtime: Runtime, told: list[Event]) -> None:
    assert runtime.submit(add, 1, job_id="order/17 ü") == "order/17 ü"
    before = runtime.store.load("order/17 ü")
    assert runtime.submit(add, a=1, job_id="order/17 ü") == "order/17 ü"
    assert runtime.store.load("order/17 ü") == before
    assert runtime.perform("order/17 ü").result == 3
    assert runtime.submit(add, 1, job_id="order/17 ü") == "order/17 ü"
    assert runtime.get("order/17 ü").status is Status.COMPLETED
    assert [event.name for event in told].count("job_submitted") == 1


def test_an_id_that_has_other_arguments_or_another_job_is_refused(runtime: Runtime) -> None:
    runtime.submit(add, 1, job_id="one")
    before = runtime.store.load("one")
    with pytest.raises(JobConflictError, match="The job one exists already with other arguments"):
        runtime.submit(add, 2, job_id="one")
    with pytest.raises(JobConflictError, match="exists already with the name 'runtime:add'"):
        runtime.submit(other, 1, job_id="one")
    with pytest.raises(JobConflictError):
        runtime.submit(add, True, job_id="one")  # noqa: FBT003 - equal to 1, and another value
    assert runtime.store.load("one") == before


@pytest.mark.parametrize("job_id", ["", "a\nb", "x" * 256, "\ud800"])
def test_an_id_is_a_printable_text_of_a_reasonable_length(runtime: Runtime, job_id: str) -> None:
    with pytest.raises(TracedJobsError, match="must be a printable text of 1 to 255 characters"):
        runtime.submit(add, 1, job_id=job_id)
    assert runtime.list() == []


def test_arguments_that_do_not_fit_or_cannot_be_stored_are_refused_at_once(
    runtime: Runtime,
) -> None:
    with pytest.raises(TypeError, match=r"These arguments do not fit runtime:add\(.*'a'"):
        runtime.submit(add)
    with pytest.raises(TypeError, match="unexpected keyword argument 'c'"):
        runtime.submit(add, 1, c=2)
    with pytest.raises(SerializationError, match=r"arguments\['a'\]|arguments.a"):
        runtime.submit(add, object())
    with pytest.raises(TypeError, match="submit takes a job, a function decorated with @job"):
        runtime.submit(add.fn, 1)  # type: ignore[arg-type]  # the mistake
    assert runtime.list() == []


def test_all_kinds_of_parameters_reach_the_job(runtime: Runtime) -> None:
    assert runtime.perform(runtime.submit(add, 1)).result == 3
    assert runtime.perform(runtime.submit(add, 1, 1, 1, 1, scale=2)).result == 8


def test_threads_that_submit_the_same_id_make_one_job(runtime: Runtime, told: list[Event]) -> None:
    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(lambda _: runtime.submit(add, 1, job_id="same"), range(40)))
    assert set(ids) == {"same"}
    assert [event.name for event in told] == ["job_submitted"]


# -- perform ---


def test_a_completed_job_gives_its_outcome_again_and_is_not_run_again(runtime: Runtime) -> None:
    job_id = runtime.submit(add, 1)
    first = runtime.perform(job_id)
    assert (first.ok, first.run, first.result, first.resume_in) == (True, 1, 3, None)
    before = runtime.store.load(job_id)
    assert runtime.perform(job_id) == first
    assert runtime.store.load(job_id) == before


def test_a_job_that_is_completed_just_before_it_is_taken_gives_its_outcome(
    runtime: Runtime,
) -> None:
    job_id = runtime.submit(add, 1)
    change = runtime.store.change

    def late(wanted: Change) -> bool:
        runtime.store.change = change  # type: ignore[method-assign]  # put back
        assert runtime.perform(job_id).ok  # as another process would, meanwhile
        return change(wanted)

    runtime.store.change = late  # type: ignore[method-assign,assignment]  # a little later
    outcome = runtime.perform(job_id)
    assert (outcome.status, outcome.run, outcome.result) == (Status.COMPLETED, 1, 3)


def test_a_job_whose_function_is_unknown_is_left_as_it_was(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = runtime.submit(add, 1)
    before = runtime.store.load(job_id)
    monkeypatch.delitem(job_module._jobs, "runtime:add")
    with pytest.raises(UnknownJobError) as caught:
        runtime.perform(job_id)
    assert "No job function named 'runtime:add' is registered in this process" in str(caught.value)
    assert "modules= or TRACEDJOBS_MODULES" in str(caught.value)
    assert runtime.store.load(job_id) == before


def test_modules_are_imported_when_a_function_is_not_known_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "late_jobs.py").write_text(
        "from tracedjobs import job\n@job(name='late')\ndef late(ctx):\n    return 'found'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    url = f"sqlite:///{tmp_path}/jobs.db"
    with Runtime(url) as runtime:
        made = job(name="late")(lambda ctx: None)
        job_id = runtime.submit(made)
        monkeypatch.delitem(job_module._jobs, "late")
    with (
        Runtime(url, modules=["no_such_module"]) as runtime,
        pytest.raises(UnknownJobError, match="The module 'no_such_module', named in modules="),
    ):
        runtime.perform(job_id)
    monkeypatch.setenv("TRACEDJOBS_MODULES", "os, late_jobs ,")
    with Runtime(url) as runtime:
        assert runtime.perform(job_id).result == "found"


def test_each_kind_of_job_has_its_own_way_to_perform(runtime: Runtime) -> None:
    with pytest.raises(TypeError, match="use perform_async or run_async"):
        runtime.perform(runtime.submit(add_async, 1))
    with pytest.raises(TypeError, match="use perform or run"):
        asyncio.run(runtime.perform_async(runtime.submit(add, 1)))
    assert asyncio.run(runtime.perform_async(runtime.submit(add_async, 1))).result == 2
    assert {found.run for found in runtime.list()} == {0, 1}


def test_an_error_is_recorded_and_raised(runtime: Runtime) -> None:
    job_id = runtime.submit(other, 7)
    with pytest.raises(ValueError, match="7"):
        runtime.perform(job_id)
    found = runtime.get(job_id)
    assert found.status is Status.FAILED
    assert found.error is not None
    assert (found.error.type, found.error.message) == ("ValueError", "7")
    assert "raise ValueError(a)" in found.error.traceback


def test_threads_that_perform_the_same_job_run_it_once(runtime: Runtime) -> None:
    running = threading.Event()
    release = threading.Event()

    @job(name="runtime:once")
    def once(ctx: Context) -> int:
        running.set()
        assert release.wait(20)
        return ctx.run

    job_id = runtime.submit(once)

    def perform(_: int) -> object:
        try:
            return runtime.perform(job_id).result
        except JobRunningError:
            release.set()
            return None

    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(perform, range(6)))
    assert set(results) == {None, 1}
    assert [run.number for run in runtime.get(job_id).runs] == [1]


def test_a_cancelled_task_leaves_its_job_interrupted_wherever_it_was(store_url: str) -> None:
    @job(name="runtime:cancelled", checkpoint_every=0)
    async def cancelled(ctx: AsyncContext) -> None:
        async for _ in ctx.each("items", range(5)):
            await asyncio.sleep(0.001)

    async def cancel_after(runtime: Runtime, seconds: float) -> str:
        job_id = runtime.submit(cancelled)
        task = asyncio.create_task(runtime.perform_async(job_id))
        await asyncio.sleep(seconds)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return job_id

    with Runtime(store_url) as runtime:
        for step in range(40):
            job_id = asyncio.run(cancel_after(runtime, step * 0.0005))
            until(
                lambda job_id=job_id: runtime.get(job_id).status is not Status.RUNNING,  # type: ignore[misc]  # a default binds
                "the job is not running any more",
                within=2,
            )


# -- looking ---


def test_an_unknown_id_is_named_with_its_store(runtime: Runtime) -> None:
    with pytest.raises(JobNotFoundError) as caught:
        runtime.get("nobody")
    assert str(caught.value) == f"There is no job 'nobody' in {runtime.store.url}."
    with pytest.raises(JobNotFoundError):
        runtime.perform("nobody")


def test_jobs_are_listed_newest_first_by_status_and_name_and_page(runtime: Runtime) -> None:
    for number in range(12):
        runtime.submit(add if number % 2 else other, number, job_id=f"job{number}")
    runtime.pause("job4")
    runtime.pause("job5")

    def ids(**options: object) -> list[str]:
        return [found.id for found in runtime.list(**options)]  # type: ignore[arg-type]  # passed on

    assert ids() == [f"job{number}" for number in reversed(range(12))]
    assert ids(limit=3) == ["job11", "job10", "job9"]
    assert ids(limit=3, before="job9") == ["job8", "job7", "job6"]
    assert ids(status="paused") == ["job5", "job4"]
    assert ids(status=Status.PAUSED, name="runtime:add") == ["job5"]
    assert ids(name="runtime:add", limit=2, before="job9") == ["job7", "job5"]
    assert ids(status="lost") == []


def test_a_list_that_goes_on_after_a_job_that_is_gone_says_so(runtime: Runtime) -> None:
    @job(name="runtime:gone_meanwhile", retention=0)
    def gone(ctx: Context) -> None:
        pass

    runtime.submit(add, 1)
    job_id = runtime.submit(gone)
    assert len(runtime.list(before=job_id)) == 1
    runtime.perform(job_id)
    until(lambda: runtime.purge() == 0 and runtime.store.load(job_id) is None, "it is gone")
    for status in (None, "lost"):
        with pytest.raises(JobNotFoundError, match=job_id):
            runtime.list(before=job_id, status=status)


def test_a_wrong_filter_is_refused(runtime: Runtime) -> None:
    with pytest.raises(ValueError, match="status='done' is none of pending, running"):
        runtime.list(status="done")
    with pytest.raises(ValueError, match="limit=0 must be 1 or more"):
        runtime.list(limit=0)


def test_a_snapshot_cannot_be_changed(runtime: Runtime) -> None:
    found = runtime.get(runtime.submit(add, 1))
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.status = Status.COMPLETED  # type: ignore[misc]  # the mistake
    with pytest.raises(TypeError):
        found.arguments["a"] = 2  # type: ignore[index]  # the mistake


# -- retention ---


def test_a_finished_job_is_kept_for_its_retention_and_then_purged(runtime: Runtime) -> None:
    @job(name="runtime:brief", retention=0.2)
    def brief(ctx: Context) -> None:
        ctx.step("only", lambda: None)

    kept = runtime.submit(add, 1)
    assert runtime.perform(kept).ok
    job_id = runtime.submit(brief)
    assert runtime.perform(job_id).ok
    ended = runtime.get(job_id)
    assert ended.ended_at is not None
    assert ended.expires_at is not None
    assert (ended.expires_at - ended.ended_at).total_seconds() == pytest.approx(0.2, abs=0.01)
    until(lambda: job_id not in [found.id for found in runtime.list()], "it is not listed")
    with pytest.raises(JobNotFoundError):
        runtime.get(job_id)
    assert runtime.purge() == 1
    assert runtime.purge() == 0
    assert runtime.get(kept).status is Status.COMPLETED
    assert runtime.submit(brief, job_id=job_id) == job_id
    assert runtime.get(job_id).status is Status.PENDING


def test_a_job_that_is_not_finished_never_expires(runtime: Runtime) -> None:
    @job(name="runtime:unfinished", retention=0)
    def unfinished(ctx: Context) -> None:
        ctx.interrupt("enough")

    job_id = runtime.submit(unfinished)
    runtime.perform(job_id)
    assert runtime.get(job_id).expires_at is None
    assert runtime.purge() == 0


def test_a_retried_job_does_not_expire(runtime: Runtime) -> None:
    job_id = runtime.submit(other, 1)
    with pytest.raises(ValueError, match="1"):
        runtime.perform(job_id)
    assert runtime.get(job_id).expires_at is not None
    assert runtime.retry(job_id).expires_at is None


def test_a_worker_of_short_jobs_purges_by_itself_all_that_there_is(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    @job(name="runtime:short")
    def short(ctx: Context) -> None:
        pass

    monkeypatch.setattr("tracedjobs._core.saver.PURGED_AT_ONCE", 50)
    began = runtime.store.time()
    for number in range(120):
        ended = JobRecord(f"old{number}", "old", "{}", began, status=Status.FAILED)
        runtime.store.create(dataclasses.replace(ended, expires_at=began))
    purge, purged = runtime.store.purge, list[int]()

    def counted(*, limit: int) -> int:
        purged.append(purge(limit=limit))
        return purged[-1]

    monkeypatch.setattr(runtime.store, "purge", counted)
    runtime.perform(runtime.submit(short))
    until(lambda: sum(purged) == 120, "all of them are purged")
    assert purged == [50, 50, 20]


def test_a_worker_purges_by_itself(runtime: Runtime) -> None:
    @job(name="runtime:gone", retention=0)
    def gone(ctx: Context) -> None:
        pass

    @job(name="runtime:waits", checkpoint_every=0.05)
    def waits(ctx: Context) -> None:
        for _ in ctx.each("items", range(10)):
            time.sleep(0.05)

    runtime.perform(runtime.submit(gone))
    runtime.perform(runtime.submit(waits))
    assert runtime.purge() == 0


# -- the runtime itself ---


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"lease_ttl": 0.1},
            "lease_ttl=0.1 is too short to be renewed in time; take 0.5 s or more",
        ),
        ({"lease_ttl": -1}, "lease_ttl=-1 must be above 0 seconds"),
        ({"lease_ttl": "30"}, "lease_ttl='30' must be a number of seconds"),
        ({"stopping": True}, "stopping=True must be a callable"),
    ],
)
def test_a_wrong_setting_is_refused(options: dict[str, object], sentence: str) -> None:
    with pytest.raises((TypeError, ValueError), match=sentence):
        Runtime("memory://", **options)  # type: ignore[arg-type]  # the mistake


def test_a_closed_runtime_says_so(store_url: str) -> None:
    with Runtime(store_url) as runtime:
        job_id = runtime.submit(add, 1)
    with pytest.raises(StoreError, match="is closed"):
        runtime.get(job_id)


def test_the_worker_has_a_name_in_the_records(store_url: str) -> None:
    with Runtime(store_url, worker="importer-1") as runtime:
        job_id = runtime.submit(add, 1)
        runtime.perform(job_id)
        assert runtime.get(job_id).runs[0].worker == "importer-1"


def test_memory_is_private_to_its_runtime() -> None:
    with Runtime("memory://") as one, Runtime("memory://") as two:
        job_id = one.submit(add, 1)
        with pytest.raises(JobNotFoundError):
            two.get(job_id)


DEFAULT: Final = """
import tracedjobs

@job(name="default")
def default(ctx: Context, word: str) -> str:
    return word

say(default.run("hello").result, tracedjobs.default_runtime().store.url)
"""


def test_the_default_runtime_is_named_by_the_environment_or_a_file_here(
    children: Children, tmp_path: Path
) -> None:
    named = {"TRACEDJOBS_STORE": f"sqlite:///{tmp_path}/named.db"}
    assert children.start(DEFAULT, "-", "-", env=named).ends() == (
        f"hello sqlite:///{tmp_path}/named.db\n"
    )
    unnamed = children.start(DEFAULT, "-", "-", env={"TRACEDJOBS_STORE": ""})
    assert unnamed.ends() == "hello sqlite:///tracedjobs.db\n"
    assert (tmp_path / "tracedjobs.db").exists()


def test_configure_makes_the_default_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime_module, "_configured", None)
    made = tracedjobs.configure("memory://", lease_ttl=10)
    assert tracedjobs.default_runtime() is made
    assert add.run(1, 2).result == 3
    assert asyncio.run(add_async.run_async(1)).result == 2
    job_id = add.submit(5)
    assert made.perform(job_id).result == 7
    made.close()


def test_an_impossible_control_is_an_error_of_the_library() -> None:
    assert issubclass(InvalidTransitionError, TracedJobsError)
    assert issubclass(JobRunningError, InvalidTransitionError)


# -- what a run leaves ---


@pytest.mark.parametrize("ending", ["completed", "interrupted", "failed", "failed in a loop"])
def test_what_a_run_held_is_free_as_soon_as_it_is_over(ending: str) -> None:
    held: list[weakref.ref[object]] = []

    @job(name="runtime:held")
    def steps_and_loops(ctx: Context) -> None:
        held.append(weakref.ref(ctx._run))
        ctx.step("first", int)
        for item in ctx.each("items", range(5)):
            ctx.state["item"] = item
        for number, _ in ctx.each("pairs", [(1, "a"), (2, "b")]):
            if number == 2 and ending == "interrupted":
                ctx.interrupt("stopping")
            if number == 2 and ending == "failed in a loop":
                raise ValueError(ending)
        if ending == "failed":
            raise ValueError(ending)

    gc.collect()
    gc.disable()  # what is free without it needs no pause of it, and no memory until then
    try:
        with Runtime("memory://") as runtime:
            runtime.perform(runtime.submit(steps_and_loops))
            assert held[0]() is None
    finally:
        gc.enable()
