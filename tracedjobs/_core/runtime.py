"""`Runtime`: where jobs are kept and run. A face over the flows and rules of the other modules."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from tracedjobs._core import controls, counting, trace, values
from tracedjobs._core.controls import FROM_START
from tracedjobs._core.handing import hand_back, hand_back_waiting
from tracedjobs._core.job import Job, find_job, known_jobs
from tracedjobs._core.lease import is_lost
from tracedjobs._core.options import Duration, seconds
from tracedjobs._core.owner import worker_name
from tracedjobs._core.performing import perform, release
from tracedjobs._core.records import READ_FROM_TIME, JobRecord, Status, Stored
from tracedjobs._core.saver import saver
from tracedjobs._core.signals import StopSignals
from tracedjobs._core.waiting import drive, drive_async
from tracedjobs.errors import JobConflictError, JobNotFoundError, TracedJobsError, UnknownJobError
from tracedjobs.events import notify
from tracedjobs.stores import Store, open_store

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from tracedjobs._core.handing import Sender
    from tracedjobs._core.outcome import Outcome
    from tracedjobs._core.run import Stopping
    from tracedjobs._core.snapshot import JobSnapshot
    from tracedjobs._core.trace import Scope
    from tracedjobs._core.waiting import Flow
    from tracedjobs.stores.base import Creating

__all__ = ["Runtime", "configure", "default_runtime"]

DEFAULT_STORE: Final = "sqlite:///tracedjobs.db"
MAX_ID: Final = 255


class Runtime:
    """Submits, performs and looks after the jobs of one store.

    - `store`: an address, `sqlite:///jobs.db` or `memory://`, or a `Store`.
    - `lease_ttl`: seconds by which a run's lease outlives its last renewal; 0.5 or more.
    - `stopping`: a callable given the running `ctx`, consulted at every checkpoint; `True`
      interrupts with reason `stopping`, a text with that reason.
    - `modules`: names of modules to import when a job's function is not known yet.
    - `handle_signals`: while `perform` runs in the main thread, the first SIGTERM or SIGINT
      interrupts the run, and the second ends the process. Off the main thread nothing is
      installed. `perform_async` watches SIGTERM alone, and leaves SIGINT to asyncio.
    - `worker`: this process's name in records; default host and pid.
    - `queue`: what `queue(app)` of a module of `tracedjobs.queues` made: submitted jobs are handed
      to it.

    Raises `StoreError` for an address that is malformed. Methods that name a job raise
    `JobNotFoundError` when the store has none of that id.
    """

    def __init__(
        self,
        store: str | Store | None = None,
        *,
        lease_ttl: Duration = 30.0,
        stopping: Stopping | None = None,
        modules: Sequence[str] = (),
        handle_signals: bool = True,
        worker: str | None = None,
        queue: Sender | None = None,
    ) -> None:
        """Remember the settings; the store is opened at the first use."""
        self.lease_ttl = seconds(lease_ttl, "lease_ttl")
        if self.lease_ttl < 0.5:  # noqa: PLR2004 - said above
            msg = f"lease_ttl={lease_ttl!r} is too short to be renewed in time; take 0.5 s or more."
            raise ValueError(msg)
        if store is None:
            store = os.environ.get("TRACEDJOBS_STORE") or DEFAULT_STORE
        # No call may block for so long that the lease ends meanwhile.
        self.store = (
            open_store(store, timeout=self.lease_ttl / 8) if isinstance(store, str) else store
        )
        if stopping is not None and not callable(stopping):
            msg = f"stopping={stopping!r} must be a callable that is given ctx."
            raise TypeError(msg)
        self._stopping = stopping
        if isinstance(modules, str):
            msg = f"modules={modules!r} must be a sequence of names; write modules=[{modules!r}]."
            raise TypeError(msg)
        self._modules = tuple(modules) + tuple(
            each.strip()
            for each in os.environ.get("TRACEDJOBS_MODULES", "").split(",")
            if each.strip()
        )
        self._handle_signals = handle_signals
        self._worker = worker
        self._queue = queue

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """See `close`."""
        self.close()

    def __repr__(self) -> str:
        """Its store's address, without secrets."""
        return f"<Runtime {self.store.url}>"

    @property
    def worker(self) -> str:
        """This process's name in records."""
        return self._worker or worker_name()

    # -- running ---

    def submit(
        self,
        job: Job[..., Any],
        /,
        *args: object,
        job_id: str | None = None,
        via: Sender | None = None,
        **kwargs: object,
    ) -> str:
        """Record a job as pending, and hand it to a queue if there is one; its id.

        `job_id` makes it idempotent: a job of that id with the same name and arguments is left as
        it is, and sent to its queue again while it waits. `via` is the queue, in place of the
        runtime's own. Raises `JobConflictError` when it has others, `TypeError` when the arguments
        do not fit the function, `SerializationError` when one cannot be stored.
        """
        return self.submitted(job, args, kwargs, job_id, via or self._queue)

    def submitted(
        self,
        job: Job[..., Any],
        args: tuple[object, ...],
        kwargs: dict[str, object],
        job_id: str | None,
        via: Sender | None,
    ) -> str:
        """See `submit`; without `via` the job is for no queue."""
        if not isinstance(job, Job):
            msg = f"submit takes a job, a function decorated with @job; found {job!r}."
            raise TypeError(msg)
        queue = None if via is None else via.queue
        record = self.new_record(job, args, kwargs, job_id, queue=queue)
        if self.record(record, job.options.trace):
            if via is not None:
                via.send(record)
            return record.id
        there = self._load(record.id).job
        if there.name != record.name or _canonical(there) != _canonical(record):
            what = "other arguments" if there.name == record.name else f"the name {there.name!r}"
            msg = (
                f"The job {record.id} exists already with {what}; take another job_id, or submit "
                f"it as it was."
            )
            raise JobConflictError(msg)
        if via is not None:
            hand_back(self.store, record.id)
        return record.id

    def perform(self, job_id: str, *, stopping: Stopping | None = None) -> Outcome:
        """One run of the job, here: until it ends or is interrupted.

        A completed job is not run again: its outcome is returned. An error of the job that is not
        turned into an interruption is raised, after the job was recorded as failed. Raises
        `JobRunningError` while another run has the job, `InvalidTransitionError` for a paused or
        cancelled one, `UnknownJobError` when its function is not known, `LeaseLostError` when
        another run took it over, `ResumeLimitError` when it was resumed too often, and `TypeError`
        for an `async def` job.
        """
        job = self.job_named(self._load(job_id).job.name)
        if job.is_async:
            msg = f"{job.name} is an async def job; use perform_async or run_async."
            raise TypeError(msg)
        if not self._handle_signals:
            return drive(self._flow(job, job_id, stopping))
        with StopSignals() as signals:
            return drive(self._flow(job, job_id, stopping, signals))

    async def perform_async(self, job_id: str, *, stopping: Stopping | None = None) -> Outcome:
        """See `perform`, for `async def` jobs; raises `TypeError` for the other kind."""
        import signal  # noqa: PLC0415 - not needed to submit

        job = self.job_named(self._load(job_id).job.name)
        if not job.is_async:
            msg = f"{job.name} is a def job; use perform or run."
            raise TypeError(msg)
        if not self._handle_signals:
            return await drive_async(self._flow(job, job_id, stopping))
        with StopSignals((signal.SIGTERM,)) as signals:
            return await drive_async(self._flow(job, job_id, stopping, signals))

    # -- looking ---

    def get(self, job_id: str) -> JobSnapshot:
        """The job as it is now, as far as it was saved."""
        return self._snapshot(self._load(job_id))

    def list(
        self,
        *,
        status: str | None = None,
        name: str | None = None,
        limit: int = 50,
        before: str | None = None,
    ) -> Sequence[JobSnapshot]:
        """Up to `limit` jobs, newest first; those of a status or name alone, where one is given.

        `status` may be `lost` or `stalled` too. For the next page give the last job's id as
        `before`. Raises `ValueError` for an unknown status or a limit below 1, and
        `JobNotFoundError` when the job `before` is gone, so that a list never ends early unnoticed.
        """
        if limit < 1:
            msg = f"limit={limit} must be 1 or more."
            raise ValueError(msg)
        if status is not None and status in READ_FROM_TIME:
            page = self._running_and(status, name, limit, before)
        else:
            known = None if status is None else _status(status)
            found = self.store.page(status=known, name=name, before=before, limit=limit)
            page = [self._snapshot(stored) for stored in found]
        if not page and before is not None:
            self._load(before)
        return page

    # -- control ---

    def pause(self, job_id: str, *, by: str | None = None) -> JobSnapshot:
        """Pause the job: an idle one at once, a running one at its next checkpoint.

        `by` is who asked, for the record; default the user and host. The same for the others.
        Raises `InvalidTransitionError` when the job's status does not allow it.
        """
        controls.pause(self.store, job_id, by)
        return self.get(job_id)

    def resume(self, job_id: str, *, by: str | None = None) -> JobSnapshot:
        """Let a paused job run again; of a queue's job that waits, send the message again."""
        controls.resume(self.store, job_id, by)
        hand_back(self.store, job_id)
        return self.get(job_id)

    def cancel(self, job_id: str, *, by: str | None = None) -> JobSnapshot:
        """Cancel the job: an idle one at once, a running one at its next checkpoint."""
        controls.cancel(self.store, job_id, by)
        return self.get(job_id)

    def retry(self, job_id: str, *, by: str | None = None) -> JobSnapshot:
        """Let a failed job run again, from where it failed."""
        controls.retry(self.store, job_id, by)
        hand_back(self.store, job_id)
        return self.get(job_id)

    def rewind(
        self, job_id: str, step: str, cursor: object = FROM_START, *, by: str | None = None
    ) -> JobSnapshot:
        """Send an idle job back to `cursor` of `step`; that step and later ones are done again.

        Without a cursor the step begins as if it had never run. State stays as it is.
        """
        controls.rewind(self.store, job_id, step, cursor, by)
        hand_back(self.store, job_id)
        return self.get(job_id)

    def recover(self, *, by: str | None = None) -> Sequence[str]:
        """Mark jobs whose process died as interrupted, so that they can go on; their ids.

        Those of queues whose tasks this process has imported are handed back to them, and so are
        others of theirs whose message got lost.
        """
        found = controls.recover(self.store, by)
        hand_back_waiting(self.store)
        return found

    def purge(self, *, limit: int = 1000) -> int:
        """Delete up to `limit` ended jobs whose retention is over; how many there were.

        Workers do this by themselves.
        """
        return self.store.purge(limit=limit)

    def close(self) -> None:
        """Interrupt the runs that are left, save them, and let go of the store."""
        mine = [run for run in saver.runs() if run.store is self.store]
        for run in mine:
            run.request_stop("stopping")
        give_up = time.monotonic() + min(self.lease_ttl / 3, 5.0)
        while any(not run.ended for run in mine) and time.monotonic() < give_up:
            time.sleep(0.01)
        for run in mine:
            if not run.ended:
                release(run)
        trace.tell(lambda tracing: tracing.closing(self.store))
        self.store.close()

    # -- for queues ---

    def record(self, record: JobRecord, scope: Scope) -> bool:
        """Keep a new job and tell of it; `False` when there is one of that id."""
        with trace.submitting(record, scope) as text:
            new = record if text is None else replace(record, trace=text)
            made = self.store.create(new, counting.submitted(record))
        return _told(record, made)

    def recording(self, record: JobRecord, scope: Scope) -> Callable[[], bool]:
        """Begin to `record` a job, and give what waits until that is done, to be called once."""
        creating: Creating | None = getattr(self.store, "creating", None)
        if creating is None:
            made = self.record(record, scope)
            return lambda: made
        with trace.submitting(record, scope) as text:
            new = record if text is None else replace(record, trace=text)
            answer = creating(new, counting.submitted(record))
        return lambda: _told(record, answer())

    def new_record(
        self,
        job: Job[..., Any],
        args: tuple[object, ...],
        kwargs: dict[str, object],
        job_id: str | None,
        *,
        queue: str | None = None,
        message: str | None = None,
        wait: float = 0.0,
    ) -> JobRecord:
        """A job that is not kept yet; raises what `submit` raises for arguments and ids.

        `wait`: seconds before which its queue is not to bring it to a worker.
        """
        arguments = _named_arguments(job, args, kwargs)
        now = self.store.time()
        deadline = job.options.deadline
        return JobRecord(
            id=_checked_id(job_id),
            name=job.name,
            queue=queue,
            message=message,
            hand_at=None if queue is None else now + max(wait, 0.0) + self.lease_ttl,
            arguments=values.encode(arguments, path="arguments"),
            submitted_at=now,
            deadline_at=None if deadline is None else now + deadline,
            retention=job.options.retention,
            steps_expected=job.options.steps or self.store.steps_of_last_completed(job.name),
        )

    def job_named(self, name: str) -> Job[..., Any]:
        """The job function of that name, from this process's modules; or `UnknownJobError`."""
        for module in self._modules:
            if name in known_jobs():
                break
            try:
                import_module(module)
            except ImportError as error:
                msg = (
                    f"The module {module!r}, named in modules= or TRACEDJOBS_MODULES, cannot be "
                    f"imported: {error}."
                )
                raise UnknownJobError(msg) from error
        return find_job(name)

    @property
    def stopping(self) -> Sequence[Stopping]:
        """Who is asked at every checkpoint whether to stop."""
        return () if self._stopping is None else (self._stopping,)

    # -- its own ---

    def _flow(
        self,
        job: Job[..., Any],
        job_id: str,
        stopping: Stopping | None,
        signals: StopSignals | None = None,
    ) -> Flow[Outcome]:
        asked = [each for each in (self._stopping, stopping) if each is not None]
        return perform(
            store=self.store,
            job=job,
            job_id=job_id,
            worker=self.worker,
            lease_ttl=self.lease_ttl,
            stopping=asked,
            signals=signals,
        )

    def _load(self, job_id: str) -> Stored:
        stored = self.store.load(job_id)
        if stored is None:
            msg = f"There is no job {job_id!r} in {self.store.url}."
            raise JobNotFoundError(msg)
        return stored

    def _snapshot(self, stored: Stored) -> JobSnapshot:
        from tracedjobs._core.snapshot import snapshot_of  # noqa: PLC0415 - for who looks at jobs

        return snapshot_of(
            stored,
            lost=is_lost(self.store, stored.job),
            heartbeat=self.store.heartbeat(stored.job),
        )

    def _running_and(
        self, state: str, name: str | None, limit: int, before: str | None
    ) -> Sequence[JobSnapshot]:
        found: list[JobSnapshot] = []
        while len(found) < limit:
            page = self.store.page(status=Status.RUNNING, name=name, before=before, limit=limit)
            snapshots = [self._snapshot(stored) for stored in page]
            found += [each for each in snapshots if getattr(each, state)]
            if len(page) < limit:
                break
            before = page[-1].job.id
        return found[:limit]


_configured: Runtime | None = None
_implicit: tuple[tuple[str | None, str], Runtime] | None = None


def configure(
    store: str | Store | None = None,
    *,
    lease_ttl: Duration = 30.0,
    stopping: Stopping | None = None,
    modules: Sequence[str] = (),
    handle_signals: bool = True,
    worker: str | None = None,
    queue: Sender | None = None,
) -> Runtime:
    """Make the process's default runtime; takes what `Runtime` takes, and returns it."""
    global _configured  # noqa: PLW0603 - the one default
    _configured = Runtime(
        store,
        lease_ttl=lease_ttl,
        stopping=stopping,
        modules=modules,
        handle_signals=handle_signals,
        worker=worker,
        queue=queue,
    )
    return _configured


def default_runtime() -> Runtime:
    """The process's default runtime: the configured one.

    Without one, a runtime on `TRACEDJOBS_STORE`, else on `tracedjobs.db` in the working directory;
    the same one for as long as these two stay as they are.
    """
    global _implicit  # noqa: PLW0603 - made when it is first asked for
    if _configured is not None:
        return _configured
    key = (os.environ.get("TRACEDJOBS_STORE"), str(Path.cwd()))
    if _implicit is None or _implicit[0] != key:
        _implicit = (key, Runtime())
    return _implicit[1]


def _told(record: JobRecord, made: bool) -> bool:  # noqa: FBT001 - what the store answered
    if made:
        notify("job_submitted", job=record.name, job_id=record.id, run=0)
    return made


def _named_arguments(
    job: Job[..., Any], args: tuple[object, ...], kwargs: dict[str, object]
) -> dict[str, object]:
    names = job.plain_parameters
    if names is not None and len(names) == len(args) and not kwargs:
        return dict(zip(names, args, strict=True))  # as nearly always
    try:
        bound = job.signature.bind(None, *args, **kwargs)
    except TypeError as error:
        msg = f"These arguments do not fit {job.name}{job.signature}: {error}."
        raise TypeError(msg) from None
    ctx_name = next(iter(job.signature.parameters))
    return {name: value for name, value in bound.arguments.items() if name != ctx_name}


def _canonical(record: JobRecord) -> str:
    # Equal for dicts that differ in order alone; as text, for 1, 1.0 and True are equal otherwise.
    return json.dumps(json.loads(record.arguments), sort_keys=True)


def _checked_id(job_id: str | None) -> str:
    if job_id is None:
        from uuid import uuid4  # noqa: PLC0415 - a slow import

        return str(uuid4())
    if (
        not isinstance(job_id, str)
        or not job_id
        or len(job_id) > MAX_ID
        or not job_id.isprintable()
    ):
        msg = f"job_id={job_id!r} must be a printable text of 1 to {MAX_ID} characters."
        raise TracedJobsError(msg)
    return job_id


def _status(status: str) -> Status:
    try:
        return Status(status)
    except ValueError:
        known = ", ".join([*(str(each) for each in Status), *READ_FROM_TIME])
        msg = f"status={status!r} is none of {known}."
        raise ValueError(msg) from None
