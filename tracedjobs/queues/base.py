"""What the adapters of all queues share: a job's record, its delivery, and what comes of that.

A message brings a job to a worker and nothing else: the store holds arguments and progress. So the
rules are the same for every queue, and an adapter only says them in the words of its own.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar, Final, cast

from tracedjobs._core.handing import add_sender
from tracedjobs._core.lease import Taken, begin, loaded, take_lease
from tracedjobs._core.outcome import Outcome
from tracedjobs._core.performing import bound_arguments, perform_taken
from tracedjobs._core.records import JobRecord, Status, Stored
from tracedjobs._core.runtime import Runtime, default_runtime
from tracedjobs._core.submitting import recording
from tracedjobs._core.waiting import Ask, Flow, drive, drive_async
from tracedjobs.errors import (
    InvalidTransitionError,
    JobConflictError,
    JobNotFoundError,
    JobRunningError,
    LeaseLostError,
    StoreError,
    StoreUnavailableError,
    TracedJobsError,
    UnknownJobError,
)
from tracedjobs.queues.answering import is_answered, may_answer, note_answer
from tracedjobs.queues.delivery import (
    Again,
    Delivery,
    Done,
    Over,
    Verdict,
    text_of_message,
)
from tracedjobs.queues.stopping import this_worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from tracedjobs._core.job import Job

__all__ = ["Continuable", "known_continuables", "log"]

AWAY: Final = 5.0
"""Seconds until a message is tried again that came while the store was away."""
LATE: Final = 600.0
"""Seconds after which nothing is on its way to a store any more."""
UNKNOWN: Final = 30.0
"""Seconds until one is tried again whose job function this process does not know."""
CANNOT: Final = frozenset({"store_unavailable", "unknown"})
"""Reasons to go on later that going on at once would not help."""

log: Final = logging.getLogger("tracedjobs")


_known: Final[list[Continuable]] = []


class Continuable(ABC):
    """One task of a queue whose function is a job; an adapter derives from it.

    Without a `job` it stands for the queue itself, whose messages name a job of any function.
    """

    family: str
    """The kind of queue and the name of its application: who has it imported can send its jobs."""
    own_exceptions: ClassVar[tuple[type[BaseException], ...]] = ()
    """What a function of that queue may raise to say something to it: passed on as it is."""
    own_limits: ClassVar[tuple[type[BaseException], ...]] = ()
    """What that queue raises in a function that takes too long, though it is no `Exception`: an
    error of the job as any other."""

    def __init__(self, job: Job[..., Any] | None, runtime: Runtime | None) -> None:
        self.job = job
        self._runtime = runtime

    @property
    def runtime(self) -> Runtime:
        """The one that was given, or the process's default."""
        return self._runtime or default_runtime()

    @property
    @abstractmethod
    def queue(self) -> str:
        """The name of the queue that jobs record."""

    @abstractmethod
    def as_task(self, fn: Callable[..., Any], options: dict[str, Any]) -> Any:
        """What the queue's own decorator makes of the function, with its options."""

    @abstractmethod
    def execute(self, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        """What the task's function does: in a worker a run of its job."""

    async def execute_async(self, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        """See `execute`, for `async def` functions; of queues that run those."""
        raise NotImplementedError

    @abstractmethod
    def send(self, job: JobRecord) -> None:
        """Send a message for that job, with its id, its arguments and what `message` kept."""

    def held(self, jobs: Sequence[JobRecord]) -> Iterable[str] | None:  # noqa: ARG002 - of who asks
        """The ids of the messages that the broker holds, those first that it gives out next.

        Of the queues that `jobs` are of, whose senders have the same application; others may be
        among them. `None` where a worker's kill loses no message, or the broker cannot be asked.
        """
        return None

    def known(self) -> None:
        """Let jobs be handed back with it, from when its task is there."""
        add_sender(self, None if self.job is None else self.job.name)
        _known.append(self)

    def arguments_of(self, job: JobRecord) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What the message of that job carries."""
        return ((), {}) if self.job is None else bound_arguments(self.job, job)

    # -- when a message is published ---

    def publish(self, delivery: Delivery, *, queue: str | None = None) -> bool:
        """Record the job that a message is about to be sent for; `False` if its id is taken.

        Raises what `Runtime.submit` raises for arguments. While the store is away the message is
        sent all the same, and the job recorded when it arrives.
        """
        if self.job is None:
            return True  # recorded by who submitted it
        runtime = self.runtime
        try:
            record = self._new_record(runtime, delivery, queue)
            return runtime.record(record, self.job.options.trace)
        except StoreUnavailableError as error:
            _warn_of_missing(delivery.job_id, error)
            return True

    def start_publishing(
        self, delivery: Delivery, *, queue: str | None = None
    ) -> Callable[[], object]:
        """Begin with what `publish` does, and give what waits for the end of it, to be called once.

        The message is sent in between: so the store is at work while the queue's client is. Should
        it be with a worker before the record is there, that one writes it, as that of a job which
        was sent while the store was away: in a trace of its own, then. A refusal of the store keeps
        the message back no more than its absence: it is a warning, and told by the worker if it
        lasts.
        """
        if self.job is None:
            return _nothing
        runtime, options = self.runtime, self.job.options
        try:
            new = self._new_record(runtime, delivery, queue)
            if options.retention < LATE:
                # One that comes late would not find what the worker wrote, and be that of a job
                # which never ran.
                runtime.record(new, options.trace)
                return _nothing
            recorded = recording(runtime.store, new, options.trace)
        except StoreError as error:
            _warn_of_missing(delivery.job_id, error)
            return _nothing

        def wait() -> None:
            try:
                recorded()
            except StoreError as error:
                _warn_of_missing(delivery.job_id, error)

        return wait

    async def publish_async(self, delivery: Delivery, *, queue: str | None = None) -> None:
        """See `publish`; the event loop goes on meanwhile."""
        import asyncio  # noqa: PLC0415 - doubles the time of an import

        await asyncio.to_thread(self.publish, delivery, queue=queue)

    def revoked(self, job_id: str) -> None:
        """Cancel the job whose message the queue has thrown away, as its user asked for."""
        with suppress(JobNotFoundError, InvalidTransitionError):
            self.runtime.cancel(job_id, by=f"{self.family}: revoked")

    # -- when a message arrives ---

    def answered(self, job_id: str) -> None:
        """The queue was told of the job's end, and has sent all that follows.

        To be called for each delivery that was `followed`; a copy of its message that comes later
        is then not to have it sent once more.
        """
        try:
            note_answer(self.runtime.store, job_id)
        except StoreError as error:
            log.warning(
                "What follows the job %s is sent once more if a copy of its message comes: %s",
                job_id,
                error,
            )

    def deliver(self, delivery: Delivery) -> Verdict:
        """One run of the job, if it may run; raises the job's own error, for the queue to judge.

        An `async def` job that came through a queue of `def` functions runs in a loop of its own.
        """
        return drive(self._flow(delivery, asynchronous=False))

    async def deliver_async(self, delivery: Delivery) -> Verdict:
        """See `deliver`, for `async def` jobs."""
        return await drive_async(self._flow(delivery, asynchronous=True))

    def deliver_to_end(self, delivery: Delivery) -> Done | Over:
        """One run of the job after the other, where its message was sent: no worker goes on later.

        For the modes in which a queue calls its tasks at once, as in tests. Raises the job's own
        error, and `TracedJobsError` if it cannot go on just now.
        """
        return drive(self._flow_to_end(delivery, asynchronous=False))

    async def deliver_to_end_async(self, delivery: Delivery) -> Done | Over:
        """See `deliver_to_end`, for `async def` jobs."""
        return await drive_async(self._flow_to_end(delivery, asynchronous=True))

    def run_here(self, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        """The result of a call of the task's function as it is, without a message."""
        return self._result(self.runtime.perform(self._submitted_here(args, kwargs)))

    async def run_here_async(self, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        """See `run_here`, for `async def` functions."""
        return self._result(await self.runtime.perform_async(self._submitted_here(args, kwargs)))

    # -- its own ---

    def _submitted_here(self, args: tuple[object, ...], kwargs: dict[str, object]) -> str:
        if self.job is None:
            msg = "A queue of jobs has no function to call; submit a job with via= instead."
            raise TypeError(msg)
        return self.runtime.submitted(self.job, args, kwargs, None, None)

    def _result(self, outcome: Outcome) -> object:
        if outcome.ok:
            return outcome.result
        msg = (
            f"The job {outcome.job_id} is {outcome.status} ({outcome.reason}); it was called "
            f"without a queue, so nobody goes on with it but runtime.perform({outcome.job_id!r})."
        )
        raise TracedJobsError(msg) from outcome.error

    def _flow_to_end(self, delivery: Delivery, *, asynchronous: bool) -> Flow[Done | Over]:
        while True:
            verdict = yield from self._flow(delivery, asynchronous=asynchronous)
            if not isinstance(verdict, Again):
                return verdict
            if verdict.reason in CANNOT or this_worker().came:
                msg = (
                    f"The job {delivery.job_id} cannot go on just now ({verdict.reason}), and it "
                    f"runs where it was sent, so no worker goes on with it later; "
                    f"runtime.perform({delivery.job_id!r}) does."
                )
                raise TracedJobsError(msg)

    def _flow(self, delivery: Delivery, *, asynchronous: bool) -> Flow[Verdict]:
        begun = yield from self._begin(delivery)
        if not isinstance(begun, tuple):
            return begun
        taken, job = begun
        runtime, worker = self.runtime, this_worker()
        performing = perform_taken(
            taken,
            store=runtime.store,
            job=job,
            lease_ttl=runtime.lease_ttl,
            stopping=runtime.stopping,
            signals=worker,
            errors=(Exception, *self.own_limits),
        )
        worker.begin(delivery.job_id)
        try:
            if job.is_async and not asynchronous:
                outcome = _run(performing)
            else:
                outcome = yield from performing
        except LeaseLostError as error:
            log.warning("%s", error)
            return Over("lease_lost")
        finally:
            worker.end(delivery.job_id)
        return self._judge(outcome)

    def _begin(self, delivery: Delivery) -> Flow[tuple[Taken, Job[..., Any]] | Verdict]:
        job_id = delivery.job_id
        runtime = self.runtime
        store = runtime.store
        try:
            if self.job is None:
                found = yield Ask(lambda: store.load(job_id))
            else:
                found = yield from begin(store, self.job, job_id, runtime.worker, runtime.lease_ttl)
                if isinstance(found, Taken):
                    return found, self.job
            if not isinstance(found, Stored):
                if self.job is None:
                    log.warning(
                        "The job %s has no record any more; its message is dropped.", job_id
                    )
                    return Over("gone")
                found = yield from self._recorded(runtime, delivery)
            if delivery.again and found.job.status is Status.FAILED and is_answered(found.job):
                return Over("answered")
            job = self.job or runtime.job_named(found.job.name)
            if job.name != found.job.name:
                msg = f"The message {job_id} is for {job.name}; a job {found.job.name} has its id."
                raise JobConflictError(msg)
            taken = yield from take_lease(store, found, job, runtime.worker, runtime.lease_ttl)
            if isinstance(taken, Outcome):
                return (yield from self._completed(taken, delivery))
        except JobRunningError as error:
            log.info("%s The message is a duplicate, and is dropped.", error)
            return Over("duplicate")
        except InvalidTransitionError as error:
            log.info("%s", error)
            now = yield from loaded(store, job_id)
            return Over("cancelled" if now.job.status is Status.CANCELLED else "paused")
        except StoreUnavailableError as error:
            log.warning("The job %s is tried again in %.0f s: %s", job_id, AWAY, error)
            return Again(AWAY, "store_unavailable")
        except UnknownJobError as error:
            log.error(  # noqa: TRY400 - the message says it all
                "The job %s is tried again in %.0f s: %s", job_id, UNKNOWN, error
            )
            return Again(UNKNOWN, "unknown")
        return taken, job

    def _completed(self, outcome: Outcome, delivery: Delivery) -> Flow[Verdict]:
        """What a copy comes to whose job is completed: one of them may have to tell the queue."""
        if not delivery.followed:
            return Done(outcome.result)
        store, patience = self.runtime.store, self.runtime.lease_ttl
        wait = yield Ask(lambda: may_answer(store, outcome.job_id, patience))
        if wait:
            return Again(cast("float", wait), "answering")
        if wait is None:
            log.info("The job %s was answered already.", outcome.job_id)
        return Done(outcome.result, answered=wait is None)

    def _recorded(self, runtime: Runtime, delivery: Delivery) -> Flow[Stored]:
        assert self.job is not None  # noqa: S101 - checked by who calls
        scope = self.job.options.trace
        record = self._new_record(runtime, delivery, None)
        yield Ask(lambda: runtime.record(record, scope))
        return (yield from loaded(runtime.store, record.id))

    def _new_record(self, runtime: Runtime, delivery: Delivery, queue: str | None) -> JobRecord:
        assert self.job is not None  # noqa: S101 - checked by who calls
        return runtime.new_record(
            self.job,
            delivery.args,
            dict(delivery.kwargs),
            delivery.job_id,
            queue=queue or self.queue,
            message=text_of_message(delivery),
            wait=delivery.wait,
        )

    def _judge(self, outcome: Outcome) -> Verdict:
        if outcome.ok:
            return Done(outcome.result)
        if outcome.status is not Status.INTERRUPTED:
            return Over(str(outcome.status))
        if isinstance(outcome.error, self.own_exceptions):
            raise outcome.error
        delay = outcome.resume_in or 0.0
        log.log(
            logging.INFO if outcome.error is None else logging.WARNING,
            "The job %s was interrupted (%s); it goes on in %g s.",
            outcome.job_id,
            outcome.reason,
            delay,
            exc_info=outcome.error,
        )
        return Again(delay, outcome.reason or "")


def _nothing() -> None:
    pass


def _warn_of_missing(job_id: str, error: StoreError) -> None:
    log.warning(
        "The job %s is sent without a record, which is written when it arrives: %s", job_id, error
    )


def _run(performing: Flow[Outcome]) -> Outcome:
    import asyncio  # noqa: PLC0415 - doubles the time of an import

    return asyncio.run(drive_async(performing))


def known_continuables() -> tuple[Continuable, ...]:
    """Those that this process has made."""
    return tuple(_known)
