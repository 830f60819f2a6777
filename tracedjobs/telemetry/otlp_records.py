"""Events as OTLP's log records, made at once as the protocol's messages.

OpenTelemetry's encoder goes through objects of its own for each value and its key, and takes 85 µs
a record, in which no job of the process gets on; this takes a tenth. The messages are those of
`opentelemetry-proto`, which comes with the exporters of `[otlp]`.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import starmap
from typing import TYPE_CHECKING, Any, Final, cast

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

from tracedjobs.telemetry.levels import level_of
from tracedjobs.telemetry.otel_logs import (
    SEVERITIES,
    attribute_name,
    attribute_value,
    where_attributes,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.proto.logs.v1.logs_pb2 import ResourceLogs
    from opentelemetry.sdk._logs import ReadableLogRecord

    from tracedjobs.events import Event, SourceLocation
    from tracedjobs.telemetry.places import Place

__all__ = ["around", "request", "written"]

LONGEST_KEPT: Final = 128
"""Characters of a text of which it is remembered how it is written."""


def around(record: ReadableLogRecord) -> ResourceLogs:
    """What is around that record, as OpenTelemetry writes it: its resource and scope."""
    from opentelemetry.exporter.otlp.proto.common._log_encoder import (  # noqa: PLC0415 - an extra
        encode_logs,
    )

    (resource,) = encode_logs([record]).resource_logs
    resource.scope_logs[0].ClearField("log_records")
    return cast("ResourceLogs", resource)


def request(around: ResourceLogs, records: Sequence[LogRecord]) -> bytes:
    """All of it, as it is sent."""
    made = ExportLogsServiceRequest(resource_logs=[around])
    made.resource_logs[0].scope_logs[0].log_records.extend(records)
    return cast("bytes", made.SerializeToString())


def written(
    event: Event, attributes: dict[str, Any] | None, place: Place | None, *, most: int
) -> LogRecord | None:
    """The record of an event, with those attributes or else its own.

    `None` where it has more than `most` of them, or something that a message cannot hold, such as
    a lone surrogate in a key: OpenTelemetry leaves that one out.
    """
    try:
        found = (
            _attributes(event) if attributes is None else [*starmap(_attribute, attributes.items())]
        )
        if len(found) > most:
            return None
        number, text = SEVERITIES[level_of(event)]
        record = LogRecord(
            time_unix_nano=event.timestamp,
            observed_time_unix_nano=event.timestamp,
            severity_number=number.value,  # type: ignore[arg-type]  # a number of its enum
            severity_text=text,
            event_name=f"tracedjobs.{event.name}",
            attributes=found,
        )
        record.body.string_value = event.name
    except ValueError:
        return None
    if place is not None:
        record.trace_id, record.span_id = _ids(place.trace_id, place.span_id)
        record.flags = int(place.sampled)
    return record


def _attributes(event: Event) -> list[KeyValue]:
    found: list[KeyValue] = []
    for key, value in event.payload.items():
        kind = type(value)
        if kind is float or (kind is str and len(value) > LONGEST_KEPT):
            found.append(_attribute(attribute_name(key), attribute_value(value)))
        elif value is not None:
            found.append(_kept(key, value))
    where = event.source_location
    if where is not None:
        found += _place(where)
    return found


# Most of what an event says an event before it has said: of its job, its run, its step.
@lru_cache(maxsize=1024, typed=True)  # 1 and True are not the same here
def _kept(key: str, value: str | bool | int) -> KeyValue:  # noqa: FBT001 - whatever it is
    return _attribute(attribute_name(key), attribute_value(value))


@lru_cache(maxsize=256)
def _place(where: SourceLocation) -> tuple[KeyValue, ...]:
    return tuple(starmap(_attribute, where_attributes(where)))


@lru_cache(maxsize=1024)
def _ids(trace_id: str, span_id: str) -> tuple[bytes, bytes]:
    return bytes.fromhex(trace_id), bytes.fromhex(span_id)


def _attribute(key: str, value: str | bool | float) -> KeyValue:  # noqa: FBT001 - whatever it is
    if isinstance(value, str):
        return KeyValue(key=key, value=AnyValue(string_value=value))
    if isinstance(value, bool):
        return KeyValue(key=key, value=AnyValue(bool_value=value))
    if isinstance(value, float):
        return KeyValue(key=key, value=AnyValue(double_value=value))
    return KeyValue(key=key, value=AnyValue(int_value=value))
