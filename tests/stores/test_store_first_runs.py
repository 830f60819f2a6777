"""What every store promises of first runs, which are begun in one step with reading the job."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.stores.records import TOKEN, TRACE, a_first, a_job, a_save, a_step, loaded
from tracedjobs._core.clock import wall_time
from tracedjobs._core.records import (
    Change,
    ControlRecord,
    RunEnd,
    Status,
)

if TYPE_CHECKING:
    from tracedjobs.stores import Store


def test_a_first_run_is_begun_as_by_a_load_and_a_change(store: Store) -> None:
    name, queue = 'ein "Job"/ü', 'q"ü/\n'
    submitted = {
        "arguments": '{"a": "ü\\n\\u0000"}',
        "name": name,
        "queue": queue,
        "retention": 60.5,
        "steps_expected": 5,
        "trace": TRACE,
        "message": '"kept"',
        "deadline_at": 7.5,
        "hand_at": 8.5,
    }
    for job_id in ("a", "b"):
        store.create(a_job(job_id, submitted_at=store.time(), **submitted))
    assert {job.id for job in store.unbegun(limit=9)} == {"a", "b"}
    first = a_first(store, job_name=name)
    began = store.time()
    stored, begun = store.begin("a", first)
    ended = store.time()
    assert begun
    assert [job.id for job in store.unbegun(limit=9)] == ["b"]
    assert stored == loaded(store)
    beat = store.heartbeat(stored.job)
    assert beat is not None
    assert began - 0.05 <= beat <= ended + 0.05
    assert store.lease_alive(stored.job)
    counted = store.survey().totals
    assert counted["queue_wait_bucket", name, queue, "", "0.1"] == 1
    assert 0 <= counted.get(("queue_wait_sum", name, queue, "", ""), 0) < 0.1
    assert all(key[0].startswith("queue_wait") for key in counted)

    change = first.change(loaded(store, "b"))
    assert change is not None
    assert store.change(change)
    assert store.survey().totals["queue_wait_bucket", name, queue, "", "0.1"] == 2
    there = loaded(store, "b")
    assert store.unbegun(limit=9) == []
    its_own = {each: getattr(stored.job, each) for each in ("id", "submitted_at", "lease_until")}
    assert stored == there._replace(job=replace(there.job, **its_own))


def test_a_run_that_was_begun_saves_completes_steps_and_ends_as_any_other(store: Store) -> None:
    store.create(a_job(queue="q"))
    stored, begun = store.begin("a", a_first(store))
    assert begun
    assert stored is not None
    assert store.save([a_save(1)]) == {"a": (TOKEN, None)}
    assert store.complete_step("a", TOKEN, a_step(), position=0, seq=2, state=None)
    ends = {"status": Status.COMPLETED, "token": None, "result": "1", "expires_at": None}
    close = RunEnd(1, "completed", None, 9.0)
    assert store.change(Change("a", 1, ends, if_token=TOKEN, close_run=close, known=stored))
    after = loaded(store)
    assert (after.job.status, after.job.result, after.job.arguments) == ("completed", "1", "{}")
    assert [run.outcome for run in after.runs] == ["completed"]
    assert [step.name for step in after.steps] == ["one"]
    for status in Status:
        found = store.page(status=status, name="job", before=None, limit=9)
        assert [each.job.status for each in found] == [status] * (status is Status.COMPLETED)
    assert not store.survey().living


@pytest.mark.parametrize(
    "columns",
    [
        {"status": Status.INTERRUPTED},
        {"status": Status.PAUSED},
        {"status": Status.COMPLETED, "result": "1"},
        {"run": 1},
        {"resumptions": 1},
        {"state": '{"k": 1}'},
        {"step": "one", "cursor": "3"},
        {"wish": "cancel"},
        {"lost_token": TOKEN},
        {"token": TOKEN},
        {"handed_at": 1.0},
        {"counted": 2},
        {"revision": 1},
        {"name": "jobs"},
    ],
    ids=repr,
)
def test_a_job_that_is_not_new_or_of_another_name_is_read_and_left(
    store: Store, columns: dict[str, object]
) -> None:
    store.create(replace(a_job(), **columns))  # type: ignore[arg-type]  # columns of the record
    before, counted = loaded(store), store.survey().totals
    assert store.begin("a", a_first(store, token="another")) == (before, False)
    assert (loaded(store), store.survey().totals) == (before, counted)


def test_a_job_that_was_changed_has_no_first_run_any_more(store: Store) -> None:
    store.create(a_job())
    for status in (Status.PAUSED, Status.PENDING):
        head = loaded(store).job
        control = ControlRecord(1.0, "pause", "me")
        assert store.change(Change("a", head.revision, {"status": status}, control=control))
    assert store.begin("a", a_first(store)) == (loaded(store), False)


def test_of_many_who_begin_the_first_run_one_does(store: Store) -> None:
    store.create(a_job())
    begun: list[str] = []

    def begin(token: str) -> None:
        if store.begin("a", a_first(store, token=token))[1]:
            begun.append(token)

    threads = [threading.Thread(target=begin, args=(f"token{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [loaded(store).job.token] == begun


def test_there_is_no_first_run_of_what_is_not_there_or_over(store: Store) -> None:
    store.create(a_job("over", expires_at=wall_time() - 1))
    for job_id in ("over", "never"):
        assert store.begin(job_id, a_first(store)) == (None, False)
