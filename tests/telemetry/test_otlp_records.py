"""Log records that are made as OTLP's messages say what OpenTelemetry's own encoder says."""

from __future__ import annotations

import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter
from opentelemetry.sdk.resources import Resource

from tracedjobs.events import Event, SourceLocation
from tracedjobs.telemetry.batching import OwnLoggerProvider
from tracedjobs.telemetry.exporting import Logs
from tracedjobs.telemetry.otel_logs import OtelLogEvents
from tracedjobs.telemetry.places import Place

if TYPE_CHECKING:
    from collections.abc import Iterator

NAMES = st.text(min_size=1, max_size=20)
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(), NAMES
)
PLACES = st.one_of(
    st.none(),
    st.builds(
        Place,
        st.integers(1, (1 << 128) - 1).map("{:032x}".format),
        st.integers(1, (1 << 64) - 1).map("{:016x}".format),
        st.booleans(),
        st.just(value=False),
    ),
)
EVENTS = st.builds(
    Event,
    NAMES | st.sampled_from(["job_failed", "job_lost", "job_cursor_advanced"]),
    st.dictionaries(NAMES | st.sampled_from(["job", "run", "step", "items"]), VALUES, max_size=8),
    st.dictionaries(NAMES, VALUES, max_size=2),
    st.dictionaries(NAMES, VALUES, max_size=2),
    st.integers(0, 1 << 62),
    st.none() | st.builds(SourceLocation, NAMES, st.integers(1, 1 << 20), NAMES),
)


def a_listener() -> OtelLogEvents:
    resource = Resource({"service.name": "tests", "numbers": [1, 2]})
    return OtelLogEvents(OwnLoggerProvider(resource, []))


@given(EVENTS, PLACES)
@example(Event("same", {"a": 1, "b": True, "c": 1.0, "d": 0, "e": False, "f": -0.0, "g": ""}), None)
@example(Event("large", {"a": 1 << 62, "b": -(1 << 63), "c": 1 << 63, "d": "x" * 5000}), None)
def test_they_are_those_that_opentelemetry_writes(event: Event, place: Place | None) -> None:
    listener = a_listener()
    told = (event, None, place)
    if event.tags or event.context:
        from tracedjobs.telemetry.otel_logs import _attributes  # noqa: PLC0415 - as `emit` does

        told = (event, _attributes(event), place)  # type: ignore[assignment]  # the second of three
    written = listener.written(*told)
    assert written is not None
    request = listener.request([written, written])
    theirs = encode_logs([listener.readable(*told)] * 2)
    assert ExportLogsServiceRequest.FromString(request) == theirs


def test_where_opentelemetry_would_cut_it_is_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    event = Event("told", {"a": "text", "b": 2})
    assert a_listener().written(event, None, None) is not None
    with monkeypatch.context() as patch:
        patch.setenv("OTEL_ATTRIBUTE_COUNT_LIMIT", "1")
        assert a_listener().written(event, None, None) is None
    monkeypatch.setenv("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", "2")
    assert a_listener().written(event, None, None) is None


def test_what_cannot_be_written_is_left_to_opentelemetry() -> None:
    assert a_listener().written(Event("told", {"odd\ud800": 1}), None, None) is None
    assert a_listener().written(Event("told", {}, timestamp=-1), None, None) is None


class Collector:
    """Takes log records over HTTP; `refuse` answers that they are wrong."""

    def __init__(self) -> None:
        self.requests: list[ExportLogsServiceRequest] = []
        self.refuse = False
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if not collector.refuse:
                    assert self.path == "/v1/logs"
                    collector.requests.append(ExportLogsServiceRequest.FromString(body))
                self.send_response(400 if collector.refuse else 200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}/v1/logs"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def bodies(self) -> list[str]:
        return [
            record.body.string_value
            for request in self.requests
            for resource in request.resource_logs
            for scope in resource.scope_logs
            for record in scope.log_records
        ]


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.server.shutdown()
    made.server.server_close()


def test_a_collector_gets_them_from_opentelemetrys_own_exporter(
    collector: Collector, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    exporters: list[OTLPLogExporter] = []

    def make() -> OTLPLogExporter:
        exporters.append(OTLPLogExporter(collector.endpoint))
        return exporters[-1]

    provider = OwnLoggerProvider(Resource({"service.name": "tests"}), [Logs(make)])
    listener = OtelLogEvents(provider)
    for number in range(3):
        listener.emit(Event(f"{number}", {"number": number}))
    with monkeypatch.context() as patch:
        patch.setattr(OTLPLogExporter, "export", None)  # it is not called
        provider.force_flush()
    assert collector.bodies == ["0", "1", "2"]
    # A refusal is said, and what comes later is sent.
    collector.refuse = True
    listener.emit(Event("refused", {}))
    provider.force_flush()
    collector.refuse = False
    assert re.search(r"Log records cannot be sent to http://.*: Failed .* code: 400", caplog.text)
    listener.emit(Event("3", {}))
    provider.force_flush()
    assert "Log records are sent again." in caplog.text
    # An exporter that is built otherwise is given records.
    del exporters[-1]._metrics
    with monkeypatch.context() as patch:
        given: list[int] = []
        patch.setattr(OTLPLogExporter, "export", lambda _, batch: given.append(len(batch)))
        listener.emit(Event("4", {}))
        listener.emit(Event("5", {}))
        provider.force_flush()
    assert given == [2]
    assert collector.bodies == ["0", "1", "2", "3"]
    provider.shutdown()


def test_other_exporters_are_given_records() -> None:
    exporter = InMemoryLogRecordExporter()  # type: ignore[no-untyped-call]  # OpenTelemetry's
    provider = OwnLoggerProvider(Resource({}), [Logs(lambda: exporter)])
    OtelLogEvents(provider).emit(Event("told", {"a": 1}))
    provider.force_flush()
    (record,) = exporter.get_finished_logs()
    assert record.log_record.body == "told"
