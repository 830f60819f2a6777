"""What every store promises of times: leases, retention, and its own clock."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from tests.stores.records import HOUR, TOKEN, a_job, a_save, a_step, loaded, running
from tracedjobs._core.clock import wall_time
from tracedjobs._core.records import (
    Change,
    ControlRecord,
    Status,
    Stored,
)

if TYPE_CHECKING:
    from tracedjobs.stores import Store


# -- leases ---


def test_a_lease_holds_until_its_time_and_after_a_renewal(store: Store) -> None:
    head = running(store, ttl=0.05)
    assert not store.lease_alive(a_job())
    give_up = time.monotonic() + 10
    while store.lease_alive(head):
        assert time.monotonic() < give_up
        time.sleep(0.005)
    assert store.save_one(a_save(1))  # nobody took it over: it is renewed
    assert store.lease_alive(loaded(store).job)
    assert not store.lease_alive(head)


def test_jobs_whose_lease_has_ended_are_found_the_longest_first(store: Store) -> None:
    running(store, "alive")
    for job_id, ttl in (("second", 0.5), ("first", 0.001), ("renewed", 0.01), ("ended", 0.01)):
        running(store, job_id, ttl)
    store.save([a_save(1, job_id="renewed")])
    head = loaded(store, "ended").job
    store.change(Change("ended", head.revision, {"status": Status.COMPLETED}))
    give_up = time.monotonic() + 10
    while len(found := store.expired(limit=9)) < 2:
        assert time.monotonic() < give_up
        time.sleep(0.005)
    assert found == [loaded(store, "first").job, loaded(store, "second").job]
    assert store.expired(limit=1) == found[:1]


def test_a_renewal_that_only_just_moved_the_lease_keeps_the_job_from_being_expired(
    store: Store,
) -> None:
    ttl = 0.3
    running(store, ttl=ttl)
    began, seq = time.monotonic(), 0
    while time.monotonic() < began + 2 * ttl:
        seq += 1
        saved = time.monotonic()
        assert store.save_one(a_save(seq, lease_ttl=ttl))
        found = store.expired(limit=9)
        assert found == [] or time.monotonic() >= saved + ttl, "unless it took as long as that"


# -- retention ---


def test_a_job_whose_retention_has_ended_is_gone_and_its_id_free(store: Store) -> None:
    gone = a_job(status=Status.COMPLETED, expires_at=wall_time() - 1)
    store.create(gone)
    assert store.load("a") is None
    assert store.page(status=None, name=None, before=None, limit=9) == []
    fresh = a_job(name="fresh")
    assert store.create(fresh)
    assert loaded(store) == Stored(fresh)


def test_purge_deletes_what_has_expired_and_all_that_belongs_to_it(store: Store) -> None:
    for number in range(4):
        head = running(store, f"gone{number}")
        store.complete_step(head.id, TOKEN, a_step(), position=0, seq=1, state=None)
        store.change(
            Change(
                head.id,
                head.revision,
                {"status": Status.COMPLETED, "expires_at": wall_time() - HOUR + number},
                control=ControlRecord(1.0, "pause", "me"),
            )
        )
    store.create(a_job("kept", status=Status.FAILED, expires_at=wall_time() + HOUR))
    head = running(store, "runs")
    store.complete_step("runs", TOKEN, a_step(), position=0, seq=1, state=None)
    kept = [loaded(store, "kept"), loaded(store, "runs")]

    assert store.purge(limit=3) == 3
    assert store.purge(limit=3) == 1
    assert store.purge(limit=3) == 0

    assert [loaded(store, "kept"), loaded(store, "runs")] == kept
    for number in range(4):
        store.create(a_job(f"gone{number}"))  # nothing of the old one is found again
        assert loaded(store, f"gone{number}").steps == ()
        assert loaded(store, f"gone{number}").runs == ()


# -- times ---


def test_the_time_goes_on_and_a_heartbeat_is_when_a_lease_was_last_renewed(store: Store) -> None:
    before = store.time()
    assert before == pytest.approx(wall_time(), abs=5)
    store.create(a_job())
    assert store.heartbeat(loaded(store).job) is None
    columns = {"status": Status.RUNNING, "token": TOKEN, "lease_ttl": 30.0}
    assert store.change(Change("a", 0, columns, lease_ttl=30.0))
    first = store.heartbeat(loaded(store).job)
    time.sleep(0.3)
    assert store.save_one(a_save(1))
    second = store.heartbeat(loaded(store).job)
    after = store.time()
    assert first is not None
    assert second is not None
    assert before - 0.1 <= first < second <= after + 0.1
    assert second - first == pytest.approx(0.3, abs=0.25)
