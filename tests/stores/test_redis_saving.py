"""Saves of runs whose last save is known: shorter over the wire, and behind the same fence."""

from __future__ import annotations

import os
import random
from contextlib import closing
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.stores.chances import Chances, told
from tests.stores.records import TOKEN, a_job, a_save, loaded, running
from tests.stores.redis_servers import RedisServer, until
from tracedjobs._core.records import Change, Status
from tracedjobs.stores import open_store
from tracedjobs.stores.memory import MemoryStore
from tracedjobs.stores.redis import RedisStore
from tracedjobs.stores.redis.keys import shard_of
from tracedjobs.stores.redis.node import Node

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tracedjobs.stores import Store

OTHER: Final = "fedcba9876543210"


@pytest.fixture
def url(redis_server: RedisServer) -> str:
    return f"{redis_server.url}?prefix=tj{os.urandom(6).hex()}"


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    made = open_store(url)
    yield made
    made.close()


@pytest.fixture
def other(url: str) -> Iterator[Store]:
    """The same store, as another process knows it."""
    made = open_store(url)
    yield made
    made.close()


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was sent, a text a round trip."""
    trips: list[str] = []
    send, ask = Node.send, Node.ask

    def noted(self: Node, commands: Any) -> Any:
        trips.append(" ".join(str(word) for words in commands for word in words))
        return send(self, commands)

    def noted_alone(self: Node, command: Any) -> Any:
        trips.append(" ".join(map(str, command)))
        return ask(self, command)

    monkeypatch.setattr(Node, "send", noted)
    monkeypatch.setattr(Node, "ask", noted_alone)
    return trips


def key_of(store: Store, job_id: str = "a") -> str:
    assert isinstance(store, RedisStore)
    return store._keys.part(job_id, "j")


# -- what is sent ---


def test_what_has_not_changed_is_not_sent_again(store: Store, sent: list[str]) -> None:
    running(store)
    for seq in range(1, 4):
        assert store.save_one(a_save(seq))
    sent.clear()
    assert store.save_one(a_save(4, "77"))
    assert store.save([a_save(5, "78", meter="[1]")]) == {"a": (TOKEN, None)}
    assert len(sent) == 2
    assert not any("print" in trip for trip in sent)
    job = loaded(store).job
    assert (job.position, job.meter) == (a_save(1, "78").position, "[1]")


def test_a_wish_comes_back_with_the_next_save(store: Store, other: Store, sent: list[str]) -> None:
    head = running(store)
    for seq in range(1, 4):
        store.save([a_save(seq)])
    assert other.change(Change("a", head.revision, {"wish": "pause"}))
    sent.clear()
    assert store.save([a_save(4)]) == {"a": (TOKEN, "pause")}
    assert other.change(Change("a", head.revision + 1, {"wish": None}))
    assert store.save([a_save(5)]) == {"a": (TOKEN, None)}
    assert len([trip for trip in sent if "EVALSHA" in trip and trip.count("EVALSHA") == 1]) == 4


# -- the fence ---


def test_a_run_that_was_taken_over_writes_nothing_more(store: Store, other: Store) -> None:
    head = running(store)
    for seq in range(1, 4):
        assert store.save_one(a_save(seq))
    assert other.change(Change("a", head.revision, {"token": OTHER, "run": 2}))
    before = loaded(store)
    assert not store.save_one(a_save(4, "9"))
    assert store.save([a_save(5, "9")]) == {"a": (OTHER, None)}
    assert loaded(store) == before


def test_a_save_goes_on_from_what_a_server_is_left_with_that_lost_its_newest_writes(
    store: Store, redis_server: RedisServer
) -> None:
    running(store)
    key = key_of(store)
    with redis_server.client() as client:
        client.set_response_callback("DUMP", lambda reply, **_: reply)
        assert store.save_one(a_save(1, "1"))
        older = client.hgetall(key)
        newer = a_save(2, "2")
        newer = newer._replace(position=newer.position and newer.position._replace(step="two"))
        assert store.save_one(newer)
        assert store.save_one(newer._replace(seq=3))
        client.hset(key, mapping=older)
        assert store.save_one(newer._replace(seq=4))
    assert loaded(store).job.position == newer.position


def test_two_threads_of_a_run_write_in_order_whatever_each_of_them_knows(
    store: Store, other: Store
) -> None:
    running(store)
    assert store.save_one(a_save(1, "1"))
    assert other.save_one(a_save(3, "3"))
    assert not store.save_one(a_save(2, "2"))
    assert loaded(store).job.cursor == "3"
    assert store.save_one(a_save(4, "4"))
    assert loaded(store).job.cursor == "4"


def test_a_job_that_is_gone_or_created_anew_is_not_saved(store: Store, other: Store) -> None:
    running(store)
    for seq in range(1, 4):
        assert store.save_one(a_save(seq))
    over = {"status": Status.CANCELLED, "token": None, "expires_at": store.time() + 0.03}
    assert other.change(Change("a", 1, over))
    until(lambda: other.load("a") is None, "it has expired")
    assert store.save([a_save(4)]) == {}
    assert not store.save_one(a_save(5))
    assert other.create(a_job())
    assert not store.save_one(a_save(6))


# -- the index of leases ---


def test_the_index_of_leases_follows_by_thirds_of_a_lease(
    store: Store, redis_server: RedisServer
) -> None:
    ttl = 0.3
    running(store, ttl=ttl)
    assert isinstance(store, RedisStore)
    moved: set[float] = set()
    began = store.time()
    with redis_server.client() as client:
        seq = 0
        while store.time() < began + 2 * ttl:
            seq += 1
            assert store.save_one(a_save(seq, lease_ttl=ttl))
            ends = client.zscore(store._keys.leases(shard_of("a")), "a")
            moved.add(ends)
            true = loaded(store).job.lease_until
            assert true - ttl / 3 - 1e-6 <= ends / 1e6 <= true
    assert 6 <= len(moved) <= 8 < seq


# -- beside a store that knows no short saves ---


def test_whatever_happens_between_saves_they_do_what_those_of_another_store_do(
    store: Store, other: Store
) -> None:
    seed = random.randrange(10**9)
    chances = Chances(random.Random(seed))
    with closing(MemoryStore()) as model:
        for each in (store, model):
            running(each)
        for _ in range(400):
            act = chances.act(loaded(model).job)
            here = chances.of((store,) * 5 + (other,))
            assert act(here) == act(model), f"seed {seed}"
            assert told(loaded(here).job) == told(loaded(model).job), f"seed {seed}"
