"""Continuable tasks of RQ: `from tracedjobs.queues.rq import continuable`.

A job goes on as an RQ job of the same id, at no cost of retries; a worker's stop reaches it through
Redis, see `rq_worker`; what a kill leaves behind `recover` enqueues again.
"""

from __future__ import annotations

import inspect
import sys
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import wraps
from typing import TYPE_CHECKING, Any, Final

from tracedjobs._core.records import Status
from tracedjobs.errors import MissingExtraError, TracedJobsError
from tracedjobs.queues.answering import kept_message
from tracedjobs.queues.base import Continuable
from tracedjobs.queues.decorating import decorator
from tracedjobs.queues.delivery import Again, Delivery, Done, Over, Verdict
from tracedjobs.queues.unbegun import A_FEW, MOST
from tracedjobs.queues.versions import check_version, missing

try:
    from rq import Queue, Retry, get_current_job
    from rq.decorators import job as job_decorator
    from rq.exceptions import NoSuchJobError
    from rq.job import Job as Message
    from rq.job import JobStatus
    from rq.rate_limit import release_slot

    from tracedjobs.queues.rq_message import (
        is_recorded,
        kept,
        restore,
        task_of,
        tasks,
        watch_messages,
        withdraw,
    )
    from tracedjobs.queues.rq_worker import FAMILY, PutBack, at_work, teach_workers
except ImportError as error:
    raise MissingExtraError(missing("rq", error)) from error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from tracedjobs._core.job import Job
    from tracedjobs._core.records import JobRecord
    from tracedjobs._core.runtime import Runtime

__all__ = ["continuable", "queue"]

MAJORS: Final = (3,)
SYNC: Final = "sync"
"""The worker's name in jobs of a queue with `is_async=False`, which run where they are enqueued."""
ASKED_FOR: Final = frozenset({"paused", "retry", "rewound"})
"""Reasons of jobs that an operator lets run again, whatever became of them in RQ."""

_at: Final[ContextVar[str | None]] = ContextVar("tracedjobs_rq_at", default=None)
"""The id of the job whose function is being called: what calls a task in it is a plain call."""


def continuable(app: Queue, *, runtime: Runtime | None = None, **options: Any) -> Any:
    """Make a function, whose first parameter is `ctx`, a task of the queue that can be continued.

    In place of `@rq.job(app, …)`, and gives what that gives: a function with `delay` and `enqueue`,
    which `app.enqueue(…)` takes too. Options of `@job` go to the job, all others to RQ's decorator;
    without a `timeout` there is none. `runtime` is the default one, see `tracedjobs.configure`.
    Raises `TypeError` for what RQ cannot have: a queue that is no `rq.Queue`, and, when a job is
    enqueued, `repeat=`, for a repeated job keeps its id, and a job is done once.
    """
    _check(app)
    return decorator(lambda job: _Continuable(app, job, runtime), _refusal, options)


def _refusal(job: Job[..., Any], options: dict[str, Any]) -> str | None:
    options.pop("name", None)  # RQ knows a task by its module and function
    for each in ("queue", "connection"):
        if each in options:
            return f"{job.name} takes its {each} from the rq.Queue that continuable(…) is given."
    return None


def queue(app: Queue, *, runtime: Runtime | None = None, **options: Any) -> Continuable:
    """What hands jobs of plain `@job` functions to `app`, for `submit(…, via=…)` and `queue=`.

    Make it in the module that the workers import, and assign it there to a name of the module: that
    is how they find it. `options` are those of RQ's decorator.
    """
    _check(app)
    made = _Continuable(app, None, runtime)
    frame = inspect.currentframe()
    caller = None if frame is None else frame.f_back
    made.module = str(caller.f_globals.get("__name__")) if caller is not None else ""
    made.as_task(made.perform, options)
    return made


def _check(app: object) -> None:
    if not isinstance(app, Queue):
        msg = f"Give the rq.Queue itself, such as Queue('imports', connection=redis); found {app!r}"
        raise TypeError(msg)


class _AskedError(TracedJobsError):
    """The function returned a `Retry`: no result, but a word to RQ."""

    def __init__(self, retry: Retry) -> None:
        super().__init__(f"The function asks RQ for {retry!r}.")
        self.retry = retry


class _Continuable(Continuable):
    def __init__(self, app: Queue, job: Job[..., Any] | None, runtime: Runtime | None) -> None:
        super().__init__(job, runtime)
        self.app = app
        self.family = f"{FAMILY} {app.name}"
        self.module = ""
        self._entry: Callable[..., Any] = self.perform
        self._options: dict[str, Any] = {}
        if job is not None:
            job.fn = _asking(job.fn)

    @property
    def queue(self) -> str:
        return self.app.name

    def as_task(self, fn: Callable[..., Any], options: dict[str, Any]) -> Any:
        """What RQ's decorator makes of the function."""
        make: Any = job_decorator
        decorate = make(self.app, self.app.connection, **options)
        self._options = {
            key: value for key, value in options.items() if key not in {"queue_class", "at_front"}
        }
        self.known()
        if self.job is None:
            return fn
        self._entry = decorate(fn)
        self._entry.continuable = self  # type: ignore[attr-defined]  # for who looks
        tasks[self._path()] = self
        return self._entry

    def held(self, jobs: Sequence[JobRecord]) -> Iterable[str]:
        """See `Continuable.held`.

        What a killed worker had taken RQ calls failed, minutes later: as all else that it does not
        bring to a worker, that is not held.
        """
        for name in {job.queue or self.queue for job in jobs}:
            queue = self._queue_named(name)
            yield from queue.get_job_ids(0, A_FEW)
            # In the order in which a job goes from the ones into the other.
            for registry in (queue.scheduled_job_registry, queue.deferred_job_registry):
                yield from registry.get_job_ids(0, MOST, cleanup=False)
            yield from queue.get_job_ids(0, MOST)

    def send(self, job: JobRecord) -> None:
        message = self._found(job.id)
        if message is None:
            if job.status is Status.PENDING and _has_ttl(job):
                self.revoked(job.id)  # Redis has forgotten it, as its user asked for
                return
            message = self._rebuilt(job)
            queue = self._queue(message)
        else:
            queue = self._queue(message)
            status = message.get_status(refresh=False)
            if status in {JobStatus.STOPPED, JobStatus.CANCELED} and job.reason not in ASKED_FOR:
                self.revoked(job.id)  # by somebody who has not imported us
                return
            if status is JobStatus.QUEUED and queue.get_job_position(message) is not None:
                return
            withdraw(queue, message)
        message.started_at = message.ended_at = None
        message.set_status(JobStatus.QUEUED)
        queue.enqueue_job(message)
        # Under a rate limit a killed run has kept its slot, for which its own job would wait.
        release_slot(message)

    def publishing(self, message: Message) -> None:
        """An RQ job is about to be written to Redis for the first time."""
        if message.repeats_left:
            msg = (
                f"{message.func_name} cannot be enqueued with repeat=: a repeated job keeps its "
                f"id, and a continuable one is done once. Enqueue a new job each time."
            )
            raise TypeError(msg)
        self.publish(
            self._delivery(message, tuple(message.args), dict(message.kwargs)),
            queue=message.origin or None,
        )

    def perform(self) -> object:
        """What a message for a job of any function calls."""
        return self.execute((), {})

    def execute(self, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        """What the task's function does: in a worker a run of its job."""
        message = self._message()
        if message is None:
            return self.run_here(args, kwargs)
        delivery = self._delivery(message, args, kwargs)
        try:
            with _inside(message):
                if message.worker_name == SYNC:
                    return _said_here(self.deliver_to_end(delivery))
                with at_work(message, self.runtime.store):
                    return _said(self.deliver(delivery), message)
        except _AskedError as asked:
            return asked.retry

    async def execute_async(self, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        """See `execute`, for `async def` functions."""
        message = self._message()
        if message is None:
            return await self.run_here_async(args, kwargs)
        delivery = self._delivery(message, args, kwargs)
        try:
            with _inside(message):
                if message.worker_name == SYNC:
                    return _said_here(await self.deliver_to_end_async(delivery))
                with at_work(message, self.runtime.store):
                    return _said(await self.deliver_async(delivery), message)
        except _AskedError as asked:
            return asked.retry

    # -- its own ---

    def _message(self) -> Message | None:
        """The RQ job that this call is the work of, if it is."""
        message = get_current_job()
        if message is None or _at.get() == message.id or message.func != self._entry:
            return None
        return message

    def _path(self) -> str:
        """By what name a worker finds the function."""
        if self.job is not None:
            return f"{self._entry.__module__}.{self._entry.__qualname__}"
        names = vars(sys.modules[self.module]) if self.module in sys.modules else {}
        name = next((key for key, value in list(names.items()) if value is self), None)
        if name is None or self.module == "__main__":
            msg = (
                "The queue of jobs must be a name of a module that workers can import: write "
                f"import_queue = queue(app) there; it was made in {self.module}."
            )
            raise TypeError(msg)
        return f"{self.module}.{name}.{self.perform.__name__}"

    def _delivery(
        self, message: Message, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> Delivery:
        return Delivery(
            message.id, args, kwargs, lambda: kept(message), followed=_is_followed(message)
        )

    def _found(self, job_id: str) -> Message | None:
        with suppress(NoSuchJobError):
            app = self.app
            return app.job_class.fetch(job_id, connection=app.connection, serializer=app.serializer)
        return None

    def _queue(self, message: Message) -> Queue:
        """The one that the message was sent to, which need not be ours."""
        return self._queue_named(message.origin)

    def _queue_named(self, name: str) -> Queue:
        app = self.app
        if name in {"", app.name}:
            return app
        return type(app)(
            name,
            connection=app.connection,
            job_class=app.job_class,
            serializer=app.serializer,
        )

    def _rebuilt(self, job: JobRecord) -> Message:
        """The message of that job anew, with its options: Redis has forgotten it."""
        args, kwargs = self.arguments_of(job)
        message = self.app.create_job(self._path(), args, kwargs, job_id=job.id, **self._options)
        is_recorded(message)
        options = kept_message(job)
        if options is not None:
            restore(message, options)
        return message


def _has_ttl(job: JobRecord) -> bool:
    kept: Any = kept_message(job) or {}
    return kept.get("ttl") is not None


def _is_followed(message: Message) -> bool:
    """Whether RQ calls somebody at its end; it lets each job that depends on it go on once."""
    calls = message.success_callback is not None or bool(message.webhooks)
    return calls and message.worker_name != SYNC


def _answered(message: Message) -> None:
    """RQ has called whom it calls at the end of a job, and stored its result."""
    task = task_of(message)
    if isinstance(task, Continuable) and _is_followed(message):
        task.answered(message.id)


def _said(verdict: Verdict, message: Message) -> object:
    """The verdict in RQ's words."""
    match verdict:
        case Done(result, answered):
            if answered:  # RQ is to store the result again, and to call nobody
                vars(message)["_success_callback"] = None  # its name stays, which RQ writes
                message.webhooks = []
            return result
        case Over(reason) if not _is_known:
            msg = f"The job is {reason}; with this version of RQ that can only be said by failing."
            raise TracedJobsError(msg)
        case Again() | Over():
            return PutBack(verdict)


def _said_here(verdict: Done | Over) -> object:
    """The same in a queue that calls its tasks itself: it takes a `Retry` for a result."""
    if isinstance(verdict, Over):
        msg = f"The job is {verdict.reason}; a queue with is_async=False gives it no result."
        raise TracedJobsError(msg)
    return verdict.result


@contextmanager
def _inside(message: Message) -> Iterator[None]:
    token = _at.set(message.id)
    try:
        yield
    finally:
        _at.reset(token)


def _asking(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The function; but a `Retry` that it returns is raised, for it is no result to keep."""

    def judged(value: Any) -> Any:
        if isinstance(value, Retry):
            raise _AskedError(value)
        return value

    if inspect.iscoroutinefunction(fn):

        @wraps(fn)
        async def asking_async(*args: Any, **kwargs: Any) -> Any:
            return judged(await fn(*args, **kwargs))

        return asking_async

    @wraps(fn)
    def asking(*args: Any, **kwargs: Any) -> Any:
        return judged(fn(*args, **kwargs))

    return asking


_is_known: Final = check_version(
    "rq", MAJORS, "jobs are recorded when they arrive, and one that is paused fails in RQ"
)
if _is_known:
    watch_messages()
    teach_workers(lambda message: task_of(message) is not None, _answered)
