"""Where in its job's trace an event was told, for all who log it.

OpenTelemetry is looked at where it is in use already, and never loaded from here.
"""

from __future__ import annotations

import sys
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from tracedjobs._core.trace import Trace

if TYPE_CHECKING:
    from tracedjobs.events import Event

__all__ = ["Place", "place_of"]


class Place(NamedTuple):
    """A span, as its ids are written; whether it is sampled, and whether it is the current one."""

    trace_id: str
    span_id: str
    sampled: bool
    current: bool


def place_of(event: Event) -> Place | None:
    """The current span, or that of the event's run where the current one is in another trace.

    What the saver's thread or an operator tells of a job is so found in the job's trace; where
    nothing is stored of one, the current span is taken.
    """
    global _last  # noqa: PLW0603 - replaced whole, so that threads need no lock
    last = _last
    if last is None or last[0] is not event:  # several listeners are told of each event
        last = _last = (event, _found(event))
    return last[1]


_last: tuple[Event, Place | None] | None = None


def _found(event: Event) -> Place | None:
    current = _current()
    run = event.payload.get("run") if event.trace is not None else None
    own = _place(event.trace, run) if isinstance(run, int) else None
    if current is not None and (own is None or own.trace_id == current.trace_id):
        return current
    return own


def _current() -> Place | None:
    api = sys.modules.get("opentelemetry.trace")
    if api is None:
        return None
    span = api.get_current_span()
    place: Place | None = getattr(span, "place", None)  # of ours, which know it
    if place is not None:
        return place
    here = span.get_span_context()
    if not here.is_valid:
        return None
    return _written(here.trace_id, here.span_id, here.trace_flags)


@lru_cache(maxsize=256)
def _written(trace_id: int, span_id: int, flags: int) -> Place:
    return Place(f"{trace_id:032x}", f"{span_id:016x}", flags & 1 == 1, current=True)


@lru_cache(maxsize=1024)
def _place(text: str | None, run: int) -> Place | None:
    trace = Trace.read(text)
    if trace is None:
        return None
    number = run or None  # before the first it is the root's
    return Place(trace.trace_of(number), trace.span_of(number), trace.sampled, current=False)
