"""What every store promises of the spans that are owed: who sends them, and how often."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final

from tests.stores.records import TOKEN, TRACE, a_job, a_step, loaded
from tracedjobs._core.records import (
    Change,
    JobRecord,
    RunEnd,
    RunRecord,
    SpansSent,
    Status,
)
from tracedjobs._core.trace import Trace
from tracedjobs.stores.base import LONGEST_CLAIM

if TYPE_CHECKING:
    from tracedjobs.stores import Store


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
