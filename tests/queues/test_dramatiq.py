"""What is Dramatiq's own: what follows an actor, limits of time and age, async actors, RabbitMQ."""

from __future__ import annotations

import math
import os
import signal
import threading
from typing import TYPE_CHECKING, Final

import dramatiq
import pytest
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import Retries, TimeLimit
from dramatiq.results import ResultFailure

from tests.processes import until
from tests.queues.conftest import kind_of
from tests.queues.on_dramatiq import OnDramatiq
from tracedjobs import Context, Runtime
from tracedjobs._core.signals import StopFlag
from tracedjobs.queues import dramatiq_worker
from tracedjobs.queues.dramatiq import continuable

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.queues.harness import Kind, Place

STOPS: Final = (signal.SIGTERM, signal.SIGHUP)
MORE = """
import asyncio

@dramatiq.actor(broker=app, queue_name="imports")
def shout(path, text):
    note(path, text.upper())

@continuable(app, **SOON)
async def count_async(ctx, path, items):
    async for item in ctx.each("items", range(items)):
        note(path, f"{ctx.run} {item}")
        await asyncio.sleep(0.01)
    return "counted on a loop"

@continuable(app, **SOON, time_limit=400)
def slow(ctx, path, items):
    for item in ctx.each("items", range(items)):
        note(path, f"{ctx.run} {item}")
        for _ in range(20):
            time.sleep(0.01)
    return "slowly"

@continuable(app, **SOON, time_limit=200, max_retries=1, min_backoff=10, max_backoff=20)
def hang(ctx, path):
    note(path, f"{ctx.run} begins")
    while True:
        time.sleep(0.01)

@continuable(app, **SOON, time_limit=400)
async def slow_async(ctx, path, items):
    async for item in ctx.each("items", range(items)):
        note(path, f"{ctx.run} {item}")
        await asyncio.sleep(0.2)
    return "slowly on a loop"

@continuable(app, **SOON, time_limit=200, max_retries=1, min_backoff=10, max_backoff=20)
async def hang_async(ctx, path):
    note(path, f"{ctx.run} begins")
    await asyncio.sleep(60)

@continuable(app, **SOON, notify_shutdown=True)
def long_items(ctx, path, items):
    for item in ctx.each("items", range(items)):
        note(path, f"{ctx.run} {item}")
        for _ in range(300 if ctx.run == 1 else 1):
            time.sleep(0.01)
    return "told in the middle of an item"
"""


@pytest.fixture
def place(request: pytest.FixtureRequest, place_of: Callable[[Kind], Place]) -> Place:
    kind = kind_of("dramatiq threads", request)
    assert isinstance(kind, OnDramatiq)
    kind.more = MORE
    return place_of(kind)


def begun(place: Place, path: Path, least: int = 20) -> None:
    until(lambda: len(place.lines(path)) > least, "it runs")


def items_of(place: Place, path: Path) -> list[int]:
    return [item for _, item in place.lines(path)]


def names_of_threads() -> set[str]:
    return {thread.name for thread in threading.enumerate()}


def test_what_follows_a_job_is_sent_once_though_a_killed_workers_message_comes_back(
    place: Place, tmp_path: Path
) -> None:
    path, after = tmp_path / "items", tmp_path / "after"
    worker = place.start()
    messages = [place.app.count.message(str(path), 120), place.app.shout.message(str(after))]
    count = place.app.dramatiq.pipeline(messages).run().messages[0]
    begun(place, path)
    worker.kill()
    place.start()
    place.until_status(count.message_id, "completed")
    until(after.exists, "the next actor has run")
    items = items_of(place, path)
    assert sorted(set(items)) == list(range(120))
    assert len(items) - 120 <= 1

    # What Redis has of the killed worker Dramatiq gives to another one, after a minute at least.
    place.app.app.enqueue(count)
    until(lambda: "was answered already" in place.told(), place.told())
    assert place.kind.result(place.kind.send(place.app.simple, 1)) == 2
    assert after.read_text() == "COUNTED 120\n"


def test_a_sigterm_to_the_whole_group_stops_async_actors_and_long_items_in_good_order(
    place: Place, tmp_path: Path
) -> None:
    path, long, after = tmp_path / "items", tmp_path / "long", tmp_path / "after"
    worker = place.start()
    handle = place.app.count_async.message(str(path), 120)
    other = place.app.long_items.message(str(long), 3)
    group = place.app.dramatiq.group([handle, other])
    group.add_completion_callback(place.app.shout.message(str(after), "both"))
    group.run()
    begun(place, path)
    begun(place, long, 0)
    os.killpg(worker.process.pid, signal.SIGTERM)
    place.until_status(handle.message_id, "interrupted", within=2.0)
    worker.ends()
    assert place.job(other.message_id).reason == "Shutdown"
    place.start()
    assert place.kind.result(handle) == "counted on a loop"
    assert items_of(place, path) == list(range(120))
    assert place.kind.result(other) == "told in the middle of an item"
    assert items_of(place, long) == [0, 0, 1, 2]
    until(lambda: after.exists() and after.read_text(), "the group is complete")
    assert after.read_text() == "BOTH\n"


def test_a_sigterm_within_the_handler_of_another_is_the_same_stop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[int] = []
    flag = StopFlag()
    set_flag = flag.set

    def interrupted() -> None:
        monkeypatch.setattr(flag, "set", set_flag)
        signal.raise_signal(signal.SIGTERM)
        set_flag()

    monkeypatch.setattr(flag, "set", interrupted)
    monkeypatch.setattr(dramatiq_worker, "stop", flag)
    before = [signal.signal(each, lambda got, _: told.append(got)) for each in STOPS]
    try:
        dramatiq_worker.Watch().after_process_boot()
        signal.raise_signal(signal.SIGTERM)
        assert told == [signal.SIGTERM]
        monkeypatch.setattr(dramatiq_worker, "THE_SAME", 0.0)
        signal.raise_signal(signal.SIGHUP)
        assert told == [signal.SIGTERM, signal.SIGHUP]  # a later one is passed on
    finally:
        for each, handler in zip(STOPS, before, strict=True):
            signal.signal(each, handler)


def test_limits_of_time_and_age_do_what_dramatiq_says_of_them(place: Place, tmp_path: Path) -> None:
    path, hung, parts = tmp_path / "items", tmp_path / "hung", tmp_path / "parts"
    app = place.app
    assert app.count.options["time_limit"] == math.inf
    worker = place.start()
    worker.says_ready()
    young = app.in_parts.send_with_options(args=(str(parts), 24), max_age=1500)
    slow = place.kind.send(app.slow, str(path), 9)
    aged = app.simple.send_with_options(args=(1,), max_age=50, delay=200)
    hang = place.kind.send(app.hang, str(hung))
    with pytest.raises(ResultFailure, match="age limit"):
        place.kind.result(aged)
    assert place.job(aged.message_id).status == "cancelled"
    with pytest.raises(ResultFailure, match="TimeLimitExceeded"):
        place.kind.result(hang)
    assert hung.read_text() == "1 begins\n2 begins\n"  # one retry
    assert place.job(hang.message_id).status == "failed"
    assert place.kind.result(slow) == "slowly"
    assert place.job(slow.message_id).runs[0].reason == "error"
    assert sorted(set(items_of(place, path))) == list(range(9))
    # Each time that it goes on its message is as good as new.
    assert place.kind.result(young) == "all parts"
    assert items_of(place, parts) == list(range(24))
    ended, sent = place.job(young.message_id).runs[-1].ended_at, young.message_datetime
    assert ended is not None
    assert (ended - sent).total_seconds() > 1.5


def test_async_actors_that_take_too_long_fail_as_others_do(place: Place, tmp_path: Path) -> None:
    path, hung = tmp_path / "items", tmp_path / "hung"
    place.start().says_ready()
    slow = place.kind.send(place.app.slow_async, str(path), 9)
    hang = place.kind.send(place.app.hang_async, str(hung))
    with pytest.raises(ResultFailure, match="TimeLimitExceeded"):
        place.kind.result(hang)
    assert hung.read_text() == "1 begins\n2 begins\n"  # one retry
    job = place.job(hang.message_id)
    assert job.status == "failed"
    assert job.error is not None
    assert "TimeLimitExceeded" in job.error.type
    assert place.kind.result(slow) == "slowly on a loop"
    reasons = {run.reason for run in place.job(slow.message_id).runs[:-1]}
    assert reasons == {"error"}
    assert sorted(set(items_of(place, path))) == list(range(9))


def test_workers_in_the_applications_own_process_begin_and_end_as_in_its_tests() -> None:
    broker = StubBroker(middleware=[TimeLimit(time_limit=1000), Retries(max_retries=0)])
    with Runtime("memory://") as runtime:

        def plus(ctx: Context, left: int, right: int) -> int:
            return left + right

        add = continuable(broker, runtime=runtime, resume_delay=0.1)(plus)

        @dramatiq.actor(broker=broker)
        def ask(path: int) -> None:
            answers.append(add(path, 1))

        answers: list[int] = []
        assert add(1, 2) == 3  # as it is, without a message
        assert "time_limit" not in add.options  # the broker's is the user's own
        for number in range(2):
            worker = dramatiq.Worker(broker, worker_timeout=100, worker_threads=1)
            worker.start()
            sent = add.send(number, 1)
            ask.send(number)
            broker.join("default", timeout=10_000)
            worker.stop()
            assert runtime.get(sent.message_id).status == "completed"
        until(lambda: "tracedjobs-recovery" not in names_of_threads(), "its thread has ended")
        assert answers == [1, 2]
