"""What a Dramatiq broker tells of its messages and of its worker's stop: one middleware a broker.

A worker process looks once a second whether it was told to stop, and goes on taking messages until
then; so its signals are heard too, before its own handlers are.
"""

from __future__ import annotations

import hashlib
import signal
import threading
from abc import abstractmethod
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from dramatiq.middleware import Middleware

from tracedjobs._core.clock import boot_time
from tracedjobs.queues.base import Continuable, check_version, keep_unknown, stop
from tracedjobs.queues.recovery import start_recovery

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from dramatiq import Broker
    from dramatiq.broker import MessageProxy
    from dramatiq.message import Message

__all__ = ["Actor", "Received", "Watch", "received", "silently"]

MAJORS: Final = (1, 2)
THE_SAME: Final = 1.0
"""Seconds in which a second signal is the first one, told to the process group and passed on by the
main process; a later one ends the process."""


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

    def is_new(self, message: Message[Any]) -> bool:
        """Whether a message that is enqueued was not so before: no retry, and not a delayed one."""
        return not _quiet.get() and "retries" not in message.options

    # -- the worker's process ---

    def after_process_boot(self, *_broker: object) -> None:
        """Hear of a stop at once."""
        if threading.current_thread() is threading.main_thread():
            _hear(signal.SIGTERM)
            _hear(signal.SIGHUP)

    def before_worker_boot(self, *_worker: object) -> None:
        """Another worker may have ended in this process before, as in tests."""
        stop.clear()

    def after_worker_boot(self, *_worker: object) -> None:
        """Look for lost jobs, together with all workers that know the same actors."""
        names = " ".join(sorted(self.continuables))
        family = f"dramatiq {hashlib.blake2b(names.encode(), digest_size=4).hexdigest()}"
        for each in self.continuables.values():
            each.family = family
        start_recovery(family)

    def before_worker_shutdown(self, *_worker: object) -> None:
        """A worker in a process of the application's own is told so by a call, not by a signal."""
        stop.set()

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


def _hear(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    if not callable(before):
        return

    def on_signal(got: int, frame: FrameType | None) -> None:
        if stop.came_at is None:
            stop.set()
        elif boot_time() - stop.came_at < THE_SAME:
            return
        before(got, frame)

    signal.signal(number, on_signal)


check_version("dramatiq", MAJORS, "running jobs may not see that their worker stops")
