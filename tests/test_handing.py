"""Handing waiting jobs back to their queues: those that are due, whoever else waits in front."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from uuid import uuid4

from tracedjobs._core import handing
from tracedjobs._core.due import LATE
from tracedjobs._core.records import Change, JobRecord, Status

if TYPE_CHECKING:
    import pytest

    from tracedjobs import Runtime
    from tracedjobs.stores import Store


@dataclass
class Box:
    """A queue that keeps what it is sent."""

    queue: str = field(default_factory=lambda: f"queue {uuid4()}")
    sent: list[str] = field(default_factory=list)
    broken: bool = False

    def send(self, job: JobRecord) -> None:
        if self.broken:
            msg = "the broker is away"
            raise OSError(msg)
        self.sent.append(job.id)


def waits(store: Store, job_id: str, queue: str, ago: float) -> None:
    store.create(JobRecord(job_id, f"handing:{queue}", "{}", store.time(), queue=queue))
    store.change(Change(job_id, 0, {"status": Status.RUNNING, "run": 1}))
    ends = {"status": Status.INTERRUPTED, "reason": "lost", "resume_at": store.time() - ago}
    store.change(Change(job_id, 1, ends))


def test_jobs_that_nobody_here_can_send_hold_up_no_other(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handing, "MOST", 4)
    box = Box()
    handing.add_sender(box)
    for number in range(10):
        waits(runtime.store, f"old{number}", "of an application that is gone", 100 - number)
    for number in range(3):
        waits(runtime.store, f"new{number}", box.queue, 10 - number)
    looks = [handing.hand_back_waiting(runtime.store) for _ in range(4)]
    assert looks == [[], [], ["new0", "new1"], ["new2"]]
    assert box.sent == ["new0", "new1", "new2"]
    again = [handing.hand_back_waiting(runtime.store) for _ in range(4)]
    assert again == [[], [], [], []]  # they have been sent, and are waited for


def test_a_message_that_cannot_be_sent_is_tried_again_later(runtime: Runtime) -> None:
    box = Box(broken=True)
    handing.add_sender(box)
    waits(runtime.store, "a", box.queue, 1)
    assert handing.hand_back_waiting(runtime.store) == []
    stored = runtime.store.load("a")
    assert stored is not None
    assert stored.job.hand_at is not None
    assert LATE - 5 < stored.job.hand_at - runtime.store.time() <= LATE
