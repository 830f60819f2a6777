"""Handing jobs back to their queues: who can send which job, and which jobs wait for it.

Nothing here knows a queue: the modules of `tracedjobs.queues` put their senders in. Whether a job
runs is decided by its lease alone, so a message too many is refused where it arrives, and only a
message too few would be harm.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, Protocol

from tracedjobs._core.records import Change, JobRecord, Status
from tracedjobs.errors import TracedJobsError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tracedjobs._core.records import Stored
    from tracedjobs.stores.base import Store

__all__ = [
    "LATE",
    "Sender",
    "add_sender",
    "hand_back",
    "hand_back_waiting",
    "mark_unknown",
    "sender_of",
]

LATE: Final = 30.0
"""Seconds after which a message that somebody was to send counts as lost."""
MOST: Final = 1000
"""Waiting jobs that are looked at each time, newest first."""
NOBODY_SENDS: Final = frozenset({"lost", "paused", "retry", "rewound", "exit", "unknown"})
"""Reasons of waiting jobs that have no message on its way. Those that are the name of an
exception, such as KeyboardInterrupt, are others: their process was ended before it sent one."""

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

    Several may do this at the same time. Each first notes the sending in the job, at the revision
    that it read, so one of them sends; if it dies in between, the next sends when the note is old.
    """
    now = store.time()
    return [
        stored.job.id
        for stored in _interrupted(store)
        if _is_due(stored.job, now) and _send(store, stored.job, now)
    ]


def _send(store: Store, job: JobRecord, now: float) -> bool:
    sender = sender_of(job)
    if sender is None:
        return False  # other workers know the job; a process of theirs does it
    if not store.change(Change(job.id, job.revision, {"handed_at": now})):
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


def _is_due(job: JobRecord, now: float) -> bool:
    if job.queue is None or job.resume_at is None:
        return False
    if job.handed_at is not None and job.handed_at >= job.resume_at:
        # It was, since it was interrupted, and still waits: in a long queue, or its message is
        # lost. Each time it is given twice as long.
        return now >= job.handed_at + max(LATE, job.handed_at - job.resume_at)
    reason = job.reason or ""
    if reason in NOBODY_SENDS or reason[:1].isupper():
        return now >= job.resume_at or job.reason == "lost"
    return now >= job.resume_at + LATE


def _interrupted(store: Store) -> Iterator[Stored]:
    before = None
    for _ in range(MOST // 100):
        page = store.page(status=Status.INTERRUPTED, name=None, before=before, limit=100)
        yield from page
        if len(page) < 100:  # noqa: PLR2004 - a page
            return
        before = page[-1].job.id


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
