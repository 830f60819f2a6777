"""What a Dramatiq broker tells of its messages and of its worker's stop: one middleware a broker.

A worker process looks once a second whether it was told to stop, and goes on taking messages until
then; so its signals are heard too, before its own handlers are.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import itertools
import math
import signal
import threading
import time
from abc import abstractmethod
from concurrent.futures import wait
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

from dramatiq.asyncio import get_event_loop_thread
from dramatiq.middleware import Interrupt, Middleware, TimeLimitExceeded

from tracedjobs._core.clock import boot_time
from tracedjobs.queues.base import Continuable
from tracedjobs.queues.recovery import keep_unknown, start_recovery
from tracedjobs.queues.stopping import WorkerStop, at_work, stop
from tracedjobs.queues.versions import check_version

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from types import FrameType

    from dramatiq import Broker, Worker
    from dramatiq.broker import MessageProxy
    from dramatiq.message import Message

__all__ = ["Actor", "Received", "Watch", "in_event_loop", "received", "silently", "with_limit"]

MAJORS: Final = (1, 2)
THE_SAME: Final = 1.0
"""Seconds in which a second signal is the first one, told to the process group and passed on by the
main process; a later one ends the process."""

EVERY: Final = 0.1
"""Seconds between two looks of a thread, whose coroutine runs, at whether it is interrupted."""
LONGEST_CANCEL: Final = 5.0
"""Seconds that a coroutine has to end when it is cancelled; its thread waits no longer."""


@dataclass(slots=True)
class Received:
    """The message that a worker's thread is at."""

    message: MessageProxy
    begun: bool = False
    """Whether its actor was called; what that calls itself has no message."""
    done: bool = False
    """Whether its job is completed, and its result goes to Dramatiq."""
    skipped: bool = False
    """Whether it was skipped by us, and so not thrown away by another middleware."""
    too_long: bool = False
    """Whether its coroutine is cancelled since it took longer than its limit."""


received: Final[ContextVar[Received | None]] = ContextVar("tracedjobs_dramatiq", default=None)
_quiet: Final[ContextVar[bool]] = ContextVar("tracedjobs_dramatiq_quiet", default=False)
"""Whether what is enqueued is a message of a job that is recorded already."""


@contextmanager
def silently() -> Iterator[None]:
    """Enqueue messages of jobs that are recorded already."""
    token = _quiet.set(True)
    try:
        yield
    finally:
        _quiet.reset(token)


class Actor(Continuable):
    """A continuable whose task is an actor."""

    @abstractmethod
    def has_followers(self, message: Message[Any] | MessageProxy) -> bool:
        """Whether the end of that message sends others."""


class Watch(Middleware):
    """See the module."""

    def __init__(self) -> None:
        self.continuables: dict[str, Actor] = {}
        """By the name of their actor."""
        self._stops: WeakKeyDictionary[Any, WorkerStop] = WeakKeyDictionary()
        """By the queue from which the worker's threads take their messages."""

    def is_new(self, message: Message[Any]) -> bool:
        """Whether a message that is enqueued was not so before: no retry, and not a delayed one."""
        return not _quiet.get() and "retries" not in message.options

    # -- the worker's process ---

    def after_process_boot(self, *_broker: object) -> None:
        """Hear of a stop at once."""
        if threading.current_thread() is threading.main_thread():
            heard = itertools.count()
            _hear(signal.SIGTERM, heard)
            _hear(signal.SIGHUP, heard)

    def before_worker_boot(self, _broker: Broker, worker: Worker) -> None:
        """A process of the application's own may have several, as its tests do."""
        self._stops[worker.work_queue] = WorkerStop()

    def after_worker_thread_boot(self, _broker: Broker, thread: Any) -> None:
        """This thread is that worker's."""
        worker = self._stops.get(getattr(thread, "work_queue", None))
        if worker is not None:
            at_work(worker)

    def after_worker_boot(self, _broker: Broker, worker: Worker) -> None:
        """Look for lost jobs, together with all workers that know the same actors."""
        names = " ".join(sorted(self.continuables))
        family = f"dramatiq {hashlib.blake2b(names.encode(), digest_size=4).hexdigest()}"
        for each in self.continuables.values():
            each.family = family
        start_recovery(family, self._stops[worker.work_queue])

    def before_worker_shutdown(self, _broker: Broker, worker: Worker) -> None:
        """A worker in a process of the application's own is told so by a call, not by a signal."""
        self._stops[worker.work_queue].set()

    def after_consumer_thread_boot(self, *_thread: object) -> None:
        """What a consumer enqueues was delayed, and is due now."""
        _quiet.set(True)

    # -- its messages ---

    def before_process_message(self, _broker: Broker, message: MessageProxy) -> None:
        """A thread of the worker begins with it."""
        received.set(Received(message))

    def after_skip_message(self, _broker: Broker, message: MessageProxy) -> None:
        """Cancel the job of a message that a middleware threw away, such as `AgeLimit`."""
        found = received.get()
        made = self.continuables.get(message.actor_name)
        if made is not None and (found is None or not found.skipped):
            made.revoked(message.message_id)

    def before_ack(self, _broker: Broker, message: MessageProxy) -> None:
        """All that Dramatiq does at the end of a message is done."""
        found = received.get()
        made = self.continuables.get(message.actor_name)
        if made is not None and found is not None and found.done and made.has_followers(message):
            made.answered(message.message_id)

    def after_ack(self, *_message: object) -> None:
        """The thread has let go of it."""
        received.set(None)

    def after_nack(self, broker: Broker, message: MessageProxy) -> None:
        """Keep the job of a message whose actor nobody knows, as after a deploy rolled back."""
        received.set(None)
        if message.actor_name not in broker.actors:
            keep_unknown("dramatiq", message.message_id, message.actor_name)


# -- its async actors ---


def with_limit(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The job's coroutine function; but what its time limit cancels raises `TimeLimitExceeded`.

    So a job that takes too long ends as one of a `def` function does, with an error.
    """

    @functools.wraps(fn)
    async def limited(*args: Any, **kwargs: Any) -> Any:
        try:
            return await fn(*args, **kwargs)
        except asyncio.CancelledError:
            found, task = received.get(), asyncio.current_task()
            if found is None or not found.too_long or task is None:
                raise
            task.uncancel()
            raise TimeLimitExceeded from None

    return limited


def in_event_loop(fn: Callable[..., Coroutine[Any, Any, Any]]) -> Callable[..., Any]:
    """The coroutine function as a plain one, which waits while Dramatiq's event loop runs it.

    Dramatiq's `async_to_sync` forgets what becomes of a coroutine that it cancels.
    """

    @functools.wraps(fn)
    def call(*args: object, **kwargs: object) -> object:
        thread = get_event_loop_thread()
        if thread is None:
            msg = f"{fn.__qualname__} is an async actor: add AsyncIO() to the broker's middleware."
            raise RuntimeError(msg)
        return _waited(thread.loop, fn(*args, **kwargs))

    return call


def _waited(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, object]) -> object:
    tasks: list[asyncio.Task[Any] | None] = []

    async def running() -> object:
        tasks.append(asyncio.current_task())
        return await coroutine

    def cancel() -> None:
        task = tasks[0] if tasks else None
        (future if task is None else task).cancel()

    future = asyncio.run_coroutine_threadsafe(running(), loop)
    interrupt: Interrupt | None = None
    give_up = math.inf
    while not future.done() and time.monotonic() < give_up:
        try:
            wait([future], EVERY)  # a thread that waits longer would not be interrupted
        except Interrupt as error:
            found = received.get()
            if found is not None and isinstance(error, TimeLimitExceeded):
                found.too_long = True
            interrupt, give_up = error, time.monotonic() + LONGEST_CANCEL
            loop.call_soon_threadsafe(cancel)
    if interrupt is not None and (not future.done() or future.cancelled()):
        raise interrupt
    return future.result()


# -- signals ---


def _hear(number: signal.Signals, heard: Iterator[int]) -> None:
    before = signal.getsignal(number)
    if not callable(before):
        return

    def on_signal(got: int, frame: FrameType | None) -> None:
        # Counted in one step: the second may come within the first one's handler.
        if next(heard) == 0:
            stop.set()
        elif stop.came_at is None or boot_time() - stop.came_at < THE_SAME:
            return
        before(got, frame)

    signal.signal(number, on_signal)


check_version("dramatiq", MAJORS, "running jobs may not see that their worker stops")
