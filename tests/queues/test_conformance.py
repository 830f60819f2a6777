"""What holds on every queue, with its real broker and its real workers."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Final

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tests.processes import until
from tracedjobs._core import trace
from tracedjobs.telemetry import setup

if TYPE_CHECKING:
    from pathlib import Path

    from tests.queues.harness import Place

MAIN: Final = (
    "huey threads",
    "celery prefork",
    "dramatiq threads",
    "procrastinate threads",
    "rq fork",
    "taskiq list",
)
"""One of each queue, for what its kinds of workers have no part in."""
ITEMS: Final = 120

on_each_queue = pytest.mark.parametrize("place", MAIN, indirect=True)


def items_of(place: Place, path: Path) -> list[int]:
    return [item for _, item in place.lines(path)]


def begun(place: Place, path: Path, least: int = 20) -> None:
    """Wait until the job has done that many items."""
    until(lambda: len(place.lines(path)) > least, "it runs")


def is_handed_back(place: Place, job_id: str) -> bool:
    """Whether another worker has begun with the job; a slow one, whether its message is sent."""
    stored = place.runtime.store.load(job_id)
    assert stored is not None
    sent = place.begins_slowly and stored.job.handed_at is not None
    return sent or place.job(job_id).run > 1


def refused(place: Place) -> float:
    """How many duplicates were counted."""
    totals = place.runtime.store.survey().totals
    return sum(amount for key, amount in totals.items() if key[0] == "duplicates_refused")


def test_a_stopped_worker_saves_and_the_next_one_goes_on_at_the_next_item(
    place: Place, tmp_path: Path
) -> None:
    path = tmp_path / "items"
    worker = place.start()
    handle = place.kind.send(place.app.count, str(path), ITEMS)
    job_id = place.kind.id_of(handle)
    begun(place, path)
    worker.stop()
    place.until_status(job_id, "interrupted", within=2.0)
    worker.ends()
    assert place.job(job_id).runs[-1].reason == "stopping"
    place.start()
    assert place.kind.result(handle) == f"counted {ITEMS}"
    assert items_of(place, path) == list(range(ITEMS))
    ended = place.job(job_id)
    assert (ended.status, ended.run, ended.queue) == ("completed", 2, "imports")


def test_a_killed_workers_job_is_handed_back_by_another_one(place: Place, tmp_path: Path) -> None:
    path = tmp_path / "items"
    worker = place.start()
    other = place.start()
    other.says_ready()
    handle = place.kind.send(place.app.count, str(path), ITEMS)
    job_id = place.kind.id_of(handle)
    begun(place, path)
    mine = place.job(job_id).runs[-1].worker
    worker, other = (worker, other) if place.runs(worker, mine) else (other, worker)
    worker.kill()
    until(lambda: is_handed_back(place, job_id), "another one has it", within=3.0)
    assert place.kind.result(handle) == f"counted {ITEMS}"
    items = items_of(place, path)
    assert sorted(set(items)) == list(range(ITEMS))
    assert len(items) - ITEMS <= 1


@on_each_queue
def test_rolling_restarts_lose_nothing_and_do_nothing_twice(place: Place, tmp_path: Path) -> None:
    paths = [tmp_path / f"items{number}" for number in range(3)]
    items = getattr(place.kind, "rolling_items", 150)
    handles = [place.kind.send(place.app.count, str(path), items) for path in paths]
    for round_ in range(3):
        worker = place.start()
        done = sum(len(place.lines(path)) for path in paths)
        until(lambda: sum(len(place.lines(path)) for path in paths) > done + 15, f"{round_} works")  # noqa: B023 - at once
        worker.stop()
        worker.ends()
    place.start()
    assert [place.kind.result(handle) for handle in handles] == [f"counted {items}"] * 3
    for path in paths:
        assert items_of(place, path) == list(range(items))


def test_a_message_that_is_delivered_five_times_is_run_once(place: Place, tmp_path: Path) -> None:
    path = tmp_path / "items"
    # Where a copy takes a second to begin, fewer of them come while the job runs.
    items = ITEMS + 200 if place.begins_slowly else ITEMS
    copies = 1 if place.begins_slowly else 3
    place.start()
    place.start().says_ready()
    handle = place.kind.send(place.app.count, str(path), items)
    job_id = place.kind.id_of(handle)
    begun(place, path)
    for _ in range(copies + 1):
        place.kind.deliver_again(place.app.count, job_id, str(path), items)
    until(lambda: refused(place) >= copies, "the others are refused")
    assert place.kind.result(handle) == f"counted {items}"
    place.kind.deliver_again(place.app.count, job_id, str(path), items)
    after = place.kind.send(place.app.simple, 1)
    assert place.kind.result(after) == 2
    assert place.kind.result(handle) == f"counted {items}"
    assert items_of(place, path) == list(range(items))
    assert place.job(job_id).run == 1


@on_each_queue
def test_what_a_job_comes_to_arrives_where_its_user_waits(place: Place, tmp_path: Path) -> None:
    kind, app = place.kind, place.app
    path = {
        name: str(tmp_path / name)
        for name in ("up", "down", "broken", "limit", "parts", "via", "async")
    }
    sent = {
        "sum": kind.send(app.simple, 1, right=2),
        "later": kind.send_later(app.simple, 1.0, 4),
        "up": kind.send(app.stumble, path["up"], 2),
        "down": kind.send(app.stumble, path["down"], 5),
        "broken": kind.send(app.break_off, path["broken"], 10),
        "limit": kind.send(app.limited, path["limit"]),
        "parts": kind.send(app.in_parts, path["parts"], 12),
    }
    via = place.runtime.submit(app.plain, path["via"], 5, via=app.import_queue)
    in_loop = place.runtime.submit(app.plain_async, path["async"], 5, via=app.import_queue)
    ids = {name: kind.id_of(handle) for name, handle in sent.items()}
    assert place.job(ids["sum"]).status == "pending"  # recorded when it was sent
    worker = place.start()

    assert kind.result(sent["sum"]) == 3
    assert kind.result(sent["up"]) == "up"  # two retries
    assert place.job(ids["up"]).run == 3
    place.until_status(ids["down"], "failed")
    with pytest.raises(Exception, match="fall 3"):
        kind.result(sent["down"])
    assert kind.result(sent["broken"]) == "whole"
    assert items_of(place, tmp_path / "broken") == [*range(6), *range(5, 10)]
    with pytest.raises(Exception, match="resumed a maximum of 1 times"):
        kind.result(sent["limit"])
    assert place.job(ids["limit"]).status == "failed"
    assert kind.result(sent["parts"]) == "all parts"
    assert items_of(place, tmp_path / "parts") == list(range(12))
    assert place.job(ids["parts"]).run > 1
    assert kind.result(sent["later"]) == 5
    place.until_status(via, "completed")
    assert items_of(place, tmp_path / "via") == list(range(5))
    place.until_status(in_loop, "completed")
    assert items_of(place, tmp_path / "async") == list(range(5))
    worker.stop()


@on_each_queue
def test_a_paused_job_waits_without_a_message_and_resumes_at_its_handle(
    place: Place, tmp_path: Path
) -> None:
    path, other = tmp_path / "items", tmp_path / "others"
    place.start()
    handle = place.kind.send(place.app.count, str(path), ITEMS)
    job_id = place.kind.id_of(handle)
    begun(place, path)
    place.runtime.pause(job_id)
    place.until_status(job_id, "paused")
    place.runtime.resume(job_id)
    assert place.kind.result(handle) == f"counted {ITEMS}"
    assert items_of(place, path) == list(range(ITEMS))

    handle = place.kind.send(place.app.count, str(other), 10_000)
    job_id = place.kind.id_of(handle)
    begun(place, other)
    place.runtime.cancel(job_id)
    place.until_status(job_id, "cancelled")
    with pytest.raises(Exception, match=r"(?i)cancel|revoked"):
        place.kind.result(handle)


@on_each_queue
def test_a_store_that_is_away_when_the_message_arrives_costs_time_alone(
    place: Place, tmp_path: Path
) -> None:
    path = tmp_path / "items"
    worker = place.start()
    worker.says_ready()
    handle = place.kind.send_later(place.app.count, 0.5, str(path), 5)
    with closing(sqlite3.connect(tmp_path / "jobs.db", isolation_level=None)) as db:
        db.execute("BEGIN EXCLUSIVE")
        until(lambda: "is tried again in 5 s" in worker.text(), worker.text())
    assert place.kind.result(handle) == "counted 5"
    assert items_of(place, path) == list(range(5))


@on_each_queue
def test_a_job_that_a_worker_does_not_know_is_kept(place: Place, tmp_path: Path) -> None:
    def newer(ctx: object) -> None: ...

    newer.__qualname__ = f"newer_{place.name}"
    task = place.app.continuable(place.app.app, runtime=place.runtime)(newer)
    known = place.app.job(name=f"newer {place.name}")(lambda ctx: None)
    worker = place.start()
    worker.says_ready()
    via = place.runtime.submit(known, via=place.app.import_queue)
    until(lambda: via in worker.text() and "No job function named" in worker.text(), worker.text())
    job_id = place.kind.id_of(place.kind.send(task))
    until(lambda: place.job(job_id).reason == "unknown", worker.text())
    until(lambda: f"{job_id} was not run" in worker.text(), worker.text())
    assert place.job(via).status == "pending"


@on_each_queue
def test_the_callers_trace_goes_through_the_queue_into_the_job(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "installed", setup._joined(provider, segments=False))
    with provider.get_tracer("the application's").start_as_current_span("request") as request:
        handle = place.kind.send(place.app.simple, 1)
    (sent,) = (span for span in exporter.get_finished_spans() if span.name == "send imports")
    assert sent.parent is not None
    assert sent.parent.span_id == request.get_span_context().span_id
    place.start()
    assert place.kind.result(handle) == 2
    stored = place.runtime.store.load(place.kind.id_of(handle))
    assert stored is not None
    found = trace.Trace.read(stored.job.trace)
    assert found is not None
    assert found.sent is not None
    assert f"{request.get_span_context().trace_id:032x}" in found.sent
    provider.shutdown()


def test_arguments_that_cannot_be_stored_are_refused_by_the_call(place: Place) -> None:
    with pytest.raises(Exception, match="arguments"):
        place.kind.send(place.app.simple, object())
