"""Where a job hangs: the stack of its thread or task, as functions, files and lines.

Taken from another thread while the job goes on, so a look may come too late: what was seen until
then is told. Never holds the value of a variable, nor a line of source.
"""

from __future__ import annotations

import contextlib
import gc
import json
import math
import os
import sys
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterator, Sequence

__all__ = ["Stall", "is_stalled", "stack_of_task", "stack_of_thread"]

MOST_LINES: Final = 50
MOST_BYTES: Final = 8192
_OUTER_LINES: Final = 10  # of a stack too deep to be told whole, to see what began it
_MOST_NAME_BYTES: Final = 70  # of a function or a file: so many lines of two are under the limit
_FARTHEST: Final = 100_000
_MOST_TASKS: Final = 5
_MOST_SEARCHED: Final = 1000  # tasks
_CALLBACK_DEPTH: Final = 4  # callback, closure, cell, future

_CORE: Final = str(Path(__file__).parent) + os.sep
_LINKS: Final = {
    "coroutine": ("cr_frame", "cr_await"),
    "generator": ("gi_frame", "gi_yieldfrom"),
    "async_generator": ("ag_frame", "ag_await"),
}
_WRAPPERS: Final = frozenset(
    # They stand between two of the above, and have no attribute that leads on.
    {"anext_awaitable", "async_generator_asend", "async_generator_athrow", "coroutine_wrapper"}
)


@dataclass(frozen=True, slots=True)
class Stall:
    """A stall as it was seen: when (seconds since the epoch), in which step, at what cursor.

    `cursor` is its text in the store; the innermost frame is the last of `stack`.
    """

    at: float
    step: str
    cursor: str
    stack: tuple[str, ...] = ()

    def text(self) -> str:
        """The stall as JSON."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_text(cls, text: str | None) -> Stall | None:
        """The stall of that text; `None` when there is none, or the text makes no sense."""
        try:
            match json.loads(text or ""):
                case {
                    "at": int() | float() as at,
                    "step": str(step),
                    "cursor": str(cursor),
                    "stack": list(stack),
                } if math.isfinite(at) and all(isinstance(line, str) for line in stack):
                    return cls(float(at), step, cursor, tuple(stack))
        except (ValueError, OverflowError, RecursionError):
            pass
        return None


def is_stalled(*, progressed_age: float, stall_after: float | None) -> bool:
    """Whether a cursor that last moved `progressed_age` seconds ago stands for too long."""
    return stall_after is not None and progressed_age >= stall_after


def stack_of_thread(ident: int) -> list[str]:
    """Where that thread is, innermost last; nothing when it is gone.

    What leads to the job's function is left out. At most 50 lines and 8 KiB.
    """
    return _told(_inward(sys._current_frames().get(ident)))


def stack_of_task(task: asyncio.Task[object]) -> list[str]:
    """Where that task of any thread's event loop is, innermost last; nothing when it is done.

    Follows what the task awaits, other tasks included, and tells what else holds the event loop.
    What leads to the job's function is left out. At most 50 lines and 8 KiB.
    """
    import asyncio  # noqa: PLC0415 - doubles the time of an import

    seen: list[_Spot | str] = []
    # Whatever ends while it is looked at, what was seen before is told.
    with contextlib.suppress(Exception):
        _look_at_task(task, seen, tasks=_MOST_TASKS)
        other = asyncio.current_task(task.get_loop())
        if other is not None and other is not task and not task.done():
            spots = _running(other.get_coro())
            if spots:
                seen += (f"meanwhile the event loop runs the task of {_name(other)}:", *spots)
    return _told(seen)


class _Spot(NamedTuple):
    """A line of a function: not the frame, for whoever holds one last ends what its values hold."""

    code: CodeType
    line: int

    @classmethod
    def of(cls, frame: FrameType) -> _Spot:
        return cls(frame.f_code, frame.f_lineno or frame.f_code.co_firstlineno)


def _inward(frame: FrameType | None, outermost: FrameType | None = None) -> list[_Spot]:
    """From `outermost`, or the thread's beginning, to `frame`; nothing if it is not on the way."""
    spots: list[_Spot] = []
    while frame is not None and len(spots) < _FARTHEST:
        spots.append(_Spot.of(frame))
        if frame is outermost:
            return spots[::-1]
        frame = frame.f_back
    return spots[::-1] if outermost is None else []


def _running(coroutine: object) -> list[_Spot]:
    """From the coroutine inward in the thread that runs it; nothing when it is suspended."""
    frame = getattr(coroutine, "cr_frame", None)
    if frame is None:
        return []
    stacks = (_inward(innermost, frame) for innermost in sys._current_frames().values())
    return next(filter(None, stacks), [])


def _look_at_task(task: asyncio.Task[object], seen: list[_Spot | str], *, tasks: int) -> None:
    spots = _running(task.get_coro())
    if spots:
        seen += spots
        return
    seen.extend(_awaiting(task.get_coro()))
    awaited: Any = getattr(task, "_fut_waiter", None)
    while open_ones := [one for one in getattr(awaited, "_children", ()) if not one.done()]:
        awaited = open_ones[0]  # of a gather
    if awaited is not None and not hasattr(awaited, "get_coro"):
        awaited = _task_that_ends(awaited, task.get_loop())
    if tasks > 1 and hasattr(awaited, "get_coro"):
        seen.append(f"awaits the task of {_name(awaited)}:")
        _look_at_task(awaited, seen, tasks=tasks - 1)


def _task_that_ends(future: object, loop: asyncio.AbstractEventLoop) -> Any:
    """The task with a callback that holds the future: so wait, shield and task groups wait."""
    import asyncio  # noqa: PLC0415 - doubles the time of an import

    known: set[int] = set()  # tasks of a group have it in common, and all the others with it
    for one in islice(asyncio.all_tasks(loop), _MOST_SEARCHED):
        held: list[object] = [call for call, *_ in getattr(one, "_callbacks", None) or ()]
        for _ in range(_CALLBACK_DEPTH):
            if any(thing is future for thing in held):
                return one
            # Beyond another future or the names of a module is everything there is.
            further = [
                thing
                for thing in held
                if id(thing) not in known
                and not isinstance(thing, asyncio.Future)
                and not (type(thing) is dict and "__builtins__" in thing)
            ]
            known.update(map(id, further))
            held = gc.get_referents(*further)
    return None


def _awaiting(awaited: object) -> Iterator[_Spot]:
    """The frames of a suspended coroutine, and of what it awaits."""
    for _ in range(_FARTHEST):
        kind = type(awaited).__name__
        if kind in _WRAPPERS:
            awaited = next(iter(gc.get_referents(awaited)), None)
            continue
        frame_of, awaited_of = _LINKS.get(kind, ("", ""))
        frame = getattr(awaited, frame_of, None)
        if not isinstance(frame, FrameType):
            return
        yield _Spot.of(frame)
        awaited = getattr(awaited, awaited_of, None)


def _name(task: asyncio.Task[object]) -> str:
    # Not the name it was given, which may hold anything.
    name = getattr(task.get_coro(), "__qualname__", None)
    return _end_of(str(name or "a coroutine"))


def _told(seen: Sequence[_Spot | str]) -> list[str]:
    lines = [*_from_job_on(seen)]
    if len(lines) > MOST_LINES:
        left_out = len(lines) - MOST_LINES + 1
        lines[_OUTER_LINES : _OUTER_LINES + left_out] = [f"... {left_out} more frames ..."]
    roots = _roots()
    return [line if isinstance(line, str) else _line(line, roots) for line in lines]


def _from_job_on(seen: Sequence[_Spot | str]) -> Sequence[_Spot | str]:
    """Without the caller of the job and the frames of this package that call its function."""
    inside = [not isinstance(one, str) and one.code.co_filename.startswith(_CORE) for one in seen]
    if True not in inside:
        return seen
    entered = inside.index(True)
    # Whole when the job's function was not reached, or has ended: then this package is where it is.
    return seen[inside.index(False, entered) :] if False in inside[entered:] else seen


def _line(spot: _Spot, roots: Sequence[str]) -> str:
    path = spot.code.co_filename
    root = next((root for root in roots if path.startswith(root)), None)
    if root is not None:
        path = path[len(root) :]
    elif path.startswith(os.sep):
        path = str(Path("...", *Path(path).parts[-2:]))
    return f"{_end_of(spot.code.co_qualname)} ({_end_of(path)}:{spot.line})"


def _roots() -> list[str]:
    """The directories that files are told relative to, the nearest first: as they are imported."""
    roots = {str(root).rstrip(os.sep) + os.sep for root in (*sys.path, _here()) if root}
    return sorted(roots, key=len, reverse=True)


def _here() -> str:
    try:
        return os.getcwd()  # noqa: PTH109 - a text is wanted
    except OSError:  # it was removed
        return ""


def _end_of(name: str) -> str:
    """The name as it can be printed and stored, cut at its beginning when it is too long."""
    name = "".join(character if character.isprintable() else "?" for character in name)
    cut = name.encode()[-_MOST_NAME_BYTES:].decode(errors="ignore")
    return name if cut == name else "..." + cut
