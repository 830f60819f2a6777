"""What Redis keeps of jobs: which keys, how large, and that none stays behind."""

from __future__ import annotations

import json
import os
import random
import re
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.stores.records import TOKEN, a_job, a_save, a_step, loaded, running
from tests.stores.redis_servers import RedisServer, until
from tracedjobs import Context, Runtime, job
from tracedjobs._core.clock import wall_time
from tracedjobs._core.first_run import SUBMITTED
from tracedjobs._core.records import (
    ALLOWED,
    JOB_COLUMNS,
    Change,
    ControlRecord,
    Position,
    Status,
)
from tracedjobs._core.trace import Trace
from tracedjobs.stores.redis import store as store_module
from tracedjobs.stores.redis.keys import shard_of
from tracedjobs.stores.redis.packing import IN_HASH, LATER
from tracedjobs.stores.redis.servers import Servers

if TYPE_CHECKING:
    from tracedjobs.stores import Store
    from tracedjobs.stores.redis.script import Command


@pytest.fixture
def store(redis_store: Store) -> Store:
    """What is Redis' own is tried on Redis alone."""
    return redis_store


def test_every_column_of_a_job_has_its_place_once() -> None:
    names = ["name", *SUBMITTED, *LATER, *IN_HASH]
    assert sorted(names) == sorted(JOB_COLUMNS)


def test_long_cursors_and_fingerprints_come_back_and_leave_the_hash_compact(
    store: Store, redis_server: RedisServer, prefix: str
) -> None:
    running(store)
    long = Position("one", json.dumps("ü" * 500), 3, 10, "bytes", 4.25, json.dumps("f" * 500))
    for seq, position in enumerate(
        (long, long._replace(cursor='"s"'), long._replace(fingerprint=None), long, None, long), 1
    ):
        assert store.save_one(a_save(seq)._replace(position=position))
        assert loaded(store).job.position == position
    with redis_server.client() as client:
        key = f"{prefix}:{{{shard_of('a'):02}}}:j:a"
        assert str(client.object("encoding", key)) in {"listpack", "ziplist"}
    head = loaded(store).job
    assert store.change(Change("a", head.revision, {"reason": "because"}))
    assert loaded(store).job.position == long
    assert store.create(a_job("b", step="s", cursor=long.cursor, fingerprint=long.fingerprint))
    assert loaded(store, "b").job.fingerprint == long.fingerprint


def test_a_live_job_with_five_steps_takes_two_kibibytes_at_most(
    store: Store, redis_server: RedisServer, prefix: str
) -> None:
    with redis_server.client() as client:
        before = client.info("memory")
        for number in range(500):
            job_id = f"{number:08}-89ab-4cde-8123-456789abcdef"
            running(store, job_id)
            for at in range(5):
                step = a_step(f"step_{at}", result='{"rows": 10000}')
                store.complete_step(job_id, TOKEN, step, position=at, seq=at, state=None)
            store.save([a_save(9, "123456", job_id=job_id)])
        after = client.info("memory")
    assert (after["used_memory"] - before["used_memory"]) / 500 < 2048


def test_the_indexes_hold_each_job_once_whatever_happened_to_it(
    store: Store, redis_server: RedisServer, prefix: str
) -> None:
    chance = random.Random(20_261_123)
    ids = [f"job{number}" for number in range(60)]
    for number, job_id in enumerate(ids):
        queue = "imports" if number % 2 else None
        store.create(a_job(job_id, name=f"name{number % 3}", queue=queue))
    for _ in range(160):
        head = loaded(store, chance.choice(ids)).job
        choices = sorted(ALLOWED[head.status])
        if choices:
            status = chance.choice(choices)
            expires = wall_time() + 1000 if status in {Status.COMPLETED, Status.FAILED} else None
            ttl = 30.0 if status is Status.RUNNING else None
            columns = {"status": status, "expires_at": expires, "token": status.value}
            columns["resume_at"] = float(chance.randrange(10**9)) if chance.random() < 0.8 else None
            assert store.change(Change(head.id, head.revision, columns, lease_ttl=ttl))
    heads = [loaded(store, job_id).job for job_id in ids]
    with redis_server.client() as client:
        indexed: dict[str, set[str]] = {}
        for key in client.scan_iter(f"{prefix}:*", count=1000, _type="zset"):
            index = str(key).split("}:")[1]
            indexed.setdefault(index, set()).update(client.zrange(key, 0, -1))
        kept = {
            str(key).split(":j:")[1]
            for key in client.scan_iter(f"{prefix}:*:j:*", count=1000)
            if client.pttl(key) > 0
        }
    for status in Status:
        of_status = {head.id for head in heads if head.status is status}
        assert indexed.get(f"i:{status}", set()) == of_status
        for name in ("name0", "name1", "name2"):
            named = {head.id for head in heads if head.status is status and head.name == name}
            assert indexed.get(f"n:{status}:{name}", set()) == named
    assert indexed.get("leases", set()) == {h.id for h in heads if h.status is Status.RUNNING}
    waiting = {
        head.id
        for head in heads
        if head.status is Status.INTERRUPTED and head.queue and head.resume_at is not None
    }
    assert waiting
    assert indexed.get("waiting", set()) == waiting
    expiring = {head.id for head in heads if head.expires_at is not None}
    ends = {json.loads(entry.partition(" ")[2])[0] for entry in indexed.get("ends", set())}
    assert ends == kept == expiring


def test_nothing_is_left_of_a_job_after_its_retention_and_a_purge(
    store: Store, redis_server: RedisServer, prefix: str
) -> None:
    head = running(store)
    long = Position("one", json.dumps("c" * 99), 3, 10, "bytes", 4.25, json.dumps("f" * 99))
    store.save_one(a_save(1, state="{}")._replace(position=long))
    store.complete_step("a", TOKEN, a_step(), position=0, seq=2, state=None)
    with redis_server.client() as client:  # it owes spans that nobody will send
        client.hset(f"{prefix}:{{{shard_of('a'):02}}}:j:a", "d", 0)
        client.zadd(f"{prefix}:{{{shard_of('a'):02}}}:spans", {"a": 0})
    ends = {"status": Status.FAILED, "expires_at": wall_time() + 0.05}
    control = ControlRecord(1.0, "cancel", "me")
    assert store.change(Change("a", head.revision, ends, control=control))
    until(lambda: store.load("a") is None, "it has expired")
    until(lambda: store.purge(limit=9) == 1, "it is purged")
    with redis_server.client() as client:
        assert list(client.scan_iter(f"{prefix}:*", count=1000)) == []


def test_a_finished_job_that_is_asked_something_more_still_expires_as_a_whole(
    store: Store, redis_server: RedisServer, prefix: str
) -> None:
    head = running(store)
    ends = {"status": Status.COMPLETED, "expires_at": wall_time() + 3600}
    assert store.change(Change("a", head.revision, ends))
    more = Change("a", head.revision + 1, {"state": "{}"}, control=ControlRecord(1.0, "x", "me"))
    assert store.change(more)
    with redis_server.client() as client:
        keys = list(client.scan_iter(f"{prefix}:*:a", count=1000))
        assert len(keys) == 4
        assert all(0 < client.pttl(key) <= 3_600_000 for key in keys)


@job(name="tests:plain", trace="per_run")
def plain(ctx: Context, left: str) -> str:
    if left:
        ctx.step("one", len, left)
        for _ in ctx.each("two", range(3)):
            ctx.checkpoint()
    return left


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("left", ["", "steps"])
def test_the_script_of_most_ends_leaves_what_that_of_all_changes_does(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch, left: str, *, traced: bool
) -> None:
    found: list[dict[str, object]] = []
    asked: list[str] = []
    run_one = Servers.run_one

    def noted(self: Servers, command: Command) -> Any:
        if command.script is not None:
            asked.append(command.script.name)
        return run_one(self, command)

    monkeypatch.setattr(Servers, "run_one", noted)
    for shorter in (True, False):
        prefix = f"tj{os.urandom(6).hex()}"
        if not shorter:
            monkeypatch.setattr(store_module, "completion_arguments", lambda *_, **__: None)
        with Runtime(f"{redis_server.url}?prefix={prefix}") as runtime:
            record = runtime.new_record(plain, (left,), {}, "a")
            text = Trace("1" * 32, "2" * 16, sampled=True).text() if traced else None
            assert runtime.store.create(record.changed({"trace": text}))
            assert runtime.perform("a").result == left
            assert asked[-1] == ("complete" if shorter else "change")
            assert runtime.store.steps_of_last_completed("tests:plain") == (2 if left else 0)
        with redis_server.client() as client:
            found.append(everything(client, prefix))
    assert found[0] == found[1]


def everything(client: Any, prefix: str) -> dict[str, object]:
    """All keys under that prefix, and what they hold but for moments, times and blanks."""
    found: dict[str, object] = {}
    for key in client.scan_iter(f"{prefix}:*"):
        content: object = None
        match client.type(key):
            case "string":
                content = client.get(key)
            case "hash":
                fields = client.hgetall(key).items()
                content = sorted(
                    (name, each) for name, each in fields if each and "_sum" not in name
                )
            case "list":
                content = client.lrange(key, 0, -1)
            case "zset":
                content = client.zrange(key, 0, -1)
        text = re.sub(r"\d{10,}(\.\d+)?", "-", repr(content))
        found[key.removeprefix(prefix)] = (text, client.pttl(key) > 0)
    return found


def test_a_failed_job_that_is_retried_expires_no_more_until_it_has_ended_again(
    store: Store, redis_server: RedisServer, prefix: str
) -> None:
    head = running(store)
    store.complete_step("a", TOKEN, a_step(), position=0, seq=1, state="{}")
    ends = {"status": Status.FAILED, "expires_at": store.time() + 3600}
    control = ControlRecord(1.0, "x", "me")
    assert store.change(Change("a", head.revision, ends, control=control))

    def lives() -> list[int]:
        with redis_server.client() as client:
            return [client.pttl(key) for key in client.scan_iter(f"{prefix}:*:a", count=1000)]

    assert len(lives()) == 5
    assert all(3_500_000 < each <= 3_600_000 for each in lives())
    retried = {"status": Status.INTERRUPTED, "expires_at": None}
    assert store.change(Change("a", head.revision + 1, retried))
    assert lives() == [-1] * 5
    ends = {"status": Status.CANCELLED, "expires_at": store.time() + 1800}
    assert store.change(Change("a", head.revision + 2, ends))
    again = {"expires_at": store.time() + 900}  # of one that expires already
    assert store.change(Change("a", head.revision + 3, again))
    assert len(lives()) == 5
    assert all(800_000 < each <= 900_000 for each in lives())


@pytest.mark.parametrize("wrong", [-3600.0, 3600.0], ids=["behind", "ahead"])
def test_a_job_is_kept_for_its_retention_whatever_the_clock_of_who_ends_it(
    store: Store,
    redis_server: RedisServer,
    prefix: str,
    wrong: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    head = running(store)
    right = time.time
    monkeypatch.setattr(time, "time", lambda: right() + wrong)
    ends = {"status": Status.COMPLETED, "expires_at": store.time() + 1800}
    assert store.change(Change("a", head.revision, ends))
    with redis_server.client() as client:
        keys = list(client.scan_iter(f"{prefix}:*:a", count=1000))
        assert len(keys) == 2
        assert all(1_740_000 < client.pttl(key) <= 1_800_100 for key in keys)


def test_a_job_that_takes_the_id_of_one_that_expired_is_not_purged_in_its_place(
    store: Store,
) -> None:
    store.create(a_job(status=Status.COMPLETED, expires_at=wall_time() - 1))
    head = running(store)
    kept = {"status": Status.COMPLETED, "expires_at": wall_time() + 3600}
    assert store.change(Change("a", head.revision, kept))
    assert store.purge(limit=9) == 1
    page = store.page(status=Status.COMPLETED, name="job", before=None, limit=9)
    assert [stored.job.id for stored in page] == ["a"]


def test_a_page_of_many_jobs_goes_on_where_the_last_one_ended(store: Store) -> None:
    ids = [f"job{number}" for number in range(700)]
    for number, job_id in enumerate(ids):
        store.create(a_job(job_id, name=f"name{number % 2}"))
    found: list[str] = []
    while page := store.page(
        status=None, name="name1", before=found[-1] if found else None, limit=37
    ):
        found += [stored.job.id for stored in page]
    assert found == ids[1::2][::-1]
