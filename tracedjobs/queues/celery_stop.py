"""How a Celery worker's stop reaches the processes of its pool.

The main process knows that it is to stop, its pool's processes do not. They share one byte, mapped
from a file whose path is in the environment, so that processes that are spawned find it as well as
those that are forked.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from celery import signals
from celery.worker import state

from tracedjobs._core.owner import run_directory
from tracedjobs._core.saver import saver
from tracedjobs.queues.base import log
from tracedjobs.queues.recovery import start_recovery
from tracedjobs.queues.stopping import stop

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType, TracebackType

__all__ = ["busy", "connect", "stopped_at"]

EVERY: Final = 0.05
"""Seconds between two looks, once a process of the pool and once the main process."""
PATH: Final = "TRACEDJOBS_CELERY_STOP"
"""The variable of the environment that names the file."""

_families: Final[set[str]] = set()


class _Busy:
    """Counts what this process is at: a task until its message is published again."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.tasks = 0
        self.termed = False
        """Whether this process was sent a SIGTERM meanwhile."""

    def __enter__(self) -> None:
        _take_term()
        with self._lock:
            self.tasks += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._lock:
            self.tasks -= 1
            self.termed = self.termed and self.tasks > 0


busy: Final = _Busy()


def stopped_at() -> float | None:
    """When the worker was told to stop, in seconds since boot, if it was."""
    if busy.termed and not stop.came:
        time.sleep(EVERY * 4)  # the main process was sent one too, perhaps, and is about to tell
    return stop.came_at


def connect(family: str) -> None:
    """Have the workers of this process look after the jobs of that family."""
    _families.add(family)


def _on_worker_init(**_more: object) -> None:
    global _main_pid  # noqa: PLW0603 - one worker a process
    _main_pid = os.getpid()
    try:
        path = run_directory() / f"celery.{os.getpid()}.stop"
        path.write_bytes(b"\0")
    except OSError as error:
        log.warning("Jobs in the pool's processes will not see that the worker stops: %s", error)
    else:
        os.environ[PATH] = str(path)


def _on_worker_ready(**_more: object) -> None:
    if not hasattr(state, "should_stop"):
        log.warning("This Celery does not show that it stops; its jobs are left to `recover`.")
        return
    threading.Thread(target=_watch_worker, name="tracedjobs-celery-stop", daemon=True).start()
    for family in _families:
        start_recovery(family)


def _on_process_init(**_more: object) -> None:
    global _in_pool  # noqa: PLW0603 - of this process
    if os.getpid() == _main_pid:
        return  # the solo pool says so too, and its SIGTERM is the worker's
    _in_pool = True
    threading.Thread(target=_watch_byte, name="tracedjobs-celery-stop", daemon=True).start()


def _on_worker_shutdown(**_more: object) -> None:
    path = os.environ.pop(PATH, None)
    if path is not None:
        with contextlib.suppress(OSError):
            Path(path).unlink()


def _watch_worker() -> None:
    byte = _mapped()
    while not _told(state.should_stop) and not _told(getattr(state, "should_terminate", None)):
        time.sleep(EVERY)
    if byte is not None:
        byte[0] = 1
    stop.set()


def _watch_byte() -> None:
    byte = _mapped()
    while byte is not None:
        if byte[0]:
            stop.set()
            return
        time.sleep(EVERY)


def _told(flag: object) -> bool:
    # An exit code, which may be 0.
    return flag is not None and flag is not False


def _mapped() -> mmap.mmap | None:
    try:
        handle = os.open(os.environ[PATH], os.O_RDWR | os.O_CLOEXEC)
    except (KeyError, OSError):
        return None
    try:
        return mmap.mmap(handle, 1)
    finally:
        os.close(handle)


_main_pid: int | None = None
_in_pool = False
_before: list[Callable[[int, FrameType | None], object]] = []


def _take_term() -> None:
    """Have SIGTERM told to us first, in a process of the pool."""
    # At the first job: what is installed as the process begins, the pool replaces.
    if not _in_pool or _before or threading.current_thread() is not threading.main_thread():
        return
    before = signal.getsignal(signal.SIGTERM)
    _before.append(before if callable(before) else _die)
    signal.signal(signal.SIGTERM, _on_term)


def _die(number: int, _frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _on_term(number: int, frame: FrameType | None) -> None:
    """In a process of the pool: what was sent to the whole group, or by `revoke(terminate=True)`.

    Celery would have it killed. The first one interrupts the job, if it is at one; the process
    stays, and whether the worker stops too the byte tells. It may also be killed a tenth of a
    second later, as it is after a hard time limit: so jobs are left as those of a process that is
    about to end are, which others hand back if this one does not come to it.
    """
    if busy.tasks and not busy.termed:
        busy.termed = True
        for run in saver.runs():
            run.request_stop("exit")
        return
    _before[0](number, frame)


signals.celeryd_init.connect(_on_worker_init, weak=False)
signals.worker_ready.connect(_on_worker_ready, weak=False)
signals.worker_process_init.connect(_on_process_init, weak=False)
signals.worker_shutdown.connect(_on_worker_shutdown, weak=False)
