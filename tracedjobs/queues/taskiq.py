"""Continuable tasks of Taskiq: `from tracedjobs.queues.taskiq import continuable`.

A middleware of the broker records what is sent and sends again what goes on, see `taskiq_worker`,
which also tells jobs that their worker stops; what a kill takes from the broker `recover` sends.
"""

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING, Any, Final

from tracedjobs.errors import MissingExtraError, StoreError, UnknownJobError
from tracedjobs.queues.answering import kept_message
from tracedjobs.queues.base import Continuable
from tracedjobs.queues.decorating import decorator
from tracedjobs.queues.delivery import Again, Delivery, Done, Over, Verdict
from tracedjobs.queues.versions import missing

try:
    from taskiq import Context, InMemoryBroker, NoResultError, TaskiqDepends, TaskiqMessage
    from taskiq.brokers.shared_broker import AsyncSharedBroker
    from taskiq.exceptions import TaskRejectedError
    from taskiq.kicker import AsyncKicker
    from taskiq.labels import parse_label

    from tracedjobs.queues.taskiq_held import held_by
    from tracedjobs.queues.taskiq_parameters import (
        of_the_job,
        plain,
        resolved_by_taskiq,
        with_resolved,
    )
    from tracedjobs.queues.taskiq_worker import (
        Said,
        adopt,
        is_followed,
        is_stopping,
        name_of,
        silently,
        wait_for,
    )
except ImportError as error:
    raise MissingExtraError(missing("taskiq", error)) from error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from taskiq import AsyncBroker

    from tracedjobs._core.job import Job
    from tracedjobs._core.records import JobRecord
    from tracedjobs._core.runtime import Runtime

__all__ = ["continuable", "queue"]

MESSAGE: Final = "tracedjobs_message"
"""The parameter in which a task is given its message: what reaches a process of a pool, too."""


def continuable(app: AsyncBroker, *, runtime: Runtime | None = None, **options: Any) -> Any:
    """Make a function, whose first parameter is `ctx`, a task of `app` that can be continued.

    In place of `@broker.task(…)`, and gives what that gives. Options of `@job` go to the job, all
    others, its labels, to `broker.task`; `name` is both the job's and the task's, unless there is
    a `task_name`. `runtime` is the default one, see `tracedjobs.configure`. Raises `TypeError` for
    a shared broker, which sends nothing itself, and for a parameter named `tracedjobs_message`.
    """
    _check_sends(app)
    make = decorator(lambda job: _Continuable(app, job, runtime), _refusal, options)
    return lambda fn: make(of_the_job(fn))


def _refusal(job: Job[..., Any], _options: dict[str, Any]) -> str | None:
    if MESSAGE in job.signature.parameters:
        return f"{job.name} cannot have a parameter {MESSAGE}: a task's message comes in it."
    return None


def queue(app: AsyncBroker, *, runtime: Runtime | None = None, **options: Any) -> Continuable:
    """What hands jobs of plain `@job` functions to `app`, for `submit(…, via=…)` and `queue=`.

    Make it where the workers find it too, next to `app`. `options` are those of `broker.task`.
    """
    _check_sends(app)
    made = _Continuable(app, None, runtime)

    async def perform_job(**kwargs: object) -> object:
        return await made.execute_async((), kwargs)

    made.as_task(perform_job, options)
    return made


def _check_sends(app: AsyncBroker) -> None:
    if isinstance(app, AsyncSharedBroker):
        msg = "A shared broker sends nothing itself: make the task with the broker that does."
        raise TypeError(msg)


class _Continuable(Continuable):
    own_exceptions = (NoResultError, TaskRejectedError)

    def __init__(
        self, app: AsyncBroker, job: Job[..., Any] | None, runtime: Runtime | None
    ) -> None:
        super().__init__(job, runtime)
        self.app = app
        self.family = f"taskiq {name_of(app)}"
        self._task: Any = None
        self._queue: str | None = None
        self._signature = inspect.Signature()
        """The parameters of the function but for `ctx`."""
        self._resolved: Mapping[str, Any] = {}
        """Those that Taskiq resolves, and their annotations."""

    @property
    def queue(self) -> str:
        return self._queue or name_of(self.app)

    def as_task(self, fn: Callable[..., Any], options: dict[str, Any]) -> Any:
        """What `broker.task` makes of the function."""
        name = options.pop("name", None)
        self._queue = options.get("queue_name")
        self._declare(fn)
        self._task = self.app.task(options.pop("task_name", name), **options)(fn)
        self._task.continuable = self
        adopt(self.app, self.family)
        self.known()
        return self._task

    def send(self, job: JobRecord) -> None:
        args, kwargs = self.arguments_of(job)
        kept = kept_message(job)
        labels = self._task.labels if kept is None else kept

        async def kick() -> None:
            kicker: Any = AsyncKicker(self._task.task_name, self.app, dict(labels))
            with silently():
                await kicker.with_task_id(job.id).kiq(*args, **kwargs)

        wait_for(self.app, kick)

    def held(self, jobs: Sequence[JobRecord]) -> Iterable[str] | None:
        """See `Continuable.held`."""
        return held_by(self.app, [job.queue or self.queue for job in jobs])

    async def sending(self, message: TaskiqMessage) -> None:
        """A message of this task is about to be sent, for the first time."""
        delivery = _delivery(message, plain(tuple(message.args)), plain(message.kwargs))
        await self.publish_async(delivery, queue=message.labels.get("queue_name"))

    def execute(self, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        """What the task's function does: in a worker a run of its job."""
        message = kwargs.pop(MESSAGE, None)
        args, kwargs, resolved = self._sorted(args, kwargs)
        with with_resolved(resolved):
            if not isinstance(message, TaskiqMessage):
                return self.run_here(args, kwargs)
            delivery = _delivery(message, args, kwargs)
            deliver = self.deliver_to_end if self._in_memory else self.deliver
            return _said(self._stopping() or deliver(delivery))

    async def execute_async(self, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        """See `execute`, for `async def` functions."""
        message = kwargs.pop(MESSAGE, None)
        args, kwargs, resolved = self._sorted(args, kwargs)
        with with_resolved(resolved):
            if not isinstance(message, TaskiqMessage):
                return await self.run_here_async(args, kwargs)
            delivery = _delivery(message, args, kwargs)
            return _said(self._stopping() or await self._delivered(delivery))

    async def _delivered(self, delivery: Delivery) -> Verdict:
        if self.job is None and await asyncio.to_thread(self._is_def, delivery.job_id):
            deliver = self.deliver_to_end if self._in_memory else self.deliver
            return await asyncio.to_thread(deliver, delivery)
        if self._in_memory:
            return await self.deliver_to_end_async(delivery)
        return await self.deliver_async(delivery)

    def _stopping(self) -> Again | None:
        """What is to be said of a message that came when the worker was told to stop already."""
        return Again(0.0, "stopping") if not self._in_memory and is_stopping() else None

    @property
    def _in_memory(self) -> bool:
        """Whether there is no worker, as in tests: what is sent runs in the process that sends."""
        return isinstance(self.app, InMemoryBroker)

    def _is_def(self, job_id: str) -> bool:
        """Whether the job that a message names is not one of an `async def` function."""
        try:
            stored = self.runtime.store.load(job_id)
            return stored is None or not self.runtime.job_named(stored.job.name).is_async
        except (StoreError, UnknownJobError):
            return True  # and the delivery says what there is to say

    def _declare(self, fn: Callable[..., Any]) -> None:
        """Have Taskiq resolve for the task what the job's function wants, and give its message."""
        parameters = []
        if self.job is not None:
            function = getattr(self.job.fn, "__wrapped__", self.job.fn)
            self._resolved = resolved_by_taskiq(function)
            parameters = list(inspect.signature(function).parameters.values())[1:]
        self._signature = inspect.Signature(parameters)
        # Annotations of no others: arguments are parsed when the job's function is called.
        fn.__annotations__ = dict(self._resolved)
        named = [
            each.replace(annotation=self._resolved.get(each.name, each.empty))
            for each in parameters
        ]
        rest = [each for each in named if each.kind is each.VAR_KEYWORD]
        message = inspect.Parameter(
            MESSAGE, inspect.Parameter.KEYWORD_ONLY, default=TaskiqDepends(_message)
        )
        signature = inspect.Signature([*named[: len(named) - len(rest)], message, *rest])
        fn.__signature__ = signature  # type: ignore[attr-defined]  # inspect reads it

    def _sorted(
        self, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> tuple[tuple[object, ...], dict[str, object], dict[str, object]]:
        """The job's arguments, and what Taskiq has resolved."""
        if self.job is None:
            return args, kwargs, {}
        bound = self._signature.bind(*args, **kwargs)
        arguments = bound.arguments
        resolved = {name: arguments.pop(name) for name in self._resolved if name in arguments}
        return plain(bound.args), plain(bound.kwargs), resolved


def _message(context: Any = TaskiqDepends(Context)) -> TaskiqMessage:  # noqa: B008 - Taskiq's way
    found: TaskiqMessage = context.message
    return found


def _delivery(
    message: TaskiqMessage, args: tuple[object, ...], kwargs: dict[str, object]
) -> Delivery:
    def labels() -> dict[str, Any]:
        types = message.labels_types or {}
        return {
            # They are texts when they are sent, and what they were when they have come.
            name: parse_label(value, types.get(name)) if isinstance(value, str) else value
            for name, value in message.labels.items()
        }

    return Delivery(message.task_id, args, kwargs, labels, followed=is_followed(message))


def _said(verdict: Verdict) -> object:
    if not isinstance(verdict, Done):
        return Said(verdict)
    # Taskiq has the result, and would send what follows once more.
    return Said(Over("answered")) if verdict.answered else verdict.result
