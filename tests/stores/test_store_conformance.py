"""What every store promises of a job and what belongs to it, see `Store`: written once."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest

from tests.stores.records import TOKEN, a_first, a_job, a_save, a_step, loaded, running
from tracedjobs._core.records import (
    ALLOWED,
    RECORD_VERSION,
    Change,
    ControlRecord,
    Position,
    RunEnd,
    RunRecord,
    Save,
    Status,
    Stored,
)
from tracedjobs.errors import InvalidTransitionError, StoreError

if TYPE_CHECKING:
    from tracedjobs.stores import Store


# -- jobs ---


def test_a_job_comes_back_as_it_was_created(store: Store) -> None:
    job = a_job(
        arguments='{"a": "ü\\u0000"}',
        status=Status.PAUSED,
        run=3,
        worker="host:1",
        wish="pause",
        resumptions=2,
        reason="stopping",
        error='{"type": "E"}',
        started_at=1.25,
        deadline_at=9e9,
        retention=0.1,
        steps_expected=5,
        step="two",
        cursor='["t", 1, 2]',
        items=2**62,
        total=2**63 - 1,
        unit="bytes",
        step_started_at=2.5,
        fingerprint="null",
        progressed_at=3.5,
        state='{"k": 1}',
        saved_seq=8,
    )
    assert store.create(job)
    assert store.load("a") == Stored(job)


def test_a_second_job_of_an_id_is_not_created_and_the_first_is_left(store: Store) -> None:
    first = a_job()
    assert store.create(first)
    assert not store.create(a_job(name="other"))
    assert loaded(store).job == first


def test_an_unknown_id_is_none(store: Store) -> None:
    assert store.load("nobody") is None


def test_pages_are_newest_first_and_filtered_and_go_on_after_a_job(store: Store) -> None:
    for number in range(7):
        status = Status.FAILED if number % 2 else Status.PENDING
        store.create(a_job(f"job{number}", name=f"name{number % 3}", status=status))

    def ids(
        status: Status | None = None, name: str | None = None, before: str | None = None
    ) -> list[str]:
        page = store.page(status=status, name=name, before=before, limit=3)
        return [stored.job.id for stored in page]

    assert ids() == ["job6", "job5", "job4"]
    assert ids(before="job4") == ["job3", "job2", "job1"]
    assert ids(before="job1") == ["job0"]
    assert ids(before="job0") == []
    assert ids(Status.FAILED) == ["job5", "job3", "job1"]
    assert ids(name="name0") == ["job6", "job3", "job0"]
    assert ids(Status.FAILED, "name0") == ["job3"]
    assert ids(Status.PENDING, before="job4") == ["job2", "job0"]
    assert ids(name="nobody") == []


def test_a_page_has_what_belongs_to_each_job(store: Store) -> None:
    running(store)
    store.complete_step("a", TOKEN, a_step(), position=0, seq=1, state=None)
    assert store.page(status=None, name=None, before=None, limit=9) == [loaded(store)]


# -- changes ---


@pytest.mark.parametrize("new", Status)
@pytest.mark.parametrize("old", Status)
def test_a_status_changes_as_the_table_allows_and_in_no_other_way(
    store: Store, old: Status, new: Status
) -> None:
    store.create(a_job(status=old))
    before = loaded(store)
    change = Change(
        "a",
        0,
        {"status": new, "reason": "why"},
        open_run=RunRecord(1, "here", 5.0, resumed=False),
        control=ControlRecord(1.0, "pause", "me"),
    )
    if new in ALLOWED[old]:
        assert store.change(change)
        after = loaded(store)
        assert (after.job.status, after.job.reason, after.job.revision) == (new, "why", 1)
        assert after.runs == (change.open_run,)
        assert after.controls == (change.control,)
    else:
        with pytest.raises(InvalidTransitionError, match=f"is {old} and cannot become {new}"):
            store.change(change)
        assert loaded(store) == before


def test_a_change_of_another_revision_changes_nothing(store: Store) -> None:
    store.create(a_job())
    assert store.change(Change("a", 0, {"reason": "first"}))
    before = loaded(store)
    assert not store.change(
        Change("a", 0, {"reason": "second"}, control=ControlRecord(1.0, "pause", "me"))
    )
    assert not store.change(Change("a", 0, {"status": Status.COMPLETED}))
    assert loaded(store) == before
    assert not store.change(Change("nobody", 0, {"reason": "third"}))


def test_a_change_may_ask_that_the_lease_was_not_renewed(store: Store) -> None:
    head = running(store)
    store.save([a_save(1)])
    lost = Change("a", head.revision, {"status": Status.INTERRUPTED})
    assert not store.change(lost._replace(if_lease_until=head.lease_until))
    assert store.change(lost._replace(if_lease_until=loaded(store).job.lease_until))


def test_a_change_may_ask_that_the_token_is_still_the_runs(store: Store) -> None:
    head = running(store)
    ends = Change("a", head.revision, {"status": Status.INTERRUPTED}, if_token="another")
    assert not store.change(ends)
    assert loaded(store).job == head
    assert store.change(ends._replace(if_token=TOKEN))


def test_a_change_closes_runs_drops_steps_and_numbers_controls(store: Store) -> None:
    head = running(store)
    for at, name in enumerate(("one", "two", "three")):
        store.complete_step("a", TOKEN, a_step(name), position=at, seq=at + 1, state=None)
    controls = [ControlRecord(float(at), "rewind", "me", "to two") for at in range(2)]
    assert store.change(
        Change(
            "a",
            head.revision,
            {"status": Status.INTERRUPTED},
            close_run=RunEnd(1, "interrupted", "stopping", 7.5),
            drop_steps=("two", "three"),
            control=controls[0],
        )
    )
    assert store.change(Change("a", head.revision + 1, {}, control=controls[1]))
    after = loaded(store)
    assert after.steps == (a_step("one"),)
    assert after.runs == (
        RunRecord(
            1, "here", 5.0, resumed=False, ended_at=7.5, outcome="interrupted", reason="stopping"
        ),
    )
    assert after.controls == tuple(controls)


# -- saves ---


def test_a_save_writes_position_and_lease_and_brings_back_token_and_wish(store: Store) -> None:
    head = running(store)
    store.change(Change("a", head.revision, {"wish": "pause"}))
    assert store.save([a_save(1, state='{"k": 1}')]) == {"a": (TOKEN, "pause")}
    after = loaded(store).job
    assert after.position == Position("one", "3", 3, 10, "bytes", 4.25, '"print"')
    assert (after.progressed_at, after.state, after.saved_seq) == (6.5, '{"k": 1}', 1)
    assert after.lease_until > head.lease_until
    assert after.revision == head.revision + 1  # by the wish, and not by the save


def test_a_save_without_state_leaves_the_state(store: Store) -> None:
    running(store)
    store.save([a_save(1, state='{"k": 1}')])
    store.save([a_save(2)])
    assert loaded(store).job.state == '{"k": 1}'


def test_a_save_may_say_that_no_step_is_open(store: Store) -> None:
    running(store)
    store.save([a_save(1)])
    store.save([a_save(2, position=None)])
    assert loaded(store).job.position is None


@pytest.mark.parametrize(
    "late",
    [a_save(2, "9"), a_save(1, "9"), a_save(3, "9", token="another")],
    ids=["same number", "lower number", "another token"],
)
def test_a_late_or_foreign_save_changes_nothing(store: Store, late: Save) -> None:
    running(store)
    store.save([a_save(2)])
    before = loaded(store)
    assert store.save([late]) == {"a": (TOKEN, None)}
    assert loaded(store) == before
    assert not store.save_one(late)
    assert loaded(store) == before


def test_one_save_writes_what_many_do(store: Store) -> None:
    head = running(store)
    assert store.save_one(a_save(1, state='{"k": 1}'))
    after = loaded(store).job
    assert after.position == Position("one", "3", 3, 10, "bytes", 4.25, '"print"')
    assert (after.progressed_at, after.state, after.saved_seq) == (6.5, '{"k": 1}', 1)
    assert after.lease_until > head.lease_until


def test_many_are_saved_at_once_each_behind_its_own_fence(store: Store) -> None:
    for number in range(20):
        running(store, f"job{number}")
    saves = [
        a_save(1, str(number), job_id=f"job{number}", token="x" if number % 2 else TOKEN)
        for number in range(20)
    ]
    found = store.save([*saves, a_save(1, job_id="nobody")])
    assert found == {f"job{number}": (TOKEN, None) for number in range(20)}
    for number in range(20):
        position = loaded(store, f"job{number}").job.position
        assert (position is None) == bool(number % 2)
        assert position is None or position.items == number


# -- steps ---


def test_completed_steps_come_back_in_order(store: Store) -> None:
    running(store)
    for at, name in enumerate(("z", "a", "m")):
        assert store.complete_step("a", TOKEN, a_step(name), position=at, seq=at, state=None)
    assert loaded(store).steps == (a_step("z"), a_step("a"), a_step("m"))


def test_the_completion_of_a_step_may_be_repeated(store: Store) -> None:
    running(store)
    for _ in range(2):
        assert store.complete_step("a", TOKEN, a_step(), position=0, seq=4, state='{"k": 2}')
        assert store.complete_step("a", TOKEN, a_step("two"), position=1, seq=5, state=None)
    assert loaded(store).steps == (a_step(), a_step("two"))


def test_the_state_goes_with_the_step_and_older_saves_do_not_come_after_it(store: Store) -> None:
    running(store)
    assert store.complete_step("a", TOKEN, a_step(), position=0, seq=4, state='{"k": 2}')
    store.save([a_save(3, state='{"k": 1}')])
    after = loaded(store)
    assert after.job.state == '{"k": 2}'
    assert after.open_position is None


def test_the_completion_of_a_step_renews_the_lease(store: Store) -> None:
    head = running(store, ttl=0.5)
    kept = store.complete_step("a", TOKEN, a_step(), position=0, seq=1, state=None)
    assert kept
    assert loaded(store).job.lease_until == head.lease_until
    assert store.complete_step(
        "a", TOKEN, a_step("two"), position=1, seq=2, state=None, lease_ttl=30.0
    )
    assert loaded(store).job.lease_until > head.lease_until + 29
    give_up = time.monotonic() + 10
    while store.lease_alive(head):
        assert time.monotonic() < give_up
        time.sleep(0.01)
    assert store.expired(limit=9) == []


@pytest.mark.parametrize("state", [None, '{"k": 2}'])
def test_a_run_that_was_fenced_off_completes_no_step(store: Store, state: str | None) -> None:
    running(store)
    before = loaded(store)
    assert not store.complete_step("a", "another", a_step(), position=0, seq=4, state=state)
    assert not store.complete_step("nobody", TOKEN, a_step(), position=0, seq=4, state=state)
    assert loaded(store) == before


def test_the_steps_of_the_last_completed_job_of_a_name_are_counted(store: Store) -> None:
    assert store.steps_of_last_completed("job") is None
    for number in range(3):
        head = running(store, f"job{number}")
        for at in range(number + 1):
            step = a_step(f"step{at}")
            store.complete_step(head.id, TOKEN, step, position=at, seq=at, state=None)
        status = Status.COMPLETED if number < 2 else Status.FAILED
        store.change(Change(head.id, head.revision, {"status": status}))
    assert store.steps_of_last_completed("job") == 2
    assert store.steps_of_last_completed("other") is None


# -- versions, threads, the end ---


def test_a_record_of_a_later_version_is_refused_and_both_versions_are_named(store: Store) -> None:
    store.create(a_job(version=RECORD_VERSION + 1))
    for look in (
        lambda: store.load("a"),
        lambda: store.begin("a", a_first(store)),
        lambda: store.page(status=None, name=None, before=None, limit=9),
    ):
        with pytest.raises(StoreError) as caught:
            look()
        assert (
            f"(record version {RECORD_VERSION + 1}; this one reads up to {RECORD_VERSION})"
            in str(caught.value)
        )
        assert "was not changed" in str(caught.value)


def test_threads_that_change_the_same_job_do_so_one_after_the_other(store: Store) -> None:
    store.create(a_job())
    made: list[int] = []

    def raise_items() -> None:
        for _ in range(25):
            while True:
                head = loaded(store).job
                if store.change(Change("a", head.revision, {"items": head.items + 1})):
                    made.append(head.items)
                    break

    threads = [threading.Thread(target=raise_items) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == list(range(100))
    assert loaded(store).job.items == 100


def test_a_closed_store_says_so(store: Store) -> None:
    store.create(a_job())
    store.close()
    with pytest.raises(StoreError, match="is closed"):
        store.load("a")
    store.close()  # once more does no harm
