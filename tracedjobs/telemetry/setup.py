"""`configure`: OpenTelemetry for jobs, by the `OTEL_*` variables or the provider there is."""

from __future__ import annotations

import logging
import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import trace as api
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter

from tracedjobs import events
from tracedjobs._core import trace
from tracedjobs._core.ending import type_name
from tracedjobs._core.masking import shown
from tracedjobs._core.owner import worker_name
from tracedjobs.telemetry.exporting import (
    Logs,
    OfJobs,
    Provided,
    Spans,
    Trouble,
    WholeTrees,
    named,
)
from tracedjobs.telemetry.settings import SettingsError, protocol_of, whole
from tracedjobs.telemetry.tracing import JobTracing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from opentelemetry.util.types import AttributeValue

    from tracedjobs._core.runtime import Runtime
    from tracedjobs.telemetry.otel_logs import OtelLogEvents

__all__ = ["configure", "flush", "watch"]

UNKNOWN_SERVICE: Final = "unknown_service"
LONGEST: Final = 1000.0
"""Seconds: an exporter that may take longer is taken for one with a wrong setting."""
OWN_EVENTS: Final = "job_"
_log: Final = logging.getLogger("tracedjobs")

_tracing: JobTracing | None = None
_logging: OtelLogEvents | None = None


def configure(
    *,
    service_name: str | None = None,
    logs: bool = True,
    spans: bool = True,
    segments: bool = True,
) -> None:
    """Send what jobs do to OpenTelemetry: call it once, where the application starts.

    Joins the tracer provider and the logger provider that the application has set; where there is
    none it makes one, from the standard variables: `OTEL_EXPORTER_OTLP_ENDPOINT`,
    `OTEL_EXPORTER_OTLP_PROTOCOL` (`grpc` or `http/protobuf`, the default unless the port is 4317),
    `OTEL_EXPORTER_OTLP_HEADERS`, `OTEL_TRACES_EXPORTER`, `OTEL_LOGS_EXPORTER`,
    `OTEL_TRACES_SAMPLER`, `OTEL_SERVICE_NAME` and the others. `OTEL_SDK_DISABLED=true` turns all of
    it off.

    `service_name` wins over the variable. `logs`: events as log records. `spans`: a trace a job.
    `segments`: spans of parts of a step that takes long, which show it moving before it ends.

    A setting that cannot be followed, and a collector that cannot be reached, is said in one line
    of the log, and jobs go on. Raises `ImportError` when OTLP is wanted and not installed.
    """
    global _tracing, _logging  # noqa: PLW0603 - one a process, as OpenTelemetry's providers are
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return
    wrong: dict[str, list[str]] = {}
    resource = None
    if spans and _tracing is None:
        with _noting(wrong, "Spans"):
            resource = resource or _resource(service_name)
            _tracing = _joined_or_made(resource, segments=segments)
        if _tracing is not None:
            trace.installed = _tracing
            events.subscribe(_tracing.note_event, _is_the_users)
    if logs and _logging is None:
        with _noting(wrong, "Log records"):
            resource = resource or _resource(service_name)
            _logging = _subscribed_logs(resource)
    for why, what in wrong.items():
        on = _tracing is not None or _logging is not None
        _log.warning("%s: %s. Jobs go on.", f"{what[0]} are off" if on else "Telemetry is off", why)


def flush() -> None:
    """Send what jobs of this process owe, and its log records, now, and wait for it.

    Also what the tracer provider holds: the spans of submissions are there, and the user's own.
    """
    if _tracing is not None:
        provider = api.get_tracer_provider()
        sent = False
        try:
            # Which comes to `OfJobs`, and so to what jobs owe, unless others before took its time.
            sent = isinstance(provider, TracerProvider) and provider.force_flush()
        finally:
            if not sent:
                _tracing.sender.flush()
    if _logging is not None:
        _logging.flush()


def watch(runtime: Runtime) -> None:
    """Send also what others left in that runtime's store, as killed workers do.

    A process that runs a job does so for its store anyway.
    """
    if _tracing is not None:
        _tracing.sender.watch(runtime.store)


@contextmanager
def _noting(wrong: dict[str, list[str]], what: str) -> Iterator[None]:
    """Note what cannot be set up, and why: by us, or by OpenTelemetry, which raises anything."""
    try:
        yield
    except ImportError:
        raise
    except SettingsError as error:
        wrong.setdefault(str(error), []).append(what)
    except Exception as error:  # noqa: BLE001 - whatever it is, jobs go on
        why = shown(error) or type_name(error)
        wrong.setdefault(why.rstrip("."), []).append(what)


def _is_the_users(event: events.Event) -> bool:
    return not event.name.startswith(OWN_EVENTS)


def _resource(service_name: str | None) -> Resource:
    own: dict[str, AttributeValue] = {"tracedjobs.worker": worker_name()}
    if service_name is not None:
        own[SERVICE_NAME] = service_name
    resource = Resource.create(own)
    if str(resource.attributes.get(SERVICE_NAME, "")).startswith(UNKNOWN_SERVICE):
        resource = resource.merge(Resource({SERVICE_NAME: "tracedjobs"}))
    return resource


# -- spans ---


def _joined_or_made(resource: Resource, *, segments: bool) -> JobTracing | None:
    provider = api.get_tracer_provider()
    if isinstance(provider, api.ProxyTracerProvider):
        return _made(resource, segments=segments)
    return _joined(provider, segments=segments)


def _made(resource: Resource, *, segments: bool) -> JobTracing | None:
    makes = _exporters("traces")
    if not makes:
        return None
    delay, most = whole("OTEL_BSP_SCHEDULE_DELAY", 5000), whole("OTEL_BSP_MAX_QUEUE_SIZE", 2048)
    most_sent = min(whole("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 512), most)
    provider = TracerProvider(resource=resource)
    ways = [(make, Trouble("Spans")) for make in makes]
    theirs = [Spans(make, trouble) for make, trouble in ways]
    for exporter in theirs:
        batches = BatchSpanProcessor(
            exporter,
            schedule_delay_millis=delay,
            max_queue_size=most,
            max_export_batch_size=most_sent,
        )
        provider.add_span_processor(WholeTrees(batches))
    own = [Spans(make, trouble) for make, trouble in ways]
    mine = Provided(lambda: own, lambda: _of_this_process(resource), _longest())
    tracing = JobTracing(
        mine, provider.get_tracer("tracedjobs"), provider.sampler, segments=segments
    )
    for exporter in theirs:
        exporter.before = tracing.make_parents_known
    provider.add_span_processor(OfJobs(tracing, made_here=True))
    api.set_tracer_provider(provider)
    return tracing


def _joined(provider: api.TracerProvider, *, segments: bool) -> JobTracing | None:
    if not isinstance(provider, TracerProvider):
        found = f"{type(provider).__module__}.{type(provider).__qualname__}"
        msg = f"the tracer provider {found} is not OpenTelemetry's own, and takes no spans of ours"
        raise SettingsError(msg)

    def targets() -> Sequence[SpanExporter | SpanProcessor]:
        found = [each for each in _leaves(provider) if not isinstance(each, OfJobs)]
        asked = [getattr(each, "span_exporter", None) for each in found]
        return [
            exporter if isinstance(exporter, SpanExporter) else processor
            for processor, exporter in zip(found, asked, strict=True)
        ]

    sink = Provided(targets, lambda: provider.resource, _longest())
    tracing = JobTracing(
        sink, provider.get_tracer("tracedjobs"), provider.sampler, segments=segments
    )
    provider.add_span_processor(OfJobs(tracing, made_here=False))
    return tracing


def _leaves(provider: TracerProvider) -> list[SpanProcessor]:
    """The processors that were added to a provider, which has no public list of them."""
    found: list[SpanProcessor] = []
    left: list[Any] = [getattr(provider, "_active_span_processor", None)]
    while left:
        each = left.pop(0)
        inside = getattr(each, "_span_processors", None)
        if inside is not None:
            left += inside
        elif isinstance(each, SpanProcessor):
            found.append(each)
    return found


def _of_this_process(resource: Resource) -> Resource:
    return resource.merge(Resource({"tracedjobs.worker": worker_name()}))


def _longest() -> float:
    """Seconds that one export takes at most, with the tries that the exporter makes."""
    for name in ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT"):
        with suppress(ValueError):
            seconds = float(os.environ.get(name, ""))
            if 0 < seconds < LONGEST:
                return seconds
    return 10.0


# -- logs ---


def _subscribed_logs(resource: Resource) -> OtelLogEvents | None:
    from opentelemetry import _logs as logs_api  # noqa: PLC0415 - still private in OpenTelemetry
    from opentelemetry.sdk._logs import LoggerProvider  # noqa: PLC0415

    from tracedjobs.telemetry.batching import OwnLoggerProvider  # noqa: PLC0415
    from tracedjobs.telemetry.otel_logs import OtelLogEvents  # noqa: PLC0415

    provider = logs_api.get_logger_provider()
    if not isinstance(provider, LoggerProvider):
        makes = _exporters("logs")
        if not makes:
            return None
        provider = OwnLoggerProvider(resource, [Logs(make) for make in makes])
        logs_api.set_logger_provider(provider)
    listener = OtelLogEvents(provider)
    events.subscribe(listener)
    return listener


# -- exporters ---


def _exporters(group: str) -> list[Callable[[], Any]]:
    """What makes the exporters that the environment asks for, OTLP where it says nothing."""
    setting = f"OTEL_{group.upper()}_EXPORTER"
    names = [name.strip() for name in (os.environ.get(setting) or "otlp").split(",")]
    if "none" in names:
        return []
    return [
        named(group, protocol_of(group) if name == "otlp" else name, setting)
        for name in names
        if name
    ]
