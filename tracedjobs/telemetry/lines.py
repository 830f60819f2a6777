"""Events as lines of a log: by structlog as the application configured it, or in our own forms.

The same listener lets the application's own lines inside a job say which job it is: it binds
`job_id`, `run`, `step` and `trace_id` while the job's thread or task is in it.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TextIO

import structlog
from structlog.contextvars import bind_contextvars, get_contextvars, unbind_contextvars

from tracedjobs import events
from tracedjobs._core.masking import shown
from tracedjobs.telemetry.levels import level_of
from tracedjobs.telemetry.places import place_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from structlog.typing import EventDict, Processor

    from tracedjobs.events import Event
    from tracedjobs.telemetry.places import Place

__all__ = ["EventLines", "JobFilter", "log_events"]

BOUND: Final = ("job_id", "run", "step", "trace_id")
BEGINS: Final = frozenset({"job_started", "job_resumed"})
ENDS: Final = frozenset(
    {
        "job_completed",
        "job_interrupted",
        "job_failed",
        "job_paused",
        "job_cancelled",
        "job_lease_lost",
    }
)
_encode: Final = json.JSONEncoder(ensure_ascii=False, check_circular=False, default=shown).encode
STEP_ENDS: Final = frozenset({"job_step_completed", "job_step_interrupted", "job_step_failed"})


class _Inside(NamedTuple):
    job_id: str
    run: int
    before: Mapping[str, Any]
    """What was bound before it."""
    around: _Inside | None
    """The job that runs this one, if one does."""


_inside: ContextVar[_Inside | None] = ContextVar("tracedjobs_inside", default=None)


class EventLines:
    """A subscriber that logs each event by structlog: its name, and its payload as keys."""

    def __init__(self, logger: Any = None, *, cursors: bool = False) -> None:
        """Log by that logger, else by the application's `structlog.get_logger("tracedjobs")`.

        `cursors`: also `job_cursor_advanced`, which comes with every save.
        """
        self._logger = logger
        self._cursors = cursors

    def emit(self, event: Event) -> None:
        """Bind what is to be bound, and log it."""
        name, place = event.name, place_of(event)
        if name == "job_step_started":
            if _is_inside(event):
                bind_contextvars(step=event.payload["step"])
        elif name in BEGINS:
            _enter(event, place)
        try:
            if self._cursors or name != "job_cursor_advanced":
                self._log(event, place)
        finally:
            if name in STEP_ENDS and _is_inside(event):
                unbind_contextvars("step")
            elif name in ENDS and _is_inside(event):
                _leave()

    def _log(self, event: Event, place: Place | None) -> None:
        told = _told({}, event, place)
        told.pop("event", None)
        logger = structlog.get_logger("tracedjobs") if self._logger is None else self._logger
        getattr(logger, level_of(event))(event.name, **told)


def _told(line: dict[str, Any], event: Event, place: Place | None) -> dict[str, Any]:
    """Add what a line of that event says."""
    if event.context:
        line.update(event.context)
    if event.tags:
        line.update(event.tags)
    line.update(event.payload)
    if place is not None:
        line["trace_id"], line["span_id"] = place.trace_id, place.span_id
    return line


class JsonLines(EventLines):
    """A subscriber that writes each event as a JSON object, itself: structlog takes longer.

    It adds the application's bound context, as structlog's `merge_contextvars` does.
    """

    def __init__(self, out: TextIO) -> None:
        """Write to `out`; all events."""
        super().__init__(cursors=True)
        self._out = out

    def _log(self, event: Event, place: Place | None) -> None:
        line = _told(get_contextvars(), event, place)
        line["event"] = event.name
        line["level"] = level_of(event)
        seconds, rest = divmod(event.timestamp, 1_000_000_000)
        line["timestamp"] = f"{_second(seconds)}.{rest // 1000:06}Z"
        try:
            text = _encode(line)
        except (TypeError, ValueError, RecursionError):  # a key that JSON has not, or a loop
            text = _encode({key: shown(value) for key, value in line.items()})
        try:
            self._out.write(f"{text}\n")  # at once, so that threads need no lock
        except UnicodeEncodeError:  # a lone surrogate, or a stream that is not in UTF-8
            self._out.write(f"{json.dumps(json.loads(text))}\n")
        self._out.flush()


@lru_cache(maxsize=16)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None).isoformat()


def log_events(
    form: Literal["structlog", "console", "json"] = "structlog", stream: TextIO | None = None
) -> EventLines:
    """Log what jobs do from now on; the listener, for `tracedjobs.events.unsubscribe`.

    - `structlog`: by the application's own structlog configuration, logger `tracedjobs`.
    - `console`: lines for people on `stream`, by default stderr; in colours on a terminal, unless
      `NO_COLOR` is set.
    - `json`: a JSON object an event, with its time in RFC 3339, UTC.

    Meanwhile the application's own structlog lines inside a job carry `job_id`, `run`, `step` and
    `trace_id`, where its configuration has structlog's `merge_contextvars`; for those of the
    standard library see `JobFilter`. Raises `ValueError` for another form.
    """
    forms = {"structlog": lambda _: EventLines(), "console": _console, "json": _json}
    if form not in forms:
        msg = f"log_events({form!r}): the form is one of {', '.join(forms)}."
        raise ValueError(msg)
    listener = forms[form](stream)
    events.subscribe(listener)
    return listener


class JobFilter(logging.Filter):
    """Gives records of the standard library `job_id`, `run`, `step` and `trace_id`.

    Empty outside of a job. Put it on a handler: `handler.addFilter(JobFilter())`, with a format
    such as `%(asctime)s %(message)s job=%(job_id)s step=%(step)s`.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Put them on the record, and let it pass."""
        bound = get_contextvars()
        for name in BOUND:
            if not hasattr(record, name):
                setattr(record, name, bound.get(name, ""))
        return True


def _console(stream: TextIO | None) -> EventLines:
    out = sys.stderr if stream is None else stream
    colours = out.isatty() and not os.environ.get("NO_COLOR")
    processors: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False),
        _briefly,
        structlog.dev.ConsoleRenderer(colors=colours, sort_keys=False, pad_event_to=18),
    ]
    logger = structlog.wrap_logger(
        structlog.WriteLogger(out), processors=processors, wrapper_class=structlog.BoundLogger
    )
    return EventLines(logger.bind())  # else it is made anew for each line


def _json(stream: TextIO | None) -> EventLines:
    return JsonLines(sys.stderr if stream is None else stream)


def _briefly(logger: Any, method: str, event: EventDict) -> EventDict:  # noqa: ARG001 - theirs
    """What a person wants to see: short names, no ids that say nothing, times in seconds."""
    name = str(event.pop("event")).removeprefix("job_").replace("_", " ")
    for hidden in ("trace_id", "span_id", "step_started_at"):
        event.pop(hidden, None)
    first: EventDict = {"step": event.pop("step", None)}
    total, items = event.pop("total", None), event.pop("items", None)
    if items or total is not None:
        first["items"] = items if total is None else f"{items}/{total}"
    elif event.get("cursor") == "null":
        del event["cursor"]
    if not event.get("resumed", True):
        del event["resumed"]
    seconds = event.pop("duration_s", None)
    last = {"job": event.pop("job", None), "run": event.pop("run", None)}
    last["id"] = str(event.pop("job_id", ""))[:8]
    if seconds and name != "step started":
        first["took"] = f"{float(seconds):.3f}s"
    told = {"event": name, **first, **event, **last}
    return {key: value for key, value in told.items() if value is not None}


def _enter(event: Event, place: Place | None) -> None:
    bound = get_contextvars()
    before: dict[str, Any] = {name: bound[name] for name in BOUND if name in bound}
    job_id, run = event.payload["job_id"], event.payload["run"]
    _inside.set(_Inside(job_id, run, before, _inside.get()))
    unbind_contextvars("step")
    trace = {} if place is None else {"trace_id": place.trace_id}
    bind_contextvars(job_id=job_id, run=run, **trace)


def _leave() -> None:
    inside = _inside.get()
    if inside is None:
        return
    unbind_contextvars(*BOUND)
    bind_contextvars(**inside.before)
    _inside.set(inside.around)


def _is_inside(event: Event) -> bool:
    inside = _inside.get()
    return inside is not None and inside[:2] == (event.payload["job_id"], event.payload["run"])
