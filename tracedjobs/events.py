"""The one reporter that the core and `ctx.notify` tell of what happens; listeners subscribe.

Modelled on Rails' structured event reporter. It calls its subscribers in the thread that tells, and
does nothing when there are none. Tags and context belong to the thread or the asyncio task.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Protocol

from tracedjobs._core.masking import FILTERED, filter_parameters, mask

if TYPE_CHECKING:
    from tracedjobs._core.records import JobRecord

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
MOST_MODULES: Final = 4096
"""Modules of which it is remembered whose they are."""


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
    trace: str | None = field(default=None, repr=False, compare=False)
    """What is stored of its job's trace: for `tracedjobs.telemetry`, which places it there."""


class Emitter(Protocol):
    """A subscriber that is an object."""

    def emit(self, event: Event, /) -> object:
        """Be told of that event."""
        ...


Subscriber = Callable[[Event], object] | Emitter
Filter = Callable[[Event], bool]


@dataclass(slots=True, eq=False)
class _Subscription:
    """A subscriber, how it is told, and of what."""

    subscriber: Subscriber
    tell: Callable[[Event], object]
    filter: Filter | None
    reported: bool = False
    """Whether an error of it was reported."""

    def report(self, event: Event, error: Exception) -> None:
        if self.reported:
            return
        self.reported = True
        with suppress(Exception):  # warnings are errors in this process: then too the job goes on
            warnings.warn(
                f"The subscriber {_shown(self.subscriber)} raised at {event.name}: "
                f"{_shown(error)}; it is told of later events, and its errors are not repeated.",
                RuntimeWarning,
                stacklevel=4,
            )


_subscribers: tuple[_Subscription, ...] = ()
_debugging = False
_tags: ContextVar[Mapping[str, Any]] = ContextVar("tracedjobs_tags", default=_NOTHING)
_context: ContextVar[Mapping[str, Any]] = ContextVar("tracedjobs_context", default=_NOTHING)
_telling: ContextVar[tuple[_Subscription, ...]] = ContextVar("tracedjobs_telling", default=())
_OURS, _THREADS, _APPLICATION = 1, 2, 3
_whose: Final[dict[str, int]] = {}


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
    _subscribers = (*_subscribers, _Subscription(subscriber, told, filter))


def unsubscribe(subscriber: object) -> None:
    """Tell `subscriber`, or all that are of that class, no more; nothing happens if it is none."""
    global _subscribers  # noqa: PLW0603 - as above
    kind = subscriber if isinstance(subscriber, type) else ()
    _subscribers = tuple(
        each
        for each in _subscribers
        if each.subscriber != subscriber and not isinstance(each.subscriber, kind)
    )


def notify(name: str, /, **payload: object) -> None:
    """Tell the subscribers of an event of that name."""
    if _subscribers:
        _tell(name, payload)


def listened() -> bool:
    """Whether there is anybody to tell, for the core."""
    return bool(_subscribers)


def notify_of(job: JobRecord, name: str, /, **payload: object) -> None:
    """Tell of that job, for the core: with what every payload has, and where its trace is."""
    if _subscribers:
        _tell(name, {"job": job.name, "job_id": job.id, "run": job.run, **payload}, job.trace)


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


def _tell(name: str, payload: Mapping[str, Any], trace: str | None = None) -> None:
    event: Event | None = None
    told = _telling.get()
    for each in _subscribers:
        if each in told:
            continue
        if event is None:
            tags, context = _tags.get(), _context.get()
            if tags or context:
                tags, context = mask(tags), mask(context)
            event = Event(name, mask(payload), tags, context, time.time_ns(), _location(), trace)
        token = _telling.set((*told, each))
        try:
            if each.filter is None or each.filter(event):
                each.tell(event)
        except Exception as error:  # noqa: BLE001 - a listener never harms a job
            each.report(event, error)
        finally:
            _telling.reset(token)


def _location() -> SourceLocation | None:
    frame = sys._getframe(2)  # noqa: SLF001 - the only cheap way to it
    while frame is not None:
        module = frame.f_globals.get("__name__")
        if not isinstance(module, str):
            whose = _APPLICATION  # of a text that was executed
        else:
            whose = _whose.get(module) or _find_whose(module)
        if whose == _APPLICATION:
            code = frame.f_code
            return SourceLocation(code.co_filename, frame.f_lineno, code.co_qualname)
        if whose == _THREADS:
            return None  # one of our own threads: no application is on its stack
        frame = frame.f_back  # type: ignore[assignment]  # the loop ends with it
    return None


def _find_whose(module: str) -> int:
    if module.partition(".")[0] == _HERE or module in {"contextlib", "contextvars"}:
        whose = _OURS
    elif module in {"threading", "asyncio.events", "concurrent.futures.thread"}:
        whose = _THREADS
    else:
        whose = _APPLICATION
    if len(_whose) < MOST_MODULES:
        _whose[module] = whose
    return whose


def _shown(value: object) -> str:
    try:
        return repr(value)
    except Exception:  # noqa: BLE001 - anybody's `__repr__`
        return f"<{type(value).__qualname__}>"
