"""What is Redis' own: addresses, secrets, scripts, settings."""

from __future__ import annotations

import os
import shutil
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import ResponseError

from tests.stores.records import TOKEN, a_first, a_job, a_save, a_step, loaded, running
from tests.stores.redis_proxies import certificates, running_proxy
from tests.stores.redis_servers import RedisServer, running_redis, until
from tracedjobs._core.clock import wall_time
from tracedjobs._core.records import (
    Change,
    Count,
    Status,
)
from tracedjobs.errors import StoreError, StoreUnavailableError
from tracedjobs.stores import Store, open_store
from tracedjobs.stores.redis import RedisStore
from tracedjobs.stores.redis.address import Address
from tracedjobs.stores.redis.keys import SHARDS, shard_of
from tracedjobs.stores.redis.node import Node

SECRET = "s3cr€t/:@?#"
QUOTED = "s3cr%E2%82%ACt%2F%3A%40%3F%23"


@pytest.fixture
def store(redis_store: Store) -> Store:
    """What is Redis' own is tried on Redis alone."""
    return redis_store


# -- addresses ---


def test_an_address_names_servers_database_prefix_and_options() -> None:
    found = Address.from_url(
        f"rediss+sentinel://user:{QUOTED}@one:1,[::1]:2,three/jobs/4"
        "?prefix=mine&timeout=2&wait=1&ssl_ca_certs=ca.pem&sentinel_password=other",
        timeout=5,
    )
    assert (found.kind, found.tls, found.service, found.prefix) == (
        "sentinel",
        True,
        "jobs",
        "mine",
    )
    assert found.hosts == (("one", 1), ("::1", 2), ("three", 26379))
    assert (found.timeout, found.wait, found.waitaof) == (2, 1, False)
    assert found.connection == {
        "db": 4,
        "username": "user",
        "password": SECRET,
        "ssl_ca_certs": "ca.pem",
    }
    assert found.sentinel == {"ssl_ca_certs": "ca.pem", "password": "other"}
    assert found.url == "rediss+sentinel://one:1,[::1]:2,three/jobs/4?prefix=mine&timeout=2&wait=1"
    assert Address.from_url("redis://", timeout=5).hosts == (("localhost", 6379),)


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("redis://u:secret@h/x", "what follows the host is no number of a database"),
        ("redis://u:secret@h/1/2", "what follows the host is no number of a database"),
        ("redis://u:secret@h:port", "it is malformed"),
        ("redis://u:secret@h,i", r"several hosts need redis\+sentinel"),
        ("redis+cluster://u:secret@h/1", "a cluster has database 0 alone"),
        ("redis+sentinel://u:secret@h", "the service's name is missing"),
        ("redis+other://u:secret@h", "No store is known"),
        ("redis://u:secret@h?prefix=", "prefix='' is empty"),
        ("redis://u:secret@h?prefix={a}", "a brace in it"),
        ("redis://u:secret@h?timeout=soon", "timeout=soon is no number"),
        ("redis://u:secret@h?wait=-1", "wait=-1 is no number"),
        ("redis://u:secret@h?retries=3", "'retries' is unknown; there are prefix, timeout"),
        ("redis://u:12?secret@h", "an option is unknown; there are prefix, timeout"),
        ("redis://u:12#secret@h", "in a password / . # and @ are written as %2F"),
        ("redis://u:12/secret@h", "in a password / . # and @ are written as %2F"),
        ("redis://u:secret@h?ssl_ca_certs=a", "ssl_ca_certs is for rediss://"),
        ("rediss://u:secret@h?ssl_other=a", "'ssl_other' is unknown; there are prefix"),
    ],
)
def test_a_malformed_address_is_refused_with_what_is_amiss(address: str, sentence: str) -> None:
    with pytest.raises(StoreError, match=sentence) as caught:
        open_store(address)
    assert "secret" not in "".join(traceback.format_exception(caught.value))


# -- who may come in ---


def test_a_password_opens_the_door_and_is_never_shown(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(0)
    with running_redis(password=SECRET) as server:
        store = open_store(f"redis://:{QUOTED}@127.0.0.1:{server.port}")
        assert store.create(a_job())
        wrong = open_store(f"redis://:{QUOTED}x@127.0.0.1:{server.port}")
        with pytest.raises(StoreError, match="refused the user or the password") as caught:
            wrong.create(a_job())
        none = open_store(f"redis://127.0.0.1:{server.port}")
        with pytest.raises(StoreError, match="refused the user or the password"):
            none.create(a_job())
        assert not isinstance(caught.value, StoreUnavailableError)
        server.kill()
        with pytest.raises(StoreUnavailableError, match="cannot be reached") as gone:
            store.load("a")
    shown = "".join(traceback.format_exception(caught.value)) + caplog.text
    shown += "".join(traceback.format_exception(gone.value)) + repr(store) + store.url
    assert "s3cr" not in shown


ACL = (
    "resetchannels -@all +evalsha +script|load +hello +auth +select +config|get "
    "+time +hget +hset +hdel +hmget +hgetall +hincrbyfloat +get +set +del +exists "
    "+rpush +lset +lrange +llen +sadd +sismember +scard "
    "+zadd +zrem +zscore +zcard +zrange +zrangebyscore +zrevrangebyscore "
    "+pexpire +pexpireat +persist +pttl"
)
"""The commands that the documentation lists."""


COUNTED = [("jobs_enqueued", ""), ("steps", "one")]


def test_the_documented_permissions_are_enough_and_less_is_told(prefix: str) -> None:
    page = (Path(__file__).parents[2] / "docs" / "redis.md").read_text("utf-8")
    assert ACL in " ".join(page.split())
    with running_redis(appendonly="yes") as server, server.client() as client:
        rules = f"on >secret ~{prefix}:* {ACL}".split()
        client.execute_command("ACL", "SETUSER", "worker", *rules)
        url = f"redis://worker:secret@127.0.0.1:{server.port}?prefix={prefix}"
        store = open_store(url)
        head = running(store)
        counts = [
            Count("jobs_enqueued", "job", "", "", "", 1),
            Count("steps", "job", "", "one", "", 1),
        ]
        assert store.complete_step(
            "a", TOKEN, a_step(), position=0, seq=1, state='{"k": 1}', counts=counts
        )
        assert store.save([a_save(2)]) == {"a": (TOKEN, None)}
        survey = store.survey()
        assert len(survey.totals) == 2
        assert survey.jobs == {("job", "", "running"): 1}
        assert [each.job.id for each in store.page(status=None, name=None, before=None, limit=9)]
        assert store.lease_alive(head)
        assert store.expired(limit=9) == []
        ends = {"status": Status.COMPLETED, "expires_at": wall_time() - 1}
        assert store.change(Change("a", head.revision, ends))
        assert store.steps_of_last_completed("job") == 1
        assert store.purge(limit=9) == 1
        with pytest.raises(StoreError, match="not permitted to do what tracedjobs needs"):
            open_store(url + "other").load("a")
        with suppress(ResponseError):  # Redis before 7 cannot take a part of a command back
            client.execute_command("ACL", "SETUSER", "worker", "-script|load")
            client.script_flush()
            with pytest.raises(StoreError, match=r"not permitted.* 'script\|load'.*documentation"):
                store.load("a")
        client.execute_command("ACL", "SETUSER", "worker", "-evalsha")
        with pytest.raises(StoreError, match="the documentation of the Redis store lists"):
            store.load("a")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make certificates")
def test_tls_is_spoken_and_the_servers_certificate_checked(
    redis_server: RedisServer, tmp_path: Path, prefix: str
) -> None:
    certificate, context = certificates(tmp_path)
    with running_proxy(redis_server.port, context) as proxy:
        url = f"rediss://127.0.0.1:{proxy.port}?prefix={prefix}"
        store = open_store(f"{url}&ssl_ca_certs={certificate}")
        assert store.create(a_job())
        assert loaded(store).job.id == "a"
        store.close()
        with pytest.raises(StoreError, match="certificate") as caught:
            open_store(url).load("a")
    assert not isinstance(caught.value, StoreUnavailableError)


# -- what goes over the wire ---


def test_a_connection_speaks_resp3(store: Store, redis_server: RedisServer) -> None:
    store.create(a_job())
    with redis_server.client() as client:
        said = client.client_list()
    ours = [each for each in said if each["cmd"] == "evalsha"]
    assert ours
    assert {each.get("resp", "3") for each in ours} == {"3"}  # an old server does not tell


def test_runs_are_saved_in_one_round_trip_whatever_their_number(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [f"job{number}" for number in range(300)]
    for job_id in ids:
        running(store, job_id)
    for seq in (1, 2):  # so that the server knows both scripts
        store.save([a_save(seq, job_id=ids[0])])
    sent: list[int] = []
    send = Node.send

    def counted(self: Node, commands: Any) -> Any:
        sent.append(len(commands))
        return send(self, commands)

    monkeypatch.setattr(Node, "send", counted)
    for seq in (3, 4, 5):
        found = store.save([a_save(seq, job_id=job_id) for job_id in ids])
        assert found == dict.fromkeys(ids, (TOKEN, None))
        assert len(sent) == 1
        assert sent.pop() <= SHARDS + (seq == 3)


def test_a_server_that_forgot_the_scripts_is_told_them_again(
    store: Store, redis_server: RedisServer
) -> None:
    for number in range(9):
        running(store, f"job{number}")
    with redis_server.client() as client:
        client.script_flush()
    saves = [a_save(1, job_id=f"job{number}") for number in range(9)]
    assert len(store.save(saves)) == 9
    assert loaded(store, "job8").job.saved_seq == 1


def test_a_job_that_is_damaged_disturbs_no_other(
    store: Store, redis_server: RedisServer, prefix: str
) -> None:
    running(store, "good")
    other = next(f"b{n}" for n in range(10_000) if shard_of(f"b{n}") == shard_of("good"))
    running(store, other)
    with redis_server.client() as client:
        key = f"{prefix}:{{{shard_of(other):02}}}:j:{other}"
        client.delete(key)
        client.set(key, "damaged")
    answer = store.save([a_save(1, job_id=other), a_save(1, job_id="good")])
    assert answer["good"] == (TOKEN, None)
    assert isinstance(answer[other], StoreError)


def test_a_record_that_cannot_be_read_is_told_with_its_job(
    store: Store, redis_server: RedisServer, prefix: str
) -> None:
    store.create(a_job())
    first = a_first(store)
    for damage in ("damaged", "[]", "[1, 2]", '[["a"], null]'):
        with redis_server.client() as client:
            client.set(f"{prefix}:{{{shard_of('a'):02}}}:h:a", damage)
        for look in (
            lambda: store.load("a"),
            lambda: store.page(status=None, name=None, before=None, limit=9),
            lambda: store.change(Change("a", 0, {"wish": "pause"})),
            lambda: store.begin("a", first),
        ):
            with pytest.raises(StoreError, match=r"The job a in redis://.* is damaged"):
                look()


def test_a_record_of_which_a_part_is_gone_is_not_begun(
    store: Store, redis_server: RedisServer, prefix: str
) -> None:
    store.create(a_job())
    key = f"{prefix}:{{{shard_of('a'):02}}}:j:a"
    with redis_server.client() as client:
        client.hdel(key, "b")
        assert store.begin("a", a_first(store)) == (None, False)
        assert client.hget(key, "s") == "pending"


def test_a_replica_whose_indexes_cannot_be_cleaned_is_read_all_the_same(prefix: str) -> None:
    with running_redis(appendonly="yes") as server:
        store = open_store(f"{server.url}?prefix={prefix}")
        for number in range(9):
            over = store.time() + 0.05
            store.create(a_job(f"job{number}", status=Status.FAILED, expires_at=over))
        store.create(a_job("kept"))
        with running_redis(appendonly="yes", replicaof=f"127.0.0.1 {server.port}") as replica:
            until(replica.in_step, "the replica is in step")
            until(lambda: store.load("job8") is None, "they have expired")
            page = open_store(f"{replica.url}?prefix={prefix}").page(
                status=None, name=None, before=None, limit=50
            )
            assert [stored.job.id for stored in page] == ["kept"]


# -- what the server promises ---


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({}, "persists nothing"),
        ({"save": "60 1"}, "writes snapshots alone"),
        (
            {"appendonly": "yes", "maxmemory": "1gb", "maxmemory_policy": "volatile-ttl"},
            "evicts keys when its memory is full (maxmemory-policy volatile-ttl)",
        ),
        ({"appendonly": "yes", "appendfsync": "no"}, "leaves it to its host when jobs are written"),
        ({"appendonly": "yes", "rename_command": "CONFIG hidden"}, "cannot be known"),
    ],
)
def test_settings_that_promise_less_are_told_once(
    settings: dict[str, str], sentence: str, caplog: pytest.LogCaptureFixture
) -> None:
    with running_redis(**settings) as server:
        for _ in range(2):
            store = open_store(server.url)
            store.create(a_job())
            store.load("a")
            store.close()
    told = [record.getMessage() for record in caplog.records if record.name == "tracedjobs"]
    assert len(told) == 1
    assert sentence in told[0]


def test_settings_that_hold_what_is_promised_are_not_told(caplog: pytest.LogCaptureFixture) -> None:
    with running_redis(appendonly="yes") as server:
        open_store(server.url).load("a")
    assert caplog.records == []


def test_a_write_that_replicas_must_acknowledge_fails_without_them(prefix: str) -> None:
    with running_redis(appendonly="yes") as server:
        store = open_store(f"{server.url}?wait=1&timeout=1&prefix={prefix}")
        with pytest.raises(StoreUnavailableError, match="0 of 1 replicas acknowledged"):
            store.create(a_job())
        assert store.load("a") is not None  # it may have been done, and be done again
        replica = running_redis(replicaof=f"127.0.0.1 {server.port}")
        with replica as second:
            until(second.in_step, "the replica is in step")
            assert store.create(a_job("b"))


def test_a_write_may_wait_for_the_disk(prefix: str) -> None:
    with running_redis(appendonly="yes") as server:
        store = open_store(f"{server.url}?waitaof=1&prefix={prefix}")
        try:
            running(store)
        except StoreError as error:  # Redis before 7.2
            assert not isinstance(error, StoreUnavailableError)  # noqa: PT017 - it is either
            assert "WAITAOF" in str(error)  # noqa: PT017 - as above
            return
        assert store.save([a_save(1)]) == {"a": (TOKEN, None)}


# -- forks ---


def test_a_forked_child_makes_connections_of_its_own(store: Store) -> None:
    store.create(a_job())
    assert isinstance(store, RedisStore)
    child = os.fork()
    if child == 0:
        # Nothing of the test's own goes on here: no teardown, no output.
        code = 1
        try:
            if store.create(a_job("b")) and store.load("a") is not None:
                code = 0
        finally:
            os._exit(code)
    for _ in range(20):
        assert store.load("a") is not None  # its answers, and never the child's
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert loaded(store, "b").job.id == "b"
