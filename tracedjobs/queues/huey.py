"""Continuable tasks of Huey: `from tracedjobs.queues.huey import continuable`.

A worker's stop is seen through the consumer's stop flag, a job goes on with Huey's own `RetryTask`
at no cost of retries, and what a kill takes from the broker `recover` enqueues again.
"""

from __future__ import annotations

import os
import threading
import time
from copy import copy
from datetime import UTC
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

from tracedjobs.errors import MissingExtraError
from tracedjobs.queues.answering import kept_message
from tracedjobs.queues.base import Continuable, log
from tracedjobs.queues.decorating import decorator
from tracedjobs.queues.delivery import Again, Delivery, Done, Over
from tracedjobs.queues.recovery import keep_unknown, start_recovery
from tracedjobs.queues.stopping import WorkerStop, at_work
from tracedjobs.queues.unbegun import A_FEW, MOST
from tracedjobs.queues.versions import check_version, missing

try:
    from huey.api import Task
    from huey.consumer import Worker
    from huey.exceptions import CancelExecution, HueyException, RetryTask
    from huey.registry import Message
    from huey.signals import SIGNAL_EXPIRED, SIGNAL_INTERRUPTED, SIGNAL_REVOKED
    from huey.utils import normalize_time
except ImportError as error:
    raise MissingExtraError(missing("huey", error)) from error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from datetime import datetime

    from huey import Huey

    from tracedjobs._core.job import Job
    from tracedjobs._core.records import JobRecord
    from tracedjobs._core.runtime import Runtime

__all__ = ["continuable", "queue"]

MAJORS: Final = (3,)
OF_THE_MOMENT: Final = frozenset({"id", "name", "eta", "args", "kwargs", "expires_resolved"})
"""What of a message is known otherwise, or not the same when it is sent again."""

A_MESSAGE: Final = "a message of huey"


class _Dropped(KeyboardInterrupt):
    """Ends a delivery with no result and no end, which Huey has for interrupted ones alone."""


def continuable(app: Huey, *, runtime: Runtime | None = None, **options: Any) -> Any:
    """Make a function, whose first parameter is `ctx`, a task of `app` that can be continued.

    In place of `@app.task(…)`, and gives what that gives. Options of `@job` go to the job, all
    others to `app.task`. `runtime` is the default one, see `tracedjobs.configure`. Raises
    `TypeError` for what Huey cannot have: an `async def` function, `context=True` (the id is
    `ctx.id`), a parameter named `task`.
    """
    return decorator(lambda job: _Continuable(app, job, runtime), _refusal, options)


def _refusal(job: Job[..., Any], options: dict[str, Any]) -> str | None:
    if job.is_async or "task" in job.signature.parameters or options.pop("context", False):
        return (
            f"{job.name} cannot be a continuable task of Huey: it must be a def function "
            f"without a parameter named task, and without context=True (the id is ctx.id)."
        )
    return None


def queue(app: Huey, *, runtime: Runtime | None = None, **options: Any) -> Continuable:
    """What hands jobs of plain `@job` functions to `app`, for `submit(…, via=…)` and `queue=`.

    Make it where the consumer finds it too, next to `app`. `options` are those of `app.task`.
    """
    made = _Continuable(app, None, runtime)

    def perform_job(**kwargs: object) -> object:
        return made.execute((), kwargs)

    made.as_task(perform_job, options)
    return made


class _Continuable(Continuable):
    own_exceptions = (RetryTask, CancelExecution)

    def __init__(self, app: Huey, job: Job[..., Any] | None, runtime: Runtime | None) -> None:
        super().__init__(job, runtime)
        self.app = app
        self.family = f"huey {app.name}"
        self._task: Any = None

    @property
    def queue(self) -> str:
        return str(self.app.name)

    def as_task(self, fn: Callable[..., Any], options: dict[str, Any]) -> Any:
        """What `app.task` makes of the function."""
        # `continuable` becomes an attribute of the task's class.
        self._task = self.app.task(context=True, continuable=self, **options)(fn)
        _adopt(self.app)
        self.known()
        return self._task

    def send(self, job: JobRecord) -> None:
        args, kwargs = self.arguments_of(job)
        self.app.enqueue(_rebuilt(self.app, self._task.task_class, job, args, kwargs))

    def held(self, jobs: Sequence[JobRecord]) -> Iterable[str]:  # noqa: ARG002 - one queue
        """See `Continuable.held`: Huey forgets what it gives out."""
        storage = self.app.storage
        yield from self._ids(storage.enqueued_items(A_FEW))
        # In the order in which a task goes from the one into the other when its time has come.
        yield from self._ids(storage.scheduled_items(MOST))
        yield from self._ids(storage.enqueued_items(MOST))

    def _ids(self, messages: Iterable[Any]) -> Iterable[str]:
        for each in messages:
            message = self.app.serializer.deserialize(each)
            if isinstance(message, Message):
                yield str(message.id)

    def enqueueing(self, task: Task) -> None:
        """A task is about to be put into the broker, for the first time or once more."""
        self.publish(self._delivery(task, task.args, task.kwargs))

    def execute(self, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        """What the task's function does: in a consumer a run of its job."""
        task = kwargs.pop("task", None)
        if not isinstance(task, Task):
            return self.run_here(args, kwargs)
        delivery = self._delivery(task, args, kwargs)
        verdict = (self.deliver_to_end if self.app.immediate else self.deliver)(delivery)
        match verdict:
            case Done(result, answered):
                task.done = True
                if answered:  # Huey is to give the result again, and to send nothing
                    task.on_complete = task.chord_config = None
                return result
            case Again(delay):
                # Huey takes one retry for it, and gives one.
                raise RetryTask(delay=delay)
            case Over("cancelled"):
                raise CancelExecution(f"the job {task.id} is cancelled", retry=False)
            case Over(reason):
                task.dropped = reason
                raise _Dropped(reason)

    def interrupted(self, task: Task) -> None:
        """The consumer ends, or ended the task, before it was done: it goes on later."""
        if getattr(task, "dropped", None) is not None:
            return
        again = copy(task)
        delay = 1.0 if self.job is None else self.job.options.resume_delay
        again.eta = normalize_time(None, delay, self.app.utc)
        self.app.add_schedule(again)

    def _delivery(
        self, task: Task, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> Delivery:
        wait = 0.0 if task.eta is None else _seconds_until(self.app, task.eta)
        return Delivery(
            str(task.id),
            args,
            kwargs,
            lambda: _kept(self.app, task),
            wait,
            followed=not self.app.immediate and _is_followed(task),
        )


# -- the message ---


def _is_followed(task: Task) -> bool:
    """Whether others are sent at its end: the next of a pipeline, the callback of a chord."""
    return task.on_complete is not None or task.chord_config is not None


def _seconds_until(app: Huey, eta: datetime) -> float:
    """An ETA is without a time zone: in UTC, or else in this host's time."""
    return (eta.replace(tzinfo=UTC) if app.utc else eta).timestamp() - time.time()


def _kept(app: Huey, task: Task) -> dict[str, Any] | None:
    """What is chained to the task, and its options."""
    if not _knows_registry(app):
        return None
    message = app._registry.create_message(task)._asdict()  # noqa: SLF001 - guarded
    return {key: _plain(value) for key, value in message.items() if key not in OF_THE_MOMENT}


def _rebuilt(
    app: Huey, cls: Any, job: JobRecord, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Task:
    options: dict[str, Any] = {}
    kept = kept_message(job)
    if kept is not None and _knows_registry(app):
        name = app._registry.task_to_string(cls)  # noqa: SLF001 - guarded
        built = app._registry.create_task(_message({"name": name, **kept}))  # noqa: SLF001 - guarded
        options = {key: getattr(built, key) for key in kept}
    return cls(args, kwargs, id=job.id, **options)


def _plain(value: Any) -> Any:
    """A message in a message, as a dict under its own sign."""
    if isinstance(value, Message):
        return {A_MESSAGE: {key: _plain(each) for key, each in value._asdict().items()}}
    return tuple(map(_plain, value)) if isinstance(value, tuple) else value


def _message(plain: dict[str, Any]) -> Message:
    return Message(**{key: _unplain(value) for key, value in plain.items()})


def _unplain(value: Any) -> Any:
    if isinstance(value, dict) and set(value) == {A_MESSAGE}:
        return _message(value[A_MESSAGE])
    return tuple(map(_unplain, value)) if isinstance(value, tuple) else value


# -- the consumer ---


_adopted: Final[WeakKeyDictionary[Huey, bool]] = WeakKeyDictionary()
"""The applications that tell us what they do, and whether their registry is as it was tried."""
_stops: Final[dict[tuple[int, int], WorkerStop]] = {}
"""By the process, and the consumer's own stop flag."""


def _knows_registry(app: Huey) -> bool:
    return _adopted.get(app, False)


def _adopt(app: Huey) -> None:
    """Have the application tell us what it puts into the broker, and when its consumer stops."""
    if app in _adopted:
        return
    _adopted[app] = check_version(
        "huey", MAJORS, "what is chained to a task is not kept for when its message is lost"
    )
    enqueue, execute = app.enqueue, app.execute
    deserialize_task = app.deserialize_task

    def recording_enqueue(task: Any) -> Any:
        made = getattr(type(task), "continuable", None)
        if made is not None:
            made.enqueueing(task)
        return enqueue(task)

    def noting_execute(task: Task, timestamp: Any = None) -> Any:
        result = execute(task, timestamp)
        made = getattr(type(task), "continuable", None)
        if made is not None and getattr(task, "done", False) and _is_followed(task):
            made.answered(str(task.id))
        return result

    def known_task(data: Any) -> Any:
        try:
            return deserialize_task(data)
        except HueyException:
            # The consumer logs it and throws the message away.
            sent = app.serializer.deserialize(data)
            if isinstance(sent, Message):
                keep_unknown(f"huey {app.name}", str(sent.id), str(sent.name))
            raise

    # Not signals: what a receiver raises stays in the log, and the caller is to have it.
    app.enqueue = recording_enqueue
    app.execute = noting_execute
    app.deserialize_task = known_task
    app.signal(SIGNAL_INTERRUPTED)(_on_interrupted)
    app.signal(SIGNAL_REVOKED, SIGNAL_EXPIRED)(_on_revoked)


def _on_initialize(self: Worker) -> None:
    """A worker begins, in a thread of its own, or a process.

    Of each consumer one thread waits for the stop, and one of the process looks for lost jobs.
    """
    if self.huey in _adopted:
        flag, made = getattr(self, "stop_flag", None), WorkerStop()
        worker = _stops.setdefault((os.getpid(), id(flag)), made)
        if worker is made:
            start_recovery(f"huey {self.huey.name}", worker)
            _start_watch(flag, worker)
        at_work(worker)
    _initialize(self)


def _start_watch(flag: Any, worker: WorkerStop) -> None:
    if flag is None:
        log.warning("The consumer shows no stop flag, so its stop is not seen by running jobs.")
        return

    def watch() -> None:
        flag.wait()
        worker.set()
        del _stops[os.getpid(), id(flag)]

    threading.Thread(target=watch, name="tracedjobs-huey-stop", daemon=True).start()


def _on_interrupted(_signal: str, task: Task) -> None:
    made = getattr(type(task), "continuable", None)
    if made is not None:
        made.interrupted(task)


def _on_revoked(_signal: str, task: Task) -> None:
    made = getattr(type(task), "continuable", None)
    if made is not None:
        made.revoked(str(task.id))


_initialize: Final = Worker.initialize
Worker.initialize = _on_initialize
