"""Real workers that are killed with messages in hand, and real queues that are long.

All queues that forget what they give out are tried at once, for most of the time is waiting for the
two looks at which a message must be missed, see `tracedjobs.queues.unbegun`.
"""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import pytest
from redis import Redis

from tests.processes import until
from tests.queues.harness import Place
from tests.queues.on_huey import OnHuey
from tests.stores.records import loaded
from tracedjobs.queues import taskiq_held
from tracedjobs.queues.unbegun import SHORTEST

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.queues.harness import Kind
    from tests.queues.on_celery import OnCelery
    from tests.queues.on_rq import OnRQ
    from tests.queues.on_taskiq import OnTaskiq
    from tracedjobs._core.records import JobRecord

# Between a message and its job there is what an application does there; then a kill has a moment
# that it can find, where else it is a few milliseconds long.
MORE_CELERY: Final = """
from celery.signals import task_prerun
app.conf.task_acks_late = False

@task_prerun.connect(weak=False)
def slowly(**_):
    while os.path.exists({hold!r}):
        time.sleep(0.05)
"""
MORE_HUEY: Final = """
@app.pre_execute()
def slowly(task):
    while os.path.exists({hold!r}):
        time.sleep(0.05)
"""
RECEIVED: Final = {
    "celery": re.compile(r"Task \S+\[(\S+)\] received"),
    "huey": re.compile(r"Executing \S+: (\S+)"),
    "taskiq": re.compile(r"Executing task \S+ with ID: (\S+)"),
}
"""What a worker says of each message that has come."""
LOOK: Final = SHORTEST + 1.0
"""Seconds between two looks."""
ETA: Final = 2.5 * LOOK


@dataclass
class Sent:
    """A queue and the jobs that were sent to it, each with its file and its items."""

    place: Place
    jobs: list[tuple[str, Path, int]]
    eta: str = ""

    def send(self, number: int, items: int, *, later: float = 0.0) -> str:
        """Send a job to count to `items`, 0.05 s each."""
        kind, task = self.place.kind, self.place.app.count
        path = self.place.folder / f"items{number}"
        if later:
            handle = kind.send_later(task, later, str(path), items, 0.05)
        else:
            handle = kind.send(task, str(path), items, 0.05)
        self.jobs.append((kind.id_of(handle), path, items))
        return self.jobs[-1][0]

    @property
    def at_once(self) -> int:
        """How many jobs its worker runs at once."""
        return min(32, (os.cpu_count() or 1) + 4) if self.place.kind.module == "taskiq" else 2

    def taken(self) -> int:
        """How many messages its worker takes while it is busy."""
        return {"celery": 2 * self.at_once, "huey": self.at_once}.get(
            self.place.kind.module, len(self.jobs)
        )

    def records(self) -> list[JobRecord]:
        """The jobs that are known: one with an ETA may be recorded when that has come."""
        found = [self.place.runtime.store.load(job_id) for job_id, _, _ in self.jobs]
        return [each.job for each in found if each is not None]

    def are_done(self) -> bool:
        records = self.records()
        return len(records) == len(self.jobs) and all(job.status == "completed" for job in records)

    def has_messages_to_lose(self) -> bool:
        """Whether the worker has taken messages and not begun with them."""
        if self.place.kind.module == "taskiq":
            return True
        done = sum(job.status == "completed" for job in self.records())
        return done == self.at_once and len(self.received()) >= 2 * self.at_once

    def told(self) -> str:
        jobs = [f"{job.id} {job.status} {job.reason} {job.run}" for job in self.records()]
        return "\n".join([*jobs, self.place.told()])

    def received(self) -> list[str]:
        """The ids of the messages that have come to the workers."""
        return RECEIVED[self.place.kind.module].findall(self.place.told())


@pytest.fixture
def all_of(
    celery_on_redis: OnCelery, taskiq_on_redis: OnTaskiq, tmp_path: Path
) -> Iterator[Callable[..., list[Sent]]]:
    """Makes an application on each of the queues, each with a store."""
    places: list[Place] = []

    def made(**more: str) -> list[Sent]:
        kinds: list[Kind] = [
            OnHuey("threads", more=more.get("huey", "")),
            replace(celery_on_redis, more=more.get("celery", "")),
            replace(taskiq_on_redis, workers="one"),
        ]
        for kind in kinds:
            folder = tmp_path / kind.module
            folder.mkdir()
            name = f"app_{os.urandom(4).hex()}"
            places.append(Place(kind, folder, name, f"sqlite:///{folder}/jobs.db"))
        return [Sent(place, []) for place in places]

    yield made
    for place in places:
        place.close()


@pytest.mark.timeout(150)
def test_what_waits_is_not_sent_anew_and_what_died_with_its_worker_is(
    all_of: Callable[..., list[Sent]], tmp_path: Path
) -> None:
    hold = tmp_path / "hold"
    queues = all_of(
        celery=MORE_CELERY.format(hold=str(hold)), huey=MORE_HUEY.format(hold=str(hold))
    )
    for sent in queues:
        sent.place.start()
    for sent in queues:
        sent.place.workers[0].says_ready()
        for number in range(sent.at_once):
            sent.send(number, 480)
        for number in range(10):
            sent.send(sent.at_once + number, 4)
        sent.eta = sent.send(99, 1, later=ETA)
    time.sleep(3 * LOOK)  # what would be sent anew without need is sent by now
    for sent in queues:
        records = sent.records()
        pending = [job for job in records if job.status == "pending"]
        assert len(pending) == 11
        assert all(job.reason is None for job in pending)
        received = sent.received()
        assert len(received) == len(set(received)) == sent.taken(), sent.told()
        told = {job.id for job in pending if job.handed_at is not None}
        here = {job.id for job in pending if job.id in received}
        assert here - {sent.eta} <= told <= here  # the last has not been there for long
        if sent.place.kind.module != "taskiq":  # whose scheduler sends when the time has come
            assert records[-1].hand_at is not None
            assert records[-1].hand_at > records[-1].submitted_at + ETA

    hold.touch()
    for sent in reversed(queues):  # Taskiq's first, before it begins with more
        until(lambda sent=sent: sent.has_messages_to_lose(), sent.told())  # type: ignore[misc]  # a default binds
        sent.place.workers[0].kill()
    hold.unlink()
    for sent in queues:
        assert sum(job.status == "pending" for job in sent.records()) >= 10
        sent.place.start()
    for sent in queues:
        until(sent.are_done, sent.told(), within=60.0)
        for job_id, path, items in sent.jobs:
            done = [item for _, item in sent.place.lines(path)]
            assert sorted(set(done)) == list(range(items))
            assert len(done) - items <= sent.place.job(job_id).run - 1  # at most one for the kill


def test_what_a_worker_of_rq_had_taken_counts_as_lost_and_what_waits_does_not(
    rq_on_redis: OnRQ, place_of: Callable[[Kind], Place], tmp_path: Path
) -> None:
    place = place_of(rq_on_redis)
    kind, task = place.kind, place.app.count
    taken, waits = [kind.send(task, str(tmp_path / "items"), 3) for _ in range(2)]
    later = kind.send_later(task, 60, str(tmp_path / "items"), 3)
    queue = task.continuable.app
    dropped = queue.enqueue(task, str(tmp_path / "items"), 3, ttl=60)
    for each in (taken, dropped):
        # Where a worker has it until it has prepared it, and what is left of one that has expired.
        queue.connection.lrem(queue.key, 1, each.id)
    queue.connection.rpush(queue.intermediate_queue.key, taken.id)
    queue.connection.delete(dropped.key)
    all_sent = (taken, waits, dropped, later)
    records = {each.id: loaded(place.runtime.store, each.id).job for each in all_sent}
    assert set(task.continuable.held(list(records.values()))) == {waits.id, later.id}
    for each in (taken, dropped):
        task.continuable.send(records[each.id])
    assert queue.get_job_ids() == [waits.id, taken.id]
    assert queue.intermediate_queue.get_job_ids() == []
    assert place.job(dropped.id).status == "cancelled"


def test_of_a_stream_what_is_not_given_out_is_held_and_what_was_not_long_ago(
    taskiq_on_redis: OnTaskiq, place_of: Callable[[Kind], Place], tmp_path: Path
) -> None:
    place = place_of(replace(taskiq_on_redis, workers="stream", idle=60_000))
    kind, task = place.kind, place.app.count
    ids = [kind.id_of(kind.send(task, str(tmp_path / "items"), 3)) for _ in range(4)]
    jobs = [loaded(place.runtime.store, each).job for each in ids]
    broker = place.app.app
    with Redis.from_url(taskiq_on_redis.redis) as client:
        group = broker.consumer_group_name
        given = client.xreadgroup(group, "killed", {broker.queue_name: ">"}, count=2)
        ((_, messages),) = given
        assert list(task.continuable.held(jobs)) == [*ids[2:], *ids[:2]]
        client.xack(broker.queue_name, group, messages[0][0])
        assert list(task.continuable.held(jobs)) == [*ids[2:], ids[1]]
        broker.idle_timeout = 0
        assert list(task.continuable.held(jobs)) == ids[2:]


def test_a_long_list_is_read_from_its_end_page_by_page_while_it_changes(
    taskiq_on_redis: OnTaskiq, place_of: Callable[[Kind], Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(taskiq_held, "PAGE", 10)
    monkeypatch.setattr(taskiq_held, "OVERLAP", 4)
    place = place_of(taskiq_on_redis)
    kind, task = place.kind, place.app.simple
    ids = [kind.id_of(kind.send(task, number)) for number in range(35)]
    jobs = [loaded(place.runtime.store, ids[0]).job]
    found = []
    with Redis.from_url(taskiq_on_redis.redis) as client:
        for number, each in enumerate(task.continuable.held(jobs)):
            found.append(each)
            if number % 10 == 0:
                client.rpop("imports")  # a worker takes one
                kind.send(task, 99)  # and two are put in front
                kind.send(task, 99)
    assert found[0] == ids[0]
    assert set(ids) <= set(found)
