"""`ctx`, what a job function is given: steps, loops, state, and where the job stands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast, overload

from tracedjobs import events
from tracedjobs._core.each import check_source, loop_over, skipped_loop
from tracedjobs._core.loop import Loop, Source
from tracedjobs._core.options import checked_total, seconds
from tracedjobs._core.order import check_step
from tracedjobs._core.stepping import (
    before_loop,
    check_applied,
    isolate,
    ledger_of,
    open_step,
    position_of,
    step_flow,
)
from tracedjobs._core.telling import tell_skipped
from tracedjobs._core.waiting import drive, drive_async

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping, Sequence

    from tracedjobs._core.run import Run
    from tracedjobs._core.step import Step

__all__ = ["AsyncContext", "BaseContext", "Context"]

T = TypeVar("T")


class BaseContext:
    """What `def` and `async def` jobs have alike."""

    __slots__ = ("_run",)

    def __init__(self, run: Run) -> None:
        """Stand for that run."""
        self._run = run

    def __repr__(self) -> str:
        """The job and how far it is."""
        return f"<{type(self).__name__} {self._run.description()}>"

    @property
    def id(self) -> str:
        """The job's id."""
        return self._run.record.id

    @property
    def name(self) -> str:
        """The job function's name."""
        return self._run.record.name

    @property
    def run(self) -> int:
        """The number of this run, from 1."""
        return self._run.number

    @property
    def resumptions(self) -> int:
        """How often the job was resumed, this run included."""
        return self._run.record.resumptions

    @property
    def resumed(self) -> bool:
        """Whether this run goes on from where an earlier one stopped."""
        return self._run.resumed

    @property
    def current(self) -> Step | None:
        """The open step, or `None` between steps."""
        return self._run.current

    @property
    def completed(self) -> tuple[str, ...]:
        """The names of the completed steps, in order."""
        return tuple(self._run.progress.order)

    @property
    def state(self) -> MutableMapping[Any, Any]:
        """What the job wants to remember besides its cursor; restored in later runs.

        From the first use in a run on, cursor and state are saved as one pair, taken between two
        items. A value that cannot be stored raises `SerializationError` at the next checkpoint.
        """
        self._run.check()
        return self._run.touch_state()

    def checkpoint(self) -> Awaitable[None]:
        """Let the job be interrupted here. In `async def` jobs await it."""
        run = self._run
        if isinstance(run.current, Loop):
            return run.current.checkpoint()
        run.check()
        return run.wait(run.attend(advanced=False))

    def interrupt(self, reason: str) -> NoReturn:
        """End this run here, to be resumed later; `reason` is recorded.

        In the middle of a loop's item that item is done again.
        """
        if not isinstance(reason, str) or not reason:
            msg = f"ctx.interrupt({reason!r}): the reason must be a text that is not empty."
            raise TypeError(msg)
        run = self._run
        run.check()
        if not isinstance(run.current, Loop):
            run.take_state()
        run.interrupt(reason)

    def notify(self, event: str, /, **payload: object) -> None:
        """Tell the reporter of an event of your own, with the job, run, step and cursor."""
        run = self._run
        run.check()
        position = run.live_position()
        where = {"step": position.step, "cursor": position.cursor} if position else {}
        events.notify_of(run.record, event, **{**where, **payload})

    def each(
        self,
        name: str,
        source: Sequence[T] | Source[T],
        *,
        start: object = None,
        total: int | None = None,
        isolated: bool = False,
        stall_after: float | None = None,
        transaction: object = None,
    ) -> Loop[T]:
        """A loop that is a step: it resumes after the last finished item.

        `source` is a sequence or range, whose cursor is the offset, or a callable
        `source(cursor)` that returns an iterable of `(item, cursor_after_item)` pairs, first called
        with `start`; its attribute `total`, if it has one, says how many there are. Anything that
        could not be resumed raises `TypeError`.

        `total` is the number of items when the source does not know it. `isolated`: the step runs
        in a run of its own. `stall_after`: seconds, instead of the job's.

        The step completes when the source ends. To leave the loop early call `finish()` on the
        object this returns; else the next step raises `InvalidStepError`.
        """
        run = self._run
        before_loop(run, name)
        name = check_step(run.progress, name)
        check_source(source, name)
        total = checked_total(total, name)
        stall_after = None if stall_after is None else seconds(stall_after, "stall_after")
        run.progress.encountered[name] = None
        done = run.progress.completed.get(name)
        if done is not None:
            tell_skipped(run, done)
            return skipped_loop(run, done)
        isolate(run, isolated=isolated)
        loop = loop_over(
            run,
            name,
            source,
            start=start,
            position=position_of(run, name),
            total=total,
            stall_after=stall_after,
        )
        loop.write_in(ledger_of(run, name, transaction))
        open_step(run, loop)
        return loop


class Context(BaseContext):
    """What a `def` job is given as its first argument."""

    __slots__ = ()

    @overload
    def step(
        self,
        name: str,
        fn: Callable[..., T],
        *args: object,
        start: object = ...,
        total: int | None = ...,
        isolated: bool = ...,
        stall_after: float | None = ...,
        transaction: object = ...,
    ) -> T: ...

    @overload
    def step(
        self,
        name: str,
        fn: None = ...,
        *,
        start: object = ...,
        total: int | None = ...,
        isolated: bool = ...,
        stall_after: float | None = ...,
        transaction: object = ...,
    ) -> Callable[[Callable[..., T]], T]: ...

    def step(
        self,
        name: str,
        fn: Callable[..., Any] | None = None,
        *args: object,
        start: object = None,
        total: int | None = None,
        isolated: bool = False,
        stall_after: float | None = None,
        transaction: object = None,
    ) -> Any:
        """Call `fn(*args)`, unless the step is done already; what it returned, stored or new.

        A `fn` with a parameter named `step`, wherever it stands, is given the `Step`. Without `fn`
        this is a decorator that runs its function at once.

        `start` is the cursor to begin with, `total` how many items there are. `isolated`: the step
        runs in a run of its own. `stall_after`: seconds, instead of the job's, after which the
        step counts as stalled; for a plain call, which has no cursor, it is the only watch.

        Raises `InvalidStepError` when the step may not come here, and `SerializationError` when
        the result cannot be stored: then the step does not count as done.
        """

        def run_now(function: Callable[..., object]) -> object:
            if self._run.unapplied == name:
                self._run.unapplied = None
            flow = step_flow(
                self._run,
                name,
                function,
                args,
                start=start,
                total=total,
                isolated=isolated,
                stall_after=stall_after,
                transaction=transaction,
            )
            return drive(flow)

        if fn is not None:
            return run_now(fn)
        self._run.check()
        check_applied(self._run)
        self._run.unapplied = name
        return run_now


class AsyncContext(BaseContext):
    """What an `async def` job is given as its first argument."""

    __slots__ = ()

    @overload
    def step(
        self,
        name: str,
        fn: Callable[..., Awaitable[T]],
        *args: object,
        start: object = ...,
        total: int | None = ...,
        isolated: bool = ...,
        stall_after: float | None = ...,
        transaction: object = ...,
    ) -> Awaitable[T]: ...

    @overload
    def step(
        self,
        name: str,
        fn: Callable[..., T],
        *args: object,
        start: object = ...,
        total: int | None = ...,
        isolated: bool = ...,
        stall_after: float | None = ...,
        transaction: object = ...,
    ) -> Awaitable[T]: ...

    def step(
        self,
        name: str,
        fn: Callable[..., Any] | None = None,
        *args: object,
        start: object = None,
        total: int | None = None,
        isolated: bool = False,
        stall_after: float | None = None,
        transaction: object = None,
    ) -> Awaitable[Any]:
        """See `Context.step`; to be awaited, and `fn` may be a `def` or `async def` function."""
        if fn is None:
            msg = (
                f"ctx.step({name!r}) without a function is for def jobs; in an async def job "
                f"write `await ctx.step({name!r}, fn)`."
            )
            raise TypeError(msg)
        return drive_async(
            step_flow(
                self._run,
                name,
                fn,
                args,
                start=start,
                total=total,
                isolated=isolated,
                stall_after=stall_after,
                transaction=transaction,
            )
        )


def typed_context(run: Run) -> BaseContext:
    """The `ctx` for that run's kind of job."""
    return cast("BaseContext", AsyncContext(run) if run.is_async else Context(run))
