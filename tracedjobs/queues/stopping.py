"""Whose stop a job sees: its process's, and its worker's where several work in one process.

A worker of a queue's command is a process, and signals stop all of it. An application, or its
tests, may start several in threads of its own, and stop one while another works on.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Final

from tracedjobs._core.saver import saver
from tracedjobs._core.signals import StopFlag

__all__ = ["WorkerStop", "at_work", "stop", "this_worker"]

stop: Final = StopFlag()
"""Set by an adapter when the process is told to stop; every run of it sees it."""


class WorkerStop:
    """The stop of one worker, that ends with the process's at the latest."""

    def __init__(self) -> None:
        """Not come yet."""
        self._came = False
        self._jobs: set[str] = set()

    @property
    def came(self) -> bool:
        """Whether it has come, for this worker or for the process."""
        return self._came or stop.came

    def set(self) -> None:
        """Interrupt the runs of this worker, those too that begin later. Takes no lock."""
        self._came = True
        for run in saver.runs():
            if run.record.id in self._jobs:
                run.request_stop("stopping")

    def begin(self, job_id: str) -> None:
        """This worker has the job's lease from now on."""
        self._jobs.add(job_id)

    def end(self, job_id: str) -> None:
        """It has it no more."""
        self._jobs.discard(job_id)


_the_only_one: Final = WorkerStop()
_this: Final[ContextVar[WorkerStop]] = ContextVar("tracedjobs_worker", default=_the_only_one)


def this_worker() -> WorkerStop:
    """The stop of the worker whose thread or task this is."""
    return _this.get()


def at_work(worker: WorkerStop) -> None:
    """This thread, or this task with all that it starts, is that worker's from now on."""
    _this.set(worker)
