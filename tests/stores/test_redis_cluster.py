"""Several servers: a cluster whose node is away or whose slot moves, and a Sentinel's failover."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import pytest
from redis.crc import key_slot

from tests.stores.records import TOKEN, a_job, a_save, a_step, loaded, running
from tests.stores.redis_servers import (
    RedisCluster,
    running_cluster,
    running_redis,
    running_sentinel,
    until,
)
from tracedjobs._core.records import Change, Count, Status
from tracedjobs.errors import StoreUnavailableError
from tracedjobs.stores import open_store
from tracedjobs.stores.redis.keys import shard_of
from tracedjobs.stores.redis.node import Node

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def cluster() -> Iterator[RedisCluster]:
    with running_cluster() as made:
        yield made


def tag(job_id: str) -> str:
    return f"{{{shard_of(job_id):02}}}"


def test_a_node_that_is_away_disturbs_only_its_own_jobs(cluster: RedisCluster) -> None:
    store = open_store(f"{cluster.url}?prefix=tj{os.urandom(4).hex()}", timeout=0.4)
    ids = [f"job{number}" for number in range(60)]
    for job_id in ids:
        running(store, job_id)
    away = cluster.nodes[1]
    lost = {job_id for job_id in ids if cluster.owner(tag(job_id)) is away}
    assert 0 < len(lost) < 60
    with away.frozen():
        for seq in (1, 2):
            began = time.monotonic()
            answer = store.save([a_save(seq, job_id=job_id) for job_id in ids])
            assert time.monotonic() - began < 0.4 * 8 / 3
            assert {key for key, found in answer.items() if found == (TOKEN, None)} == (
                set(ids) - lost
            )
            assert all(isinstance(answer[job_id], StoreUnavailableError) for job_id in lost)
        other = next(job_id for job_id in ids if job_id not in lost)
        assert loaded(store, other).job.saved_seq == 2
    until(
        lambda: (
            store.save([a_save(3, job_id=job_id) for job_id in ids])
            == dict.fromkeys(ids, (TOKEN, None))
        ),
        "all are saved again",
    )


def test_two_nodes_that_are_away_are_waited_for_no_longer_than_one(cluster: RedisCluster) -> None:
    store = open_store(f"{cluster.url}?prefix=tj{os.urandom(4).hex()}", timeout=0.4)
    ids = [f"job{number}" for number in range(60)]
    for job_id in ids:
        running(store, job_id)
    there = {job_id for job_id in ids if cluster.owner(tag(job_id)) is cluster.nodes[2]}
    with cluster.nodes[0].frozen(), cluster.nodes[1].frozen():
        for seq in (1, 2, 3):
            began = time.monotonic()
            answer = store.save([a_save(seq, job_id=job_id) for job_id in ids])
            assert time.monotonic() - began < 0.4 * 8 / 3
            assert {key for key, found in answer.items() if found == (TOKEN, None)} == there
    until(lambda: store.expired(limit=99) is not None, "they are back")


def test_a_node_that_is_away_keeps_no_job_of_another_from_beginning_going_on_and_being_found(
    cluster: RedisCluster, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"{cluster.url}?prefix=tj{os.urandom(4).hex()}"
    away = cluster.owner("{00}")  # whose clock is looked at first
    name = next(f"n{n}" for n in range(999) if cluster.owner(tag(f"n{n}")) is away)
    ids = [f"job{n}" for n in range(99) if cluster.owner(tag(f"job{n}")) is not away]
    store = open_store(url, timeout=0.4)
    for job_id in ids[:3]:
        running(store, job_id, ttl=0.001)
    running(store, next(f"x{n}" for n in range(99) if cluster.owner(tag(f"x{n}")) is away), 0.001)
    start = Change(ids[4], 0, {"status": Status.RUNNING, "token": TOKEN}, lease_ttl=30.0)
    counts = [Count("steps", name, "", "one", "", 1)]
    with away.frozen():
        for _ in range(3):  # each asks the nodes in an order of its own
            open_store(url, timeout=0.4).load(ids[0])
        fresh = open_store(url, timeout=0.4)
        assert fresh.time() == pytest.approx(time.time(), abs=5)
        assert fresh.steps_of_last_completed(name) is None
        assert fresh.create(a_job(ids[4], name=name))
        assert fresh.change(start)
        assert fresh.save([a_save(1, job_id=ids[4])]) == {ids[4]: (TOKEN, None)}
        assert fresh.complete_step(
            ids[4], TOKEN, a_step(), position=0, seq=2, state=None, counts=counts
        )
        assert {head.id for head in fresh.expired(limit=9)} == set(ids[:3])
        assert fresh.claim_spans(ids[:3], seconds=9).keys() == set(ids[:3])
        assert fresh.owing(limit=9) == []
        assert fresh.purge(limit=9) == 0
        with pytest.raises(StoreUnavailableError):  # a list that lacks some would not be true
            fresh.page(status=None, name=None, before=None, limit=99)
    told = [each.getMessage() for each in caplog.records if "left out for now" in each.message]
    assert len(told) == 1
    assert f":{away.port}" in told[0]
    until(lambda: len(store.expired(limit=9)) == 4, "all are found again")
    totals = store.survey().totals
    assert totals["steps", name, "", "other", ""] == 1


def test_runs_are_saved_in_one_round_trip_a_node(
    cluster: RedisCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(f"{cluster.url}?prefix=tj{os.urandom(4).hex()}")
    ids = [f"job{number}" for number in range(200)]
    for job_id in ids:
        running(store, job_id)
    for seq in (1, 2):  # so that each node knows both scripts
        store.save([a_save(seq, job_id=job_id) for job_id in ids])
    sent: list[str] = []
    send = Node.send

    def counted(self: Node, commands: Any) -> Any:
        sent.append(self.where)
        return send(self, commands)

    monkeypatch.setattr(Node, "send", counted)
    assert len(store.save([a_save(3, job_id=job_id) for job_id in ids])) == 200
    assert len(sent) == len(set(sent)) == 3


def test_a_slot_that_moves_is_followed() -> None:
    with running_cluster() as cluster:
        store = open_store(cluster.url)
        running(store)
        slot = key_slot(tag("a").encode())
        source = cluster.owner(tag("a"))
        target = next(node for node in cluster.nodes if node is not source)
        with source.client() as here, target.client() as there:
            ids = [str(each.execute_command("CLUSTER", "MYID")) for each in (here, there)]
            there.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[0])
            here.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[1])
            keys = here.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100)
            for key in keys:
                here.execute_command("MIGRATE", "127.0.0.1", target.port, key, 0, 5000)
            assert store.save([a_save(1)]) == {"a": (TOKEN, None)}  # asked for where it is
            # Of keys that need not exist the servers cannot tell where they are.
            with pytest.raises(StoreUnavailableError, match="the slot is moving between nodes"):
                store.load("a")
            for each in (there, here):
                each.execute_command("CLUSTER", "SETSLOT", slot, "NODE", ids[1])
            assert store.save([a_save(2)]) == {"a": (TOKEN, None)}
            assert loaded(store).job.saved_seq == 2
            assert store.expired(limit=9) == []


def test_a_cluster_of_which_nobody_answers_is_unavailable() -> None:
    store = open_store("redis+cluster://127.0.0.1:1,127.0.0.1:2", timeout=0.4)
    with pytest.raises(StoreUnavailableError, match="cannot be reached"):
        store.load("a")
    with pytest.raises(StoreUnavailableError, match="cannot be reached"):
        store.save([a_save(1)])


def test_after_a_failover_the_store_is_where_the_sentinel_says(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with running_sentinel() as group:
        store = open_store(group.url, timeout=1.0)
        running(store)
        assert store.save([a_save(1)]) == {"a": (TOKEN, None)}
        with group.replica.client() as client:
            until(lambda: int(client.dbsize()) > 0, "the replica has it")
            client.config_set("appendonly", "no")
        group.primary.kill()
        with pytest.raises(StoreUnavailableError):
            store.save([a_save(2)])
        until(group.failed_over, "the Sentinel has made the replica the primary")

        def saved() -> bool:
            try:
                return store.save([a_save(3)]) == {"a": (TOKEN, None)}
            except StoreUnavailableError:
                return False

        until(saved, "the store has found it")
        assert loaded(store).job.saved_seq == 3
    (told,) = [each.message for each in caplog.records if "persists nothing" in each.message]
    assert f"Redis at 127.0.0.1:{group.replica.port} persists" in told


def test_sentinels_that_are_frozen_are_passed_over() -> None:
    with running_sentinel() as group, running_redis() as other:
        port = group.sentinel.port
        store = open_store(
            group.url.replace(f":{port}", f":{other.port},127.0.0.1:{port}"), timeout=1
        )
        with other.frozen():
            began = time.monotonic()
            assert store.load("a") is None
            assert 0.2 < time.monotonic() - began < 8 / 3
            began = time.monotonic()
            store.load("a")
            assert time.monotonic() - began < 0.2


def test_a_service_that_no_sentinel_knows_is_told() -> None:
    with running_sentinel() as group:
        store = open_store(group.url.replace("/jobs", "/other"))
        with pytest.raises(
            StoreUnavailableError, match=r"Sentinels of 'other'.*none of them knows"
        ):
            store.load("a")
