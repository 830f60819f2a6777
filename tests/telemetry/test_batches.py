"""How log records leave the process: in order, whole, and without holding up a job."""

from __future__ import annotations

import logging
import os
import threading
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.sdk._logs.export import (
    InMemoryLogRecordExporter,
    LogRecordExportResult,
    SimpleLogRecordProcessor,
)
from opentelemetry.sdk.resources import Resource

from tests.processes import PATIENCE, until
from tracedjobs import Context, Runtime, events, job, telemetry
from tracedjobs.telemetry import batching, setup
from tracedjobs.telemetry.batching import OwnLoggerProvider
from tracedjobs.telemetry.otel_logs import OtelLogEvents

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from opentelemetry.sdk._logs import ReadableLogRecord


class Gated(InMemoryLogRecordExporter):
    """Keeps what it is given, once it is let."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # OpenTelemetry's
        self.open = threading.Event()
        self.open.set()
        self.asked = threading.Event()
        self.sizes: list[int] = []

    def export(self, batch: Sequence[ReadableLogRecord]) -> LogRecordExportResult:
        self.asked.set()
        assert self.open.wait(PATIENCE)
        self.sizes.append(len(batch))
        return super().export(batch)


class Logs:
    """A provider of our own, its exporter, and the listener."""

    def __init__(self) -> None:
        self.exporter = Gated()
        self.provider = OwnLoggerProvider(Resource({"service.name": "tests"}), [self.exporter])
        self.listener = OtelLogEvents(self.provider)

    @property
    def records(self) -> list[LogRecord]:
        """All that was sent by now."""
        self.provider.force_flush()
        return [each.log_record for each in self.exporter.get_finished_logs()]

    def bodies(self) -> list[Any]:
        return [record.body for record in self.records]


@pytest.fixture
def logs() -> Iterator[Logs]:
    made = Logs()
    events.subscribe(made.listener)
    yield made
    events.unsubscribe(made.listener)
    made.exporter.open.set()
    made.provider.shutdown()


@job(name="batches")
def work(ctx: Context) -> None:
    ctx.step("one", lambda: None)
    ctx.notify("page", tags=["a"], html="x" * 5000, big=1 << 70, odd="\ud800", password="hush")


def test_events_and_the_applications_own_records_stay_in_order(logs: Logs) -> None:
    own = logs.provider.get_logger("the application's")
    for number in range(5):
        events.notify(f"event {number}")
        own.emit(LogRecord(body=f"own {number}", severity_number=SeverityNumber.INFO))
    assert logs.bodies() == [f"{what} {n}" for n in range(5) for what in ("event", "own")]
    (first, *_) = logs.exporter.get_finished_logs()
    assert first.resource.attributes["service.name"] == "tests"
    assert first.instrumentation_scope is not None
    assert first.instrumentation_scope.name == "tracedjobs"


def test_what_was_told_is_sent_as_it_was_then(logs: Logs) -> None:
    pages = [1]
    events.notify("told", pages=pages, note="secret=hush")
    with events.tagged(pages=pages):
        events.notify("tagged")
    pages.append(2)
    told, tagged = logs.records
    assert dict(told.attributes or {})["tracedjobs.event.pages"] == "[1]"
    assert dict(tagged.attributes or {})["tracedjobs.tag.pages"] == "[1]"
    assert "hush" not in str(dict(told.attributes or {}))


def test_values_that_otlp_has_not_refuse_no_request(logs: Logs) -> None:
    from opentelemetry.exporter.otlp.proto.common._log_encoder import (  # noqa: PLC0415
        encode_logs,
    )

    with Runtime("memory://") as runtime:
        runtime.perform(runtime.submit(work))
    (page,) = [each for each in logs.records if each.body == "page"]
    said = dict(page.attributes or {})
    assert said["tracedjobs.event.big"] == str(1 << 70)
    assert said["tracedjobs.event.odd"] == "\\ud800"
    assert said["tracedjobs.event.password"] == "[FILTERED]"
    assert len(str(said["tracedjobs.event.html"])) == 1024
    assert encode_logs(logs.exporter.get_finished_logs()).SerializeToString()


def test_processors_that_others_add_are_given_events_too(logs: Logs) -> None:
    theirs = InMemoryLogRecordExporter()  # type: ignore[no-untyped-call]  # OpenTelemetry's
    events.notify("before")
    logs.provider.add_log_record_processor(SimpleLogRecordProcessor(theirs))
    events.notify("after")
    assert logs.bodies() == ["before", "after"]
    assert [each.log_record.body for each in theirs.get_finished_logs()] == ["after"]


def test_an_exporter_that_hangs_holds_up_no_job_and_what_is_too_much_is_dropped(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_BLRP_MAX_QUEUE_SIZE", "10")
    monkeypatch.setenv("OTEL_BLRP_MAX_EXPORT_BATCH_SIZE", "4")
    logs = Logs()
    logs.exporter.open.clear()
    with caplog.at_level(logging.WARNING, "tracedjobs"):
        for number in range(4):
            logs.listener.emit(events.Event(f"{number}", {}))
        assert logs.exporter.asked.wait(PATIENCE)  # four of them are on their way
        for number in range(4, 30):
            logs.listener.emit(events.Event(f"{number}", {}))
    assert caplog.messages == ["Log records are dropped: 10 are waiting to be sent. Jobs go on."]
    logs.exporter.open.set()
    assert logs.bodies() == [str(number) for number in range(14)]
    assert max(logs.exporter.sizes) == 4
    logs.provider.shutdown()
    logs.listener.emit(events.Event("late", {}))
    assert "late" not in logs.bodies()


def test_they_are_sent_after_a_while_and_at_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_BLRP_SCHEDULE_DELAY", "50")
    logs = Logs()
    logs.listener.emit(events.Event("first", {}))
    until(lambda: len(logs.exporter.get_finished_logs()) == 1, "it is sent by itself")
    logs.listener.emit(events.Event("last", {}))
    logs.provider.shutdown()
    assert [each.log_record.body for each in logs.exporter.get_finished_logs()] == ["first", "last"]


def test_flush_sends_them(logs: Logs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "_logging", logs.listener)
    events.notify("now")
    telemetry.flush()
    assert [each.log_record.body for each in logs.exporter.get_finished_logs()] == ["now"]


def test_a_forked_child_sends_its_own_alone(logs: Logs) -> None:
    logs.exporter.open.clear()
    events.notify("of the parent")
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        logs.exporter.open = threading.Event()
        logs.exporter.open.set()
        events.notify("of the child")
        os.write(write, ",".join(logs.bodies()).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(read, 100) == b"of the child"
    logs.exporter.open.set()
    assert logs.bodies() == ["of the parent"]
    os.close(read)
    os.close(write)


def test_a_job_whose_thread_of_logs_cannot_begin_goes_on(
    logs: Logs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(thread: threading.Thread) -> None:
        raise RuntimeError(f"can't start new thread {thread.name}")

    with monkeypatch.context() as patch:
        patch.setattr(batching.threading.Thread, "start", full)  # type: ignore[attr-defined]  # the same
        events.notify("one")
    events.notify("two")
    assert logs.bodies() == ["one", "two"]
