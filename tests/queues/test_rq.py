"""What is RQ's own: horses, its commands, ways to enqueue, time limits, no scheduler."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import redis
from rq import Callback, Queue, Repeat, Retry
from rq.command import send_stop_job_command
from rq.job import Job, JobStatus

from tests.processes import until
from tests.queues.harness import session
from tracedjobs.demo.receiver import Receiver

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.queues.harness import Kind, Place
    from tests.queues.on_rq import OnRQ

MORE = """
@continuable(app, **SOON)
def ask_again(ctx, path):
    note(path, f"{ctx.run} begins")
    for item in ctx.each("items", range(3)):
        note(path, f"{ctx.run} {item}")
    return Retry(max=2) if ctx.run < 3 else "at last"

@continuable(app, **SOON)
async def count_async(ctx, path, items):
    import asyncio
    async for item in ctx.each("items", range(items)):
        note(path, f"{ctx.run} {item}")
        await asyncio.sleep(0.01)
    return simple(items)

@job(name="async {name}")
async def plain_async(ctx):
    return "awaited"

at_once = Queue("imports", connection=app.connection, is_async=False)

if "OTEL_EXPORTER_OTLP_ENDPOINT" in os.environ:
    from tracedjobs import telemetry
    telemetry.configure(logs=False)
"""

TELL = """
def tell(message, connection, result):
    note(message.meta["told"], str(result))
"""


def running(place: Place, path: Path, items: int = 120) -> tuple[Job, str]:
    """A job in the middle of its items, its handle and its id."""
    handle = place.kind.send(place.app.count, str(path), items)
    until(lambda: len(place.lines(path)) > 20, "it runs")
    return handle, place.kind.id_of(handle)


def horse_of(place: Place, job_id: str) -> int:
    return int(place.job(job_id).runs[-1].worker.rpartition(":")[2])


def has_done_more(place: Place, path: Path) -> None:
    done = len(place.lines(path))
    until(lambda: len(place.lines(path)) > done + 20, place.told())


def assert_counted(place: Place, handle: Job, path: Path, items: int) -> None:
    place.until_status(handle.id, "completed")
    until(lambda: handle.get_status() is JobStatus.FINISHED, str(handle.get_status()))
    assert handle.return_value(refresh=True) == f"counted {items}"
    done = [item for _, item in place.lines(path)]
    assert sorted(set(done)) == list(range(items))
    assert len(done) - items <= 1


def test_a_job_outlives_a_sigterm_to_all_and_the_kills_of_its_horse_and_of_its_worker(
    rq_on_redis: OnRQ, place_of: Callable[[Kind], Place], tmp_path: Path
) -> None:
    place = place_of(rq_on_redis)
    path = tmp_path / "items"
    worker = place.start()
    handle, job_id = running(place, path, 200)
    for pid in session(worker.process.pid):
        os.kill(pid, signal.SIGTERM)
    place.until_status(job_id, "interrupted", within=2.0)
    worker.ends()

    worker = place.start()
    has_done_more(place, path)
    os.kill(horse_of(place, job_id), signal.SIGKILL)
    until(lambda: place.job(job_id).run == 3, "it goes on")
    assert not handle.failed_job_registry.get_job_ids()
    assert Job.fetch(job_id, connection=handle.connection).retries_left == 2  # it took none

    has_done_more(place, path)
    worker.process.kill()
    place.until_status(job_id, "interrupted", within=2.0)  # the horse sees that it is alone
    place.start()
    assert_counted(place, handle, path, 200)
    assert not handle.started_job_registry.get_job_ids(cleanup=False)


def test_what_rq_cancels_or_stops_is_cancelled(
    rq_on_redis: OnRQ, place_of: Callable[[Kind], Place], tmp_path: Path
) -> None:
    place = place_of(rq_on_redis)
    waiting = place.app.simple.delay(1)
    waiting.cancel()
    assert place.job(waiting.id).status == "cancelled"
    place.start()
    handle, job_id = running(place, tmp_path / "cancelled", 10_000)
    handle.cancel()
    place.until_status(job_id, "cancelled")
    handle, job_id = running(place, tmp_path / "stopped", 10_000)
    send_stop_job_command(handle.connection, job_id)
    place.until_status(job_id, "cancelled")
    assert handle.get_status() is JobStatus.STOPPED


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


def test_every_way_to_enqueue_makes_a_job_whose_horse_tells_of_it(
    rq_on_redis: OnRQ,
    place_of: Callable[[Kind], Place],
    tmp_path: Path,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = place_of(replace(rq_on_redis, more=MORE, options=("--burst",)))
    app, simple = place.app.app, place.app.simple
    elsewhere = Queue("imports", connection=app.connection, default_timeout=77)
    for _ in range(2):
        via = place.runtime.submit(place.app.plain_async, job_id="v", via=place.app.import_queue)
    assert app.get_job_ids() == ["v"]
    made = Job.create(simple, args=(4,), connection=app.connection)
    sent = [
        app.enqueue(simple, 1, result_ttl=900, meta={"who": "me"}),
        app.enqueue(simple, args=(2,), kwargs={"right": 1}, job_timeout=180),
        elsewhere.enqueue(f"{place.name}.simple", 3),
        app.enqueue_job(made),
        app.enqueue_many([Queue.prepare_data(simple, (5,))])[0],
        app.enqueue(simple, 6, job_id="mine", unique=True),
        app.enqueue(simple, 7, depends_on="mine"),
        place.app.ask_again.delay(str(tmp_path / "asked")),
        place.app.count_async.delay(str(tmp_path / "async"), 20),
    ]
    assert [each.timeout for each in sent[:4]] == [-1, 180, 77, -1]
    assert {place.job(each.id).status for each in sent} == {"pending"}
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint)
    worker = place.start()
    worker.ends(30.0)
    results = [place.kind.result(each) for each in sent]
    assert results == [2, 3, 4, 5, 6, 7, 8, "at last", 21]
    assert sent[0].get_meta() == {"who": "me"}
    assert app.connection.ttl(sent[0].key) > 600
    assert place.job(sent[7].id).run == 3
    assert place.runtime.get(via).status == "completed"
    assert place.app.at_once.enqueue(simple, 8).return_value() == 9
    assert simple(9) == 10
    with pytest.raises(TypeError, match="done once"):
        app.enqueue(simple, 1, repeat=Repeat(times=2))
    with pytest.raises(TypeError, match=r"rq\.Queue"):
        place.app.continuable("imports")
    assert app.is_empty()
    told = [span.name for span in receiver.spans]
    # A horse on a busy machine may run out of time for it, and leave them to others.
    assert told.count(f"process {place.name}:simple") >= 4


def test_a_worker_without_application_and_scheduler_waits_itself(
    rq_on_redis: OnRQ, place_of: Callable[[Kind], Place], tmp_path: Path
) -> None:
    place = place_of(replace(rq_on_redis, options=(), loaded=False))
    worker = place.start()
    handle = place.app.break_off.delay(str(tmp_path / "items"), 10)
    assert place.kind.result(handle) == "whole"
    # The horse imports the application in this time, too.
    limited = place.app.app.enqueue(place.app.count, str(tmp_path / "limited"), 400, job_timeout=3)
    assert place.kind.result(limited) == "counted 400"
    assert place.job(limited.id).run > 1
    assert limited.get_status() is JobStatus.FINISHED
    assert "has not imported the application" in worker.text()
    assert worker.text().count("has not imported the application") == 1


def test_a_job_that_redis_forgot_is_enqueued_again_with_its_options(
    rq_on_redis: OnRQ, place_of: Callable[[Kind], Place], tmp_path: Path
) -> None:
    place = place_of(rq_on_redis)
    path = tmp_path / "items"
    app: Any = place.app.app
    worker = place.start()
    handle = app.enqueue(
        place.app.count, str(path), 120, retry=Retry(max=7), result_ttl=900, description="all of it"
    )
    until(lambda: len(place.lines(path)) > 20, "it runs")
    worker.kill()
    with redis.Redis.from_url(rq_on_redis.redis) as connection:
        connection.flushdb()
    place.start()
    until(lambda: app.connection.exists(handle.key), "it is there again")
    assert_counted(place, handle, path, 120)
    handle = Job.fetch(handle.id, connection=app.connection)
    assert (handle.retries_left, handle.result_ttl, handle.timeout) == (7, 900, -1)
    assert handle.description == "all of it"


def test_a_callback_is_called_once_though_the_job_is_enqueued_again(
    rq_on_redis: OnRQ, place_of: Callable[[Kind], Place], tmp_path: Path
) -> None:
    place = place_of(replace(rq_on_redis, more=TELL))
    path, told = tmp_path / "items", tmp_path / "told"
    app: Any = place.app.app
    place.start()
    tell = Callback(f"{place.name}.tell")
    handle = app.enqueue(
        place.app.count, str(path), 20, on_success=tell, meta={"told": str(told)}, result_ttl=900
    )
    assert place.kind.result(handle) == "counted 20"
    until(lambda: handle.get_status() is JobStatus.FINISHED, "it is finished")
    for _ in range(2):
        app.enqueue_job(Job.fetch(handle.id, connection=app.connection))
    assert place.kind.result(place.kind.send(place.app.simple, 1)) == 2  # behind them
    assert handle.return_value() == "counted 20"
    assert handle.get_status() is JobStatus.FINISHED
    assert told.read_text() == "counted 20\n"
    assert len(place.lines(path)) == 20


WITHOUT_RQ = """
import sys
sys.modules["rq"] = None
from tracedjobs.errors import MissingExtraError
try:
    import tracedjobs.queues.rq
except MissingExtraError as error:
    print(error)
"""
ANOTHER_RQ = """
import importlib.metadata
from rq import Queue
create_job = Queue.create_job
importlib.metadata.version = lambda name: "4.1"
import tracedjobs.queues.rq
print(Queue.create_job is create_job)
"""


def test_an_rq_that_is_missing_or_unknown_is_said() -> None:
    told = [
        subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
        for script in (WITHOUT_RQ, ANOTHER_RQ)
    ]
    assert "pip install 'tracedjobs[rq]'" in told[0].stdout
    assert told[1].stdout == "True\n"
    assert "rq 4.1 is not a version that tracedjobs was tried with (3.x)" in told[1].stderr
