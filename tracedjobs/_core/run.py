"""One run of a job, from its lease to its last save: what it knows, and what may stop it.

The job's own thread or task moves the position and ends the run; the saver's thread reads the
position and asks for stops. How they meet without a lock is argued at `take_save` and `attend`.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, NoReturn

from tracedjobs._core import counting, trace
from tracedjobs._core.attention import Attention
from tracedjobs._core.clock import boot_time
from tracedjobs._core.counting import Pending
from tracedjobs._core.progress import Progress
from tracedjobs._core.records import SEQ_GAP, JobRecord, Position, Save, StepRecord, Stored
from tracedjobs._core.state import State
from tracedjobs._core.telling import tell_step
from tracedjobs._core.waiting import DONE, Ask, Flow, Pause, resume, resume_async, start
from tracedjobs._core.watching import Watcher
from tracedjobs.errors import Interrupt, StoreError, StoreUnavailableError, TracedJobsError

if TYPE_CHECKING:
    from tracedjobs._core.flight_recorder import Cell
    from tracedjobs._core.options import JobOptions
    from tracedjobs._core.step import Step
    from tracedjobs.stores.base import Store

__all__ = ["LeaseLost", "Run", "Stopping"]

Stopping = Callable[..., bool | str | None]
"""Called with the running `ctx`: `True` or a reason interrupts."""


class LeaseLost(Interrupt):
    """Ends a run inside the job when its lease is gone; `perform` raises `LeaseLostError`."""


class Run(Attention):
    """What one run knows."""

    __slots__ = (
        "__weakref__",
        "_save_first",
        "_seen",
        "_watcher",
        "begun",
        "cell",
        "completing",
        "counted",
        "ctx",
        "current",
        "is_async",
        "lease_deadline",
        "lease_ttl",
        "number",
        "options",
        "pending",
        "progress",
        "progressed_at",
        "record",
        "recorded",
        "resumed",
        "seq",
        "started_at",
        "started_boot",
        "state",
        "stopping",
        "store",
        "token",
        "told",
        "unapplied",
    )

    def __init__(
        self,
        *,
        store: Store,
        stored: Stored,
        options: JobOptions,
        token: str,
        cell: Cell,
        lease_ttl: float,
        lease_deadline: float,
        stopping: Sequence[Stopping],
        is_async: bool,
    ) -> None:
        super().__init__()
        self.store = store
        self.record: JobRecord = stored.job
        self.begun = stored
        """The job as it was when the run began."""
        self.options = options
        self.token = token
        self.number = stored.job.run
        self.lease_ttl = lease_ttl
        self.lease_deadline = lease_deadline
        self.stopping = tuple(stopping)
        self.is_async = is_async
        self.progress = Progress(stored)
        self.resumed = self.progress.started
        self.current: Step | None = None
        self.unapplied: str | None = None
        """The name of a step that was written as a decorator and was not given its function."""
        self.ctx: object = None
        self.cell = cell
        self._save_first = False
        self.started_at = store.time()
        self.started_boot = boot_time()
        self.progressed_at: float | None = stored.job.progressed_at
        self.seq = itertools.count(1)
        self.recorded = False
        """Whether the store knows how it ended."""
        self.state = State(stored.job.state)
        self.completing = False
        """Whether a step's completion, with the state after it, may have been written or not."""
        self.counted = stored.job.counted
        """How many items of the open step are in the store's totals."""
        self.pending = Pending()
        """What is counted beside the run's own changes, and goes with the next of them."""
        self._seen: Position | None = stored.open_position
        self.told: Position | None = stored.open_position
        """The newest position that the reporter was told of."""
        self._watcher = Watcher(stored.job, is_async=is_async)
        if self._wants_attention():
            self.want_attention()

    # -- what other threads may call ---

    def take_save(self) -> Save:
        """The newest position, for the saver.

        The number is taken before the position is read. So of two saves the one with the higher
        number never holds an older position than what the other had read, and a store that
        refuses lower numbers never goes back. The position is read before `state.touched`: while
        that is still false afterwards, the state was as the run found it when the position was
        read, for the job's thread takes the first pair before it sets the flag.
        """
        seq = next(self.seq)
        position = self.live_position()
        state = None
        if self.state.touched:
            position, state = self.state.pair
        if position != self._seen:
            self._seen = position
            self.progressed_at = self.store.time()
        return tuple.__new__(  # as in `Step.position`
            Save,
            (
                self.record.id,
                self.token,
                seq,
                self.lease_ttl,
                position,
                self.progressed_at,
                state,
                None,
            ),
        )

    def watched_save(self) -> Save:
        """The newest position with what the saver's thread makes of it: estimate and stall."""
        save = self.take_save()
        meter = self._watcher.look(self, save)
        return save._replace(meter=meter, progressed_at=self.progressed_at)

    def end_watch(self) -> None:
        """Look no more whether it hangs: the run ends, and with it its stall, if there is one."""
        self._watcher.close(self.record, self.live_position())

    @property
    def has_kept_stall(self) -> bool:
        """Whether its record may have a stall of this run."""
        return self._watcher.kept

    @property
    def time_left(self) -> float | None:
        """Seconds that the open step has left, as the saver last saw it, if that can be told."""
        return self._watcher.time_left

    def live_position(self) -> Position | None:
        """Where the open step is now, or where the next one is to resume."""
        current = self.current
        return self.progress.resume_from if current is None else current.position()

    # -- what the job's own thread or task calls ---

    def wait(self, flow: Flow[None]) -> Awaitable[None]:
        """Do the flow: wholly in a `def` job; in an `async def` job up to where it must wait.

        What an async job gets back is to be awaited. What needs no waiting, such as raising an
        interruption, has happened by then.
        """
        wanted = start(flow)
        if wanted is None:
            return DONE
        if self.is_async:
            return resume_async(flow, wanted)
        resume(flow, wanted)
        return DONE

    def check(self) -> None:
        """Raise again what a job must not go on after, where a bare `except` swallowed it."""
        if self.ended:
            msg = (
                f"Run {self.number} of job {self.record.id} has ended; neither its ctx nor its "
                f"loops can be used after it."
            )
            raise TracedJobsError(msg)
        if self.raised is not None:
            raise self.raised
        if self.lost is not None:
            self._raise(LeaseLost("lease_lost", f"{self.description()}: {self.lost}"))

    def attend(
        self, *, advanced: bool, between_items: bool = True, consult: bool = True
    ) -> Flow[None]:
        """Do what `attention` was set for, in the job's own thread, at a checkpoint.

        `attention` is dropped first and set again if there is still a reason, and nothing is
        written to it when there is none. So a request that comes in between is not lost: its
        setter writes the reason first and the flag last.
        """
        self.check()
        every = self.options.checkpoint_every
        if self.in_doubt:
            yield from self._ask_whether_still_ours()
        if between_items and self.state.touched:
            self.state.take(self.live_position, every=every if advanced else None)
        if self._save_first or (advanced and every == 0):
            yield from self.save_now()
            self._save_first = False
        if every:  # else it is wanted at each item, for as long as the run lasts
            self.attention = False
            self.calm = int
            if self._wants_attention():
                self.want_attention()
        reason = self.stop_reason
        if reason == "max_runtime" and not consult:
            reason = None
        if reason is None and consult and self.stopping:
            reason = self._asked_to_stop()
        if reason is not None:
            if self.state.touched and between_items:
                self.state.take(self.live_position)
            self.interrupt(reason)

    def note_stop(self) -> None:
        """Ask whether to stop after the last item: the next checkpoint, if there is one, does."""
        if self.stop_reason is None and not self.ended:
            reason = self._asked_to_stop()
            if reason is not None:
                self.request_stop(reason)

    def interrupt(self, reason: str) -> NoReturn:
        """Raise the interruption, with where the job stands."""
        self._raise(Interrupt(reason, self.description()))

    def description(self) -> str:
        """The job and how far it is, in Rails' words."""
        current = self.live_position()
        if current is not None:
            where = f"at '{current.step}', cursor '{current.cursor}'"
        elif self.progress.order:
            where = f"after '{self.progress.order[-1]}'"
        else:
            where = "not started"
        return f"{self.record.name} (job {self.record.id}) {where}"

    def touch_state(self) -> dict[object, object]:
        """The state, to be saved from now on together with the cursor."""
        mapping = self.state.mapping
        if not self.state.touched:
            self.cell.keep_count_alone()
            self.state.touch(self.live_position())
            self.want_attention()
        return mapping

    def take_state(self) -> None:
        """Take position and state as one pair, between two items, whatever it costs."""
        if self.state.touched:
            self.state.take(self.live_position)

    def save_now(self) -> Flow[None] | tuple[()]:
        """Save the position before anything else happens; what is left of that to be done.

        At once where it need not be waited for: there may be one save an item.
        """
        save = self.take_save()
        began = boot_time()
        if not self.is_async:
            try:
                saved = self.store.save_one(save)
            except StoreUnavailableError as error:
                self._check_may_wait(error)
            else:
                return self._after_save(save, saved, began)
        return self._save_in_flow(save, began)

    def _save_in_flow(self, save: Save, began: float) -> Flow[None]:
        saved = yield from self.persist(lambda: self.store.save_one(save))
        yield from self._after_save(save, saved, began)

    def _after_save(self, save: Save, saved: object, began: float) -> Flow[None] | tuple[()]:
        if not saved:  # fenced off, or the saver was quicker with a newer one
            return self._ask_whether_still_ours()
        self.lease_deadline = began + self.lease_ttl
        if save.position is not None:
            self.pending.checkpoint(save.position.step, boot_time() - began)
        return ()

    def complete_step(self, step: StepRecord) -> Flow[None]:
        """Record that the open step is done, durably, before anything else happens."""
        self.check()
        state = None
        if self.state.touched:
            state = self.state.text()
        # Above that of every save which is begun before the completion is known here: such a save
        # holds the open step and the state of before, and must not come after it.
        seq = next(self.seq) + SEQ_GAP
        tally = counting.step_completed(self.record, step, self.counted)
        counts = (*tally, *self.pending.take(self.record))

        began = boot_time()

        def work() -> bool:
            nonlocal began
            began = boot_time()
            return self.store.complete_step(
                self.record.id,
                self.token,
                step,
                position=len(self.progress.order),
                seq=seq,
                state=state,
                lease_ttl=self.lease_ttl,
                counts=counts,
            )

        self.completing = True
        if not (yield from self.persist(work)):
            self.lose("another run has taken it over")
            self.check()
        self.lease_deadline = max(self.lease_deadline, began + self.lease_ttl)
        self.progress.complete(step)
        if self.current is not None:
            self._watcher.end_stall(self.record, self.current.position())
            self.current.let_go()
        self.current = None
        self.cell.close_step()
        if state is not None:
            self.state.pair = (None, state)
        # In this order: whoever takes a number of the new ones finds the new position and pair.
        self.seq = itertools.count(seq + 1)
        self.counted = 0
        self.completing = False
        trace.tell(lambda tracing: tracing.left(self))

    def leave_step(self, step: Step, error: BaseException) -> None:
        """Note that the open step ended by `error`: it is what the job is to resume from."""
        self.progress.leave(step.position(), advanced=step.advanced)
        self._watcher.end_stall(self.record, step.position())
        step.let_go()  # and in the flight recorder it stays as it is: nothing is saved yet
        self.current = None
        interrupted = isinstance(error, Interrupt) or not isinstance(error, Exception)
        tell_step(self, "job_step_interrupted" if interrupted else "job_step_failed", step)
        trace.tell(lambda tracing: tracing.left(self))

    def ask_for_save(self) -> None:
        """Save before anything else is done: the flight recorder cannot say which step is open.

        The store can then, from before its first item on, or where `set` is called from its first
        call on.
        """
        self._save_first = True
        self.want_attention()

    def let_go(self) -> None:
        """Write no more to the flight recorder; what stands there stays, see `Cell.release`.

        For the run's own thread, or where that is no more: another one would take the numbers
        from under it.
        """
        current = self.current
        if current is not None:
            current.let_go()
        self.want_attention()  # the numbers are one thing, and what is hot another
        self.cell.release()

    @property
    def advanced(self) -> bool:
        """Whether this run got anything done."""
        return self.progress.advanced or (self.current is not None and self.current.advanced)

    def persist(self, work: Callable[[], object]) -> Flow[object]:
        """Do `work` on the store, again while it is away, until the lease would end."""
        pause = 0.02
        while True:
            try:
                # A `def` job waits in its own thread, so nobody needs to be told to wait for it.
                return (yield Ask(work)) if self.is_async else work()
            except StoreUnavailableError as error:
                self._check_may_wait(error, pause)
            yield Pause(pause * random.uniform(0.5, 1.0))  # noqa: S311 - spreads retries
            pause = min(pause * 2, 1.0)

    def _check_may_wait(self, error: StoreUnavailableError, pause: float = 0.0) -> None:
        """Check that the lease lasts until the store is tried again, after that pause."""
        if self.lost is not None:
            self.check()
        if boot_time() >= self.lease_deadline:
            self.lose(f"its lease ended while the store was away ({error})")
            self.check()
        if boot_time() + pause >= self.lease_deadline - self.margin:
            self.request_stop("store_unavailable")
            self.interrupt("store_unavailable")

    @property
    def margin(self) -> float:
        """Seconds before the end of the lease at which a run without its store gives up.

        More than one call of the store may last, see `Runtime`: one that began just before is back
        while the lease still holds.
        """
        return self.lease_ttl / 4

    # -- its own ---

    def _raise(self, interrupt: Interrupt) -> NoReturn:
        self.raised = interrupt
        self.want_attention()
        try:
            raise interrupt
        finally:
            del interrupt  # else it would hold this frame, and this frame it

    def _wants_attention(self) -> bool:
        return (
            self.options.checkpoint_every == 0
            or self._save_first
            or self.has_reason
            or self.state.touched
            or bool(self.stopping)
        )

    def _asked_to_stop(self) -> str | None:
        for stopping in self.stopping:
            answer = stopping(self.ctx)
            if answer:
                return "stopping" if answer is True else str(answer)
        return None

    def _ask_whether_still_ours(self) -> Flow[None]:
        # Dropped before it asks, so that a doubt that comes meanwhile stays.
        self.in_doubt = False
        began = boot_time()
        try:
            save = self.take_save()
            token = yield Ask(lambda: self._token_after(save))
        except StoreUnavailableError as error:
            self.in_doubt = True
            if began < self.lease_deadline:
                return
            self.lose(f"its lease ended while the store was away ({error})")
            self.check()
        except BaseException:
            self.in_doubt = True
            raise
        if token != self.token:
            self.lose("another run has taken it over")
            self.check()
        self.lease_deadline = began + self.lease_ttl

    def _token_after(self, save: Save) -> str | None:
        found = self.store.save([save]).get(self.record.id, (None, None))
        if isinstance(found, StoreError):
            raise found
        return found[0]
