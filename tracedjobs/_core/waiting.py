"""The two drivers of a flow: one that waits in its thread, one that lets the event loop go on.

A flow is a generator that does a run's I/O without knowing how to wait for it. It yields `Ask`
for work on the store and `Call` for the user's function; the driver sends back what came of it.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import time
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from concurrent.futures import Executor, Future

__all__ = [
    "DONE",
    "Ask",
    "Call",
    "Flow",
    "Pause",
    "drive",
    "drive_async",
    "resume",
    "resume_async",
    "start",
]

T = TypeVar("T")
LONGEST_WAIT: Final = 5.0
"""Seconds to wait for a save when the event loop is gone; then it is left to its thread."""


@dataclass(slots=True)
class Ask:
    """Work that may block: a call of the store, or a pause between two."""

    work: Callable[[], object]


@dataclass(slots=True)
class Pause:
    """Nothing for that many seconds, before something is tried again."""

    seconds: float

    def work(self) -> None:
        """Wait in this thread."""
        time.sleep(self.seconds)


@dataclass(slots=True)
class Call:
    """A call of the user's function, in the user's own thread or task."""

    work: Callable[[], object]


class _Done:
    """What a call that had to wait for nothing returns: it may be awaited, and need not be."""

    __slots__ = ()

    def __await__(self) -> Generator[None, None, None]:
        yield from ()


DONE: Final = _Done()
Flow = Generator[Ask | Call | Pause, object, T]


def drive(flow: Flow[T]) -> T:
    """Run the flow to its end in this thread."""
    try:
        return resume(flow, next(flow))
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]  # what the generator returned


def resume(flow: Flow[T], wanted: Ask | Call | Pause) -> T:
    """Run a started flow, which waits for `wanted`, to its end in this thread."""
    try:
        while True:
            try:
                value = wanted.work()
            except BaseException as error:
                wanted = flow.throw(error)
            else:
                wanted = flow.send(value)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]  # what the generator returned


async def drive_async(flow: Flow[T]) -> T:
    """Run the flow to its end in this task; what blocks is done in another thread."""
    try:
        wanted = next(flow)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]  # what the generator returned
    return await resume_async(flow, wanted)


def start(flow: Flow[None]) -> Ask | Call | Pause | None:
    """Run the flow to where it must wait: for what, or `None` when it came to its end."""
    return next(flow, None)


async def resume_async(flow: Flow[T], wanted: Ask | Call | Pause) -> T:
    """Run a started flow, which waits for `wanted`, to its end."""
    import asyncio  # noqa: PLC0415 - doubles the time of an import

    asked: Future[object] | None = None
    told = False
    try:
        while True:
            try:
                value: object = None
                if isinstance(wanted, Ask):
                    asked = _submitted(wanted.work)
                    value = wanted.work() if asked is None else await _answer(asked, told=told)
                elif isinstance(wanted, Pause):
                    await asyncio.sleep(wanted.seconds)
                else:
                    value = wanted.work()
                    if isinstance(value, Awaitable):
                        value = await value
            except GeneratorExit as error:
                # The event loop is gone: nothing can be awaited any more, but it can be saved.
                _wait_for(asked)
                return resume(flow, flow.throw(error))
            except BaseException as error:
                told = told or isinstance(error, asyncio.CancelledError)
                wanted = flow.throw(error)
            else:
                wanted = flow.send(value)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]  # what the generator returned


async def _answer(asked: Future[T], *, told: bool) -> T:
    """What comes of the work, which goes on in its thread whatever happens to this task.

    A cancellation is raised when the work has ended: so whoever looks at the store after it sees
    the work done or not done, and never about to be done. A flow that was `told` of one already is
    at its end, and is not told again: a cancel scope of anyio cancels until the task has left it.
    """
    import asyncio  # noqa: PLC0415 - doubles the time of an import

    waiting = asyncio.wrap_future(asked)
    try:
        return await asyncio.shield(waiting)
    except asyncio.CancelledError:
        while not waiting.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([waiting])
        if told:
            return waiting.result()
        waiting.exception()  # whatever it was, the cancellation is what is told
        raise


def _submitted(work: Callable[[], T]) -> Future[T] | None:
    """The work, begun in another thread; `None` when the interpreter ends and starts no more."""
    try:
        return _executor().submit(work)
    except RuntimeError:
        return None


def _wait_for(asked: Future[object] | None) -> None:
    if asked is not None:
        with contextlib.suppress(BaseException):
            asked.result(timeout=LONGEST_WAIT)


_mutex = threading.Lock()


@functools.cache
def _made_executor() -> Executor:
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - for async jobs only

    return ThreadPoolExecutor(max_workers=2, thread_name_prefix="tracedjobs-io")


def _executor() -> Executor:
    with _mutex:
        return _made_executor()


def _after_fork_in_child() -> None:
    global _mutex  # noqa: PLW0603 - its holder is not in the child
    _mutex = threading.Lock()
    _made_executor.cache_clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
