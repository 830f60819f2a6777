"""Dramatiq for the conformance suite: Redis and RabbitMQ brokers, processes and threads."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tests.processes import PATIENCE

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["OnDramatiq"]

KINDS: Final = {"processes": ("2", "1"), "threads": ("1", "2")}

APP: Final = """\
import functools
import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import AsyncIO, GroupCallbacks
from dramatiq.rate_limits.backends import RedisBackend as Counters
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

app = {broker}
app.add_middleware(AsyncIO())
# The client of Redis gives up after 5 s, also where it is told to wait for longer.
results = RedisBackend(url={redis!r} + "?socket_timeout=60", namespace={prefix!r} + "-results")
app.add_middleware(Results(backend=results, store_results=True))
app.add_middleware(GroupCallbacks(Counters(url={redis!r})))
dramatiq.set_broker(app)
# Dramatiq's actors name their queue, not its broker, and are tried 20 times unless they say no.
continuable = functools.partial(continuable, queue_name="imports", max_retries=0)
queue = functools.partial(queue, queue_name="imports", max_retries=0)
"""


@dataclass
class OnDramatiq:
    """See `harness.Kind`. Results are in Redis, the messages too unless `rabbit` is a broker."""

    workers: str
    redis: str
    prefix: str
    rabbit: str | None = None
    options: tuple[str, ...] = ()
    module: str = "dramatiq"
    retries: str = "max_retries=2, min_backoff=10, max_backoff=20"
    ready: str = "Worker process is ready for action."
    more: str = ""

    def app(self, folder: Path) -> str:
        broker = f"RedisBroker(url={self.redis!r}, namespace={self.prefix!r})"
        if self.rabbit is not None:
            broker = f"RabbitmqBroker(url={self.rabbit!r})"
        return APP.format(broker=broker, redis=self.redis, prefix=self.prefix)

    def command(self, module: str) -> list[str]:
        processes, threads = KINDS[self.workers]
        # It looks for messages ten times as often as by default, and so the tests wait less; and it
        # takes none that would wait behind a long job.
        soon = ["env", "dramatiq_worker_timeout=100", f"dramatiq_queue_prefetch={threads}"]
        dramatiq = [sys.executable, "-m", "dramatiq", f"{module}:app"]
        return [*soon, *dramatiq, "--processes", processes, "--threads", threads, *self.options]

    def send(self, task: Any, *args: object, **kwargs: object) -> Any:
        return task.send(*args, **kwargs)

    def send_later(self, task: Any, seconds: float, *args: object) -> Any:
        return task.send_with_options(args=args, delay=round(seconds * 1000))

    def id_of(self, handle: Any) -> str:
        return str(handle.message_id)

    def result(self, handle: Any) -> object:
        found: object = handle.get_result(block=True, timeout=round(PATIENCE * 1000))
        return found

    def deliver_again(self, task: Any, job_id: str, *args: object) -> None:
        task.broker.enqueue(task.message(*args).copy(message_id=job_id))
