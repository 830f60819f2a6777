"""Continuable tasks of Celery: `from tracedjobs.queues.celery import continuable`.

A worker's stop reaches its pool processes through one shared byte, see `celery_stop`; a job goes on
as Celery's own retries do, with the same id and at no cost of them; what a kill takes from the
broker `recover` publishes again.
"""

from __future__ import annotations

import time
import weakref
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from tracedjobs._core import values
from tracedjobs._core.clock import boot_time
from tracedjobs._core.compact import compact
from tracedjobs.errors import MissingExtraError, SerializationError
from tracedjobs.queues.answering import kept_message
from tracedjobs.queues.base import Continuable
from tracedjobs.queues.decorating import decorator
from tracedjobs.queues.delivery import Again, Delivery, Done, Over
from tracedjobs.queues.recovery import keep_unknown, taken
from tracedjobs.queues.versions import check_version, missing

try:
    from celery import signals
    from celery.app.task import Context
    from celery.exceptions import Ignore, Reject, Retry
    from celery.states import SUCCESS
    from kombu.utils import json

    from tracedjobs.queues.celery_held import held_by, is_redis
    from tracedjobs.queues.celery_stop import busy, connect, stopped_at
except ImportError as error:
    raise MissingExtraError(missing("celery", error)) from error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from celery import Celery

    from tracedjobs._core.job import Job
    from tracedjobs._core.records import JobRecord
    from tracedjobs._core.runtime import Runtime

__all__ = ["continuable", "queue"]

MAJORS: Final = (5,)
LAST_POLL: Final = 2.0
"""Seconds after a stop until a Redis broker no longer gives messages to the worker that stops: its
last BRPOP is answered by then. What it was given later would wait for `visibility_timeout`."""
KEPT: Final = (
    # Of a request: what is needed to publish the message again, besides id, arguments and time.
    "callbacks",
    "chain",
    "chord",
    "correlation_id",
    "delivery_info",
    "errbacks",
    "expires",
    "group",
    "group_index",
    "headers",
    "ignore_result",
    "parent_id",
    "replaced_task_nesting",
    "reply_to",
    "root_id",
    "shadow",
    "stamped_headers",
    "stamps",
    "timelimit",
)

_OWN: Final = {key: getattr(Context, key, None) for key in KEPT}
"""What a request has of each where it is not said."""

_ours: Final[dict[str, _Continuable]] = {}
_waits: Final[ContextVar[list[Callable[[], object]] | None]] = ContextVar(
    "tracedjobs_celery_waits", default=None
)
"""In a call of ours: what waits for the record of the job whose message it sends."""
_quiet: Final[ContextVar[bool]] = ContextVar("tracedjobs_celery_quiet", default=False)
"""Whether what is published is a message of a job that is recorded already."""


def continuable(app: Celery, *, runtime: Runtime | None = None, **options: Any) -> Any:
    """Make a function, whose first parameter is `ctx`, a task of `app` that can be continued.

    In place of `@app.task(…)`, and gives what that gives. Options of `@job` go to the job, all
    others to `app.task`; `name` to both. `runtime` is the default one, see `tracedjobs.configure`.
    Raises `TypeError` for what Celery cannot have: an `async def` function, or `bind=True` (the
    task is `celery.current_task`, its id `ctx.id`).
    """
    return decorator(lambda job: _Continuable(app, job, runtime), _refusal, options)


def _refusal(job: Job[..., Any], options: dict[str, Any]) -> str | None:
    if job.is_async or options.pop("bind", False):
        return (
            f"{job.name} cannot be a continuable task of Celery: it must be a def function, "
            f"without bind=True (the task is celery.current_task, its id ctx.id)."
        )
    return None


def queue(app: Celery, *, runtime: Runtime | None = None, **options: Any) -> Continuable:
    """What hands jobs of plain `@job` functions to `app`, for `submit(…, via=…)` and `queue=`.

    Make it where the workers find it too, next to `app`. `options` are those of `app.task`, such
    as `queue="imports"`.
    """
    made = _Continuable(app, None, runtime)

    def perform_job() -> object:
        return made.execute((), {})

    # Not shared: Celery would give it to every other application of the process, under one name.
    made.as_task(perform_job, {"shared": False, **options})
    return made


class _Checked:
    """The base of our task classes: a call refuses arguments that cannot be stored.

    And it waits for the record, should Celery not come to say that the message is sent.
    """

    continuable: _Continuable

    def apply_async(self, args: Any = None, kwargs: Any = None, *more: Any, **options: Any) -> Any:
        if args or kwargs:
            values.encode([tuple(args or ()), dict(kwargs or {})], path="arguments")
        waits: list[Callable[[], object]] = []
        token = _waits.set(waits)
        try:
            return super().apply_async(args, kwargs, *more, **options)  # type: ignore[misc]  # celery's
        finally:
            _waits.reset(token)
            _wait_for_records(waits)


class _Continuable(Continuable):
    own_exceptions = (Retry, Ignore, Reject)

    def __init__(self, app: Celery, job: Job[..., Any] | None, runtime: Runtime | None) -> None:
        super().__init__(job, runtime)
        self.app = app
        self.family = f"celery {app.main}"
        self._task: Any = None
        self._queue: str | None = None

    @property
    def queue(self) -> str:
        return self._queue or str(self.app.conf.task_default_queue)

    def as_task(self, fn: Callable[..., Any], options: dict[str, Any]) -> Any:
        """What `app.task` makes of the function."""
        name = options.get("name") or self.app.gen_task_name(fn.__name__, fn.__module__)
        queue = options.get("queue")
        self._queue = getattr(queue, "name", queue)
        base = type("ContinuableTask", (_Checked, options.pop("base", None) or self.app.Task), {})
        given = {**options, "name": name, "base": base}
        self._task = self.app.task(continuable=self, **given)(fn)
        _ours[name] = self
        connect(self.family)
        self.known()
        return self._task

    def send(self, job: JobRecord) -> None:
        args, kwargs = self.arguments_of(job)
        text = kept_message(job)
        kept = {} if text is None else json.loads(text)
        request = Context(kept, id=job.id, args=args, kwargs=kwargs)
        again = self._task.signature_from_request(request, queue=self._queue_of(job, kept))
        with _silently():
            again.apply_async()

    def held(self, jobs: Sequence[JobRecord]) -> Iterable[str] | None:
        """See `Continuable.held`."""
        return held_by(self.app, {job.queue or self.queue for job in jobs})

    def execute(self, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        """What the task's function does: in a worker a run of its job."""
        request = self._task.request
        if request.called_directly:
            return self.run_here(args, kwargs)
        with busy:
            delivery = _delivery(request, args, kwargs)
            verdict = (self.deliver_to_end if request.is_eager else self.deliver)(delivery)
            match verdict:
                case Done(result, answered=True):
                    self._store(request, result)
                case Done(result):
                    return result
                case Again(delay, reason):
                    raise self._again(request, delay, reason)
                case Over("cancelled"):
                    self._task.backend.mark_as_revoked(
                        request.id,
                        "the job is cancelled",
                        request=request,
                        store_result=not (request.ignore_result or request.is_eager),
                    )
        raise Ignore

    def _store(self, request: Any, result: object) -> None:
        """Store the result once more, and have nothing follow: it may have been overwritten."""
        if not request.ignore_result:
            self._task.backend.store_result(request.id, result, SUCCESS, request=request)

    def _again(self, request: Any, delay: float, reason: str) -> Retry:
        """The message published once more, and what tells the worker so."""
        again = self._task.signature_from_request(request, countdown=delay, retries=request.retries)
        self._let_the_last_poll_pass()
        with _silently():
            again.apply_async()
        # Not `retry`, which takes one of the user's retries.
        return Retry(f"goes on in {delay:g} s ({reason})", when=delay, sig=again)

    def _let_the_last_poll_pass(self) -> None:
        at = stopped_at()
        if at is not None and is_redis(self.app):
            time.sleep(max(at + LAST_POLL - boot_time(), 0.0))

    def _queue_of(self, job: JobRecord, kept: dict[str, Any]) -> str | None:
        return None if kept.get("delivery_info") else job.queue


# -- the message ---


def _delivery(request: Any, args: tuple[object, ...], kwargs: dict[str, object]) -> Delivery:
    return Delivery(
        str(request.id),
        args,
        kwargs,
        lambda: _kept(request),
        followed=_is_followed(request) and not request.is_eager,
        again=bool((request.delivery_info or {}).get("redelivered")),
    )


def _is_followed(request: Any) -> bool:
    """Whether its end sends other messages."""
    return bool(request.callbacks or request.chain or request.chord or request.errbacks)


def _kept(request: Any) -> str:
    """What is chained to the task, and its options, as the text that Celery makes of them.

    Without those that it takes by itself: of most messages that is nearly all.
    """
    return _text_of({key: getattr(request, key, None) for key in KEPT})


def _text_of(given: dict[str, Any]) -> str:
    kept = {key: each for key, each in given.items() if each != _OWN[key]}
    try:
        with suppress(TypeError):  # of what nearly all messages have it is made faster
            text = compact(kept)
            if text.isascii():
                return text
        return str(json.dumps(kept))
    except (TypeError, ValueError) as error:
        raise SerializationError(str(error)) from error


@lru_cache(maxsize=64)
def _has_own_headers(names: tuple[str, ...]) -> bool:
    """Whether some of those are of the application: Celery looks at all of them, each time."""
    return Context(dict.fromkeys(names)).headers is not None


@contextmanager
def _silently() -> Iterator[None]:
    token = _quiet.set(True)
    try:
        yield
    finally:
        _quiet.reset(token)


def _on_publish(
    sender: str | None = None,
    headers: Any = None,
    body: Any = None,
    routing_key: Any = None,
    **more: Any,
) -> None:
    made = None if _quiet.get() else _ours.get(str(sender))
    if made is None or not headers or headers.get("retries") or not isinstance(body, tuple):
        return  # of an old protocol, or of a job that is recorded: by its first delivery at last
    args, kwargs, embedded = body

    def message() -> str:
        exchange = more.get("exchange")
        info = {
            "exchange": getattr(exchange, "name", exchange),
            "routing_key": routing_key,
            "priority": (more.get("properties") or {}).get("priority"),
        }
        known = {**headers, **embedded, "delivery_info": info}
        if _has_own_headers((*headers, *embedded)):
            return _kept(Context(known))
        return _text_of({key: known.get(key, own) for key, own in _OWN.items()})

    wait = _seconds_until(headers.get("eta"))
    delivery = Delivery(str(headers["id"]), tuple(args or ()), dict(kwargs or {}), message, wait)
    wait_for_record = made.start_publishing(delivery, queue=routing_key or None)
    waits = _waits.get()
    if waits is None:  # it is sent by its name
        wait_for_record()
    else:
        waits.append(wait_for_record)


def _on_published(**_more: object) -> None:
    """The message is sent: so from here on its record is to be there, for who comes next."""
    _wait_for_records(_waits.get() or [])


def _wait_for_records(waits: list[Callable[[], object]]) -> None:
    while waits:
        waits.pop()()


def _seconds_until(eta: Any) -> float:
    at = datetime.fromisoformat(eta) if isinstance(eta, str) else eta
    if not isinstance(at, datetime):
        return 0.0
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() - time.time()


# -- the worker ---


def _on_end(sender: Any = None, task_id: str | None = None, **_more: object) -> None:
    """Celery has sent what follows a task's success or failure, and stored its result."""
    made, request = getattr(sender, "continuable", None), getattr(sender, "request", None)
    if not isinstance(made, _Continuable) or request is None or request.is_eager:
        return
    # The main process says so too, of a task that was killed: what that comes to is not known yet.
    if task_id in {None, request.id} and request.id and _is_followed(request):
        made.answered(str(request.id))


def _on_received(request: Any = None, **_more: object) -> None:
    """A message has come to this worker, which may not begin with it for long."""
    made = _ours.get(str(request.name))
    if made is None or not is_redis(made.app):
        return
    at_hand, channel = weakref.ref(request), getattr(request.message, "channel", None)

    def here() -> bool:
        # A connection that is lost has its messages given back, whatever still refers to them.
        return at_hand() is not None and not getattr(channel, "closed", False)

    taken.add(made, str(request.id), wait=_seconds_until(request.eta), here=here)


def _on_revoked(sender: Any = None, request: Any = None, **_more: object) -> None:
    made = getattr(sender, "continuable", None)
    if isinstance(made, _Continuable):
        made.revoked(str(request.id))


def _on_unknown(name: str = "", id: str = "", **_more: object) -> None:  # noqa: A002 - celery's word
    keep_unknown("celery", str(id), name)


check_version("celery", MAJORS, "running jobs may not see that their worker stops")
# Weak references would let go of functions that nobody else holds.
signals.before_task_publish.connect(_on_publish, weak=False)
signals.after_task_publish.connect(_on_published, weak=False)
signals.task_success.connect(_on_end, weak=False)
signals.task_failure.connect(_on_end, weak=False)
signals.task_received.connect(_on_received, weak=False)
signals.task_revoked.connect(_on_revoked, weak=False)
signals.task_unknown.connect(_on_unknown, weak=False)
