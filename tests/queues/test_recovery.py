"""Who looks for lost jobs: one process a host at once, one of all hosts for the whole store."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.processes import until
from tests.queues.harness import LEASE, Place, Worker
from tests.queues.on_huey import OnHuey
from tests.stores.records import running
from tracedjobs import Runtime
from tracedjobs.errors import StoreUnavailableError
from tracedjobs.queues.recovery import _look_after

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.stores.redis_servers import RedisServer


@pytest.fixture
def store_url(redis_server: RedisServer) -> str:
    return f"{redis_server.url}?prefix=tj{os.urandom(6).hex()}"


@pytest.fixture
def place(tmp_path: Path, store_url: str) -> Iterator[Place]:
    made = Place(OnHuey("threads"), tmp_path, f"app_{os.urandom(4).hex()}", store_url)
    yield made
    made.close()


def test_a_worker_is_replaced_at_once_on_its_host_and_a_host_when_its_leases_end(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def on_host(name: str) -> Worker:
        directory = tmp_path / name
        directory.mkdir(mode=0o700, exist_ok=True)
        monkeypatch.setenv("TRACEDJOBS_RUN_DIR", str(directory))
        return place.start()

    path = tmp_path / "items"
    hosts = [[on_host("a")], list[Worker]()]
    handle = place.kind.send(place.app.count, str(path), 300, 0.02)
    job_id = place.kind.id_of(handle)
    until(lambda: len(place.lines(path)) > 10, "it runs")
    hosts[0].append(on_host("a"))
    hosts[1].append(on_host("b"))
    for worker in (hosts[0][1], hosts[1][0]):
        worker.says_ready()
    hosts[0][0].kill()
    until(lambda: place.job(job_id).run == 2, "another one has it", within=3.0)
    mine = place.job(job_id).runs[-1].worker
    dead = next(host for host in hosts if place.runs(host[-1], mine))
    dead[-1].kill()
    until(lambda: place.job(job_id).run == 3, "the other host has it", within=LEASE + 5)
    assert place.kind.result(handle) == "counted 300"
    items = [item for _, item in place.lines(path)]
    assert sorted(set(items)) == list(range(300))


def test_what_the_store_knows_is_looked_at_by_who_is_elected(
    store_url: str, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Runtime(store_url, lease_ttl=2.0) as runtime:
        store = runtime.store
        assert _look_after(runtime, "family", "one")
        running(store, ttl=0.001)
        until(lambda: store.expired(limit=9), "it is lost")
        assert not _look_after(runtime, "family", "two")
        assert runtime.get("a").lost
        assert _look_after(runtime, "family", "one")
        assert runtime.get("a").status == "interrupted"
        assert not store.elect("family", "one", seconds=0)  # as who stops does
        assert _look_after(runtime, "family", "two")

        def away(*_: object, **__: object) -> bool:
            msg = "away"
            raise StoreUnavailableError(msg)

        monkeypatch.setattr(store, "elect", away)
        assert _look_after(runtime, "family", "three")  # better two of them than nobody
