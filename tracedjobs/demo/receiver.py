"""An OTLP receiver for one story: spans over HTTP, on loopback, kept in memory.

No collector: it takes what is sent, and can be asked for it.
"""

from __future__ import annotations

import gzip
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Received", "Receiver", "read_request"]

TRACES: Final = "/v1/traces"


@dataclass(frozen=True, slots=True)
class Received:
    """A span as it arrived; ids in hexadecimal digits, times in nanoseconds since the epoch."""

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    kind: str
    started: int
    ended: int
    error: bool
    attributes: Mapping[str, Any]
    events: tuple[str, ...]
    links: tuple[str, ...]
    """The ids of the spans it is linked to."""
    resource: Mapping[str, Any]


def read_request(request: ExportTraceServiceRequest) -> list[Received]:
    """The spans in one request."""
    return [
        Received(
            trace_id=span.trace_id.hex(),
            span_id=span.span_id.hex(),
            parent_id=span.parent_span_id.hex(),
            name=span.name,
            kind=Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
            started=span.start_time_unix_nano,
            ended=span.end_time_unix_nano,
            error=span.status.code == Status.STATUS_CODE_ERROR,
            attributes={each.key: _value(each.value) for each in span.attributes},
            events=tuple(event.name for event in span.events),
            links=tuple(link.span_id.hex() for link in span.links),
            resource={each.key: _value(each.value) for each in group.resource.attributes},
        )
        for group in request.resource_spans
        for scope in group.scope_spans
        for span in scope.spans
    ]


class Receiver:
    """Takes spans at `endpoint` until it is closed."""

    def __init__(self, port: int = 0) -> None:
        """Listen on loopback; port 0 takes a free one."""
        self._spans: list[Received] = []
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self._server.daemon_threads = True
        self.port = self._server.server_port
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def spans(self) -> tuple[Received, ...]:
        """What has arrived."""
        with self._lock:
            return tuple(self._spans)

    def take(self, request: ExportTraceServiceRequest) -> None:
        """Keep the spans of a request."""
        found = read_request(request)
        with self._lock:
            self._spans += found

    def close(self) -> None:
        """Listen no more; what arrived stays."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                if self.path == TRACES:
                    receiver.take(ExportTraceServiceRequest.FromString(body))
                answer = ExportTraceServiceResponse().SerializeToString()
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - theirs
                """Say nothing."""

        return Handler


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    return None if kind is None else getattr(value, kind)
