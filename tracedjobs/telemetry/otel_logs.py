"""Events as OpenTelemetry's log records, which it calls events when they have a name.

The one module that knows its logs API, which is private still. Where `configure` made the provider
itself, an event becomes a record in the thread that sends it, and not in the job's: as OTLP's
message where that may be, else as OpenTelemetry's own object.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final, cast

from opentelemetry import trace as api
from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.context import Context
from opentelemetry.sdk._logs import ReadableLogRecord, ReadWriteLogRecord

from tracedjobs._core.masking import shown
from tracedjobs.events import Event, SourceLocation
from tracedjobs.telemetry.batching import OwnLoggerProvider
from tracedjobs.telemetry.levels import level_of
from tracedjobs.telemetry.places import place_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry._logs import LoggerProvider
    from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord as OtlpRecord
    from opentelemetry.proto.logs.v1.logs_pb2 import ResourceLogs
    from opentelemetry.sdk._logs import Logger

    from tracedjobs.telemetry.places import Place

__all__ = [
    "SEVERITIES",
    "OtelLogEvents",
    "attribute_name",
    "attribute_value",
    "where_attributes",
]

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
        self._most = 0 if self._own is None else _most_attributes(self._own)
        self._around: ResourceLogs | None = None

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
            batch.take(self, event, attributes, place)

    def flush(self) -> None:
        """Send what is waiting, where the provider is ours."""
        if self._own is not None:
            self._own.force_flush()

    # -- for `batching` ---

    def readable(
        self, event: Event, attributes: dict[str, Any] | None, place: Place | None
    ) -> ReadableLogRecord:
        """See `Maker.readable`."""
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

    def written(
        self, event: Event, attributes: dict[str, Any] | None, place: Place | None
    ) -> OtlpRecord | None:
        """See `Maker.written`."""
        from tracedjobs.telemetry import otlp_records  # noqa: PLC0415 - of [otlp]

        return otlp_records.written(event, attributes, place, most=self._most)

    def request(self, records: Sequence[OtlpRecord]) -> bytes:
        """See `Maker.request`."""
        from tracedjobs.telemetry import otlp_records  # noqa: PLC0415 - of [otlp]

        if self._around is None:
            self._around = otlp_records.around(self.readable(Event("around", {}), {}, None))
        return otlp_records.request(self._around, records)


def _most_attributes(provider: OwnLoggerProvider) -> int:
    """How many a record has before OpenTelemetry cuts it; none where it cuts texts, too."""
    limits = vars(provider.limits)
    if any(limit is not None for name, limit in limits.items() if "length" in name):
        return 0
    counts = [limit for name, limit in limits.items() if "length" not in name]
    return min((limit for limit in counts if limit is not None), default=sys.maxsize)


def _stays_as_it_is(event: Event) -> bool:
    return not (event.tags or event.context) and _PLAIN.issuperset(
        map(type, event.payload.values())
    )


def _attributes(event: Event) -> dict[str, Any]:
    found: dict[str, Any] = {
        attribute_name(key): attribute_value(value)
        for key, value in event.payload.items()
        if value is not None
    }
    for key, value in event.tags.items():
        found[f"tracedjobs.tag.{key}"] = attribute_value(value)
    for key, value in event.context.items():
        found[f"tracedjobs.context.{key}"] = attribute_value(value)
    where = event.source_location
    if where is not None:
        found.update(where_attributes(where))
    return found


def where_attributes(place: SourceLocation) -> tuple[tuple[str, str | int], ...]:
    """The attributes of a place in the source."""
    return (
        ("code.file.path", place.filepath),
        ("code.line.number", place.lineno),
        ("code.function.name", place.label),
    )


def attribute_name(key: str) -> str:
    """What a key of a payload is called."""
    return NAMES.get(key) or f"tracedjobs.event.{key}"


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


def attribute_value(value: object) -> str | bool | int | float:
    """The value as an attribute may have it; another kind is shown as text."""
    if isinstance(value, (bool, float)):
        return value
    if isinstance(value, int) and -LARGEST <= value < LARGEST:
        return value
    text = value if type(value) is str else shown(value)
    # A lone surrogate would have all records of its request refused.
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
