"""Jobs whose message was lost before they began: found by two looks, and by nothing less."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from tracedjobs._core.records import Change, JobRecord, Status
from tracedjobs.queues import unbegun
from tracedjobs.queues.base import Continuable
from tracedjobs.queues.unbegun import MISSED, Taken, look_for_unbegun

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tracedjobs import Runtime


@dataclass
class Broker:
    """What a broker holds, and how much of it was read."""

    holds: list[str] | None = field(default_factory=list)
    read: int = 0
    while_it_is_asked: Callable[[], object] = lambda: None


class OnBroker(Continuable):
    """A queue of jobs on it."""

    def __init__(self, app: Broker, runtime: Runtime) -> None:
        super().__init__(None, runtime)
        self.app = app
        self.family = self._queue = f"queue {uuid4()}"
        self.sent: list[str] = []
        self.known()

    @property
    def queue(self) -> str:
        return self._queue

    def as_task(self, fn: Callable[..., Any], options: dict[str, Any]) -> Any:
        raise NotImplementedError

    def execute(self, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        raise NotImplementedError

    def send(self, job: JobRecord) -> None:
        self.sent.append(job.id)
        assert self.app.holds is not None
        self.app.holds.append(job.id)

    def held(self, jobs: Sequence[JobRecord]) -> Iterator[str] | None:
        assert all(job.queue == self.queue for job in jobs)
        return None if self.app.holds is None else self._held(self.app.holds)

    def _held(self, holds: list[str]) -> Iterator[str]:
        for each in list(holds):
            self.app.read += 1
            yield each
        self.app.while_it_is_asked()


@pytest.fixture
def made(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> OnBroker:
    monkeypatch.setattr(unbegun, "SHORTEST", 0.0)
    monkeypatch.setattr(runtime, "lease_ttl", 10.0)
    return OnBroker(Broker(), runtime)


def pending(made: OnBroker, job_id: str = "a", *, ago: float = 1.0, held: bool = False) -> None:
    """A job whose message should be there since then."""
    store = made.runtime.store
    at = store.time() - ago
    store.create(JobRecord(job_id, "unbegun:job", "{}", at, queue=made.queue, hand_at=at))
    if held:
        assert made.app.holds is not None
        made.app.holds.append(job_id)


def look(made: OnBroker) -> list[str]:
    return look_for_unbegun(made.runtime, made.family)


def of(made: OnBroker, job_id: str = "a") -> JobRecord:
    stored = made.runtime.store.load(job_id)
    assert stored is not None
    return stored.job


def passes(made: OnBroker, seconds: float, job_id: str = "a") -> None:
    """As if what was noted in the job was noted so much earlier."""
    head = of(made, job_id)
    assert head.handed_at is not None
    columns = {"handed_at": head.handed_at - seconds}
    assert made.runtime.store.change(Change(job_id, head.revision, columns))


def test_a_message_that_is_missed_twice_is_sent_anew_and_one_that_is_there_is_not(
    made: OnBroker,
) -> None:
    pending(made)
    pending(made, "there", held=True)
    pending(made, "too_soon", ago=-1.0)
    assert look(made) == []
    assert of(made).reason == MISSED
    passes(made, 9.0)
    assert look(made) == []  # not long enough after the first
    passes(made, 1.5)
    assert look(made) == ["a"]
    assert of(made).reason is None
    assert made.sent == ["a"]
    assert of(made, "there").revision == of(made, "too_soon").revision == 0


def test_a_copy_that_is_lost_too_is_missed_in_its_turn(made: OnBroker) -> None:
    pending(made)
    for _ in range(3):
        look(made)
        passes(made, 11.0)
        look(made)
        passes(made, 11.0)
        made.app.holds = []
    assert made.sent == ["a"] * 3


def test_a_message_that_was_on_its_way_is_not_sent_anew(made: OnBroker) -> None:
    pending(made)
    look(made)
    made.app.holds = ["a"]
    passes(made, 11.0)
    assert look(made) == []
    assert of(made).reason is None
    made.app.holds = []
    assert look(made) == []  # which is a first look again
    assert of(made).reason == MISSED


@pytest.mark.parametrize("looks", [1, 2])
def test_a_job_that_begins_while_the_broker_is_asked_is_left_alone(
    made: OnBroker, looks: int
) -> None:
    pending(made)
    if looks == 2:
        look(made)
        passes(made, 11.0)

    def begin() -> None:
        head = of(made)
        change = Change("a", head.revision, {"status": Status.RUNNING, "run": 1, "reason": None})
        assert made.runtime.store.change(change)

    made.app.while_it_is_asked = begin
    assert look(made) == []
    assert (of(made).reason, made.sent) == (None, [])


def test_what_a_worker_has_taken_and_not_begun_with_is_not_sent_anew(
    made: OnBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    pending(made)
    taken = Taken()
    taken.add(made, "a")
    look(made)
    passes(made, 11.0)
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 5.5)
    taken.tell()
    assert look(made) == []
    assert of(made).reason is None
    passes(made, 11.0)  # and then it was killed, and told no more
    assert look(made) == []
    passes(made, 11.0)
    assert look(made) == ["a"]
    taken.tell()
    assert of(made).handed_at is not None


def test_a_long_queue_is_read_no_further_than_to_the_jobs_that_are_looked_for(
    made: OnBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unbegun, "PAGE", 20)
    for number in range(100):
        pending(made, f"job{number}", ago=1000 - number, held=True)
    reads = []
    for _ in range(6):
        made.app.read = 0
        assert look(made) == []
        reads.append(made.app.read)
    assert reads == [40, 60, 80, 100, 20, 40]  # those in front each time, and a page of the others
    assert made.app.holds is not None
    made.app.holds.remove("job70")
    for _ in range(12):
        look(made)
        head = of(made, "job70")
        if head.handed_at is not None:
            passes(made, 11.0, "job70")
    assert made.sent[:1] == ["job70"]


def test_of_what_cannot_be_asked_or_seen_nothing_is_sent(
    made: OnBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    pending(made)
    monkeypatch.setattr(unbegun, "MOST", 5)
    made.app.holds = [f"other{number}" for number in range(9)]
    assert look(made) == []
    made.app.holds = None
    assert look(made) == []
    assert of(made).revision == 0

    def away() -> None:
        msg = "away"
        raise OSError(msg)

    made.app.holds = []
    made.app.while_it_is_asked = away
    assert look(made) == []
    assert of(made).revision == 0
