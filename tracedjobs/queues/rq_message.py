"""The RQ jobs that bring our jobs to a worker, and what RQ does with them.

RQ has no signals: so its methods that make, write, cancel and delete a job are told to tell us.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Any, Final, Protocol

from rq.exceptions import DeserializationError
from rq.job import Job as Message
from rq.queue import Queue

from tracedjobs.errors import StoreError
from tracedjobs.queues.base import Continuable, log

__all__ = [
    "NO_LIMIT",
    "Task",
    "is_recorded",
    "kept",
    "restore",
    "task_of",
    "tasks",
    "watch_messages",
    "withdraw",
]

NO_LIMIT: Final = -1
"""RQ's word for a job that may run for as long as it likes."""
NOT_KEPT: Final = frozenset(
    # What of an RQ job is known otherwise, or of the moment; meta is a pickle, and webhooks may
    # hold secrets.
    {
        "created_at",
        "data",
        "started_at",
        "ended_at",
        "enqueued_at",
        "last_heartbeat",
        "worker_name",
        "number_of_retries",
        "status",
        "result",
        "exc_info",
        "meta",
        "webhooks",
    }
)


class Task(Protocol):
    """A continuable task."""

    def publishing(self, message: Message) -> None:
        """An RQ job for it is about to be written to Redis for the first time."""
        ...

    def revoked(self, job_id: str) -> None:
        """One was cancelled or deleted."""
        ...


tasks: Final[dict[str, Task]] = {}
"""The tasks of this process by the name that RQ has for their function."""


def task_of(message: Message) -> Task | None:
    """The task of an RQ job, if it is one of ours."""
    with suppress(DeserializationError):
        name = message.func_name or ""
        return tasks.get(name) or _queue_of_jobs(name)
    return None


def _queue_of_jobs(path: str) -> Any:
    """What `queue(…)` gave, if that is the path to its `perform`; nothing is imported for it."""
    owner, _, entry = path.rpartition(".")
    module, _, name = owner.rpartition(".")
    found = vars(sys.modules[module]).get(name) if module in sys.modules else None
    return found if entry == "perform" and isinstance(found, Continuable) else None


def kept(message: Message) -> dict[str, object]:
    """The options of an RQ job, as RQ writes them."""
    return {
        key: value
        for key, value in _to_dict(message).items()
        if key not in NOT_KEPT and value not in {"", None}
    }


def is_recorded(message: Message) -> None:
    """It is for a job that there is: nobody is to be told of it."""
    vars(message).pop(_NEW, None)


def restore(message: Message, options: dict[str, Any]) -> None:
    """Give an RQ job the options that `kept` gave."""
    raw = {**_to_dict(message), **options}
    message.restore({key.encode(): _raw(value) for key, value in raw.items()})


def _raw(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    return str(getattr(value, "value", value)).encode()


def withdraw(app: Queue, message: Message) -> None:
    """Take the job from wherever a killed worker, a failure or a pause has left it."""
    started = app.started_job_registry
    for job_id, execution_id in started.get_job_and_execution_ids(cleanup=False):
        if job_id == message.id:
            # Else RQ would find it abandoned, while it runs again, and call it failed.
            app.connection.zrem(started.key, f"{job_id}:{execution_id}")
    app.intermediate_queue.remove(message.id)
    for registry in (
        app.failed_job_registry,
        app.finished_job_registry,
        app.scheduled_job_registry,
        app.deferred_job_registry,
        app.canceled_job_registry,
    ):
        registry.remove(message)


# -- what RQ does with messages of ours ---

_NEW: Final = "_tracedjobs_new"
"""An attribute of RQ jobs that were made here and not written yet: who made them."""
_to_dict: Final = Message.to_dict


def watch_messages() -> None:
    """Be told of RQ jobs that are made, written, cancelled and deleted; RQ has no signals."""
    create_job, create = Queue.create_job, Message.create.__func__  # type: ignore[attr-defined]  # a classmethod
    cancel, delete = Message.cancel, Message.delete

    def our_create_job(self: Queue, func: Any, *args: Any, **options: Any) -> Message:
        message = create_job(self, func, *args, **options)
        given = len(args) > 2 or options.get("timeout") is not None  # noqa: PLR2004 - its place
        if _NEW in vars(message) and not given and message.timeout == self.DEFAULT_TIMEOUT:
            message.timeout = NO_LIMIT
        return message

    def our_create(cls: type[Message], func: Any, *args: Any, **options: Any) -> Message:
        message: Message = create(cls, func, *args, **options)
        made = task_of(message)
        if made is not None:
            vars(message)[_NEW] = made
            message.timeout = message.timeout or NO_LIMIT
        return message

    def our_to_dict(self: Message, *args: Any, **options: Any) -> dict[str, Any]:
        made = vars(self).get(_NEW)
        if made is not None:
            made.publishing(self)
            del vars(self)[_NEW]
        return _to_dict(self, *args, **options)

    def our_cancel(self: Message, *args: Any, **options: Any) -> dict[str, list[str]]:
        done = cancel(self, *args, **options)
        _revoked(self)
        return done

    def our_delete(self: Message, *args: Any, **options: Any) -> None:
        delete(self, *args, **options)
        _revoked(self)

    patches: list[tuple[type, str, Any]] = [
        (Queue, "create_job", our_create_job),
        (Message, "create", classmethod(our_create)),
        (Message, "to_dict", our_to_dict),
        (Message, "cancel", our_cancel),
        (Message, "delete", our_delete),
    ]
    for cls, name, method in patches:
        setattr(cls, name, method)


def _revoked(message: Message) -> None:
    task = task_of(message)
    try:
        if task is not None:
            task.revoked(message.id)
    except StoreError as error:
        log.warning("The job %s could not be cancelled: %s", message.id, error)
