"""Serves a store's metrics to Prometheus: `/metrics`, and `/healthz` for whoever watches it.

One is enough for any number of workers; a second one says the same.
"""

from __future__ import annotations

import socket
import ssl
import threading
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any, Final, Self
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

from tracedjobs.telemetry.store_collector import MOST_JOBS, StoreCollector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path
    from types import TracebackType

    from tracedjobs._core.runtime import Runtime

__all__ = ["Exporter"]

PAGES: Final = "/metrics and /healthz are here.\n"
SOCKET_TIMEOUT: Final = 10.0
"""Seconds for which a client may say nothing."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    tls: ssl.SSLContext | None = None

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        # In the thread of this request: whoever connects and says nothing keeps nobody waiting.
        request.settimeout(SOCKET_TIMEOUT)
        if self.tls is not None:
            try:
                request = self.tls.wrap_socket(request, server_side=True)
            except OSError:
                return  # it speaks another protocol, and the socket is closed
        super().process_request_thread(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that go away or speak another protocol."""


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - theirs
        """Say nothing: a scrape is no news."""


class Exporter:
    """A server of a runtime's metrics, running until it is closed.

    Listens on loopback unless `host` says otherwise; port 0 takes a free one, see `address`.
    With `certificate` (and `key`, where that is in a file of its own; PEM) it speaks HTTPS, and
    with `client_ca` only to clients that have a certificate of one of the authorities in that file.
    Raises `OSError` where it cannot listen there, and `ssl.SSLError` for files that are not what
    they should be.
    """

    def __init__(
        self,
        runtime: Runtime,
        *,
        host: str = "127.0.0.1",
        port: int = 9464,
        most_jobs: int = MOST_JOBS,
        certificate: str | Path | None = None,
        key: str | Path | None = None,
        client_ca: str | Path | None = None,
    ) -> None:
        """Listen, and answer from a thread of its own."""
        self._collector = StoreCollector(runtime, most_jobs=most_jobs)
        registry = CollectorRegistry()
        registry.register(self._collector)
        self._metrics = make_wsgi_app(registry)
        tls = None
        if certificate is not None:
            tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            tls.load_cert_chain(certificate, key)
            if client_ca is not None:
                tls.load_verify_locations(client_ca)
                tls.verify_mode = ssl.CERT_REQUIRED
        kind = _Server6 if ":" in host else _Server
        self._server: _Server = make_server(host, port, self._answer, kind, _Handler)
        self._server.tls = tls
        shown = f"[{host}]" if ":" in host else host
        scheme = "http" if tls is None else "https"
        self.address = f"{scheme}://{shown}:{self._server.server_port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="tracedjobs-exporter", daemon=True
        )
        self._thread.start()

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """See `close`."""
        self.close()

    def check(self) -> str | None:
        """What is wrong with the store, in a sentence, or `None`; it is logged too."""
        return self._collector.check()

    def close(self) -> None:
        """Listen no more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(
        self, environ: dict[str, Any], start: Callable[[str, list[tuple[str, str]]], Any]
    ) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path == "/metrics":
            answer: Iterable[bytes] = self._metrics(environ, start)
            return answer
        status, text = "404 Not Found", PAGES
        if path == "/":
            status = "200 OK"
        elif path == "/healthz":
            trouble = self.check()
            status = "200 OK" if trouble is None else "503 Service Unavailable"
            text = f"{trouble or 'ok'}\n"
        start(status, [("Content-Type", "text/plain; charset=utf-8")])
        return [text.encode()]
