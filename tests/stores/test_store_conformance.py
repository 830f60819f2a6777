"""What every store promises, see `Store`: written once, over a table of factories."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import pytest

from tracedjobs._core.clock import wall_time
from tracedjobs._core.due import hand_again_at
from tracedjobs._core.first_run import FirstRun
from tracedjobs._core.records import (
    ALLOWED,
    RECORD_VERSION,
    Change,
    ControlRecord,
    JobRecord,
    Position,
    RunEnd,
    RunRecord,
    Save,
    SpansSent,
    Status,
    StepRecord,
    Stored,
)
from tracedjobs._core.trace import Trace
from tracedjobs.errors import InvalidTransitionError, StoreError
from tracedjobs.stores import open_store
from tracedjobs.stores.base import LONGEST_CLAIM
from tracedjobs.stores.memory import MemoryStore
from tracedjobs.stores.sqlite import SQLiteStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tracedjobs.stores import Store

STORES: Final[dict[str, Callable[[pytest.FixtureRequest, Path], Store]]] = {
    "sqlite": lambda _, folder: SQLiteStore(str(folder / "jobs.db"), synchronous="NORMAL"),
    "memory": lambda *_: MemoryStore(),
    "redis": lambda request, _: open_store(
        f"{request.getfixturevalue('redis_server').url}?prefix=tj{os.urandom(6).hex()}"
    ),
    "redis+cluster": lambda request, _: open_store(
        f"{request.getfixturevalue('redis_cluster').url}?prefix=tj{os.urandom(6).hex()}"
    ),
}
TOKEN: Final = "0123456789abcdef"
HOUR: Final = 3600.0


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    made = STORES[request.param](request, tmp_path)
    yield made
    made.close()


def a_job(job_id: str = "a", **columns: object) -> JobRecord:
    return replace(
        JobRecord(id=job_id, name="job", arguments="{}", submitted_at=wall_time()),
        **columns,  # type: ignore[arg-type]  # columns of the record
    )


def a_step(name: str = "one", **columns: object) -> StepRecord:
    step = StepRecord(name, '"result"', "7", 7, 10, None, 1.5, 2.5, 1)
    return step._replace(**columns)  # type: ignore[arg-type]  # columns of the record


def running(store: Store, job_id: str = "a", ttl: float = 30.0) -> JobRecord:
    """A job that runs with `TOKEN`."""
    store.create(a_job(job_id))
    assert store.change(
        Change(
            job_id,
            0,
            {"status": Status.RUNNING, "token": TOKEN, "run": 1},
            lease_ttl=ttl,
            open_run=RunRecord(1, "here", 5.0, resumed=False),
        )
    )
    return loaded(store, job_id).job


def loaded(store: Store, job_id: str = "a") -> Stored:
    stored = store.load(job_id)
    assert stored is not None
    return stored


def a_save(seq: int, cursor: str = "3", **columns: object) -> Save:
    position = Position("one", cursor, int(cursor), 10, "bytes", 4.25, '"print"')
    save = Save("a", TOKEN, seq, 30.0, position, 6.5)
    return save._replace(**columns)  # type: ignore[arg-type]  # columns of the record


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


# -- spans that are owed ---

TRACE: Final = Trace("1" * 32, "2" * 16, sampled=True).text()
END: Final = RunEnd(1, "interrupted", "stopping", 7.5)


def owes(store: Store, job_id: str = "a", trace: str | None = TRACE) -> JobRecord:
    """A job with two steps and a run that has ended."""
    store.create(a_job(job_id, trace=trace))
    columns = {"status": Status.RUNNING, "token": TOKEN, "run": 1}
    run = RunRecord(1, "here", 5.0, resumed=False)
    assert store.change(Change(job_id, 0, columns, lease_ttl=30.0, open_run=run))
    for at in range(2):
        step = a_step(f"step{at}")
        assert store.complete_step(job_id, TOKEN, step, position=at, seq=at + 1, state=None)
    ended = {"status": Status.INTERRUPTED, "token": None}
    assert store.change(Change(job_id, 1, ended, close_run=END))
    return loaded(store, job_id).job


def sent_of(head: JobRecord, claim: float, **figures: object) -> SpansSent:
    sent = SpansSent(head.id, claim, head.revision, steps=2, runs=1, root=False)
    return sent._replace(**figures)  # type: ignore[arg-type]  # its fields


def figures_of(store: Store, job_id: str = "a") -> tuple[int, int, int, bool]:
    head = loaded(store, job_id).job
    return head.steps_sent, head.runs_sent, head.root_sent, head.spans_due is not None


def test_a_job_of_a_sampled_trace_owes_spans_once_a_run_has_ended_or_the_job(store: Store) -> None:
    owes(store, "run")
    owes(store, "unsampled", Trace("1" * 32, "2" * 16, sampled=False).text())
    owes(store, "untraced", None)
    store.create(a_job("waits", trace=TRACE))
    store.create(a_job("ends", trace=TRACE))
    assert store.change(Change("ends", 0, {"status": Status.CANCELLED}))
    assert set(store.owing(limit=9)) == {"run", "ends"}
    assert len(store.owing(limit=1)) == 1


def test_spans_are_claimed_by_one_until_the_claim_ends(store: Store) -> None:
    owes(store)
    now = store.time()
    (claim,) = store.claim_spans(["a", "nobody"], seconds=0.5).values()
    assert now + 0.4 < claim < store.time() + 0.6
    assert store.claim_spans(["a"], seconds=60) == {}
    assert store.owing(limit=9) == []
    assert loaded(store).job.spans_due == claim
    give_up = time.monotonic() + 10
    while store.owing(limit=9) != ["a"]:
        assert time.monotonic() < give_up
        time.sleep(0.01)
    (again,) = store.claim_spans(["a"], seconds=60).values()
    assert again > claim
    assert store.time() > claim - 0.1
    (longest,) = store.claim_spans([owes(store, "b").id], seconds=1e9).values()
    assert longest <= store.time() + LONGEST_CLAIM + 0.1


def test_many_who_claim_at_once_have_each_job_once(store: Store) -> None:
    ids = [owes(store, f"job{number}").id for number in range(12)]
    claimed: list[str] = []

    def claim() -> None:
        claimed.extend(store.claim_spans(ids, seconds=60))

    threads = [threading.Thread(target=claim) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(claimed) == sorted(ids)


def test_what_was_sent_is_noted_and_nothing_owed_until_the_job_changes(store: Store) -> None:
    head = owes(store)
    (claim,) = store.claim_spans(["a"], seconds=60).values()
    for _ in range(2):  # its answer may not have arrived
        store.spans_sent([sent_of(head, claim), sent_of(head, claim, job_id="nobody")])
        assert figures_of(store) == (2, 1, 0, False)
        assert store.owing(limit=9) == []
    assert store.change(Change("a", head.revision, {"status": Status.CANCELLED}))
    assert store.owing(limit=9) == ["a"]
    (claim,) = store.claim_spans(["a"], seconds=60).values()
    store.spans_sent([sent_of(loaded(store).job, claim, root=True)])
    assert figures_of(store) == (2, 1, 1, False)


def test_a_job_that_changed_since_it_was_read_owes_again_at_once(store: Store) -> None:
    head = owes(store)
    (claim,) = store.claim_spans(["a"], seconds=60).values()
    assert store.change(Change("a", head.revision, {"reason": "why"}))
    store.spans_sent([sent_of(head, claim)])
    assert figures_of(store) == (2, 1, 0, True)
    assert store.owing(limit=9) == ["a"]


def test_who_is_late_takes_nothing_back_and_ends_no_others_claim(store: Store) -> None:
    head = owes(store)
    (late,) = store.claim_spans(["a"], seconds=0.001).values()
    give_up = time.monotonic() + 10
    while not (taken := store.claim_spans(["a"], seconds=60)):
        assert time.monotonic() < give_up
        time.sleep(0.005)
    store.spans_sent([sent_of(head, late, steps=1, root=True)])
    assert figures_of(store) == (0, 1, 1, True)  # of a claim that has ended no steps
    assert store.claim_spans(["a"], seconds=60) == {}
    store.spans_sent([sent_of(head, taken["a"])])
    assert figures_of(store) == (2, 1, 1, False)
    store.spans_sent([sent_of(head, late, steps=0, runs=0)])
    assert figures_of(store) == (2, 1, 1, False)


def test_a_rewind_ends_the_claim_and_forgets_the_steps_that_it_drops(store: Store) -> None:
    head = owes(store)
    (claim,) = store.claim_spans(["a"], seconds=60).values()
    store.spans_sent([sent_of(head, claim)])
    store.change(Change("a", head.revision, {"reason": "why"}, close_run=END))
    head = loaded(store).job
    (claim,) = store.claim_spans(["a"], seconds=60).values()
    assert store.change(Change("a", head.revision, {}, drop_steps=("step1",)))
    assert figures_of(store) == (1, 1, 0, True)
    store.spans_sent([sent_of(head, claim)])
    assert figures_of(store) == (1, 1, 0, True)  # what was counted was dropped
    assert store.owing(limit=9) == ["a"]


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


# -- first runs ---


def a_first(store: Store, **columns: object) -> FirstRun:
    first = FirstRun("job", TOKEN, "here", "owner", 30.0, store.time())
    return first._replace(**columns)  # type: ignore[arg-type]  # columns of it


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
