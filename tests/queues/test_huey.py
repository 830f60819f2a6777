"""What is Huey's own: pipelines, an ungraceful stop, a Redis broker."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.processes import PATIENCE, until
from tests.queues.on_huey import OnHuey

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.queues.harness import Kind, Place
    from tests.stores.redis_servers import RedisServer

MORE = """
@app.task()
def shout(text):
    return text.upper()
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
