"""Submitting a job: its record made of a call, kept once, and compared with one of the same id.

Which queue is told of it is the runtime's to say.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from tracedjobs._core import counting, trace, values
from tracedjobs._core.records import JobRecord
from tracedjobs.errors import JobConflictError, TracedJobsError
from tracedjobs.events import notify

if TYPE_CHECKING:
    from collections.abc import Callable

    from tracedjobs._core.job import Job
    from tracedjobs._core.trace import Scope
    from tracedjobs.stores.base import Creating, Store

__all__ = ["check_same", "new_record", "record", "recording"]

MAX_ID: Final = 255


def new_record(
    store: Store,
    job: Job[..., Any],
    args: tuple[object, ...],
    kwargs: dict[str, object],
    job_id: str | None,
    *,
    queue: str | None,
    message: str | None,
    wait: float,
) -> JobRecord:
    """A job that is not kept yet; raises what `Runtime.submit` raises for arguments and ids.

    `wait`: seconds after which its message is looked for, if it has a queue.
    """
    arguments = _named_arguments(job, args, kwargs)
    now = store.time()
    deadline = job.options.deadline
    return JobRecord(
        id=_checked_id(job_id),
        name=job.name,
        queue=queue,
        message=message,
        hand_at=None if queue is None else now + wait,
        arguments=values.encode(arguments, path="arguments"),
        submitted_at=now,
        deadline_at=None if deadline is None else now + deadline,
        retention=job.options.retention,
        steps_expected=job.options.steps or store.steps_of_last_completed(job.name),
    )


def record(store: Store, new: JobRecord, scope: Scope) -> bool:
    """Keep a new job and tell of it; `False` when there is one of that id."""
    with trace.submitting(new, scope) as text:
        traced = new if text is None else replace(new, trace=text)
        made = store.create(traced, counting.submitted(new))
    return _told(new, made)


def recording(store: Store, new: JobRecord, scope: Scope) -> Callable[[], bool]:
    """Begin with what `record` does, and give what waits for its end, to be called once.

    Something else can be done meanwhile, where the store is one that knows how to (`Creating`).
    Either raises what the store does.
    """
    creating: Creating | None = getattr(store, "creating", None)
    if creating is None:
        made = record(store, new, scope)
        return lambda: made
    with trace.submitting(new, scope) as text:
        traced = new if text is None else replace(new, trace=text)
        answer = creating(traced, counting.submitted(new))
    return lambda: _told(new, answer())


def _told(new: JobRecord, made: bool) -> bool:  # noqa: FBT001 - what the store answered
    if made:
        notify("job_submitted", job=new.name, job_id=new.id, run=0)
    return made


def check_same(there: JobRecord, new: JobRecord) -> None:
    """Raise `JobConflictError` when the job that is there already is not `new` over again."""
    if there.name != new.name or _canonical(there) != _canonical(new):
        what = "other arguments" if there.name == new.name else f"the name {there.name!r}"
        msg = (
            f"The job {new.id} exists already with {what}; take another job_id, or submit "
            f"it as it was."
        )
        raise JobConflictError(msg)


def _named_arguments(
    job: Job[..., Any], args: tuple[object, ...], kwargs: dict[str, object]
) -> dict[str, object]:
    names = job.plain_parameters
    if names is not None and len(names) == len(args) and not kwargs:
        return dict(zip(names, args, strict=True))  # as nearly always
    try:
        bound = job.signature.bind(None, *args, **kwargs)
    except TypeError as error:
        msg = f"These arguments do not fit {job.name}{job.signature}: {error}."
        raise TypeError(msg) from None
    ctx_name = next(iter(job.signature.parameters))
    return {name: value for name, value in bound.arguments.items() if name != ctx_name}


def _canonical(record: JobRecord) -> str:
    # Equal for dicts that differ in order alone; as text, for 1, 1.0 and True are equal otherwise.
    return json.dumps(json.loads(record.arguments), sort_keys=True)


def _checked_id(job_id: str | None) -> str:
    if job_id is None:
        from uuid import uuid4  # noqa: PLC0415 - a slow import

        return str(uuid4())
    if (
        not isinstance(job_id, str)
        or not job_id
        or len(job_id) > MAX_ID
        or not job_id.isprintable()
    ):
        msg = f"job_id={job_id!r} must be a printable text of 1 to {MAX_ID} characters."
        raise TracedJobsError(msg)
    return job_id
