"""Procrastinate for the conformance suite: a PostgreSQL database, `def` functions on threads."""

from __future__ import annotations

import inspect
import os
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import psycopg
from procrastinate.jobs import Status
from procrastinate.schema import SchemaManager

from tests.processes import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from procrastinate import App

    from tracedjobs import JobSnapshot

__all__ = ["OnProcrastinate", "Sent", "database", "template"]

FINAL: Final = frozenset({Status.SUCCEEDED, Status.FAILED, Status.CANCELLED, Status.ABORTED})
SOURCE: Final = """
from procrastinate import App, PsycopgConnector, RetryStrategy

class InImports(App):
    # Procrastinate has no default queue but "default"; the suite's jobs are in "imports".
    def task(self, *args, **options):
        return super().task(*args, **{{"queue": "imports", **options}})

app = InImports(connector=PsycopgConnector(conninfo={address!r}, min_size=1, max_size=4))
"""


@dataclass(frozen=True)
class Sent:
    """What stands for a handle: Procrastinate gives the number of the row, and keeps no results."""

    row: int
    app: App
    job: Callable[[], JobSnapshot]

    def status(self) -> Status:
        return self.app.job_manager.get_job_status(self.row)


@dataclass
class OnProcrastinate:
    """See `harness.Kind`."""

    address: str
    more: str = ""
    options: tuple[str, ...] = ()
    module: str = "procrastinate"
    retries: str = "retry=2"
    ready: str = "Starting worker on all queues"
    opened: list[App] = field(default_factory=list)

    def app(self, folder: Path) -> str:
        return SOURCE.format(address=self.address)

    def command(self, module: str) -> list[str]:
        worker = [sys.executable, "-m", "procrastinate", f"--app={module}.app", "worker"]
        # What goes on later is found by the worker's polls.
        return [*worker, "-c", "2", "-p", "0.1", *self.options]

    def send(self, task: Any, *args: object, **kwargs: object) -> Sent:
        return self._sent(task, self.opened_app(task).tasks[task.name].configure(), args, kwargs)

    def send_later(self, task: Any, seconds: float, *args: object) -> Sent:
        self.opened_app(task)
        later = task.configure(schedule_in={"milliseconds": round(seconds * 1000)})
        return self._sent(task, later, args, {})

    def _sent(self, task: Any, deferrer: Any, args: Any, kwargs: Any) -> Sent:
        named = inspect.signature(task.func).bind(*args, **kwargs).arguments
        row = deferrer.defer(**named)
        made = self.opened_app(task)
        return Sent(row, made, lambda: runtime_of(task).get(str(row)))

    def opened_app(self, task: Any) -> App:
        app: App = task.blueprint
        if app not in self.opened:
            self.opened.append(app.open())
        return app

    def id_of(self, handle: Sent) -> str:
        return str(handle.row)

    def result(self, handle: Sent) -> object:
        status = until(
            lambda: (found := handle.status()) in FINAL and found, "the row is in a final status"
        )
        job = handle.job()
        if status is Status.SUCCEEDED:
            return job.result
        msg = f"the row is {status}, the job {job.status}: {job.error}"
        raise RuntimeError(msg)

    def deliver_again(self, task: Any, job_id: str, *args: object) -> None:
        """As a look for stalled jobs does that takes a worker for dead; a row is only one."""
        with psycopg.connect(self.address, autocommit=True) as connection:
            again = (
                "UPDATE procrastinate_jobs SET status = 'todo' WHERE id = %s AND status <> 'todo'"
            )
            until(lambda: connection.execute(again, [int(job_id)]).rowcount, "it was taken")

    def close(self, app: object = None) -> None:
        while self.opened:
            self.opened.pop().close()


def runtime_of(task: Any) -> Any:
    from tracedjobs.queues.procrastinate_app import _adopted  # noqa: PLC0415 - where tasks are known

    return _adopted[task.blueprint].made[task].runtime


def template(server: str) -> str:
    """Make a database with Procrastinate's tables, to be copied; its name."""
    name = "procrastinate_template"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    with psycopg.connect(f"{server} dbname={name}", autocommit=True) as connection:
        connection.execute(SchemaManager.get_schema())
    return name


@contextmanager
def database(server: str, copied: str) -> Iterator[str]:
    """A copy of that database, which must be left without a connection; its address."""
    name = f"tj{os.urandom(6).hex()}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {copied}")
        yield f"{server} dbname={name}"
        left = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s"
        until(lambda: connection.execute(left, [name]).fetchone() == (0,), "no connection is left")
        connection.execute(f"DROP DATABASE {name}")
