"""What an application of Procrastinate tells us: what it defers, cancels and ends, and its worker.

All of it is said by wrapping methods of the one application and of its `job_manager`.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from procrastinate import PsycopgConnector, exceptions, utils
from procrastinate.job_context import AbortReason

from tracedjobs._core import values
from tracedjobs._core.records import Status
from tracedjobs._core.waiting import drive, drive_async
from tracedjobs.errors import StoreError
from tracedjobs.queues.base import Continuable, log
from tracedjobs.queues.delivery import Delivery
from tracedjobs.queues.procrastinate_deferring import (
    deferring,
    transaction,
    transaction_async,
    when_committed,
)
from tracedjobs.queues.procrastinate_rows import LIVE, PAUSED_UNTIL, Rows, off_loop
from tracedjobs.queues.recovery import keep_unknown, start_recovery
from tracedjobs.queues.stopping import WorkerStop, at_work, this_worker

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from procrastinate import App, JobContext
    from procrastinate.jobs import Job as Row
    from procrastinate.tasks import Task
    from procrastinate.worker import Worker

__all__ = ["PLAIN", "Adopted", "Back", "Dropped", "adopted", "told"]

PLAIN: Final = "tracedjobs.perform_job"
"""How the names of the tasks begin that are given the id of a job of any function."""
LOOK_EVERY: Final = 0.5
STALLED_EVERY: Final = 10.0
"""Seconds between two looks at aborted jobs, and at rows whose worker is gone."""


class Back(Exception):  # noqa: N818 - no error, but what makes a worker put a row back
    """Ends a delivery whose job goes on: here later, or elsewhere now."""

    def __init__(self, made: Continuable, job_id: str, delay: float, reason: str) -> None:
        super().__init__(f"the job {job_id} is not done yet ({reason})")
        self.made = made
        self.job_id = job_id
        self.reason = reason
        self.elsewhere = reason in {"duplicate", "lease_lost"}
        self.at = utils.utcnow() + timedelta(seconds=delay)


class Dropped(exceptions.JobAborted):
    """Ends a delivery for good, without an error: the job is cancelled, or gone."""


told: Final[ContextVar[Back | None]] = ContextVar("tracedjobs_procrastinate_told", default=None)
"""How the delivery of this task ended, for the `retry_job` that follows."""
_adopted: Final[dict[App, Adopted]] = {}


def adopted(app: App, module: str) -> Adopted:
    """The application, which has no name: that of the module which first makes a task of it."""
    if app not in _adopted:
        _adopted[app] = Adopted(app, module)
    return _adopted[app]


class Adopted:
    """An application that tells us what it does."""

    def __init__(self, app: App, name: str) -> None:
        """Wrap what is asked of it."""
        self.app = app
        self.family = f"procrastinate {name}"
        self.rows = Rows(app)
        self.made: dict[Task[Any, Any, Any], Continuable] = {}
        self._running: dict[int, tuple[Continuable, str, JobContext]] = {}
        self._wrap_manager()
        self._wrap_app()

    def of(self, row: Row) -> tuple[Continuable, Delivery] | None:
        """Whose row it is, if it is a job's, and the message that it makes."""
        task = self.app.tasks.get(row.task_name)
        made = None if task is None else self.made.get(task)
        if made is None:
            return None
        return made, self.delivery(made, row)

    def delivery(self, made: Continuable, row: Row) -> Delivery:
        """The message that a row makes."""
        if made.job is None:
            return Delivery(str(row.task_kwargs["job_id"]))
        return Delivery(str(row.id), (), row.task_kwargs, lambda: _kept(row))

    @contextmanager
    def watched(self, made: Continuable, job_id: str, context: JobContext) -> Iterator[None]:
        """Have the job cancelled when its row is aborted meanwhile: a thread cannot be."""
        self._running[id(context)] = (made, job_id, context)
        try:
            yield
        finally:
            del self._running[id(context)]

    # -- what is deferred ---

    def _wrap_manager(self) -> None:
        manager = self.app.job_manager
        defer, defer_async = manager.batch_defer_jobs, manager.batch_defer_jobs_async
        periodic, retry, finish = (
            manager.defer_periodic_job,
            manager.retry_job,
            manager.finish_job,
        )
        cancel, cancel_async = manager.cancel_job_by_id, manager.cancel_job_by_id_async

        def batch_defer_jobs(jobs: list[Row], connection: Any = None) -> list[Row]:
            if connection is not None or not self._are_ours(jobs):
                # What the caller's transaction may take back is recorded when it arrives.
                return defer(jobs=jobs, connection=connection)
            connector = self.app.connector.get_sync_connector()
            if isinstance(connector, PsycopgConnector):
                return self.rows.ask(
                    lambda: batch_defer_jobs_async(jobs),
                    lambda: utils.async_to_sync(batch_defer_jobs_async, jobs),
                )
            with transaction(connector) as held:
                if held is not None:
                    return drive(deferring(jobs, defer, held, self._record))[0]
                sent = defer(jobs=jobs)
            when_committed(connector, lambda: self._record(sent))
            return sent

        async def batch_defer_jobs_async(jobs: list[Row], connection: Any = None) -> list[Row]:
            if connection is not None or not self._are_ours(jobs):
                return await defer_async(jobs=jobs, connection=connection)
            late: BaseException | None = None
            async with transaction_async(self.app.connector) as held:
                if held is None:
                    sent = await defer_async(jobs=jobs)
                    await off_loop(lambda: self._record(sent))
                else:
                    flow = deferring(jobs, defer_async, held, self._record)
                    sent, late = await drive_async(flow)
            if late is not None:
                raise late
            return sent

        async def defer_periodic_job(job: Row, *args: Any, **options: Any) -> int | None:
            found = await periodic(job, *args, **options)
            if found is not None:
                await off_loop(lambda: self._record_periodic(job.evolve(id=found)))
            return found

        async def retry_job(job: Row, *args: Any, **options: Any) -> None:
            back = told.get()
            if back is None or not (back.elsewhere or self.rows.known):
                await retry(job, *args, **options)
            elif not back.elsewhere:
                await off_loop(lambda: self._put_back(job, back))

        async def finish_job(job: Row, *args: Any, **options: Any) -> None:
            await finish(job, *args, **options)
            if job.task_name not in self.app.tasks:
                await off_loop(lambda: _keep(job))

        def cancel_job_by_id(
            job_id: int, *flags: bool, connection: Any = None, **options: Any
        ) -> bool:
            if connection is not None:  # it may be taken back
                return cancel(job_id, *flags, **{**options, "connection": connection})
            before = manager.list_jobs(id=job_id)
            done = cancel(job_id, *flags, **options)
            if done:
                when_committed(self.app.connector, lambda: self._cancelled(before))
            return done

        async def cancel_job_by_id_async(
            job_id: int, *flags: bool, connection: Any = None, **options: Any
        ) -> bool:
            if connection is not None:
                return await cancel_async(job_id, *flags, **{**options, "connection": connection})
            before = list(await manager.list_jobs_async(id=job_id))
            done = await cancel_async(job_id, *flags, **options)
            if done:
                await off_loop(lambda: self._cancelled(before))
            return done

        for wrapper in (
            batch_defer_jobs,
            batch_defer_jobs_async,
            defer_periodic_job,
            retry_job,
            finish_job,
            cancel_job_by_id,
            cancel_job_by_id_async,
        ):
            setattr(manager, wrapper.__name__, wrapper)

    def _are_ours(self, rows: Sequence[Row]) -> bool:
        """Whether some are to be recorded; raises for arguments that no job can have."""
        ours = False
        for row in rows:
            found = self.of(row)
            if found is not None and found[0].job is not None:
                ours = True
                values.encode(dict(row.task_kwargs), path="arguments")
                found[0].job.signature.bind(None, **row.task_kwargs)
        return ours

    def _record(self, rows: Sequence[Row]) -> list[int]:
        """Record the jobs; the places of those whose number the store has already."""
        taken = []
        for place, row in enumerate(rows):
            found = self.of(row)
            if found is not None and not found[0].publish(found[1], queue=row.queue):
                taken.append(place)
        return taken

    def _record_periodic(self, row: Row) -> None:
        try:
            self._record([row])
        except Exception as error:  # noqa: BLE001 - it would end the worker; the job itself tells it
            log.warning("The periodic job %s is recorded when it runs: %s", row.call_string, error)

    def _cancelled(self, rows: Sequence[Row]) -> None:
        """Cancel the jobs of rows that waited and are cancelled; running ones see to themselves."""
        for row in rows:
            found = self.of(row)
            if found is not None and row.status == "todo":
                found[0].revoked(found[1].job_id)

    def _put_back(self, row: Row, back: Back) -> None:
        assert row.id is not None  # noqa: S101 - it was fetched
        paused = back.reason == "paused"
        status = self.rows.put_back(row.id, PAUSED_UNTIL if paused else back.at, LIVE)
        if status == "aborted":
            back.made.revoked(back.job_id)
        elif paused and not _is_paused(back):
            self.rows.put_back_now(row.id, ("todo",))  # it was resumed before it was put away

    # -- the worker ---

    def _wrap_app(self) -> None:
        app, opened = self.app, self.app.open_async

        def open_async(*args: Any, **options: Any) -> Any:
            with suppress(RuntimeError):
                self.rows.here()
            return opened(*args, **options)

        wrapped: dict[str, Any] = {"open_async": open_async}
        make = getattr(app, "_worker", None)
        if make is None:
            log.warning("Procrastinate shows no worker, so running jobs do not see its stop.")
        else:
            wrapped["_worker"] = lambda **options: self._watched_worker(make(**options))
        for name, wrapper in wrapped.items():
            setattr(app, name, wrapper)

    def _watched_worker(self, worker: Worker) -> Worker:
        stopped: Any = worker.stop
        ran: Any = worker.run

        mine = WorkerStop()

        def told_to_stop() -> None:
            mine.set()
            stopped()

        async def run() -> None:
            before = this_worker()
            at_work(mine)
            self.rows.here()
            if not self.rows.are_in_memory:
                start_recovery(self.family, mine)
            looking = asyncio.create_task(self._look())
            try:
                await ran()
            finally:
                looking.cancel()
                mine.set()
                at_work(before)

        for name, wrapper in {"stop": told_to_stop, "run": run}.items():
            setattr(worker, name, wrapper)
        return worker

    async def _look(self) -> None:
        looks = 0
        while True:
            await asyncio.sleep(LOOK_EVERY)
            looks += 1
            try:
                for made, job_id, context in self._running.copy().values():
                    if context.abort_reason() is AbortReason.USER_REQUEST:
                        await off_loop(lambda made=made, job_id=job_id: made.revoked(job_id))  # type: ignore[misc]  # defaults bind
                if looks % round(STALLED_EVERY / LOOK_EVERY) == 0:
                    for row in await self.app.job_manager.get_stalled_jobs():
                        await off_loop(lambda row=row: self._free(row))  # type: ignore[misc]  # a default binds
            except Exception as error:  # noqa: BLE001 - it is tried again, whatever it was
                log.warning("Aborted and stalled jobs cannot be looked for just now: %s", error)

    def _free(self, row: Row) -> None:
        """Put a row back that a worker had when it was killed, unless the job's run is known.

        Then its lease says whether it lives: that is `recover`'s. Here are those of which there
        was no run yet, or none any more.
        """
        found = self.of(row)
        if found is None or row.id is None:
            return
        made, delivery = found
        stored = made.runtime.store.load(delivery.job_id)
        if stored is None or stored.job.status is not Status.RUNNING:
            log.info("The job %s is put back: its worker is gone.", delivery.job_id)
            if self.rows.put_back_now(row.id, ("doing",)) == "aborted":
                made.revoked(delivery.job_id)


# -- shared ---


def _kept(row: Row) -> dict[str, object]:
    """Of a row, what its job does not know, should it be deleted before the job has ended."""
    return {
        "queue": row.queue,
        "priority": row.priority,
        "lock": row.lock,
        "queueing_lock": row.queueing_lock,
    }


def _keep(row: Row) -> None:
    """See `keep_unknown`."""
    plain = row.task_name.startswith(PLAIN)
    job_id = row.task_kwargs.get("job_id") if plain else row.id
    keep_unknown("procrastinate", str(job_id), row.task_name)


def _is_paused(back: Back) -> bool:
    try:
        stored = back.made.runtime.store.load(back.job_id)
    except StoreError:
        return True
    return stored is not None and stored.job.status is Status.PAUSED


def _without_trace(record: logging.LogRecord) -> bool:
    """What we raise for Procrastinate's ears is no error to be shown to people."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, (Back, Dropped)):
        record.exc_info = None
        record.msg = str(record.msg).replace("Error, to retry", f"Interrupted ({error})")
    return True


logging.getLogger("procrastinate.worker").addFilter(_without_trace)
