"""SIGTERM and SIGINT: the first interrupts every run of the process, the second ends it at once.

Handlers are put in place while a run is performed in the main thread, and what was there before
is called after them and put back at the end. In other threads nothing is installed: there the
application's own handlers, or a queue's, decide.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Final, Self

from tracedjobs._core.clock import boot_time
from tracedjobs._core.saver import saver

__all__ = ["StopFlag", "StopSignals"]

Handler = Callable[[int, FrameType | None], object] | int | signal.Handlers | None


class StopFlag:
    """A stop of which a queue's worker was told: it holds for the rest of that worker's life."""

    def __init__(self) -> None:
        """Not come yet."""
        self.came = False
        self.came_at: float | None = None
        """When it came, in seconds since boot."""

    def set(self) -> None:
        """Interrupt every run of this process, those too that begin later. Takes no lock."""
        if self.came_at is None:
            self.came_at = boot_time()
        self.came = True
        for run in saver.runs():
            run.request_stop("stopping")

    def clear(self) -> None:
        """Forget it: another worker begins in this process, which is not about to end."""
        self.came = False
        self.came_at = None


class StopSignals:
    """A context manager that watches for signals; `seen` is the first that came, or `None`.

    Nested ones share the outermost's handlers. An inherited SIG_IGN (as under `nohup`) stays.
    """

    _depth = 0
    _before: Final[dict[int, Handler]] = {}
    seen: int | None = None

    def __init__(self, signals: tuple[int, ...] = (signal.SIGTERM, signal.SIGINT)) -> None:
        """Watch for `signals`."""
        self._signals = signals
        self._pid: int | None = None

    @property
    def came(self) -> bool:
        """Whether one has come while somebody watches: what came before is over."""
        return StopSignals._depth > 0 and StopSignals.seen is not None

    def __enter__(self) -> Self:
        """Install the handlers, in the main thread."""
        if threading.current_thread() is not threading.main_thread():
            return self
        self._pid = os.getpid()
        cls = StopSignals
        cls._depth += 1
        if cls._depth == 1:
            cls.seen = None
        for number in self._signals:
            before = signal.getsignal(number)
            if number not in cls._before and before not in (signal.SIG_IGN, None):
                cls._before[number] = before
                signal.signal(number, _on_signal)
        return self

    def __exit__(self, *error: object) -> None:
        """Put back what was there, unless somebody else has taken its place since."""
        if self._pid != os.getpid():
            return  # off the main thread, or in a forked child, which let go of them at once
        self._pid = None
        cls = StopSignals
        cls._depth -= 1
        if cls._depth:
            return
        _put_back()


def _put_back() -> None:
    before = StopSignals._before
    while before:
        number, handler = before.popitem()
        if signal.getsignal(number) is _on_signal:
            signal.signal(number, handler)


def _after_fork_in_child() -> None:
    # The child performs nothing: a SIGTERM ends it, as `Process.terminate()` expects.
    _put_back()
    StopSignals._depth = 0
    StopSignals.seen = None


os.register_at_fork(after_in_child=_after_fork_in_child)


def _on_signal(number: int, frame: FrameType | None) -> None:
    # Takes no lock: what it interrupted may hold it.
    if StopSignals.seen is not None:
        # The default action and not an exception, which a job that catches all would outlive.
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        return
    StopSignals.seen = number
    for run in saver.runs():
        run.request_stop("stopping")
    before = StopSignals._before.get(number)
    if callable(before) and before is not signal.default_int_handler:
        before(number, frame)
