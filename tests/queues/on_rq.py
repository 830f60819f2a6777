"""RQ for the conformance suite: a Redis database, and its kinds of workers."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import redis
from rq.job import JobStatus

from tests.processes import until

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["OnRQ", "empty_database"]

CLASSES: Final = {
    "fork": "rq.worker.Worker",
    "spawn": "rq.worker.SpawnWorker",
    "simple": "rq.worker.SimpleWorker",
}
ENDS: Final = {JobStatus.FINISHED, JobStatus.FAILED, JobStatus.STOPPED, JobStatus.CANCELED}


def empty_database(url: str) -> str:
    """The address of a database of that server that is RQ's alone: it has no key prefix."""
    address = f"{url.removesuffix('/0')}/7"
    with redis.Redis.from_url(address) as connection:
        connection.flushdb()
    return address


@dataclass
class OnRQ:
    """See `harness.Kind`."""

    workers: str
    redis: str
    module: str = "rq"
    retries: str = "retry=Retry(max=2)"
    ready: str = "*** Listening on"
    more: str = ""
    options: tuple[str, ...] = ("--with-scheduler",)
    loaded: bool = True
    """Whether the worker imports the application, and not its horses alone."""

    @property
    def begins_slowly(self) -> bool:
        # A spawned horse is a new interpreter, which imports RQ and the application first.
        return self.workers == "spawn"

    def app(self, folder: Path) -> str:
        return (
            "from redis import Redis\n"
            "from rq import Queue, Retry\n"
            f"app = Queue('imports', connection=Redis.from_url({self.redis!r}))"
        )

    def command(self, module: str) -> list[str]:
        # One job at a time: that is what a worker of RQ does.
        rq = [sys.executable, "-m", "rq.cli", "worker", "--url", self.redis]
        application = ["-c", module] if self.loaded else []
        return [*rq, "-w", CLASSES[self.workers], *application, *self.options, "imports"]

    def send(self, task: Any, *args: object, **kwargs: object) -> Any:
        return task.delay(*args, **kwargs)

    def send_later(self, task: Any, seconds: float, *args: object) -> Any:
        return task.continuable.app.enqueue_in(timedelta(seconds=seconds), task, *args)

    def id_of(self, handle: Any) -> str:
        return str(handle.id)

    def result(self, handle: Any) -> object:
        """As who waits with RQ does: its status, then what it left."""
        until(lambda: handle.get_status() in ENDS, f"{handle} ends, it is {handle.get_status()}")
        status = handle.get_status()
        if status is not JobStatus.FINISHED:
            left = handle.latest_result()
            raise RuntimeError(f"{status.value}: {left.exc_string if left else None}")
        found: object = handle.return_value(refresh=True)
        return found

    def deliver_again(self, task: Any, job_id: str, *args: object) -> None:
        task.delay(*args, job_id=job_id)
