"""Handing jobs back to their queues: who can send which job, and which jobs wait for it.

Nothing here knows a queue: the modules of `tracedjobs.queues` put their senders in. Whether a job
runs is decided by its lease alone, so a message too many is refused where it arrives, and only a
message too few would be harm.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, Protocol
from weakref import WeakKeyDictionary

from tracedjobs._core.due import LATE, hand_again_at
from tracedjobs._core.records import Change, JobRecord, Status
from tracedjobs.errors import TracedJobsError

if TYPE_CHECKING:
    from tracedjobs.stores.base import Store

__all__ = [
    "LATE",
    "Sender",
    "add_sender",
    "hand_back",
    "hand_back_unbegun",
    "hand_back_waiting",
    "mark_unknown",
    "sender_of",
]

MOST: Final = 500
"""Waiting jobs that are looked at each time: where there are more, the next time goes on behind."""

_log: Final = logging.getLogger("tracedjobs")


class Sender(Protocol):
    """What brings jobs to the workers of one queue."""

    @property
    def queue(self) -> str:
        """The name of the queue, as jobs record it."""
        ...

    def send(self, job: JobRecord) -> None:
        """Send a message for that job, whose id is the job's. Raises what the queue raises."""
        ...


_by_job: Final[dict[str, Sender]] = {}
_by_queue: Final[dict[str, Sender]] = {}
_came_to: Final[WeakKeyDictionary[Store, float]] = WeakKeyDictionary()
"""Up to which moment the last look at a store's waiting jobs came, where it did not see all."""


def add_sender(sender: Sender, job_name: str | None = None) -> None:
    """Send jobs of that name with it; without a name those of its queue that no other sends."""
    if job_name is None:
        _by_queue[sender.queue] = sender
    else:
        _by_job[job_name] = sender


def sender_of(job: JobRecord) -> Sender | None:
    """Who sends that job, as far as this process knows; `None` for one that is of no queue."""
    if job.queue is None:
        return None
    return _by_job.get(job.name) or _by_queue.get(job.queue)


def hand_back(store: Store, job_id: str) -> bool:
    """Send a message for that job if it waits, whatever is on its way; whether one was sent."""
    stored = store.load(job_id)
    return (
        stored is not None
        and stored.job.status in {Status.PENDING, Status.INTERRUPTED}
        and _send(store, stored.job, store.time())
    )


def hand_back_waiting(store: Store) -> list[str]:
    """Send a message for each interrupted job that nobody sends one for; their ids.

    Those alone that are due, which the store's index tells. Several may do this at the same time.
    Each first notes the sending in the job, at the revision
    that it read, so one of them sends; if it dies in between, the next sends when the note is old.
    """
    found = store.waiting(limit=MOST, after=_came_to.pop(store, 0.0))
    if len(found) == MOST:
        # Those that nobody here can send stay in front: they are passed over, and seen again later.
        _came_to[store] = found[-1].hand_at or 0.0
    now = store.time()
    return [job.id for job in found if _send(store, job, now)]


def _send(store: Store, job: JobRecord, now: float) -> bool:
    sender = sender_of(job)
    if sender is None:
        return False  # other workers know the job; a process of theirs does it
    noted: dict[str, object] = {"handed_at": now, "reason": None}
    if job.status is Status.INTERRUPTED:
        again = now + LATE if job.resume_at is None else hand_again_at(job.resume_at, now)
        noted = {"handed_at": now, "hand_at": again}
    if not store.change(Change(job.id, job.revision, noted)):
        return False
    try:
        sender.send(job)
    except Exception as error:
        _log.warning(
            "The job %s cannot be handed back to its queue %s just now (%s: %s); it is tried "
            "again in %.0f s.",
            job.id, job.queue, type(error).__name__, error, LATE,
        )  # fmt: skip
        return False
    _log.info("The job %s was handed back to its queue %s.", job.id, job.queue)
    return True


def hand_back_unbegun(store: Store, job: JobRecord) -> bool:
    """Send the message of a pending job anew, if it is still as it was read; whether one was."""
    return _send(store, job, store.time())


def mark_unknown(store: Store, job_id: str) -> bool:
    """Have a waiting job handed back whose message was thrown away; whether it was a job.

    Its status goes through `paused`, for a pending job is nobody's to send.
    """
    for status in (Status.PAUSED, Status.INTERRUPTED):
        stored = store.load(job_id)
        if stored is None:
            return False
        if stored.job.status not in {Status.PENDING, Status.INTERRUPTED, Status.PAUSED}:
            return True
        columns = {"status": status, "reason": "unknown", "resume_at": store.time() + LATE}
        try:
            store.change(Change(job_id, stored.job.revision, columns))
        except TracedJobsError:
            return True
    return True
