"""Taskiq for the conformance suite: lists and streams of Redis, threads and a pool of processes."""

from __future__ import annotations

import asyncio
import sys
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, Final, TypeVar
from uuid import uuid4

from redis import Redis
from taskiq import AsyncTaskiqTask, TaskiqScheduler
from taskiq.api import run_scheduler_task

from tests.processes import PATIENCE

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Coroutine
    from concurrent.futures import Future
    from pathlib import Path

__all__ = ["OnTaskiq", "wait"]

T = TypeVar("T")
POOL: Final = ["--workers", "1", "--use-process-pool", "--max-process-pool-processes", "2"]
OPTIONS: Final = {
    "list": ["--workers", "2"],
    "one": ["--workers", "1"],
    "stream": POOL,
    "pool": POOL,
}
APP: Final = """\
from taskiq import SimpleRetryMiddleware
from taskiq_redis import {broker}, ListRedisScheduleSource, RedisAsyncResultBackend
app = {broker}({url!r}, queue_name="imports", socket_timeout=None{more})
app.with_result_backend(RedisAsyncResultBackend({url!r}))
app.with_middlewares(SimpleRetryMiddleware())
app.state.later = ListRedisScheduleSource({url!r}, prefix={prefix!r})
"""


@cache
def loop() -> AbstractEventLoop:
    """One of this process, in a thread of its own, for the clients' calls."""
    made = asyncio.new_event_loop()
    threading.Thread(target=made.run_forever, daemon=True).start()
    return made


def wait(work: Coroutine[Any, Any, T]) -> T:
    """What comes of a client's call."""
    return asyncio.run_coroutine_threadsafe(work, loop()).result(PATIENCE * 2)


@dataclass
class OnTaskiq:
    """See `harness.Kind`; the database is the tests' own, and emptied by each."""

    workers: str
    redis: str
    idle: int | None = None
    module: str = "taskiq"
    retries: str = "retry_on_error=True, max_retries=3"
    ready: str = "Listening started."
    more: str = ""
    rolling_items: int = 450
    """The command tells its processes of a stop once a second."""
    started: bool = field(default=False, init=False)
    scheduler: Future[None] | None = field(default=None, init=False)

    def app(self, folder: Path) -> str:
        with Redis.from_url(self.redis) as client:
            client.flushdb()
        broker = "RedisStreamBroker" if self.workers == "stream" else "ListQueueBroker"
        more = "" if self.idle is None else f", idle_timeout={self.idle}, xread_block=100"
        return APP.format(broker=broker, url=self.redis, prefix=uuid4().hex, more=more)

    def command(self, module: str) -> list[str]:
        return [sys.executable, "-m", "taskiq", "worker", f"{module}:app", *OPTIONS[self.workers]]

    def send(self, task: Any, *args: object, **kwargs: object) -> Any:
        self.start(task.broker)
        return wait(task.kiq(*args, **kwargs))

    def send_later(self, task: Any, seconds: float, *args: object) -> Any:
        self.start(task.broker)
        job_id = uuid4().hex
        at = datetime.now(UTC) + timedelta(seconds=seconds)
        later = task.broker.state.later
        wait(task.kicker().with_task_id(job_id).schedule_by_time(later, at, *args))
        second = timedelta(seconds=1)
        work = run_scheduler_task(TaskiqScheduler(task.broker, [later]), interval=second)
        self.scheduler = asyncio.run_coroutine_threadsafe(work, loop())
        return AsyncTaskiqTask(job_id, task.broker.result_backend)

    def id_of(self, handle: Any) -> str:
        return str(handle.task_id)

    def result(self, handle: Any) -> object:
        found = wait(handle.wait_result(check_interval=0.02, timeout=PATIENCE))
        found.raise_for_error()
        value: object = found.return_value
        return value

    def deliver_again(self, task: Any, job_id: str, *args: object) -> None:
        wait(task.kicker().with_task_id(job_id).kiq(*args))

    def start(self, broker: Any) -> None:
        """Have it send from here."""
        if not self.started:
            self.started = True
            wait(broker.startup())

    def close(self, module: Any) -> None:
        """Leave no connection and no scheduler behind."""
        if self.scheduler is not None:
            self.scheduler.cancel()
        wait(module.app.state.later.shutdown())
        wait(module.app.shutdown())
