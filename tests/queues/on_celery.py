"""Celery for the conformance suite: Redis and RabbitMQ brokers, and its pools."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.processes import PATIENCE

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["OnCelery"]


@dataclass
class OnCelery:
    """See `harness.Kind`. Results are in Redis, the messages too unless `rabbit` is a broker."""

    pool: str
    redis: str
    prefix: str
    rabbit: str | None = None
    visibility: int = 3600
    module: str = "celery"
    retries: str = "autoretry_for=(ValueError,), default_retry_delay=0, max_retries=2"
    ready: str = " ready."
    more: str = ""

    def app(self, folder: Path) -> str:
        redis = {
            "global_keyprefix": self.prefix,
            "visibility_timeout": self.visibility,
            "unacked_restore_interval": 1,
            "unacked_restore_throttle": 1,
        }
        options = redis if self.rabbit is None else {}
        return (
            "from celery import Celery\n"
            f"app = Celery('imports', broker={self.rabbit or self.redis!r}, "
            f"backend={self.redis!r})\n"
            "app.conf.update(task_default_queue='imports', task_acks_late=True, "
            "task_reject_on_worker_lost=True, worker_prefetch_multiplier=1, "
            f"broker_transport_options={options!r}, "
            f"result_backend_transport_options={ {'global_keyprefix': self.prefix}!r})"
        )

    def command(self, module: str) -> list[str]:
        celery = [sys.executable, "-m", "celery", "-A", f"{module}:app", "worker"]
        quiet = ["--without-mingle", "--without-gossip", "--without-heartbeat"]
        name = f"w{os.urandom(3).hex()}@%h"  # RabbitMQ lets no two have the same
        return [*celery, "-P", self.pool, "-c", "2", "-n", name, "-l", "info", *quiet]

    def send(self, task: Any, *args: object, **kwargs: object) -> Any:
        return task.delay(*args, **kwargs)

    def send_later(self, task: Any, seconds: float, *args: object) -> Any:
        return task.apply_async(args, countdown=seconds)

    def id_of(self, handle: Any) -> str:
        return str(handle.id)

    def result(self, handle: Any) -> object:
        found: object = handle.get(timeout=PATIENCE)
        return found

    def deliver_again(self, task: Any, job_id: str, *args: object) -> None:
        task.apply_async(args, task_id=job_id)
