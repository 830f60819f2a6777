"""The one reporter that the core and `ctx.notify` tell of what happens; listeners subscribe.

It calls its subscribers in the thread that tells, and does nothing when there are none.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

__all__ = ["Event", "notify", "subscribe", "unsubscribe"]


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a job.

    `timestamp` is in nanoseconds since the epoch.
    """

    name: str
    payload: Mapping[str, object]
    timestamp: int = field(default_factory=time.time_ns)


Subscriber = Callable[[Event], object]
Filter = Callable[[Event], bool]

_subscribers: tuple[tuple[Subscriber, Filter | None], ...] = ()
_reported: set[int] = set()


def subscribe(subscriber: Subscriber, filter: Filter | None = None) -> None:  # noqa: A002 - Rails' word
    """Call `subscriber` with each event, or with those for which `filter` is true.

    A subscriber that raises is reported once, as a warning, and never harms a job.
    """
    global _subscribers  # noqa: PLW0603 - replaced whole, so that `notify` needs no lock
    _subscribers = (*_subscribers, (subscriber, filter))


def unsubscribe(subscriber: Subscriber) -> None:
    """Call `subscriber` no more; nothing happens when it was not subscribed."""
    global _subscribers  # noqa: PLW0603 - as above
    _subscribers = tuple(each for each in _subscribers if each[0] != subscriber)


def notify(name: str, /, **payload: object) -> None:
    """Tell the subscribers of an event of that name."""
    if not _subscribers:
        return
    event = Event(name, payload)
    for subscriber, wanted in _subscribers:
        try:
            if wanted is None or wanted(event):
                subscriber(event)
        except Exception as error:  # noqa: BLE001 - a listener never harms a job
            _report(subscriber, event, error)


def _report(subscriber: Subscriber, event: Event, error: Exception) -> None:
    if id(subscriber) in _reported:
        return
    _reported.add(id(subscriber))
    try:
        warnings.warn(
            f"The subscriber {subscriber!r} raised at {event.name}: {error!r}; "
            f"it is told of later events, and its errors are not repeated.",
            RuntimeWarning,
            stacklevel=4,
        )
    except RuntimeWarning:
        return  # warnings are errors in this process: then too the job goes on
