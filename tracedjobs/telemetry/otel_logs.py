"""Events as OpenTelemetry's log records, which it calls events when they have a name.

The one module that knows its logs API, which is private still.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from opentelemetry import trace as api
from opentelemetry._logs import LogRecord, SeverityNumber

from tracedjobs._core.masking import shown
from tracedjobs.telemetry.levels import level_of
from tracedjobs.telemetry.places import place_of

if TYPE_CHECKING:
    from opentelemetry._logs import LoggerProvider
    from opentelemetry.context import Context

    from tracedjobs.events import Event
    from tracedjobs.telemetry.places import Place

__all__ = ["OtelLogEvents"]

SEVERITIES: Final = {
    "debug": (SeverityNumber.DEBUG, "DEBUG"),
    "info": (SeverityNumber.INFO, "INFO"),
    "warning": (SeverityNumber.WARN, "WARNING"),
    "error": (SeverityNumber.ERROR, "ERROR"),
}
NAMES: Final = {
    "job": "tracedjobs.job.name",
    "job_id": "tracedjobs.job.id",
    "run": "tracedjobs.run.number",
    "reason": "tracedjobs.run.reason",
    "step": "tracedjobs.step.name",
    "resumed": "tracedjobs.step.resumed",
    "cursor": "tracedjobs.cursor.end",
    "items": "tracedjobs.items.processed",
    "total": "tracedjobs.items.expected",
}
"""The attributes of what payloads have; all else is `tracedjobs.event.<key>`."""
LONGEST: Final = 1024


class OtelLogEvents:
    """A subscriber that logs each event under `tracedjobs.<name>`, in the trace of its job."""

    def __init__(self, provider: LoggerProvider) -> None:
        """Log by that provider."""
        self._logger = provider.get_logger("tracedjobs")

    def emit(self, event: Event) -> None:
        """Log it."""
        severity, level = SEVERITIES[level_of(event)]
        attributes: dict[str, Any] = {
            NAMES.get(key) or f"tracedjobs.event.{key}": _value(value)
            for key, value in event.payload.items()
            if value is not None
        }
        for key, value in event.tags.items():
            attributes[f"tracedjobs.tag.{key}"] = _value(value)
        for key, value in event.context.items():
            attributes[f"tracedjobs.context.{key}"] = _value(value)
        where = event.source_location
        if where is not None:
            attributes["code.file.path"] = where.filepath
            attributes["code.line.number"] = where.lineno
            attributes["code.function.name"] = where.label
        self._logger.emit(
            LogRecord(
                timestamp=event.timestamp,
                observed_timestamp=event.timestamp,
                context=_context(place_of(event)),
                severity_number=severity,
                severity_text=level,
                body=event.name,
                attributes=attributes,
                event_name=f"tracedjobs.{event.name}",
            )
        )


def _context(place: Place | None) -> Context | None:
    """What has the span of that place as the current one; `None` where it is that anyway."""
    if place is None or place.current:
        return None
    flags = api.TraceFlags(api.TraceFlags.SAMPLED if place.sampled else api.TraceFlags.DEFAULT)
    there = api.SpanContext(
        int(place.trace_id, 16), int(place.span_id, 16), is_remote=True, trace_flags=flags
    )
    return api.set_span_in_context(api.NonRecordingSpan(there))


def _value(value: object) -> str | bool | int | float:
    if isinstance(value, (bool, int, float)):
        return value
    text = value if type(value) is str else shown(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
