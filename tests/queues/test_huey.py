"""What is Huey's own: pipelines, an ungraceful stop, a Redis broker."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from huey.api import chord

from tests.processes import PATIENCE, until
from tests.queues.on_huey import OnHuey

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.queues.harness import Kind, Place
    from tests.stores.redis_servers import RedisServer

MORE = """
@app.task()
def shout(text, path=None):
    if path:
        note(path, str(text).upper())
    return text.upper()

@app.task()
def collect(texts, path):
    note(path, " and ".join(texts))
"""


def test_a_pipeline_goes_on_after_a_kill(place_of: Callable[[Kind], Place], tmp_path: Path) -> None:
    place = place_of(OnHuey("threads", more=MORE))
    path = tmp_path / "items"
    worker = place.start()
    sent = place.app.app.enqueue(place.app.count.s(str(path), 120).then(place.app.shout))
    until(lambda: len(place.lines(path)) > 20, "it runs")
    worker.kill()
    place.start()
    last = list(sent)[-1]
    assert last.get(blocking=True, timeout=PATIENCE) == "COUNTED 120"
    assert len(place.lines(path)) - 120 <= 1


def test_what_follows_is_sent_once_though_copies_of_the_message_come(
    place_of: Callable[[Kind], Place], tmp_path: Path
) -> None:
    place = place_of(OnHuey("threads", more=MORE))
    app, count = place.app.app, place.app.count
    after, whole = tmp_path / "after", tmp_path / "whole"
    ran = [tmp_path / f"ran{number}" for number in range(3)]
    sent = app.enqueue(count.s(str(ran[0]), 20).then(place.app.shout, path=str(after)))
    members = [count.s(str(path), 20) for path in ran[1:]]
    app.enqueue(chord(members, place.app.collect.s(path=str(whole))))
    messages = [app.storage.dequeue() for _ in range(3)]
    for each in messages:
        app.storage.enqueue(each)
    place.start()
    until(lambda: after.exists() and whole.exists(), "what follows has run")
    for each in messages * 5:
        app.storage.enqueue(each)
    until(lambda: not app.pending_count(), "the copies are taken")
    assert place.kind.result(place.kind.send(place.app.simple, 1)) == 2
    assert after.read_text() == "COUNTED 20\n"
    assert whole.read_text() == "counted 20 and counted 20\n"
    assert [len(place.lines(path)) for path in ran] == [20, 20, 20]
    assert [each.get(blocking=True, timeout=PATIENCE) for each in sent][1] == "COUNTED 20"


@pytest.mark.parametrize("workers", ["threads", "processes"])
def test_a_stop_that_is_not_graceful_loses_nothing(
    place_of: Callable[[Kind], Place], tmp_path: Path, workers: str
) -> None:
    place = place_of(OnHuey(workers, graceful="INT"))
    path = tmp_path / "items"
    worker = place.start()
    handle = place.kind.send(place.app.count, str(path), 120)
    until(lambda: len(place.lines(path)) > 20, "it runs")
    worker.stop()
    worker.process.wait(PATIENCE)
    place.start()
    assert place.kind.result(handle) == "counted 120"
    items = [item for _, item in place.lines(path)]
    assert sorted(set(items)) == list(range(120))
    assert len(items) - 120 <= 1


def test_a_redis_broker_does_as_well(
    place_of: Callable[[Kind], Place], tmp_path: Path, redis_server: RedisServer
) -> None:
    place = place_of(OnHuey("processes", redis=redis_server.url))
    path = tmp_path / "items"
    worker = place.start()
    handle = place.kind.send(place.app.count, str(path), 120)
    until(lambda: len(place.lines(path)) > 20, "it runs")
    worker.stop()
    worker.ends()
    worker = place.start()
    until(lambda: place.job(place.kind.id_of(handle)).run == 2, "it goes on")
    worker.kill()
    place.start()
    assert place.kind.result(handle) == "counted 120"
    assert len(place.lines(path)) - 120 <= 1
