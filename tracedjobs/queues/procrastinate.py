"""Continuable tasks of Procrastinate: `from tracedjobs.queues.procrastinate import continuable`.

A job's message is its row, and stays the same row: one that goes on is put back by a retry that
counts no attempt, a paused one is scheduled far away, and what a killed worker left as `doing`
`recover` puts back.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from tracedjobs.errors import MissingExtraError
from tracedjobs.queues.answering import kept_message
from tracedjobs.queues.base import Continuable
from tracedjobs.queues.decorating import decorator
from tracedjobs.queues.delivery import Again, Delivery, Done, Over
from tracedjobs.queues.versions import missing

try:
    from procrastinate import App, BaseRetryStrategy, Blueprint, JobContext, RetryDecision
    from procrastinate.exceptions import AlreadyEnqueued, JobAborted, JobRetry
    from procrastinate.job_context import AbortReason
    from procrastinate.retry import get_retry_strategy
    from procrastinate.tasks import Task

    from tracedjobs.queues.procrastinate_app import PLAIN, Adopted, Back, Dropped, adopted, told
    from tracedjobs.queues.procrastinate_rows import ANY, off_loop
except ImportError as error:
    raise MissingExtraError(missing("procrastinate", error)) from error

if TYPE_CHECKING:
    from collections.abc import Callable

    from procrastinate.jobs import Job as Row

    from tracedjobs._core.job import Job
    from tracedjobs._core.records import JobRecord
    from tracedjobs._core.runtime import Runtime
    from tracedjobs.queues.delivery import Verdict

__all__ = ["continuable", "queue"]

SOON: Final = 5.0
"""Seconds until a job goes on whose own delay is not known."""


def continuable(app: Blueprint, *, runtime: Runtime | None = None, **options: Any) -> Any:
    """Make a function, whose first parameter is `ctx`, a task of `app` that can be continued.

    In place of `@app.task(…)`, and gives what that gives, for `def` and `async def` functions.
    `app` is an application, or a blueprint. Options of `@job` go to the job, all others to
    `app.task`; `name` to both. `runtime` is the default one, see `tracedjobs.configure`. Raises
    `TypeError` for what cannot be had: `pass_context=True` (the id is `ctx.id`).
    """
    made_on, module = _blueprint(app), _caller()
    return decorator(lambda job: _Continuable(made_on, module, job, runtime), _refusal, options)


def _refusal(job: Job[..., Any], options: dict[str, Any]) -> str | None:
    if options.pop("pass_context", False):
        return (
            f"{job.name} cannot be a continuable task of Procrastinate with pass_context=True: "
            f"its first parameter is ctx, and the job's id is ctx.id."
        )
    return None


def queue(app: Blueprint, *, runtime: Runtime | None = None, **options: Any) -> Continuable:
    """What hands jobs of plain `@job` functions to `app`, for `submit(…, via=…)` and `queue=`.

    Make it where the workers find it too, next to `app`. `options` are those of `app.task`, such
    as `queue="imports"`, but for `queueing_lock`: each job has one of its own. These jobs keep the
    id that `submit` gave them; it is the argument `job_id` of their row.
    """
    if "queueing_lock" in options or "name" in options:
        msg = "A queue of jobs names its tasks and sets their queueing_lock itself."
        raise TypeError(msg)
    made = _Continuable(_blueprint(app), _caller(), None, runtime)

    def perform_job(*args: object, **kwargs: object) -> object:
        return made.execute(args, kwargs)

    async def perform_job_async(*args: object, **kwargs: object) -> object:
        return await made.execute_async(args, kwargs)

    name = f"{PLAIN} {options.get('queue', '')}".strip()
    made.async_task = made.as_task(perform_job_async, {**options, "name": f"{name} async"})
    made.as_task(perform_job, {**options, "name": name})
    return made


def _blueprint(app: Any) -> Blueprint:
    """The application or blueprint itself, where Django's proxy stands for it."""
    found = getattr(getattr(app, "task", None), "__self__", None)
    if isinstance(found, Blueprint):
        return found
    msg = f"This takes a procrastinate.App or a Blueprint; found {app!r}."
    raise TypeError(msg)


def _caller() -> str:
    """The module from which a function of this one was called."""
    return str(sys._getframe(2).f_globals["__name__"])  # noqa: SLF001 - there is no other way


class _BoundLater(Task[Any, Any, Any]):
    """A task of a blueprint, which becomes one of an application when its blueprint is added."""

    @property
    def blueprint(self) -> Blueprint:
        found: Blueprint = self.__dict__["blueprint"]
        return found

    @blueprint.setter
    def blueprint(self, value: Blueprint) -> None:
        self.__dict__["blueprint"] = value
        if isinstance(value, App):
            self.__dict__["continuable"].bind(value)


class _Continuable(Continuable):
    own_exceptions = (JobAborted,)

    def __init__(
        self, blueprint: Blueprint, module: str, job: Job[..., Any] | None, runtime: Runtime | None
    ) -> None:
        super().__init__(job, runtime)
        self.family = "procrastinate"
        self._blueprint = blueprint
        self._module = module
        self.async_task: Task[Any, Any, Any] | None = None
        self._task: Task[Any, Any, Any]
        self._of: Adopted

    @property
    def queue(self) -> str:
        return self._task.queue

    def job_id_of(self, row: Row) -> str:
        """The id of the row's job."""
        return self._of.delivery(self, row).job_id

    @property
    def delay(self) -> float:
        """Seconds until a job goes on that could not say."""
        return SOON if self.job is None else self.job.options.resume_delay

    def as_task(self, fn: Callable[..., Any], options: dict[str, Any]) -> Any:
        """What `app.task` makes of the function."""
        retry = _Strategy(self, get_retry_strategy(options.pop("retry", False)))
        task = self._blueprint.task(pass_context=True, retry=retry, **options)(fn)
        self._task = task
        if isinstance(self._blueprint, App):
            self.bind(self._blueprint)
        else:
            task.__dict__["continuable"] = self
            task.__class__ = _BoundLater
        return task

    def bind(self, app: App) -> None:
        """Its tasks are ones of that application."""
        self._of = adopted(app, self._module)
        for task in (self._task, self.async_task):
            if task is not None:
                self._of.made[task] = self
        if self.family != self._of.family:
            self.family = self._of.family
            self.known()

    def send(self, job: JobRecord) -> None:
        if self.job is None:
            self._send_plain(job)
            return
        row = int(job.id)
        status = self._of.rows.put_back_now(row, ANY)
        if status in {"cancelled", "aborted"}:
            self.revoked(job.id)
        elif status is None:
            args, kwargs = self.arguments_of(job)
            named = dict(zip(list(self.job.signature.parameters)[1:], args, strict=False))
            kept = kept_message(job) or {}
            self._of.rows.insert(
                row, self._task.name, {**named, **kwargs}, {"queue": self.queue, **kept}
            )

    def _send_plain(self, job: JobRecord) -> None:
        assert self.async_task is not None  # noqa: S101 - made by `queue`
        rows, lock = self._of.rows, f"tracedjobs {job.id}"
        row = rows.found([self._task.name, self.async_task.name], job.id, lock)
        if row is not None:
            if rows.put_back_now(row, ANY) == "aborted":
                self.revoked(job.id)
            return
        is_async = self.runtime.job_named(job.name).is_async
        deferring = (self.async_task if is_async else self._task).configure(queueing_lock=lock)
        with suppress(AlreadyEnqueued):
            rows.ask(
                lambda: deferring.defer_async(job_id=job.id),
                lambda: deferring.defer(job_id=job.id),
            )

    def execute(self, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        """What a `def` task's function does: in a worker, on a thread, a run of its job."""
        context = args[0] if args else None
        if not isinstance(context, JobContext):
            return self.run_here(args, kwargs)
        delivery = self._of.delivery(self, context.job)
        try:
            with self._of.watched(self, delivery.job_id, context):
                deliver = self.deliver_to_end if self._of.rows.are_in_memory else self.deliver
                verdict: Verdict = deliver(delivery)
                self._see_abort(verdict, delivery, context)
        except JobAborted:
            self.revoked(delivery.job_id)
            raise
        return self._said(verdict, delivery)

    async def execute_async(self, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        """What an `async def` task's function does: in a worker, in its loop, a run of its job."""
        context = args[0] if args else None
        if not isinstance(context, JobContext):
            return await self.run_here_async(args, kwargs)
        delivery = self._of.delivery(self, context.job)
        try:
            try:
                in_memory = self._of.rows.are_in_memory
                deliver = self.deliver_to_end_async if in_memory else self.deliver_async
                verdict: Verdict = await deliver(delivery)
            except asyncio.CancelledError:
                if context.abort_reason() is None:
                    raise  # by somebody else, who waits for it; see `_Strategy`
                verdict = Again(self.delay, "aborted")
            self._see_abort(verdict, delivery, context)
        except JobAborted:
            await off_loop(lambda: self.revoked(delivery.job_id))
            raise
        return self._said(verdict, delivery)

    def _see_abort(self, verdict: Verdict, delivery: Delivery, context: JobContext) -> None:
        if isinstance(verdict, Again) and context.abort_reason() is AbortReason.USER_REQUEST:
            msg = f"the job {delivery.job_id} was aborted"
            raise Dropped(msg)

    def _said(self, verdict: Verdict, delivery: Delivery) -> object:
        match verdict:
            case Done(result):
                return result
            case Again(delay, reason):
                raise Back(self, delivery.job_id, delay, reason)
            case Over("paused" | "duplicate" | "lease_lost" as reason):
                # Should it come to a plain retry, not at once: the job runs elsewhere, or waits.
                raise Back(self, delivery.job_id, 30.0, reason)
            case Over(reason):
                msg = f"the job {delivery.job_id} is {reason}"
                raise Dropped(msg)


class _Strategy(BaseRetryStrategy):
    """The user's strategy, which hears of errors alone."""

    def __init__(self, made: _Continuable, theirs: BaseRetryStrategy | None) -> None:
        self._made = made
        self._theirs = theirs

    def get_retry_exception(self, exception: BaseException, job: Row) -> JobRetry | None:
        """The row is put back as it was, or what the user's strategy says of an error."""
        if isinstance(exception, Dropped):
            return None
        if not isinstance(exception, (Back, Exception)):
            # Of a process that is being ended: the run was interrupted.
            reason = type(exception).__name__
            job_id = self._made.job_id_of(job)
            exception = Back(self._made, job_id, self._made.delay, reason)
        if isinstance(exception, Back):
            told.set(exception)
            return JobRetry(RetryDecision(retry_at=exception.at))
        if self._theirs is None:
            return None
        return self._theirs.get_retry_exception(exception=exception, job=job)
