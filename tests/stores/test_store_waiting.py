"""What every store promises of jobs that wait for their queue, and of who looks for them."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest

from tests.stores.records import TOKEN, a_job, loaded
from tracedjobs._core.due import hand_again_at
from tracedjobs._core.records import (
    ALLOWED,
    Change,
    JobRecord,
    Status,
)

if TYPE_CHECKING:
    from tracedjobs.stores import Store


# -- jobs that wait for their queue ---


def waits(store: Store, job_id: str, ago: float, **columns: object) -> JobRecord:
    """A job of a queue that was interrupted, and should have been resumed `ago` seconds ago."""
    store.create(a_job(job_id, queue="imports"))
    resume_at = store.time() - ago
    ended = {"status": Status.INTERRUPTED, "reason": "lost", "resume_at": resume_at, **columns}
    assert store.change(Change(job_id, 0, {"status": Status.RUNNING, "token": TOKEN}))
    assert store.change(Change(job_id, 1, {"token": None, **ended}))
    return loaded(store, job_id).job


def test_jobs_that_are_to_be_handed_back_are_found_the_longest_first(store: Store) -> None:
    waits(store, "second", 2)
    waits(store, "first", 4)
    waits(store, "third", 1)
    waits(store, "later", -3600)
    waits(store, "sent", 10, reason="stopping")  # its own worker has sent a message
    waits(store, "long_sent", 40, reason="stopping")
    waits(store, "paused", 5, status=Status.PAUSED)
    store.create(a_job("no_queue"))
    store.change(Change("no_queue", 0, {"status": Status.RUNNING}))
    lost = {"status": Status.INTERRUPTED, "reason": "lost", "resume_at": store.time() - 9}
    store.change(Change("no_queue", 1, lost))
    found = store.waiting(limit=9)
    assert found == [loaded(store, each).job for each in ("long_sent", "first", "second", "third")]
    assert store.waiting(limit=2) == found[:2]
    assert store.waiting(limit=2, after=found[1].hand_at or 0.0) == found[2:]


def test_a_job_that_was_handed_back_is_found_again_when_it_still_waits_long_after(
    store: Store,
) -> None:
    head = waits(store, "a", 50)
    now = store.time()
    again = hand_again_at(head.resume_at or 0.0, now)
    assert again == pytest.approx(now + 50, abs=1)
    assert store.change(Change("a", head.revision, {"handed_at": now, "hand_at": again}))
    assert store.waiting(limit=9) == []
    assert store.change(Change("a", head.revision + 1, {"hand_at": now}))
    assert [each.id for each in store.waiting(limit=9)] == ["a"]


@pytest.mark.parametrize("new", sorted(ALLOWED[Status.INTERRUPTED] - {Status.INTERRUPTED}))
def test_a_job_that_waits_no_more_is_not_found(store: Store, new: Status) -> None:
    head = waits(store, "a", 5)
    assert store.change(Change("a", head.revision, {"status": new}))
    assert store.waiting(limit=9) == []


def unbegun(store: Store, job_id: str, ago: float, **columns: object) -> JobRecord:
    """A pending job of a queue whose message should have been there `ago` seconds ago."""
    store.create(a_job(job_id, **{"queue": "imports", "hand_at": store.time() - ago, **columns}))
    return loaded(store, job_id).job


def test_pending_jobs_of_queues_are_found_the_longest_first(store: Store) -> None:
    unbegun(store, "second", 2)
    unbegun(store, "first", 4)
    unbegun(store, "third", 1)
    unbegun(store, "later", -3600)
    unbegun(store, "no_queue", 5, queue=None)
    waits(store, "waits", 5)
    found = store.unbegun(limit=9)
    assert found == [loaded(store, each).job for each in ("first", "second", "third")]
    assert store.unbegun(limit=2) == found[:2]
    assert store.unbegun(limit=2, after=found[1].hand_at or 0.0) == found[2:]
    assert store.change(Change("first", 0, {"handed_at": store.time(), "reason": "missed"}))
    assert [each.id for each in store.unbegun(limit=9)] == ["first", "second", "third"]
    assert [each.id for each in store.waiting(limit=9)] == ["waits"]


@pytest.mark.parametrize("new", sorted(ALLOWED[Status.PENDING]))
def test_a_job_that_is_pending_no_more_is_not_found_among_those(store: Store, new: Status) -> None:
    unbegun(store, "a", 5)
    assert store.change(Change("a", 0, {"status": new}))
    assert store.unbegun(limit=9) == []
    assert store.waiting(limit=9) == []


# -- elections ---


def test_one_is_elected_for_a_name_until_it_renews_no_more(store: Store) -> None:
    assert store.elect("recovery", "one", seconds=0.5)
    assert not store.elect("recovery", "two", seconds=60)
    assert store.elect("other", "two", seconds=60)
    began = time.monotonic()
    while time.monotonic() < began + 1.0:
        renewed = time.monotonic()
        assert store.elect("recovery", "one", seconds=0.5) or time.monotonic() > renewed + 0.2
        assert not store.elect("recovery", "two", seconds=60) or time.monotonic() > renewed + 0.2
        time.sleep(0.02)
    give_up = time.monotonic() + 10
    while not store.elect("recovery", "two", seconds=60):
        assert time.monotonic() < give_up
        time.sleep(0.02)
    assert not store.elect("recovery", "one", seconds=60)


def test_who_is_elected_may_give_it_back_and_nobody_else(store: Store) -> None:
    assert store.elect("recovery", "one", seconds=60)
    assert not store.elect("recovery", "two", seconds=0)
    assert not store.elect("recovery", "two", seconds=60)
    assert not store.elect("recovery", "one", seconds=0)
    assert store.elect("recovery", "two", seconds=60)


def test_of_many_one_is_elected(store: Store) -> None:
    elected: list[str] = []

    def run(holder: str) -> None:
        if store.elect("recovery", holder, seconds=60):
            elected.append(holder)

    threads = [threading.Thread(target=run, args=(f"w{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(elected) == 1
