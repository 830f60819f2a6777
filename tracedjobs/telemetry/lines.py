"""Events as lines of a log: by structlog, in the application's own configuration or in ours.

The same listener lets the application's own lines inside a job say which job it is: it binds
`job_id`, `run`, `step` and `trace_id` while the job's thread or task is in it.
"""

from __future__ import annotations

import logging
import os
import sys
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TextIO

import structlog
from structlog.contextvars import bind_contextvars, get_contextvars, unbind_contextvars

from tracedjobs import events
from tracedjobs.telemetry.levels import level_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from structlog.typing import EventDict, Processor

    from tracedjobs.events import Event

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
        if event.name in BEGINS:
            _enter(event)
        elif event.name == "job_step_started" and _is_inside(event):
            bind_contextvars(step=event.payload["step"])
        if self._cursors or event.name != "job_cursor_advanced":
            logger = structlog.get_logger("tracedjobs") if self._logger is None else self._logger
            told = {**event.context, **event.tags, **event.payload, **_span()}
            told.pop("event", None)
            getattr(logger, level_of(event))(event.name, **told)
        if event.name in STEP_ENDS and _is_inside(event):
            unbind_contextvars("step")
        elif event.name in ENDS and _is_inside(event):
            _leave()


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
    return EventLines(
        _logger(
            out,
            structlog.dev.ConsoleRenderer(colors=colours, sort_keys=False, pad_event_to=18),
            "%H:%M:%S",
            brief=True,
        )
    )


def _json(stream: TextIO | None) -> EventLines:
    out = sys.stderr if stream is None else stream
    renderer = structlog.processors.JSONRenderer(ensure_ascii=False, default=str)
    return EventLines(_logger(out, renderer, "iso", brief=False), cursors=True)


def _logger(out: TextIO, renderer: Processor, clock: str, *, brief: bool) -> Any:
    processors: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt=clock, utc=not brief),
    ]
    if brief:
        processors.append(_briefly)
    return structlog.wrap_logger(
        structlog.PrintLogger(out),
        processors=[*processors, renderer],
        wrapper_class=structlog.BoundLogger,
    ).bind()  # else it is made anew for each line


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


def _enter(event: Event) -> None:
    bound = get_contextvars()
    before: dict[str, Any] = {name: bound[name] for name in BOUND if name in bound}
    job_id, run = event.payload["job_id"], event.payload["run"]
    _inside.set(_Inside(job_id, run, before, _inside.get()))
    unbind_contextvars("step")
    trace = {key: value for key, value in _span().items() if key == "trace_id"}
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


def _span() -> dict[str, str]:
    """The current trace and span, where OpenTelemetry is in use."""
    api = sys.modules.get("opentelemetry.trace")
    if api is None:
        return {}
    here = api.get_current_span().get_span_context()
    if not here.is_valid:
        return {}
    return {"trace_id": f"{here.trace_id:032x}", "span_id": f"{here.span_id:016x}"}
