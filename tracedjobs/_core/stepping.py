"""How a step is begun, called and completed; loops are begun here too, and run in `loop`."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Coroutine
from types import MethodType
from typing import TYPE_CHECKING, Any, Final

from tracedjobs._core import trace, values
from tracedjobs._core.loop import Loop
from tracedjobs._core.options import checked_total, seconds
from tracedjobs._core.order import check_step
from tracedjobs._core.step import Step
from tracedjobs._core.telling import tell_skipped, tell_step
from tracedjobs._core.waiting import Call, drive
from tracedjobs.errors import InvalidStepError

if TYPE_CHECKING:
    from tracedjobs._core.run import Run
    from tracedjobs._core.transaction import Ledger
    from tracedjobs._core.waiting import Flow

__all__ = [
    "before_loop",
    "check_applied",
    "isolate",
    "ledger_of",
    "left_message",
    "open_step",
    "position_of",
    "step_flow",
]

_BY_KEYWORD: Final = sys.maxsize


def step_flow(
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
    if run.attention and run.progress.advanced and run.progress.running is None:
        yield from run.attend(advanced=False)
    name = check_step(run.progress, name)
    if not callable(fn):
        msg = f"Step '{name}' needs a function to call, found {fn!r}."
        raise TypeError(msg)
    run.progress.encountered[name] = None
    done = run.progress.completed.get(name)
    if done is not None:
        tell_skipped(run, done)
        return values.decode(done.result)
    isolate(run, isolated=isolated)
    position, done_there = position_of(run, name), None
    ledger = ledger_of(run, name, transaction)
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
    open_step(run, step)
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
    tell_step(run, "job_step_completed", step)
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


def before_loop(run: Run, name: str) -> None:
    run.check()
    _check_left(run, name)
    if (
        run.attention
        and run.progress.advanced
        and run.progress.running is None
        and not (
            run.is_async and run.in_doubt  # then the loop asks the store before its first item
        )
    ):
        drive(run.attend(advanced=False))


def check_applied(run: Run) -> None:
    """Check that each `ctx.step(name)` without a function was used as a decorator."""
    if run.unapplied is not None:
        msg = (
            f"ctx.step('{run.unapplied}') was given no function, so nothing was called. Write "
            f"ctx.step('{run.unapplied}', fn, …) with fn itself and not what it returns, or use it "
            f"as a decorator."
        )
        run.unapplied = None
        raise InvalidStepError(msg)


def _check_left(run: Run, name: str) -> None:
    check_applied(run)
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


def ledger_of(run: Run, name: str, transaction: object) -> Ledger | None:
    if transaction is None:
        return None
    from tracedjobs._core.transaction import ledger_on  # noqa: PLC0415 - for those who use it

    return ledger_on(transaction, run, name)


def isolate(run: Run, *, isolated: bool) -> None:
    # As in Rails: an isolated step begins a run, and nothing comes after it in that run.
    progress = run.progress
    progress.isolating = progress.isolating or isolated
    if progress.isolating and progress.advanced:
        run.interrupt("isolating")


def position_of(run: Run, name: str) -> Any:
    position = run.progress.resume_from
    return position if position is not None and position.step == name else None


def open_step(run: Run, step: Step) -> None:
    run.current = step
    step.enter(run.progress.open(step.name))
    run.take_state()
    step.keep_in(run.cell)
    trace.tell(lambda tracing: tracing.entered(run, step))
    tell_step(run, "job_step_started", step, resumed=step.resumed)


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
