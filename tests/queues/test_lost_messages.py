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

from tests.processes import until
from tests.queues.harness import Place
from tests.queues.on_huey import OnHuey
from tracedjobs.queues.unbegun import SHORTEST

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.queues.harness import Kind
    from tests.queues.on_celery import OnCelery
    from tests.queues.on_taskiq import OnTaskiq
    from tracedjobs import JobSnapshot

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
    "celery": re.compile(r"Task \S+ received"),
    "huey": re.compile(r"Executing \S+"),
    "taskiq": re.compile(r"Executing task \S+ with ID"),
}
"""What a worker says of each message that has come."""
TOGETHER: Final = 60.0
"""Seconds within which all is over, on a busy machine too."""


@dataclass
class Sent:
    """A queue and the jobs that were sent to it, each with its file and its items."""

    place: Place
    jobs: list[tuple[str, Path, int]]

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

    def snapshots(self) -> list[JobSnapshot]:
        return [self.place.job(job_id) for job_id, _, _ in self.jobs]

    def are_done(self) -> bool:
        store = self.place.runtime.store
        found = [store.load(job_id) for job_id, _, _ in self.jobs]
        return all(each is not None and each.job.status == "completed" for each in found)

    def told(self) -> str:
        jobs = [f"{job.id} {job.status} {job.reason} {job.run}" for job in self.snapshots()]
        return "\n".join([*jobs, self.place.told()])

    def received(self) -> int:
        """How many messages have come to the workers."""
        found = RECEIVED[self.place.kind.module].findall(self.place.told())
        return len(found)


@pytest.fixture
def all_of(
    celery_on_redis: OnCelery, taskiq_on_redis: OnTaskiq, tmp_path: Path
) -> Iterator[Callable[..., list[Sent]]]:
    """Makes an application on each of the queues, each with a store."""
    places: list[Place] = []

    def made(**more: str) -> list[Sent]:
        kinds: list[Kind] = [
            OnHuey("threads", more=more.get("huey", "")),
            replace(celery_on_redis, more=more.get("celery", ""), visibility=5),
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


@pytest.mark.timeout(120)
def test_jobs_whose_messages_died_with_their_worker_are_done_all_the_same(
    all_of: Callable[..., list[Sent]], tmp_path: Path
) -> None:
    hold = tmp_path / "hold"
    hold.touch()
    queues = all_of(
        celery=MORE_CELERY.format(hold=str(hold)), huey=MORE_HUEY.format(hold=str(hold))
    )
    for sent in queues:
        sent.place.start()
    for sent in queues:
        for number in range(16):
            sent.send(number, 20)
    for sent in queues:  # Taskiq's worker takes all, and begins with as many as it has threads
        wanted = 16 if sent.place.kind.module == "taskiq" else 2
        until(lambda sent=sent, n=wanted: sent.received() >= n, sent.told())  # type: ignore[misc]  # a default binds
    taskiq = queues[-1]
    until(lambda: any(job.status == "running" for job in taskiq.snapshots()), "one runs")
    for sent in queues:
        sent.place.workers[0].kill()
    hold.unlink()
    lost = [sum(job.status == "pending" for job in sent.snapshots()) for sent in queues]
    assert lost[:2] == [16, 16]
    assert lost[2] > 4
    for sent in queues:
        sent.place.start()
    for sent in queues:
        until(sent.are_done, sent.told(), within=TOGETHER)
        for job_id, path, items in sent.jobs:
            done = [item for _, item in sent.place.lines(path)]
            assert sorted(set(done)) == list(range(items))
            assert len(done) - items <= sent.place.job(job_id).run - 1  # at most one for the kill


@pytest.mark.timeout(120)
def test_messages_that_wait_in_a_queue_in_a_worker_or_for_their_time_are_not_sent_anew(
    all_of: Callable[..., list[Sent]],
) -> None:
    queues = all_of()
    began = time.monotonic()
    later = {}
    for sent in queues:
        sent.place.start()
    for number in range(16):
        for sent in queues:
            workers = 6 if sent.place.kind.module == "taskiq" else 2
            sent.send(number, 15 * workers)  # all of them take three times `SHORTEST`
    for sent in queues:
        later[sent.place.name] = sent.send(99, 1, later=2 * SHORTEST)
    for sent in queues:
        until(sent.are_done, sent.told(), within=TOGETHER)
    assert time.monotonic() - began > 2 * SHORTEST
    for sent in queues:
        assert sent.received() == len(sent.jobs), sent.told()
        eta = sent.place.job(later[sent.place.name])
        assert eta.started_at is not None
        assert (eta.started_at - eta.submitted_at).total_seconds() > 0
        assert all(job.run == 1 for job in sent.snapshots())
