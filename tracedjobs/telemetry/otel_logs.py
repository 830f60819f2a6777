"""Events as OpenTelemetry's log records, which it calls events when they have a name.

The one module that knows its logs API, which is private still.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from opentelemetry._logs import LogRecord, SeverityNumber

from tracedjobs.telemetry.levels import level_of

if TYPE_CHECKING:
    from opentelemetry._logs import LoggerProvider

    from tracedjobs.events import Event

__all__ = ["OtelLogEvents"]

SEVERITIES: Final = {
    "debug": SeverityNumber.DEBUG,
    "info": SeverityNumber.INFO,
    "warning": SeverityNumber.WARN,
    "error": SeverityNumber.ERROR,
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
    """A subscriber that logs each event under `tracedjobs.<name>`, in the current trace."""

    def __init__(self, provider: LoggerProvider) -> None:
        """Log by that provider."""
        self._logger = provider.get_logger("tracedjobs")

    def emit(self, event: Event) -> None:
        """Log it."""
        level = level_of(event)
        attributes: dict[str, Any] = {
            NAMES.get(key, f"tracedjobs.event.{key}"): _value(value)
            for key, value in event.payload.items()
            if value is not None
        }
        attributes |= {f"tracedjobs.tag.{key}": _value(each) for key, each in event.tags.items()}
        attributes |= {
            f"tracedjobs.context.{key}": _value(each) for key, each in event.context.items()
        }
        where = event.source_location
        if where is not None:
            attributes["code.file.path"] = where.filepath
            attributes["code.line.number"] = where.lineno
            attributes["code.function.name"] = where.label
        self._logger.emit(
            LogRecord(
                timestamp=event.timestamp,
                observed_timestamp=event.timestamp,
                severity_number=SEVERITIES[level],
                severity_text=level.upper(),
                body=event.name,
                attributes=attributes,
                event_name=f"tracedjobs.{event.name}",
            )
        )


def _value(value: object) -> str | bool | int | float:
    if isinstance(value, (bool, int, float)):
        return value
    text = str(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
