"""What a worker of RQ is to know of our jobs: its stop, the lost ones, and that a job goes on.

A worker imports no task: the horse does, a process that it forks or spawns for each job. So a horse
learns of the worker's stop from where RQ writes it, in Redis; and only a worker that has imported
the application itself (`rq worker -c tasks`) looks for lost jobs while it has nothing to do.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from rq.exceptions import DeserializationError, InvalidJobOperation
from rq.job import JobStatus, Retry
from rq.rate_limit import release_slot
from rq.worker import BaseWorker

from tracedjobs._core import trace
from tracedjobs.queues.base import known_continuables, log
from tracedjobs.queues.delivery import Again, Over
from tracedjobs.queues.recovery import keep_unknown, start_recovery
from tracedjobs.queues.stopping import stop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    from rq.executions import Execution
    from rq.job import Job
    from rq.queue import Queue

    from tracedjobs.stores.base import Store

__all__ = ["FAMILY", "PutBack", "at_work", "teach_workers"]

FAMILY: Final = "rq"
EVERY: Final = 0.2
"""Seconds between two looks for the worker's stop."""
LONGEST_WAIT: Final = 5.0
"""Seconds that a worker waits with a job in hand where no scheduler takes it."""
LONGEST_SENDING: Final = 1.0
"""Seconds that a horse may take at its end to send spans; who finds the job sends what is left."""
LOADED: Final = "TRACEDJOBS_RQ_WORKER"
"""The variable of the environment with the process id of a worker that has imported us."""


class PutBack(Retry):
    """What a task returns that has no result: `Again`, or `Over`.

    A worker that was not taught takes it for a `Retry`, and puts the job back at once.
    """

    def __init__(self, verdict: Again | Over) -> None:
        super().__init__(max=1_000_000)
        self.verdict = verdict


# -- in the process that runs a job ---


@contextmanager
def at_work(message: Job, store: Store) -> Iterator[None]:
    """While a job runs: see to it that the worker's stop interrupts it."""
    connection: Any = message.connection
    key = BaseWorker.redis_worker_namespace_prefix + (message.worker_name or "")
    worker = int(connection.hget(key, "pid") or 0)
    is_horse = worker not in {0, os.getpid()}
    if os.environ.get(LOADED) != str(worker):
        _recover()
        if is_horse and connection.hsetnx(key, "tracedjobs", "not loaded"):
            log.warning(
                "The RQ worker %s has not imported the application, so it hands no lost job back "
                "while it is idle: start it with `rq worker -c MODULE`.",
                message.worker_name,
            )
    parent = worker if is_horse and os.getppid() == worker else None
    done = threading.Event()
    threading.Thread(
        target=_watch, args=(connection, key, parent, done), name="tracedjobs-rq-stop", daemon=True
    ).start()
    try:
        with _first_term_interrupts():
            yield
    finally:
        done.set()
        if is_horse and trace.installed is not None:
            # A horse ends without the interpreter's end, at which what is left would be sent.
            sending = threading.Thread(target=_send_spans, args=(store,), daemon=True)
            sending.start()
            sending.join(LONGEST_SENDING)


def _send_spans(store: Store) -> None:
    trace.tell(lambda tracing: tracing.closing(store))
    opentelemetry: Any = sys.modules.get("opentelemetry.trace")
    flush = getattr(opentelemetry and opentelemetry.get_tracer_provider(), "force_flush", None)
    if flush is not None:
        flush(int(LONGEST_SENDING * 1000))  # what the job's own code has traced


def _watch(connection: Any, key: str, parent: int | None, done: threading.Event) -> None:
    while not done.wait(EVERY) and not stop.came:
        if parent is not None and os.getppid() != parent:
            # The worker was killed. Nobody could stop this job any more, and RQ will think it dead.
            stop.set()
        with suppress(Exception):  # whatever Redis has, it is asked again
            if connection.hexists(key, "shutdown_requested_date"):
                stop.set()


@contextmanager
def _first_term_interrupts() -> Iterator[None]:
    """SIGTERM to a horse, as to a whole process group, would kill it; the first one is to save."""
    before = signal.getsignal(signal.SIGTERM)
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or before in {signal.SIG_IGN, None}:
        yield
        return
    came = False

    def on_term(number: int, frame: FrameType | None) -> None:
        nonlocal came
        if callable(before):
            stop.set()
            before(number, frame)
        elif came:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        else:
            came = True
            stop.set()

    signal.signal(signal.SIGTERM, on_term)
    try:
        yield
    finally:
        # A horse that was told to end has its job to put back yet.
        if not came and signal.getsignal(signal.SIGTERM) is on_term:
            signal.signal(signal.SIGTERM, before)


# -- in every worker that has imported us ---


def _recover() -> None:
    for family in {each.family for each in known_continuables()}:
        if family.startswith(FAMILY):
            start_recovery(family)


def _leave(worker: BaseWorker, job: Job, queue: Queue, back: PutBack, execution: Execution) -> None:
    """End this execution of the job without a result."""
    job._result = None  # noqa: SLF001 - it would be stored for whoever asks for the result
    verdict = back.verdict
    if isinstance(verdict, Over) and verdict.reason in {"cancelled", "gone"}:
        with suppress(InvalidJobOperation):  # it is
            job.cancel()
    delay = _waited(worker, queue, verdict) if isinstance(verdict, Again) else 0.0
    with worker.connection.pipeline() as pipeline:
        if isinstance(verdict, Again) and delay:
            due = datetime.now(UTC) + timedelta(seconds=delay)
            queue.schedule_job(job, due, pipeline=pipeline)
        elif isinstance(verdict, Again):
            queue._enqueue_job(job, pipeline=pipeline)  # noqa: SLF001 - as RQ puts a Retry back
        elif verdict.reason == "paused" and job.get_status() is JobStatus.STARTED:
            job.set_status(JobStatus.DEFERRED, pipeline=pipeline)
            queue.deferred_job_registry.add(job, pipeline=pipeline)
        if job.ended_at and job.started_at:
            worker.increment_total_working_time(job.ended_at - job.started_at, pipeline)
        worker.cleanup_execution(job, pipeline=pipeline, execution=execution)
        pipeline.execute()
    release_slot(job)


def _waited(worker: BaseWorker, queue: Queue, verdict: Again) -> float:
    """The seconds that are left for a scheduler to wait, once this worker did what it must."""
    if verdict.reason == "stopping" or not verdict.delay:
        return 0.0
    if queue.scheduler_pid is not None:
        return verdict.delay
    give_up = time.monotonic() + min(verdict.delay, LONGEST_WAIT)
    while time.monotonic() < give_up and not stop.came and not worker.shutdown_requested_date:
        time.sleep(EVERY)
    return 0.0


def _unknown_function(job: Job) -> str | None:
    try:
        name = job.func_name
    except DeserializationError:
        return None
    try:
        return name if job.func is None else None
    except Exception:  # noqa: BLE001 - whatever its module raises when it is imported
        return name


def teach_workers(is_ours: Callable[[Job], bool], answered: Callable[[Job], None]) -> None:
    """Have the workers of this process, and their horses, know what a `PutBack` is, and us.

    `answered` is called when they are done with a job that did well.
    """
    bootstrap, handle_exception = BaseWorker.bootstrap, BaseWorker.handle_exception
    handle_job_retry, handle_job_success = (
        BaseWorker.handle_job_retry,
        BaseWorker.handle_job_success,
    )
    handle_killed: Callable[..., None] = BaseWorker.handle_work_horse_killed

    def our_bootstrap(self: BaseWorker, *args: Any, **options: Any) -> None:
        bootstrap(self, *args, **options)
        os.environ[LOADED] = str(os.getpid())
        _recover()

    def our_handle_exception(self: BaseWorker, job: Job, *error: Any) -> None:
        handle_exception(self, job, *error)
        unknown = _unknown_function(job)
        if unknown is not None:
            keep_unknown(FAMILY, job.id, unknown)

    def our_handle_job_retry(self: BaseWorker, /, **told: Any) -> None:
        if isinstance(told["retry"], PutBack):
            _leave(self, told["job"], told["queue"], told["retry"], told["execution"])
        else:
            handle_job_retry(self, **told)

    def our_handle_job_success(self: BaseWorker, job: Job, *args: Any, **told: Any) -> None:
        handle_job_success(self, job, *args, **told)
        answered(job)

    def our_handle_killed(self: BaseWorker, job: Job, *how: Any) -> None:
        handle_killed(self, job, *how)
        if is_ours(job):
            # RQ takes a retry for it, if there is one, and else calls the job failed.
            job.retries_left = (job.retries_left or 0) + 1

    _replace("bootstrap", our_bootstrap)
    _replace("handle_work_horse_killed", our_handle_killed)
    _replace("handle_exception", our_handle_exception)
    _replace("handle_job_retry", our_handle_job_retry)
    _replace("handle_job_success", our_handle_job_success)


def _replace(name: str, method: Callable[..., None]) -> None:
    setattr(BaseWorker, name, method)
