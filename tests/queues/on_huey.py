"""Huey for the conformance suite: SQLite and Redis brokers, threads and processes."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tests.processes import PATIENCE

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["OnHuey"]

KINDS: Final = {"threads": "thread", "processes": "process"}


@dataclass
class OnHuey:
    """See `harness.Kind`."""

    workers: str
    redis: str | None = None
    graceful: str = "TERM"
    module: str = "huey"
    retries: str = "retries=2, retry_delay=0"
    ready: str = "The following commands are available"
    more: str = ""

    def app(self, folder: Path) -> str:
        # Huey's results are errors of tries, too, unless it is told to wait for the last.
        last = "app.store_intermediate_errors = False"
        if self.redis is not None:
            made = f"app = RedisHuey('imports', url={self.redis!r})"
            return f"from huey import RedisHuey\n{made}\n{last}"
        made = f"app = SqliteHuey('imports', filename='{folder}/huey.db')"
        return f"from huey import SqliteHuey\n{made}\n{last}"

    def command(self, module: str) -> list[str]:
        consumer = [sys.executable, "-m", "huey.bin.huey_consumer", f"{module}.app"]
        return [
            *consumer,
            "-k",
            KINDS[self.workers],
            "-w",
            "2",
            "-d",
            "0.05",
            "-m",
            "0.1",
            "-g",
            "TERM",
        ]

    def send(self, task: Any, *args: object, **kwargs: object) -> Any:
        return task(*args, **kwargs)

    def send_later(self, task: Any, seconds: float, *args: object) -> Any:
        return task.schedule(args=args, delay=seconds)

    def id_of(self, handle: Any) -> str:
        return str(handle.id)

    def result(self, handle: Any) -> object:
        found: object = handle.get(blocking=True, timeout=PATIENCE, preserve=True)
        return found

    def deliver_again(self, task: Any, job_id: str, *args: object) -> None:
        task.huey.enqueue(task.s(*args, id=job_id))
