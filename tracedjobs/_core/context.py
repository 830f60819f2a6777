"""`ctx`, what a job function is given: steps, loops, state, and where the job stands."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping, Sequence
from types import MethodType
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar, cast, overload

from tracedjobs import events
from tracedjobs._core import values
from tracedjobs._core.each import check_source, loop_over, skipped_loop
from tracedjobs._core.loop import Loop, Source
from tracedjobs._core.options import checked_total, seconds
from tracedjobs._core.order import check_step
from tracedjobs._core.step import Step
from tracedjobs._core.waiting import Call, drive, drive_async
from tracedjobs.errors import InvalidStepError

if TYPE_CHECKING:
    from tracedjobs._core.run import Run
    from tracedjobs._core.transaction import Ledger
    from tracedjobs._core.waiting import Flow

__all__ = ["AsyncContext", "BaseContext", "Context"]

T = TypeVar("T")
_BY_KEYWORD: Final = sys.maxsize


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
        common = {"job": self.name, "job_id": self.id, "run": self.run, **where}
        events.notify(event, **{**common, **payload})

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
        _before_loop(run, name)
        name = check_step(run.progress, name)
        check_source(source, name)
        total = checked_total(total, name)
        stall_after = None if stall_after is None else seconds(stall_after, "stall_after")
        run.progress.encountered[name] = None
        done = run.progress.completed.get(name)
        if done is not None:
            run.emit("job_step_skipped", step=name)
            return skipped_loop(run, done)
        _isolate(run, isolated=isolated)
        loop = loop_over(
            run,
            name,
            source,
            start=start,
            position=_position_of(run, name),
            total=total,
            stall_after=stall_after,
        )
        loop.write_in(_ledger(run, name, transaction))
        _open(run, loop)
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
            flow = _step_flow(
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

        return run_now if fn is None else run_now(fn)


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
            _step_flow(
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


def _step_flow(
    run: Run,
    name: str,
    fn: Callable[..., object],
    args: tuple[object, ...],
    *,
    start: object,
    total: int | None,
    isolated: bool,
    stall_after: float | None,
    transaction: object,
) -> Flow[object]:
    run.check()
    _check_left(run, name)
    if run.progress.advanced and run.progress.running is None:
        yield from run.attend(advanced=False)
    name = check_step(run.progress, name)
    if not callable(fn):
        msg = f"Step '{name}' needs a function to call, found {fn!r}."
        raise TypeError(msg)
    run.progress.encountered[name] = None
    done = run.progress.completed.get(name)
    if done is not None:
        run.emit("job_step_skipped", step=name)
        return values.decode(done.result)
    _isolate(run, isolated=isolated)
    position, done_there = _position_of(run, name), None
    ledger = _ledger(run, name, transaction)
    if ledger is not None:
        position, done_there = yield from ledger.open(position, values.encode_cursor(start))
    step = Step(
        run,
        name,
        start=start,
        position=position,
        total=checked_total(total, name),
        stall_after=None if stall_after is None else seconds(stall_after, "stall_after"),
    )
    step.write_in(ledger)
    _open(run, step)
    try:
        result, value = done_there, None
        if result is None:
            value = yield from _call_fn(run, step, fn, args)
            result = values.encode(value, path=f"result of step '{name}'")
            if ledger is not None:
                cursor, items = step.position().cursor, step.items
                yield from ledger.write(cursor, items, result)
        yield from run.complete_step(step.record(result))
    except BaseException as error:
        if ledger is not None:
            yield from ledger.rollback()
        run.leave_step(step, error)
        raise
    run.step_event("job_step_completed", step)
    return value if done_there is None else values.decode(done_there)


def _call_fn(
    run: Run, step: Step, fn: Callable[..., object], args: tuple[object, ...]
) -> Flow[object]:
    given, keywords = _with_step(fn, args, step)
    yield from step.begin_transaction()
    value = yield Call(lambda: fn(*given, **keywords))
    _refuse_awaitable(run, step.name, value)
    run.check()
    return value


def _refuse_awaitable(run: Run, name: str, value: object) -> None:
    if not run.is_async and isinstance(value, Awaitable):
        if isinstance(value, Coroutine):
            value.close()
        msg = f"Step '{name}' called an async function; make the job an async def function."
        raise TypeError(msg)


def _before_loop(run: Run, name: str) -> None:
    run.check()
    _check_left(run, name)
    if (
        run.progress.advanced
        and run.progress.running is None
        and not (
            run.is_async and run.in_doubt  # then the loop asks the store before its first item
        )
    ):
        drive(run.attend(advanced=False))


def _check_left(run: Run, name: str) -> None:
    current = run.current
    if not isinstance(current, Loop) or current.left is False:
        return
    found = f"Step '{name}' found"
    if current.left is None:
        found = f"Step '{name}' is nested inside step '{current.name}', or it was found after it"
    raise InvalidStepError(left_message(current, found))


def left_message(loop: Loop[Any], what: str) -> str:
    """The sentence for a loop that was left while items may be left."""
    if not loop.begun:
        return (
            f"{what}, but the loop of step '{loop.name}' was never run. Iterate over what ctx.each "
            f"returned before anything else, or call finish() on it."
        )
    return (
        f"{what}, but the loop of step '{loop.name}' was left at cursor {loop.cursor!r} before its "
        f"source ended. Call finish() on the loop object before leaving it early, to complete the "
        f"step there."
    )


def _ledger(run: Run, name: str, transaction: object) -> Ledger | None:
    if transaction is None:
        return None
    from tracedjobs._core.transaction import ledger_on  # noqa: PLC0415 - for those who use it

    return ledger_on(transaction, run, name)


def _isolate(run: Run, *, isolated: bool) -> None:
    # As in Rails: an isolated step begins a run, and nothing comes after it in that run.
    progress = run.progress
    progress.isolating = progress.isolating or isolated
    if progress.isolating and progress.advanced:
        run.interrupt("isolating")


def _position_of(run: Run, name: str) -> Any:
    position = run.progress.resume_from
    return position if position is not None and position.step == name else None


def _open(run: Run, step: Step) -> None:
    run.current = step
    run.progress.open(step.name)
    run.take_state()
    run.step_event("job_step_started", step, resumed=step.resumed)


def _with_step(
    fn: Callable[..., object], args: tuple[object, ...], step: Step
) -> tuple[tuple[object, ...], dict[str, object]]:
    """What to call `fn` with: the step where it declares it, the arguments around it."""
    place = _place_of_step(fn)
    if place is None:
        return args, {}
    if place <= len(args):
        return (*args[:place], step, *args[place:]), {}
    return args, {"step": step}


def _place_of_step(fn: Callable[..., object]) -> int | None:
    """Where among its positional parameters `fn` declares `step`, or `None` where it does not."""
    code = getattr(fn, "__code__", None)
    if code is not None and not hasattr(fn, "__wrapped__"):
        names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        if "step" not in names:
            return None
        place = names.index("step")
        return _BY_KEYWORD if place >= code.co_argcount else place - isinstance(fn, MethodType)
    import inspect  # noqa: PLC0415 - for what is no plain function

    try:
        parameters = inspect.signature(fn).parameters
    except (TypeError, ValueError):
        return None  # a builtin that does not say
    if "step" not in parameters:
        return None
    kind = parameters["step"].kind
    if kind in {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}:
        return list(parameters).index("step")
    return _BY_KEYWORD if kind is inspect.Parameter.KEYWORD_ONLY else None


def typed_context(run: Run) -> BaseContext:
    """The `ctx` for that run's kind of job."""
    return cast("BaseContext", AsyncContext(run) if run.is_async else Context(run))
