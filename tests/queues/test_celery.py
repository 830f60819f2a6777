"""What is Celery's own: chains, kills of parts of a worker, revoking, copies of a message."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from celery import Celery, chain, signals
from celery.exceptions import TaskRevokedError
from kombu.exceptions import SerializerNotInstalled

from tests.processes import PATIENCE, until
from tracedjobs import Context, Runtime, events
from tracedjobs.queues.celery import continuable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.queues.harness import Kind, Place
    from tests.queues.on_celery import OnCelery
    from tests.stores.redis_servers import RedisServer

MORE = """
@app.task
def shout(text):
    return text.upper()
"""


def children_of(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii")
    return [int(each) for each in text.split()]


def running(place: Place, path: Path, items: int = 120) -> tuple[object, str]:
    """A job in the middle of its items, its handle and its id."""
    handle = place.kind.send(place.app.count, str(path), items)
    until(lambda: len(place.lines(path)) > 20, "it runs")
    return handle, place.kind.id_of(handle)


def test_a_chain_goes_on_after_a_stop_and_after_a_kill(
    celery_on_redis: OnCelery, place_of: Callable[[Kind], Place], tmp_path: Path
) -> None:
    place = place_of(replace(celery_on_redis, more=MORE))
    path = tmp_path / "items"
    handle = chain(place.app.count.s(str(path), 200), place.app.shout.s()).apply_async()
    worker = place.start()
    until(lambda: len(place.lines(path)) > 20, "it runs")
    worker.stop()
    worker.ends()
    worker = place.start()
    done = len(place.lines(path))
    until(lambda: len(place.lines(path)) > done + 20, "it runs again")
    worker.kill()
    place.start()
    assert handle.get(timeout=PATIENCE) == "COUNTED 200"
    items = [item for _, item in place.lines(path)]
    assert sorted(set(items)) == list(range(200))
    assert len(items) - 200 <= 1


@pytest.mark.parametrize("whom", ["the group", "the pool's process"])
def test_a_sigterm_to_the_pools_processes_too_interrupts_the_job(
    celery_on_redis: OnCelery, place_of: Callable[[Kind], Place], tmp_path: Path, whom: str
) -> None:
    place = place_of(celery_on_redis)
    path = tmp_path / "items"
    worker = place.start()
    handle, job_id = running(place, path)
    if whom == "the group":
        os.killpg(worker.process.pid, signal.SIGTERM)
        worker.ends()
        place.start()
    else:
        os.kill(int(place.job(job_id).runs[-1].worker.rpartition(":")[2]), signal.SIGTERM)
    assert place.kind.result(handle) == "counted 120"
    assert [item for _, item in place.lines(path)] == list(range(120))


@pytest.mark.parametrize("which", ["child", "main process"])
def test_a_killed_part_of_the_worker_leaves_the_job_to_others(
    celery_on_redis: OnCelery, place_of: Callable[[Kind], Place], tmp_path: Path, which: str
) -> None:
    place = place_of(celery_on_redis)
    path = tmp_path / "items"
    worker = place.start()
    handle, job_id = running(place, path)
    if which == "child":
        os.kill(int(place.job(job_id).runs[-1].worker.rpartition(":")[2]), signal.SIGKILL)
    else:
        worker.process.kill()  # the job goes on in the child, or in another worker
        place.start()
    until(lambda: place.job(job_id).status == "completed", place.told())
    assert place.kind.result(handle) == "counted 120"
    items = [item for _, item in place.lines(path)]
    assert sorted(set(items)) == list(range(120))
    assert len(items) - 120 <= 1


def test_a_revoked_task_is_a_cancelled_job(
    celery_on_redis: OnCelery, place_of: Callable[[Kind], Place], tmp_path: Path
) -> None:
    place = place_of(celery_on_redis)
    path = tmp_path / "items"
    place.start()
    handle, job_id = running(place, path, 10_000)
    handle.revoke(terminate=True)  # type: ignore[attr-defined]  # celery's
    place.until_status(job_id, "cancelled")
    with pytest.raises(TaskRevokedError):
        place.kind.result(handle)


def test_copies_that_the_broker_makes_of_a_long_job_are_refused(
    celery_on_redis: OnCelery, place_of: Callable[[Kind], Place], tmp_path: Path
) -> None:
    place = place_of(replace(celery_on_redis, visibility=1))
    path = tmp_path / "items"
    place.start()
    place.start()
    handle = place.kind.send(place.app.count, str(path), 400)
    assert place.kind.result(handle) == "counted 400"
    assert [item for _, item in place.lines(path)] == list(range(400))
    totals = place.runtime.store.survey().totals
    assert sum(n for key, n in totals.items() if key[0] == "duplicates_refused") >= 1


STUCK = """
@continuable(app, **SOON, stall_after=1.0)
def stick(ctx, path):
    for item in ctx.each("items", range(3)):
        note(path, f"{ctx.run} {item}")
        while item == 1 and not os.path.exists(path + ".go"):
            time.sleep(0.1)
    return "unstuck"
"""


def test_green_threads_are_interrupted_and_watched(
    celery_on_redis: OnCelery, place_of: Callable[[Kind], Place], tmp_path: Path
) -> None:
    place = place_of(replace(celery_on_redis, pool="gevent", more=STUCK))
    path, stuck = tmp_path / "items", tmp_path / "stuck"
    worker = place.start()
    stick = place.kind.send(place.app.stick, str(stuck))
    handle, job_id = running(place, path, 300)
    until(lambda: place.job(stick.id).stall is not None, "the saver lives, and sees what is stuck")
    (tmp_path / "stuck.go").touch()
    assert place.kind.result(stick) == "unstuck"
    worker.stop()
    place.until_status(job_id, "interrupted", within=2.0)
    worker.ends()
    place.start()
    assert place.kind.result(handle) == "counted 300"
    assert [item for _, item in place.lines(path)] == list(range(300))


LIMITED = """
def items_of(ctx, path):
    for item in ctx.each("items", range(150)):
        note(path, f"{ctx.run} {item}")
        time.sleep(0.01)
    return "all"

@continuable(app, **SOON, soft_time_limit=1)
def softly(ctx, path):
    return items_of(ctx, path)

@continuable(app, **SOON, time_limit=1)
def hardly(ctx, path):
    return items_of(ctx, path)
"""


def test_a_job_goes_on_after_both_of_celerys_time_limits(
    celery_on_redis: OnCelery, place_of: Callable[[Kind], Place], tmp_path: Path
) -> None:
    place = place_of(replace(celery_on_redis, more=LIMITED))
    place.start().says_ready()
    soft = place.kind.send(place.app.softly, str(tmp_path / "soft"))
    hard = place.kind.send(place.app.hardly, str(tmp_path / "hard"))
    assert place.kind.result(soft) == "all"  # raised in the function, as an error
    job = place.job(place.kind.id_of(soft))
    assert [run.reason for run in job.runs[:-1]] == ["error"] * (job.run - 1)
    assert job.run > 1
    items = [item for _, item in place.lines(tmp_path / "soft")]
    assert sorted(set(items)) == list(range(150))
    assert len(items) - 150 <= job.run - 1  # the one in hand, as after any error

    place.until_status(place.kind.id_of(hard), "completed")
    job = place.job(place.kind.id_of(hard))
    # Its process is sent a SIGTERM, and a SIGKILL 0.1 s later.
    assert {run.reason for run in job.runs[:-1]} <= {"exit", "lost"}
    assert job.run > 1
    for before, after in pairwise(job.runs):
        assert before.ended_at is not None
        assert (after.started_at - before.ended_at).total_seconds() < 3.0
    items = [item for _, item in place.lines(tmp_path / "hard")]
    assert sorted(set(items)) == list(range(150))
    assert len(items) - 150 <= job.run - 1
    # Celery stored a failure at each kill; the job's result is in its place.
    until(lambda: hard.backend.get_task_meta(hard.id)["result"] == "all", "the result is there")


# -- the record, and the message that is sent while it is on its way ---


@pytest.fixture
def submitted() -> Iterator[list[str]]:
    """The ids of the jobs that were told to be submitted."""
    told: list[str] = []

    def listener(event: events.Event) -> None:
        if event.name == "job_submitted":
            told.append(str(event.payload["job_id"]))

    events.subscribe(listener)
    yield told
    events.unsubscribe(listener)


def nothing(app: Celery, runtime: Runtime, name: str) -> Any:
    """A continuable task that does nothing."""

    @continuable(app, runtime=runtime, name=name)  # type: ignore[untyped-decorator]
    def work(ctx: Context) -> None:
        pass

    return work


@pytest.mark.parametrize("by_name", [False, True])
def test_a_message_whose_record_is_refused_is_sent_all_the_same(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture, *, by_name: bool
) -> None:
    app = Celery(f"refused {by_name}", broker=redis_server.url)
    app.conf.task_default_queue = f"refused {by_name}"
    with redis_server.client() as client:
        client.acl_setuser(
            "reader",
            enabled=True,
            passwords=["+secret"],
            keys=["*"],
            commands=["+@all", "-evalsha"],
        )
        url = redis_server.url.replace("redis://", "redis://reader:secret@")
        with Runtime(url) as runtime:
            work = nothing(app, runtime, "refused.work")
            if by_name:
                app.send_task("refused.work", task_id="refused")
            else:
                work.apply_async(task_id="refused")
        assert client.llen(f"refused {by_name}") == 1
    assert "The job refused is sent without a record" in caplog.text
    assert "secret" not in caplog.text


def test_a_job_whose_message_cannot_be_sent_is_recorded_and_told_of(
    redis_server: RedisServer, submitted: list[str]
) -> None:
    app = Celery("unsent", broker=redis_server.url)
    with Runtime(redis_server.url) as runtime:
        work = nothing(app, runtime, "unsent.work")

        for job_id in ("one", "two"):
            with pytest.raises(SerializerNotInstalled):
                work.apply_async(task_id=job_id, serializer="unheard of")
            assert submitted[-1:] == [job_id]
            assert runtime.get(job_id).status == "pending"


def test_a_call_that_sends_others_waits_for_each_record(
    redis_server: RedisServer, submitted: list[str]
) -> None:
    app = Celery("eager", broker=redis_server.url)
    with Runtime(redis_server.url) as runtime:
        inner = nothing(app, runtime, "eager.inner")

        @app.task(name="eager.outer")  # type: ignore[untyped-decorator]
        def outer() -> list[str]:
            app.conf.task_always_eager = False
            inner.apply_async(task_id="by call")
            first = list(submitted)
            app.send_task("eager.inner", task_id="by name")
            return first

        app.conf.task_always_eager = True
        assert outer.delay().get() == ["by call"]
        assert submitted == ["by call", "by name"]


@pytest.mark.parametrize("known", [False, True], ids=["at first", "later"])
def test_who_is_told_that_the_message_is_sent_finds_the_record(
    redis_server: RedisServer, submitted: list[str], *, known: bool
) -> None:
    app = Celery("told", broker=redis_server.url)
    seen: list[bool] = []
    with redis_server.client() as client, Runtime(redis_server.url) as runtime:
        work = nothing(app, runtime, "told.work")

        def sent(headers: dict[str, str], **_more: object) -> None:
            seen.append(runtime.get(headers["id"]).id in submitted)

        signals.after_task_publish.connect(sent)
        try:
            if known:
                work.delay()
            client.script_flush()  # the server knows no script: what it is asked first is in vain
            work.delay()
        finally:
            signals.after_task_publish.disconnect(sent)
    assert all(seen)
    assert len(seen) == len(submitted) == 1 + known
