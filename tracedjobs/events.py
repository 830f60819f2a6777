"""The one reporter that the core and `ctx.notify` tell of what happens; listeners subscribe.

Modelled on Rails' structured event reporter. It calls its subscribers in the thread that tells, and
does nothing when there are none. Tags and context belong to the thread or the asyncio task.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Protocol

from tracedjobs._core.masking import (
    FILTERED,
    filter_parameters,
    mask,
    mask_text,
)

__all__ = [
    "FILTERED",
    "Event",
    "SourceLocation",
    "clear_context",
    "debug",
    "debug_mode",
    "filter_parameters",
    "mask",
    "notify",
    "set_context",
    "set_debug_mode",
    "subscribe",
    "tagged",
    "unsubscribe",
]

_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})
_HERE: Final = __name__.partition(".")[0]


@dataclass(frozen=True, slots=True)
class SourceLocation:
    """Where in the application an event was told: file, line, and function."""

    filepath: str
    lineno: int
    label: str


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a job.

    `payload` is masked, see `filter_parameters`. `timestamp` is in nanoseconds since the epoch.
    `source_location` is the application's own line: of the event itself where it told it, and of
    what it called where the core did; `None` where no application is on the stack.
    """

    name: str
    payload: Mapping[str, Any]
    tags: Mapping[str, Any] = field(default_factory=lambda: _NOTHING)
    context: Mapping[str, Any] = field(default_factory=lambda: _NOTHING)
    timestamp: int = field(default_factory=time.time_ns)
    source_location: SourceLocation | None = None


class Emitter(Protocol):
    """A subscriber that is an object."""

    def emit(self, event: Event, /) -> object:
        """Be told of that event."""
        ...


Subscriber = Callable[[Event], object] | Emitter
Filter = Callable[[Event], bool]

_subscribers: tuple[tuple[Subscriber, Callable[[Event], object], Filter | None], ...] = ()
_reported: set[int] = set()
_debugging = False
_tags: ContextVar[Mapping[str, Any]] = ContextVar("tracedjobs_tags", default=_NOTHING)
_context: ContextVar[Mapping[str, Any]] = ContextVar("tracedjobs_context", default=_NOTHING)
_telling: ContextVar[tuple[int, ...]] = ContextVar("tracedjobs_telling", default=())


def subscribe(subscriber: Subscriber, filter: Filter | None = None) -> None:  # noqa: A002 - Rails' word
    """Tell `subscriber` of each event, or of those for which `filter` is true.

    It is a callable that takes the event, or an object with `emit(event)`; anything else raises
    `TypeError`. One that raises is reported once, as a warning, and never harms a job. One that
    itself tells of events is not told of those.
    """
    global _subscribers  # noqa: PLW0603 - replaced whole, so that `notify` needs no lock
    emit = getattr(subscriber, "emit", None)
    told = emit if callable(emit) else subscriber
    if not callable(told) or isinstance(subscriber, type):
        msg = f"subscribe takes a callable, or an object with emit(event); found {subscriber!r}."
        raise TypeError(msg)
    if filter is not None and not callable(filter):
        msg = f"filter={filter!r} must be a callable that takes the event."
        raise TypeError(msg)
    _subscribers = (*_subscribers, (subscriber, told, filter))


def unsubscribe(subscriber: object) -> None:
    """Tell `subscriber`, or all that are of that class, no more; nothing happens if it is none."""
    global _subscribers  # noqa: PLW0603 - as above
    kind = subscriber if isinstance(subscriber, type) else ()
    _subscribers = tuple(
        each for each in _subscribers if each[0] != subscriber and not isinstance(each[0], kind)
    )


def notify(name: str, /, **payload: object) -> None:
    """Tell the subscribers of an event of that name."""
    if _subscribers:
        _tell(name, payload)


def debug(name: str, /, **payload: object) -> None:
    """The same, while the debug mode is on."""
    if _debugging and _subscribers:
        _tell(name, payload)


def set_debug_mode(on: bool) -> None:  # noqa: FBT001 - it is on or off
    """Let `debug` tell, or not, as at first; for the whole process."""
    global _debugging  # noqa: PLW0603 - one a process
    _debugging = bool(on)


@contextmanager
def debug_mode() -> Iterator[None]:
    """Let `debug` tell within the block."""
    before = _debugging
    set_debug_mode(True)
    try:
        yield
    finally:
        set_debug_mode(before)


@contextmanager
def tagged(*names: str, **tags: object) -> Iterator[None]:
    """Put tags on all events of this thread or task within the block; a name alone is `True`.

    Blocks within one another add up.
    """
    token = _tags.set({**_tags.get(), **dict.fromkeys(map(str, names), True), **tags})
    try:
        yield
    finally:
        try:
            _tags.reset(token)
        except ValueError:  # a generator that was closed in another context, which has its own
            return


def set_context(**context: object) -> None:
    """Add to the context of all later events of this thread or task."""
    _context.set({**_context.get(), **context})


def clear_context() -> None:
    """Have no context in this thread or task any more."""
    _context.set(_NOTHING)


def _tell(name: str, payload: Mapping[str, Any]) -> None:
    event: Event | None = None
    told = _telling.get()
    for subscriber, tell, wanted in _subscribers:
        if id(subscriber) in told:
            continue
        if event is None:
            event = _event(name, payload)
        token = _telling.set((*told, id(subscriber)))
        try:
            if wanted is None or wanted(event):
                tell(event)
        except Exception as error:  # noqa: BLE001 - a listener never harms a job
            _report(subscriber, event, error)
        finally:
            _telling.reset(token)


def _event(name: str, payload: Mapping[str, Any]) -> Event:
    try:
        masked = mask(payload)
        cursor = masked.get("cursor")
        if isinstance(cursor, str) and cursor.startswith(("{", "[")):
            masked = {**masked, "cursor": mask_text(cursor, limit=len(cursor) + 64)}
        tags, context = _tags.get(), _context.get()
        if tags or context:
            tags, context = mask(tags), mask(context)
    except Exception as error:  # noqa: BLE001 - a value that cannot be looked through is not told
        masked, tags, context = {"unreadable": type(error).__name__}, _NOTHING, _NOTHING
    return Event(name, masked, tags, context, time.time_ns(), _location())


def _location() -> SourceLocation | None:
    frame = sys._getframe(3)  # noqa: SLF001 - the only cheap way to it
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module != _HERE and not module.startswith(f"{_HERE}."):
            code = frame.f_code
            if module in {"threading", "asyncio.events", "concurrent.futures.thread"}:
                return None  # one of our own threads: no application is on its stack
            if module not in {"contextlib", "contextvars"}:
                return SourceLocation(code.co_filename, frame.f_lineno, code.co_qualname)
        frame = frame.f_back  # type: ignore[assignment]  # the loop ends with it
    return None


def _report(subscriber: object, event: Event, error: Exception) -> None:
    if id(subscriber) in _reported:
        return
    _reported.add(id(subscriber))
    try:
        warnings.warn(
            f"The subscriber {subscriber!r} raised at {event.name}: {error!r}; "
            f"it is told of later events, and its errors are not repeated.",
            RuntimeWarning,
            stacklevel=5,
        )
    except RuntimeWarning:
        return  # warnings are errors in this process: then too the job goes on
