"""The Celery application of `benchmarks.queues`: each task plain, continuable, and with notes.

`work` is one piece of work that is durable when it returns: a row in a SQLite file of the worker
process's own, committed with `synchronous=FULL`. The plain task notes no progress beside it, so it
does all five again when it is killed; the continuable one does them as steps.

The tasks with notes are plain ones that write as often as a continuable one has to, and no more: a
note when it is sent, when a worker has it, after each piece, and at the end. Each is the cheapest
durable write there is in the same store, a bare `SET` or a row's commit, and nothing reads them: no
lease, no fence, no metrics. So they are the floor below which no such task can be.
"""

from __future__ import annotations

import os
import sqlite3
from functools import cache
from typing import Any

from celery import Celery
from celery.utils import uuid
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


class Noted(app.Task):  # type: ignore[misc, name-defined]  # Celery's
    """The base of tasks with notes: the first is made before the message is sent."""

    def apply_async(self, *args: Any, **options: Any) -> Any:
        """Note it, and send it."""
        task_id = uuid()
        note(task_id, "sent")
        return super().apply_async(*args, task_id=task_id, **options)


@app.task(base=Noted, bind=True)  # type: ignore[untyped-decorator]  # Celery's
def noted_nothing(self: Any) -> None:
    note(self.request.id, "began")
    note(self.request.id, "ended")


@app.task(base=Noted, bind=True)  # type: ignore[untyped-decorator]  # Celery's
def noted_pieces(self: Any) -> None:
    note(self.request.id, "began")
    for number in range(PIECES):
        work(number)
        note(self.request.id, f"piece {number}")
    note(self.request.id, "ended")


def note(task_id: str, text: str) -> None:
    notes = _notes()
    if isinstance(notes, Redis):
        notes.set(task_id, text)
    else:
        notes.execute("INSERT OR REPLACE INTO notes VALUES (?, ?)", (task_id, text))


@cache
def _notes() -> Redis | sqlite3.Connection:
    if not os.environ["BENCHMARK_STORE"].startswith("sqlite"):
        return Redis.from_url(BROKER)
    raw = _opened("notes.db")
    raw.execute("CREATE TABLE IF NOT EXISTS notes (id TEXT PRIMARY KEY, note TEXT)")
    return raw


def work(number: int) -> None:
    _file(os.getpid()).execute("INSERT INTO pieces VALUES (?)", (number,))


@cache
def _file(pid: int) -> sqlite3.Connection:
    raw = _opened(f"pieces.{pid}.db")
    raw.execute("CREATE TABLE IF NOT EXISTS pieces (number INTEGER)")
    return raw


def _opened(name: str) -> sqlite3.Connection:
    path = f"{os.environ['BENCHMARK_FOLDER']}/{name}"
    raw = sqlite3.connect(path, isolation_level=None)
    raw.execute("PRAGMA journal_mode = WAL")
    raw.execute("PRAGMA synchronous = FULL")
    return raw
