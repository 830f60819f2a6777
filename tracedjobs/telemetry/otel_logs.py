"""Events as OpenTelemetry's log records, which it calls events when they have a name.

The one module that knows its logs API, which is private still. Where `configure` made the provider
itself, an event becomes a record in the thread that sends it, and not in the job's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast

from opentelemetry import trace as api
from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.context import Context
from opentelemetry.sdk._logs import ReadableLogRecord, ReadWriteLogRecord

from tracedjobs._core.masking import shown
from tracedjobs.telemetry.batching import OwnLoggerProvider
from tracedjobs.telemetry.levels import level_of
from tracedjobs.telemetry.places import place_of

if TYPE_CHECKING:
    from opentelemetry._logs import LoggerProvider
    from opentelemetry.sdk._logs import Logger

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
LARGEST: Final = 1 << 63
"""Integers from here on are no numbers to OTLP."""
NOWHERE: Final = api.set_span_in_context(api.INVALID_SPAN, Context())
_PLAIN: Final = frozenset({str, int, float, bool, type(None)})
"""What nobody can change after it was told."""


class OtelLogEvents:
    """A subscriber that logs each event under `tracedjobs.<name>`, in the trace of its job."""

    def __init__(self, provider: LoggerProvider) -> None:
        """Log by that provider."""
        self._logger = provider.get_logger("tracedjobs")
        self._own = provider if isinstance(provider, OwnLoggerProvider) else None

    def emit(self, event: Event) -> None:
        """Log it."""
        own, place = self._own, place_of(event)
        if own is None or own.shared:
            context = None if place is None or place.current else _context(place)
            self._logger.emit(_record(event, _attributes(event), context))
            return
        # What can be changed after it was told is written down at once.
        attributes = None if _stays_as_it_is(event) else _attributes(event)
        for batch in own.batches:
            batch.take(self._readable, event, attributes, place)

    def flush(self) -> None:
        """Send what is waiting, where the provider is ours."""
        if self._own is not None:
            self._own.force_flush()

    def _readable(
        self, event: Event, attributes: dict[str, Any] | None, place: Place | None
    ) -> ReadableLogRecord:
        logger = cast("Logger", self._logger)
        made = ReadWriteLogRecord(
            _record(
                event,
                _attributes(event) if attributes is None else attributes,
                NOWHERE if place is None else _context(place),
            ),
            logger.resource,
            logger.instrumentation_scope,
            cast("OwnLoggerProvider", self._own).limits,
        )
        return ReadableLogRecord(
            made.log_record, logger.resource, made.instrumentation_scope, made.limits
        )


def _stays_as_it_is(event: Event) -> bool:
    return not (event.tags or event.context) and _PLAIN.issuperset(
        map(type, event.payload.values())
    )


def _attributes(event: Event) -> dict[str, Any]:
    found: dict[str, Any] = {
        NAMES.get(key) or f"tracedjobs.event.{key}": _value(value)
        for key, value in event.payload.items()
        if value is not None
    }
    for key, value in event.tags.items():
        found[f"tracedjobs.tag.{key}"] = _value(value)
    for key, value in event.context.items():
        found[f"tracedjobs.context.{key}"] = _value(value)
    where = event.source_location
    if where is not None:
        found["code.file.path"] = where.filepath
        found["code.line.number"] = where.lineno
        found["code.function.name"] = where.label
    return found


def _record(event: Event, attributes: dict[str, Any], context: Context | None) -> LogRecord:
    severity, level = SEVERITIES[level_of(event)]
    return LogRecord(
        timestamp=event.timestamp,
        observed_timestamp=event.timestamp,
        context=context,
        severity_number=severity,
        severity_text=level,
        body=event.name,
        attributes=attributes,
        event_name=f"tracedjobs.{event.name}",
    )


def _context(place: Place) -> Context:
    """What has the span of that place as the current one."""
    flags = api.TraceFlags(api.TraceFlags.SAMPLED if place.sampled else api.TraceFlags.DEFAULT)
    there = api.SpanContext(
        int(place.trace_id, 16), int(place.span_id, 16), is_remote=True, trace_flags=flags
    )
    return api.set_span_in_context(api.NonRecordingSpan(there))


def _value(value: object) -> str | bool | int | float:
    if isinstance(value, (bool, float)):
        return value
    if isinstance(value, int) and -LARGEST <= value < LARGEST:
        return value
    text = value if type(value) is str else shown(value)
    # A lone surrogate would have all records of its request refused.
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
