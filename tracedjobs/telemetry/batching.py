"""Log records on their way out of the process: kept in order, and sent from a thread of their own.

As OpenTelemetry's own batches, by the same `OTEL_BLRP_*` variables. What differs is that an event
of a job becomes a record in that thread: the job's only hands it over. And where the exporter takes
it, a batch of events is made as OTLP's messages at once, see `otlp_records`.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from copy import copy
from typing import TYPE_CHECKING, Any, Final, Protocol

from opentelemetry.context import Context
from opentelemetry.sdk._logs import (
    LoggerProvider,
    LogRecordLimits,
    LogRecordProcessor,
    ReadableLogRecord,
)
from opentelemetry.sdk.resources import Resource

from tracedjobs.telemetry.settings import whole

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord as OtlpRecord
    from opentelemetry.sdk._logs import ReadWriteLogRecord
    from opentelemetry.sdk._logs.export import LogRecordExporter

__all__ = ["Batches", "Maker", "OwnLoggerProvider"]

DELAY: Final = 1000
MOST_QUEUED: Final = 2048
MOST_SENT: Final = 512
AT_A_TIME: Final = 32
BREATH: Final = 5e-4
"""So many records are written in a go, as long as a job then may wait for the interpreter: about
200 µs. Then it has it for that many seconds: each time that it must wait costs it as much again."""
AT_EXIT: Final = 30.0
"""Seconds that `shutdown` waits for what is being sent."""
_log: Final = logging.getLogger("tracedjobs")


class Maker(Protocol):
    """Makes records of what it gave to `Batches.take`, when it is sent."""

    def readable(self, *told: Any) -> ReadableLogRecord:
        """The record."""
        ...

    def written(self, *told: Any) -> OtlpRecord | None:
        """The same as OTLP's message; `None` where only the record will do."""
        ...

    def request(self, records: Sequence[OtlpRecord]) -> bytes:
        """Such messages as they are sent, with what is around all of its records."""
        ...


class Batches(LogRecordProcessor):
    """Sends records by one exporter, some at a time.

    When more are waiting than may, as while a collector is away, later ones are dropped, and it is
    said in one line. Raises `SettingsError` for variables that cannot be followed.
    """

    def __init__(self, exporter: LogRecordExporter) -> None:
        """Have none yet; the thread begins with the first."""
        self._exporter = exporter
        self._byte_sender: Callable[[], Callable[[bytes], bool] | None] | None
        self._byte_sender = getattr(exporter, "byte_sender", None)
        self._delay = whole("OTEL_BLRP_SCHEDULE_DELAY", DELAY) / 1000
        self._most = whole("OTEL_BLRP_MAX_QUEUE_SIZE", MOST_QUEUED)
        self._most_sent = min(whole("OTEL_BLRP_MAX_EXPORT_BATCH_SIZE", MOST_SENT), self._most)
        self._queue: deque[ReadableLogRecord | tuple[Any, ...]] = deque()
        self._closed = False
        self._dropping = False
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._sending = threading.Lock()
        self._wake = threading.Event()
        os.register_at_fork(after_in_child=self._after_fork_in_child)

    def on_emit(self, log_record: ReadWriteLogRecord) -> None:
        """Take a record as it is now, without the context it was made in."""
        record = copy(log_record.log_record)
        record.context = Context()
        self._put(
            ReadableLogRecord(
                record,
                log_record.resource or Resource.create({}),
                log_record.instrumentation_scope,
                log_record.limits,
            )
        )

    def take(self, maker: Maker, *told: object) -> None:
        """Take what `maker` will make of `told`."""
        self._put((maker, *told))

    def force_flush(self, timeout_millis: int = 30_000) -> bool:  # noqa: ARG002 - theirs
        """Send what is waiting, in this thread."""
        self._send(at_least=1)
        return True

    def shutdown(self) -> None:
        """Send what is waiting, and take nothing more."""
        self._closed = True
        self._wake.set()
        if self._thread is not None and self._thread.is_alive():
            self._thread.join(AT_EXIT)
        else:
            self._send(at_least=1)
        self._exporter.shutdown()  # type: ignore[no-untyped-call]  # OpenTelemetry's

    # -- its own ---

    def _put(self, record: ReadableLogRecord | tuple[Any, ...]) -> None:
        queue = self._queue
        if self._closed:
            return
        if len(queue) >= self._most:
            if not self._dropping:
                self._dropping = True
                _log.warning(
                    "Log records are dropped: %d are waiting to be sent. Jobs go on.", len(queue)
                )
            return
        queue.append(record)
        if self._thread is None:
            self._start()
        if len(queue) >= self._most_sent and not self._wake.is_set():
            self._wake.set()

    def _start(self) -> None:
        with self._starting:
            if self._thread is None:
                thread = threading.Thread(target=self._loop, name="tracedjobs-logs", daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # no more threads may begin; the next record tries again
                    return
                self._thread = thread

    def _loop(self) -> None:
        while not self._closed:
            full = self._wake.wait(self._delay)
            self._wake.clear()
            if not self._closed:
                self._send(at_least=self._most_sent if full else 1, once=not full)
        self._send(at_least=1)

    def _send(self, *, at_least: int, once: bool = False) -> None:
        with self._sending:
            while len(self._queue) >= at_least:
                batch = [self._queue.popleft() for _ in range(self._taken())]
                if not self._sent_as_bytes(batch):
                    self._exporter.export([self._made(each) for each in batch])
                self._dropping = False
                if once:
                    at_least = self._most_sent

    def _taken(self) -> int:
        return min(len(self._queue), self._most_sent)

    def _sent_as_bytes(self, batch: Sequence[ReadableLogRecord | tuple[Any, ...]]) -> bool:
        """Send it so, unless the exporter does not take that, or what is in it is not like that."""
        first = batch[0]
        if not isinstance(first, tuple) or self._byte_sender is None:
            return False
        maker: Maker = first[0]
        take = self._byte_sender()
        if take is None:
            return False
        written: list[OtlpRecord] = []
        for number, each in enumerate(batch, 1):
            if not isinstance(each, tuple) or each[0] is not maker:
                return False
            if number % AT_A_TIME == 0:
                time.sleep(BREATH)
            record = maker.written(*each[1:])
            if record is None:
                return False
            written.append(record)
        return take(maker.request(written))

    def _made(self, record: ReadableLogRecord | tuple[Any, ...]) -> ReadableLogRecord:
        if isinstance(record, ReadableLogRecord):
            return record
        # Between two of them: a job that waits for the interpreter would else get it after 5 ms.
        time.sleep(0)
        maker: Maker = record[0]
        return maker.readable(*record[1:])

    def _after_fork_in_child(self) -> None:
        # What is waiting is the parent's, and sent by it.
        self._queue = deque()
        self._thread = None
        self._starting = threading.Lock()
        self._sending = threading.Lock()
        self._wake = threading.Event()


class OwnLoggerProvider(LoggerProvider):
    """The provider of those who have none: it knows whether others have put processors on it."""

    def __init__(self, resource: Resource, exporters: list[LogRecordExporter]) -> None:
        """Send by those exporters."""
        self.limits = LogRecordLimits()
        """How many attributes a record has at most, and how long they are."""
        super().__init__(resource, log_record_limits=self.limits)
        self.shared = False
        """Whether records go anywhere else than into `batches`."""
        self.batches = [Batches(exporter) for exporter in exporters]
        for each in self.batches:
            super().add_log_record_processor(each)

    def add_log_record_processor(self, log_record_processor: LogRecordProcessor) -> None:
        """See `LoggerProvider.add_log_record_processor`."""
        self.shared = True
        super().add_log_record_processor(log_record_processor)
