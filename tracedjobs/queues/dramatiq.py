"""Continuable actors of Dramatiq: `from tracedjobs.queues.dramatiq import continuable`.

A worker process hears of its stop through middleware and its signals; a job goes on as a copy of
its message, with the same id and at no cost of retries; what a kill takes from the broker `recover`
enqueues again.
"""

from __future__ import annotations

import functools
import math
from contextlib import contextmanager
from contextvars import ContextVar
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any, Final

from tracedjobs._core import values
from tracedjobs.errors import MissingExtraError, ResumeLimitError
from tracedjobs.queues.answering import kept_message
from tracedjobs.queues.decorating import decorator
from tracedjobs.queues.delivery import Again, Delivery, Done, Over, Verdict
from tracedjobs.queues.stopping import this_worker
from tracedjobs.queues.versions import missing

try:
    import dramatiq
    from dramatiq.common import current_millis, q_name
    from dramatiq.errors import RateLimitExceeded, Retry
    from dramatiq.message import Message
    from dramatiq.middleware import (
        Shutdown,
        SkipMessage,
        TimeLimit,
        TimeLimitExceeded,
    )

    from tracedjobs.queues.dramatiq_worker import (
        Actor,
        Received,
        Watch,
        in_event_loop,
        received,
        silently,
        with_limit,
    )
except ImportError as error:
    raise MissingExtraError(missing("dramatiq", error)) from error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dramatiq import Broker
    from dramatiq.broker import MessageProxy

    from tracedjobs._core.job import Job
    from tracedjobs._core.records import JobRecord
    from tracedjobs._core.runtime import Runtime
    from tracedjobs.queues.base import Continuable

__all__ = ["continuable", "queue"]

OF_THE_MOMENT: Final = frozenset({"eta", "redis_message_id", "requeue_timestamp", "traceback"})
"""Options of a message that are not the same when it is sent again."""
FOLLOWED: Final = ("pipe_target", "on_success", "group_completion_callbacks")
"""Options of a message, or of its actor, for which its end sends other messages."""
THEIR_LIMIT: Final = 600_000
"""Milliseconds after which Dramatiq ends an actor for which nobody has set a limit."""
SOON: Final = 1.0
"""Seconds until a message is tried again that came to a worker that stops."""


def continuable(app: Broker, *, runtime: Runtime | None = None, **options: Any) -> Any:
    """Make a function, whose first parameter is `ctx`, an actor of `app` that can be continued.

    In place of `@dramatiq.actor(broker=app, …)`, and gives what that gives. Options of `@job` go to
    the job, all others to `dramatiq.actor`; `name` to both, there as `actor_name`. `runtime` is the
    default one, see `tracedjobs.configure`. `async def` functions need Dramatiq's `AsyncIO`
    middleware. No time limit holds unless it is set, here or in a `TimeLimit` of `app`.
    """
    return decorator(lambda job: _Continuable(app, job, runtime), _refusal, options)


def _refusal(job: Job[..., Any], options: dict[str, Any]) -> str | None:
    if "broker" in options:
        return f"{job.name} is an actor of the broker that continuable() was given; omit broker=."
    return None


def queue(app: Broker, *, runtime: Runtime | None = None, **options: Any) -> Continuable:
    """What hands jobs of plain `@job` functions to `app`, for `submit(…, via=…)` and `queue=`.

    Make it where the workers find it too, next to `app`. `options` are those of `dramatiq.actor`,
    such as `queue_name="imports"`.
    """
    made = _Continuable(app, None, runtime)

    def perform_job() -> object:
        return made.execute((), {})

    name = f"perform_job.{options.get('queue_name', 'default')}"
    made.as_task(perform_job, {"actor_name": name, **options})
    return made


class _Continuable(Actor):
    own_exceptions = (Retry, RateLimitExceeded)
    own_limits = (TimeLimitExceeded,)

    def __init__(self, app: Broker, job: Job[..., Any] | None, runtime: Runtime | None) -> None:
        super().__init__(job, runtime)
        self.app = app
        self.family = "dramatiq"
        self._actor: Any = None
        if job is not None and job.is_async:
            job.fn = with_limit(job.fn)

    @property
    def queue(self) -> str:
        return str(self._actor.queue_name)

    def as_task(self, fn: Callable[..., Any], options: dict[str, Any]) -> Any:
        """What `dramatiq.actor` makes of the function."""
        given = dict(options)
        name = given.pop("name", None)
        if name is not None:
            given.setdefault("actor_name", name)
        if _sets_no_limit(self.app):
            given.setdefault("time_limit", math.inf)
        call = in_event_loop(fn) if iscoroutinefunction(fn) else fn

        @functools.wraps(fn)
        def perform(*args: object, **kwargs: object) -> object:
            return self._perform(call, args, kwargs)

        watch = _watch_of(self.app)
        self._actor = dramatiq.actor(broker=self.app, **given)(perform)
        watch.continuables[self._actor.actor_name] = self
        self.known()
        return self._actor

    def send(self, job: JobRecord) -> None:
        args, kwargs = self.arguments_of(job)
        kept: Any = kept_message(job) or {}
        name = self._actor.actor_name
        message: Message[Any] = Message(
            job.queue or self.queue, name, args, kwargs, dict(kept), message_id=job.id
        )
        with silently():
            self.app.enqueue(message)

    def enqueueing(self, message: Message[Any]) -> None:
        """A message is about to be put into the broker, for the first time."""
        values.encode([message.args, message.kwargs], path="arguments")
        message.encode()  # what Dramatiq cannot send is to leave no record
        self.publish(self._delivery(message), queue=q_name(message.queue_name))

    def execute(self, args: tuple[object, ...], kwargs: dict[str, object]) -> Verdict:
        """A run of the job, for the message that this worker's thread is at."""
        message = _delivered.get()
        if message is None:
            return Done(self.run_here(args, kwargs))
        return self.deliver(self._delivery(message))

    async def execute_async(self, args: tuple[object, ...], kwargs: dict[str, object]) -> Verdict:
        message = _delivered.get()
        if message is None:
            return Done(await self.run_here_async(args, kwargs))
        return await self.deliver_async(self._delivery(message))

    def has_followers(self, message: Message[Any] | MessageProxy) -> bool:
        """Whether more comes of its end than a result: a message to others."""
        options = self._actor.options
        return any(message.options.get(each) or options.get(each) for each in FOLLOWED)

    def _perform(
        self, call: Callable[..., Any], args: tuple[object, ...], kwargs: dict[str, object]
    ) -> object:
        """What the actor does: the verdict in Dramatiq's words."""
        found = received.get()
        if found is None or found.begun or found.message.actor_name != self._actor.actor_name:
            # Called as it is, perhaps by another actor's function.
            with _at(None):
                return call(*args, **kwargs).result
        found.begun = True
        if this_worker().came:
            # Its threads take messages for up to a second more, among them those of their own jobs.
            return self._answer(found, Again(max(SOON, self._delay), "stopping"))
        with _at(found.message):
            try:
                verdict: Verdict = call(*args, **kwargs)
            except ResumeLimitError:
                found.message.options["max_retries"] = 0  # none would do better
                raise
            except Shutdown as error:
                verdict = Again(self._delay, type(error).__name__)  # it was saved where it was
        return self._answer(found, verdict)

    def _answer(self, found: Received, verdict: Verdict) -> object:
        message = found.message
        match verdict:
            case Done(answered=True):
                reason = "answered"
            case Done(result):
                found.done = True
                return result
            case Again(delay, reason):
                # Not Dramatiq's Retry, which takes one. Its age begins anew: it waits from now on.
                again = message.copy(message_timestamp=current_millis())
                with silently():
                    self.app.enqueue(again, delay=round(delay * 1000) or None)
            case Over("cancelled" as reason):
                message.fail()
            case Over(reason):
                pass
        if not message.failed:
            message.options["store_results"] = False  # else it would be None
        found.skipped = True
        raise SkipMessage(f"the job {message.message_id} is {reason}")

    @property
    def _delay(self) -> float:
        return SOON if self.job is None else self.job.options.resume_delay

    def _delivery(self, message: Message[Any] | MessageProxy) -> Delivery:
        return Delivery(
            message.message_id,
            message.args,
            message.kwargs,
            lambda: _kept(message.options),
            followed=self.has_followers(message),
        )


_delivered: Final[ContextVar[MessageProxy | None]] = ContextVar(
    "tracedjobs_dramatiq_delivered", default=None
)
"""The message that an actor is performed for; of one that is called as it is, there is none."""


@contextmanager
def _at(message: MessageProxy | None) -> Iterator[None]:
    token = _delivered.set(message)
    try:
        yield
    finally:
        _delivered.reset(token)


def _kept(options: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key not in OF_THE_MOMENT}


def _sets_no_limit(app: Broker) -> bool:
    """Whether the only limit of time is the one that Dramatiq sets by itself."""
    limits = [each.time_limit for each in app.middleware if isinstance(each, TimeLimit)]
    return bool(limits) and all(limit == THEIR_LIMIT for limit in limits)


def _watch_of(app: Broker) -> Watch:
    """What tells us of that broker's messages and workers."""
    for each in app.middleware:
        if isinstance(each, Watch):
            return each
    made = Watch()
    app.add_middleware(made)
    enqueue = app.enqueue

    def recording_enqueue(message: Message[Any], *, delay: int | None = None) -> Message[Any]:
        ours = made.continuables.get(message.actor_name)
        if isinstance(ours, _Continuable) and made.is_new(message):
            ours.enqueueing(message)
        return enqueue(message, delay=delay)

    # Not `before_enqueue`: what that raises stays in the log, and the caller is to have it.
    app.enqueue = recording_enqueue  # type: ignore[method-assign]  # of this one broker
    return made
