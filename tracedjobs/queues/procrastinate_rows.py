"""The rows of Procrastinate's table, its messages: put back as they were, from any thread.

Its own `retry_job` counts an attempt, leaves workers to find the row at their next poll, and takes
none but rows that are being done or have failed. So there are statements of our own here, for the
table as it was tried; where it is not known, `retry_job` has to do.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import wait
from contextvars import copy_context
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, TypeVar

from procrastinate import exceptions
from procrastinate.testing import InMemoryConnector
from procrastinate.utils import utcnow

from tracedjobs._core.waiting import Ask, Flow, drive_async
from tracedjobs.queues.versions import check_version

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence

    from procrastinate import App

__all__ = ["ANY", "LIVE", "PAUSED_UNTIL", "Rows", "off_loop"]

T = TypeVar("T")
MAJORS: Final = (3,)
PATIENCE: Final = 1.0
"""Seconds until it is seen that the event loop which was to answer runs no more."""
PAUSED_UNTIL: Final = datetime(9000, 1, 1, tzinfo=UTC)
"""When a paused job's row is scheduled. Not `infinity`, which psycopg cannot read as a date."""
LIVE: Final = ("todo", "doing")
ANY: Final = (*LIVE, "failed", "succeeded")
"""All but those that a user took away: cancelled and aborted rows stay so."""

PUT_BACK: Final = """
WITH back AS (
    UPDATE procrastinate_jobs AS job
    SET status = CASE WHEN abort_requested THEN 'aborted' ELSE 'todo' END::procrastinate_job_status,
        scheduled_at = %(at)s,
        abort_requested = false,
        worker_id = NULL,
        -- Held by at most one that waits: whoever came while this one ran has it now.
        queueing_lock = CASE WHEN EXISTS (
            SELECT 1 FROM procrastinate_jobs AS other
            WHERE other.queueing_lock = job.queueing_lock
                AND other.status = 'todo' AND other.id <> job.id
        ) THEN NULL ELSE queueing_lock END
    WHERE id = %(row)s AND status = ANY(%(from_)s::procrastinate_job_status[])
    RETURNING id, queue_name, status,
        json_build_object('type', 'job_inserted', 'job_id', id)::text AS told
)
SELECT status::text AS status,
    pg_notify('procrastinate_queue_v1#' || queue_name, told),
    pg_notify('procrastinate_any_queue_v1', told)
FROM back
"""
INSERT: Final = """
INSERT INTO procrastinate_jobs
    (id, task_name, args, queue_name, priority, lock, queueing_lock)
VALUES (%(row)s, %(task)s, %(args)s, %(queue)s, %(priority)s, %(lock)s, %(queueing_lock)s)
ON CONFLICT DO NOTHING
RETURNING id
"""
FIND: Final = """
SELECT id FROM procrastinate_jobs WHERE status = 'todo' AND queueing_lock = %(queueing_lock)s
UNION ALL
SELECT id FROM procrastinate_jobs
WHERE status = 'doing' AND task_name = ANY(%(tasks)s) AND args->>'job_id' = %(job_id)s
"""


class Rows:
    """The rows of one application's database."""

    def __init__(self, app: App) -> None:
        """Check the version; nothing is opened."""
        self._app = app
        self._known = check_version(
            "procrastinate",
            MAJORS,
            "its worker's stop may not be seen, and interruptions may count as attempts",
        )
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def known(self) -> bool:
        """Whether there is a table to which statements of ours can be sent."""
        return self._known and not self.are_in_memory

    @property
    def are_in_memory(self) -> bool:
        """Whether there is no database, as in tests: there a worker ends when no row is due."""
        return isinstance(self._app.connector, InMemoryConnector)

    def here(self) -> None:
        """Note the event loop of this thread: it is the one that the connections belong to."""
        self._loop = asyncio.get_running_loop()

    def ask(self, coroutine: Callable[[], Coroutine[Any, Any, T]], plain: Callable[[], T]) -> T:
        """The one in the application's event loop, from another thread; without a loop the other.

        An application that is not open, as in a command that steers jobs, is opened for it.
        """
        loop = self._loop
        if loop is not None and loop.is_running() and not _in_a_loop():
            asked = asyncio.run_coroutine_threadsafe(coroutine(), loop)
            while loop.is_running() and not asked.done():
                wait([asked], timeout=PATIENCE)
            return asked.result(timeout=0)
        try:
            return plain()
        except exceptions.AppNotOpen:
            with self._app.open():
                return plain()

    def put_back(self, row: int, at: datetime, from_: Sequence[str]) -> str | None:
        """Have the row done at that time, if it has one of these statuses; its status after it.

        `None` where there is no such row. One that was asked to abort is aborted.
        """
        if not self.known:
            manager = self._app.job_manager
            self.ask(
                lambda: manager.retry_job_by_id_async(row, at),
                lambda: manager.retry_job_by_id(row, at),
            )
            return "todo"
        for changed in self._all(PUT_BACK, row=row, at=at, from_=list(from_)):
            return str(changed["status"])
        return self.status(row)

    def status(self, row: int) -> str | None:
        """The row's status, if there is one of that number."""
        manager = self._app.job_manager
        listed = self.ask(lambda: manager.list_jobs_async(row), lambda: manager.list_jobs(row))
        for found in listed:
            return found.status
        return None

    def found(self, tasks: Sequence[str], job_id: str, queueing_lock: str) -> int | None:
        """The row, waiting or being done, of a task that is given a job's id."""
        if not self.known:
            return None
        given = {"tasks": list(tasks), "job_id": job_id, "queueing_lock": queueing_lock}
        for found in self._all(FIND, **given):
            return int(found["id"])
        return None

    def insert(
        self, row: int, task: str, args: Mapping[str, object], kept: Mapping[str, object]
    ) -> None:
        """Make a row again that was deleted, under its number."""
        if not self.known:
            msg = f"the row {row} is gone, and this version has no way to make it again"
            raise LookupError(msg)
        unset = {"priority": 0, "lock": None, "queueing_lock": None}
        self._all(INSERT, row=row, task=task, args=dict(args), **{**unset, **kept})

    def put_back_now(self, row: int, from_: Sequence[str]) -> str | None:
        """See `put_back`."""
        return self.put_back(row, utcnow(), from_)

    def _all(self, query: Any, **arguments: Any) -> list[dict[str, Any]]:
        connector = self._app.connector
        return self.ask(
            lambda: connector.execute_query_all_async(query, **arguments),
            lambda: connector.get_sync_connector().execute_query_all(query, **arguments),
        )


async def off_loop(work: Callable[[], T]) -> T:
    """What blocks, in another thread, but with this task's context variables.

    Not in the loop's default executor: that may be full of the worker's own tasks.
    """
    context = copy_context()

    def asking() -> Flow[Any]:
        return (yield Ask(lambda: context.run(work)))

    answer: T = await drive_async(asking())
    return answer


def _in_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
