"""The totals of a store: added to with the change they belong to, once, and told with the jobs."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

import pytest

from tests.stores.records import TOKEN, a_job, a_save, a_step, loaded, running
from tracedjobs._core.records import Change, Count, Position, Status, position_columns
from tracedjobs.stores import open_store
from tracedjobs.stores.base import STEP_NAMES
from tracedjobs.stores.redis import RedisStore

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tracedjobs.stores import Store
    from tracedjobs.stores.redis.packing import Found


@pytest.fixture(params=["sqlite", "memory", "redis", "redis+cluster"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    url = {"sqlite": f"sqlite:///{tmp_path}/jobs.db", "memory": "memory://"}.get(request.param)
    if url is None:
        name = "redis_server" if request.param == "redis" else "redis_cluster"
        server = request.getfixturevalue(name)
        url = f"{server.url}{'&' if '?' in server.url else '?'}prefix=tj{os.urandom(6).hex()}"
    opened = open_store(url)
    yield opened
    opened.close()


def one(metric: str = "runs", step: str = "", amount: float = 1) -> Count:
    return Count(metric, "job", "", step, "", amount)


def totals(store: Store) -> dict[tuple[str, str], float]:
    return {(key[0], key[3]): value for key, value in store.survey().totals.items()}


def test_a_new_store_has_none_and_is_surveyed_all_the_same(store: Store) -> None:
    survey = store.survey()
    assert (survey.totals, survey.jobs, survey.living) == ({}, {}, [])
    assert survey.now == pytest.approx(store.time(), abs=5)


def test_they_are_added_with_the_job_that_was_created_and_not_with_one_that_was_there(
    store: Store,
) -> None:
    assert store.create(a_job("a"), [one("jobs_enqueued"), one("seconds", amount=0.25)])
    assert not store.create(a_job("a"), [one("jobs_enqueued")])
    assert totals(store) == {("jobs_enqueued", ""): 1, ("seconds", ""): 0.25}


def test_they_are_added_with_a_change_that_is_made_and_not_with_one_that_is_refused(
    store: Store,
) -> None:
    head = running(store)
    change = Change("a", head.revision, {"reason": "why"}, counts=(one(amount=2),))
    assert store.change(change)
    assert not store.change(change)
    assert not store.change(Change("a", head.revision + 1, {}, if_token="x", counts=(one(),)))
    assert totals(store) == {("runs", ""): 2}


def test_a_step_counts_once_however_often_its_completion_is_repeated(store: Store) -> None:
    running(store)
    for _ in range(3):
        assert store.complete_step(
            "a", TOKEN, a_step(), position=0, seq=4, state=None, counts=[one("steps", "one")]
        )
    counts = [one("steps", "one")]
    assert not store.complete_step(
        "a", "another", a_step(), position=1, seq=5, state=None, counts=counts
    )
    assert totals(store) == {("steps", "one"): 1}


def test_no_step_is_open_after_one_was_completed_and_nothing_of_it_is_uncounted(
    store: Store,
) -> None:
    head = running(store)
    where = position_columns(Position("one", "3", 3))
    assert store.change(Change("a", head.revision, {**where, "counted": 3, "meter": "1 1 1"}))
    store.save([a_save(4, "7")])
    assert store.complete_step("a", TOKEN, a_step(), position=0, seq=5, state=None)
    store.save([a_save(3, "9")])  # begun before, and late
    job = loaded(store).job
    assert (job.step, job.items, job.counted, job.meter) == (None, 0, 0, None)


def test_a_completion_that_comes_late_after_its_repetition_closes_no_other_step(
    store: Store,
) -> None:
    running(store)
    assert store.complete_step("a", TOKEN, a_step(), position=0, seq=5, state='{"k": 1}')
    later = Position("two", "3", 3)
    assert store.save_one(a_save(6, position=later, state='{"k": 2}'))
    assert store.complete_step("a", TOKEN, a_step(), position=0, seq=5, state='{"k": 1}')
    assert loaded(store).job.position == later
    assert loaded(store).job.state == '{"k": 2}'


def test_a_change_that_read_the_job_before_a_step_was_completed_leaves_nothing_of_that_step(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = running(store)
    where = position_columns(Position("one", "3", 3))
    assert store.change(Change("a", head.revision, {**where, "counted": 3, "meter": "1 1 1"}))
    if isinstance(store, RedisStore):  # the one that reads a job before it writes it
        find = store.find

        def read_early(ids: Sequence[str], *, parts: bool = True) -> list[Found | None]:
            found = find(ids, parts=parts)
            monkeypatch.undo()
            assert store.complete_step("a", TOKEN, a_step(), position=0, seq=5, state=None)
            return found

        monkeypatch.setattr(store, "find", read_early)
    else:
        assert store.complete_step("a", TOKEN, a_step(), position=0, seq=5, state=None)
    assert store.change(Change("a", head.revision + 1, {"wish": "pause"}))
    job = loaded(store).job
    assert (job.step, job.counted, job.meter, job.wish) == (None, 0, None, "pause")


def test_the_meter_is_saved_where_it_changed(store: Store) -> None:
    running(store)
    store.save([a_save(1, meter="1 2 3")])
    store.save([a_save(2)])
    assert loaded(store).job.meter == "1 2 3"


def test_step_names_beyond_a_hundred_are_counted_together(store: Store) -> None:
    running(store)
    for number in range(STEP_NAMES + 20):
        step = f"page {number % 110}" if number < 110 else "page 3"
        store.complete_step(
            "a",
            TOKEN,
            a_step(step),
            position=number,
            seq=number,
            state=None,
            counts=[one("steps", step)],
        )
    store.count([Count("steps", "another job", "", "page 109", "", 1)])
    found = totals(store)
    assert found["steps", "other"] == 10
    assert found["steps", "page 3"] == 11
    assert found["steps", "page 109"] == 1
    assert len(found) == STEP_NAMES + 2


def test_what_many_threads_count_at_once_is_all_there(store: Store) -> None:
    def count() -> None:
        for _ in range(20):
            store.count([one(), one("steps", "one"), one("seconds", amount=0.5)])

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert totals(store) == {("runs", ""): 80, ("steps", "one"): 80, ("seconds", ""): 40}


def test_a_survey_tells_of_running_jobs_and_of_how_many_there_are(store: Store) -> None:
    store.create(a_job("a"), [one("jobs_enqueued")])
    head = running(store, "b")
    lease = Change("b", head.revision, {"lease_ttl": 30.0, "worker": "w"}, lease_ttl=30.0)
    assert store.change(lease)
    for number in range(3):
        store.create(a_job(f"i{number}", status=Status.INTERRUPTED, resume_at=100.0 + number))
    survey = store.survey()
    assert survey.jobs == {
        ("job", "", "pending"): 1,
        ("job", "", "running"): 1,
        ("job", "", "interrupted"): 3,
    }
    (living,) = survey.living
    assert (living.job.id, living.job.worker, living.alive) == ("b", "w", True)
    assert living.heartbeat == pytest.approx(survey.now, abs=5)
    assert survey.oldest_pending["job", ""] == pytest.approx(survey.now, abs=5)
    assert survey.oldest_interrupted["job", ""] == 100.0


def test_a_lease_that_ended_is_seen_as_such(store: Store) -> None:
    head = running(store)
    assert store.change(Change("a", head.revision, {"lease_until": 1.0, "lease_ttl": 1.0}))
    (living,) = store.survey().living
    assert not living.alive
