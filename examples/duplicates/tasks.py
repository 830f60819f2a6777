"""The same job twice: as a plain task of Celery, and as one that can be continued.

The broker delivers a message again that is not acknowledged within `visibility_timeout`. That is
shorter here than the job, as it is for every job that grows.
"""

import os
import time
from pathlib import Path

from celery import Celery

import tracedjobs
from tracedjobs.queues.celery import continuable

broker = os.environ["BROKER"]
app = Celery("tasks", broker=broker, backend=broker)
app.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    worker_prefetch_multiplier=1,
    broker_transport_options={
        "visibility_timeout": float(os.environ["VISIBILITY_TIMEOUT"]),
        "unacked_restore_interval": 1,  # how often it looks: so that nobody has to wait for it
        "unacked_restore_throttle": 1,
    },
)
tracedjobs.configure("sqlite:///jobs.db")


@app.task
def plain(path: str, items: int) -> int:
    for item in range(items):
        import_item(path, item)
    return items


@continuable(app)
def continued(ctx: tracedjobs.Context, path: str, items: int) -> int:
    for item in ctx.each("items", range(items)):
        import_item(path, item)
    return items


def import_item(path: str, item: int) -> None:
    """Write down who does it, and take 10 ms."""
    with Path(path).open("a") as file:
        file.write(f"{os.getpid()} {item}\n")
    time.sleep(0.01)
