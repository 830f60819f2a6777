"""Who has told a queue of a job's end: what follows the job there is then on its way, and once.

A copy of a message may come when its job is completed. If the worker that completed it died before
it could tell, the copy is to, or a chain would end there; if it did not, the copy is not to, or the
chain would go on twice. So whoever has told notes that in the job, and of copies that find no note
one tells in its place, a moment after the end.

It errs on the side of twice: a worker that dies, or whose store is away, when the queue was told
and the note not written, has its copy tell once more. Of what follows, jobs are done once even so,
where the queue gives their messages the same ids again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from tracedjobs._core import values
from tracedjobs._core.records import FINISHED, Change, JobRecord

if TYPE_CHECKING:
    from tracedjobs.stores.base import Store

__all__ = ["is_answered", "kept_message", "may_answer", "note_answer"]

LONGEST: Final = 10.0
"""Seconds that a worker has to tell, before another one may."""
TRIES: Final = 3
RUN, UNTIL, MESSAGE = "tracedjobs_answered", "until", "message"
"""What the note has, in the place of what its queue has kept of the message: the run whose end was
told, or until when somebody is about to tell it, and what was kept."""


def kept_message(job: JobRecord) -> Any:
    """What `Delivery.message` gave when the job was recorded; `None` if it gave nothing."""
    _, text = _parts(job)
    return None if text is None else values.decode(text)


def is_answered(job: JobRecord) -> bool:
    """Whether its queue was told of the job's end."""
    note, _ = _parts(job)
    return note is not None and note[RUN] == job.run and note[UNTIL] is None


def note_answer(store: Store, job_id: str) -> None:
    """Its queue was told of the job's end, and all that follows is on its way."""
    for _ in range(TRIES):
        stored = store.load(job_id)
        if stored is None or stored.job.status not in FINISHED or is_answered(stored.job):
            return
        if store.change(_noted(stored.job, None)):
            return


def may_answer(store: Store, job_id: str, patience: float) -> float | None:
    """In how many seconds a copy of the message may tell of the job's end; `None` for never again.

    0 is given to one of them at a time, which has `patience` seconds for it, but at most `LONGEST`.
    """
    stored = store.load(job_id)
    if stored is None:
        return 0.0
    if is_answered(stored.job):
        return None
    job, now = stored.job, store.time()
    patience = min(patience, LONGEST)
    note, _ = _parts(job)
    until = (job.ended_at or 0.0) + patience
    if note is not None and note[RUN] == job.run:
        until = note[UNTIL]
    if until > now:
        return until - now
    return 0.0 if store.change(_noted(job, now + patience)) else patience


def _parts(job: JobRecord) -> tuple[dict[str, Any] | None, str | None]:
    """The note, if there is one, and the text of what is kept."""
    if job.message is None or f'"{RUN}"' not in job.message:
        return None, job.message
    found: Any = values.decode(job.message)
    if not isinstance(found, dict) or set(found) != {RUN, UNTIL, MESSAGE}:
        return None, job.message
    return found, found[MESSAGE]


def _noted(job: JobRecord, until: float | None) -> Change:
    note = {RUN: job.run, UNTIL: until, MESSAGE: _parts(job)[1]}
    return Change(job.id, job.revision, {"message": values.encode(note, path="message")})
