"""The Celery application of `benchmarks.queues`: each task twice, plain and continuable.

`work` is one piece of work that is durable when it returns: a row in a SQLite file of the worker
process's own, committed with `synchronous=FULL`. The plain task notes no progress beside it, so it
does all five again when it is killed; the continuable one does them as steps.
"""

from __future__ import annotations

import os
import sqlite3
from functools import cache
from typing import Any

from celery import Celery
from redis import Redis

from tracedjobs import Context, Runtime
from tracedjobs.queues.celery import continuable

BROKER = os.environ["BENCHMARK_BROKER"]
PIECES = 5

app = Celery("benchmark", broker=BROKER, backend=BROKER)
app.conf.update(
    # As the page on Celery recommends for continuable tasks; the plain ones run with them as well.
    task_default_queue="benchmark",
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    worker_prefetch_multiplier=1,
)
runtime = Runtime(os.environ["BENCHMARK_STORE"])


@app.task  # type: ignore[untyped-decorator]  # Celery's
def gate() -> None:
    """Hold a worker until the messages are there."""
    Redis.from_url(BROKER, socket_timeout=None).blpop("benchmark-go")


@app.task  # type: ignore[untyped-decorator]  # Celery's
def plain_nothing() -> None:
    pass


@continuable(app, runtime=runtime)  # type: ignore[untyped-decorator]  # as above
def nothing(ctx: Context) -> None:
    pass


@app.task  # type: ignore[untyped-decorator]  # Celery's
def plain_pieces() -> None:
    for number in range(PIECES):
        work(number)


@continuable(app, runtime=runtime)  # type: ignore[untyped-decorator]  # as above
def pieces(ctx: Context) -> None:
    for number in range(PIECES):
        ctx.step(f"piece {number}", work, number)


def work(number: int) -> None:
    _file(os.getpid()).execute("INSERT INTO pieces VALUES (?)", (number,))


@cache
def _file(pid: int) -> Any:
    folder = os.environ["BENCHMARK_FOLDER"]
    raw = sqlite3.connect(f"{folder}/pieces.{pid}.db", isolation_level=None)
    raw.execute("PRAGMA journal_mode = WAL")
    raw.execute("PRAGMA synchronous = FULL")
    raw.execute("CREATE TABLE IF NOT EXISTS pieces (number INTEGER)")
    return raw
