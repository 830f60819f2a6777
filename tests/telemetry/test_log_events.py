"""Events as lines and as OpenTelemetry's log records; the application's own lines in a job."""

from __future__ import annotations

import io
import json
import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from structlog.testing import capture_logs

from tracedjobs import AsyncContext, Context, Runtime, events, job, telemetry
from tracedjobs.telemetry.otel_logs import OtelLogEvents
from tracedjobs.testing import interrupt_during

if TYPE_CHECKING:
    from collections.abc import Iterator

log = structlog.get_logger()
std = logging.getLogger("an.application")


@contextmanager
def logged(form: Any, stream: Any = None) -> Iterator[None]:
    listener = telemetry.log_events(form, stream)
    try:
        yield
    finally:
        events.unsubscribe(listener)


@job(name="test_log_events")
def work(ctx: Context, items: int) -> None:
    ctx.step("prepare", log.info, "preparing")
    for _ in ctx.each("items", range(items)):
        log.info("item")
    log.info("after")


@job(name="test_log_events_async")
async def async_work(ctx: AsyncContext) -> None:
    async for _ in ctx.each("items", range(2)):
        log.info("item")


@job(name="test_log_events_failing")
def failing(ctx: Context) -> None:
    raise RuntimeError("as asked")


def test_the_applications_own_configuration_holds() -> None:
    with capture_logs() as lines, logged("structlog"), Runtime("memory://") as runtime:
        job_id = runtime.submit(work, 2)
        runtime.perform(job_id, stopping=interrupt_during("items", cursor=1))
        runtime.perform(job_id)
    own = [(line["event"], line["log_level"]) for line in lines if "job" in line]
    assert ("job_interrupted", "info") in own
    assert ("job_step_interrupted", "info") in own
    assert ("job_step_skipped", "debug") in own
    assert ("job_resumed", "info") in own
    assert own[-1] == ("job_completed", "info")


def test_lines_inside_a_job_say_which_job_run_and_step() -> None:
    merge = structlog.contextvars.merge_contextvars
    with (
        capture_logs(processors=[merge]) as lines,
        logged("structlog"),
        Runtime("memory://") as runtime,
    ):
        structlog.contextvars.bind_contextvars(run="the application's own")
        try:
            job_id = runtime.submit(work, 1)
            runtime.perform(job_id)
            log.info("outside")
        finally:
            structlog.contextvars.clear_contextvars()
    said = {
        line["event"]: (line.get("job_id"), line.get("run"), line.get("step"))
        for line in lines
        if "job" not in line
    }
    assert said == {
        "preparing": (job_id, 1, "prepare"),
        "item": (job_id, 1, "items"),
        "after": (job_id, 1, None),
        "outside": (None, "the application's own", None),
    }


async def test_lines_inside_an_async_job_do_too() -> None:
    merge = structlog.contextvars.merge_contextvars
    with (
        capture_logs(processors=[merge]) as lines,
        logged("structlog"),
        Runtime("memory://") as runtime,
    ):
        job_id = runtime.submit(async_work)
        await runtime.perform_async(job_id)
        log.info("outside")
    items = [line for line in lines if line["event"] == "item"]
    assert [(line["job_id"], line["step"]) for line in items] == [(job_id, "items")] * 2
    assert "job_id" not in lines[-1]


def test_lines_of_the_standard_library_do_where_the_filter_is() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.addFilter(telemetry.JobFilter())
    handler.setFormatter(logging.Formatter("%(message)s|%(job_id)s|%(step)s"))
    std.addHandler(handler)

    @job(name="test_log_events_std")
    def own(ctx: Context) -> None:
        ctx.step("one", std.warning, "inside")

    try:
        with logged("structlog", None), capture_logs(), Runtime("memory://") as runtime:
            job_id = runtime.submit(own)
            runtime.perform(job_id)
            std.warning("outside")
    finally:
        std.removeHandler(handler)
    assert stream.getvalue().splitlines() == [f"inside|{job_id}|one", "outside||"]


def test_a_failure_is_an_error() -> None:
    with (
        capture_logs() as lines,
        logged("structlog"),
        Runtime("memory://") as runtime,
        pytest.raises(RuntimeError, match="as asked"),
    ):
        runtime.perform(runtime.submit(failing))
    assert [line["log_level"] for line in lines if line["event"] == "job_failed"] == ["error"]


def test_lines_for_people_are_brief() -> None:
    stream = io.StringIO()
    with logged("console", stream), capture_logs(), Runtime("memory://") as runtime:
        job_id = runtime.submit(work, 3)
        runtime.perform(job_id)
    text = stream.getvalue()
    lines = [line for line in text.splitlines() if "step completed" in line]
    assert "step=items items=3/3" in lines[-1]
    assert f"id={job_id[:8]}" in lines[-1]
    assert "\x1b" not in text
    assert "None" not in text


def test_lines_for_machines_are_json() -> None:
    stream = io.StringIO()
    with logged("json", stream), capture_logs(), Runtime("memory://") as runtime:
        with events.tagged("nightly"):
            job_id = runtime.submit(work, 3)
        runtime.perform(job_id)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert lines[0]["event"] == "job_submitted"
    assert lines[0]["nightly"] is True
    assert {line["job_id"] for line in lines} == {job_id}
    assert lines[-1]["timestamp"].endswith("Z")


def test_another_form_is_refused() -> None:
    with pytest.raises(ValueError, match="one of structlog, console, json"):
        telemetry.log_events("xml")  # type: ignore[arg-type]  # as users do


def test_events_are_log_records_of_opentelemetry() -> None:
    exporter = InMemoryLogRecordExporter()  # type: ignore[no-untyped-call]
    provider = LoggerProvider()
    provider.add_log_record_processor(SimpleLogRecordProcessor(exporter))
    listener = OtelLogEvents(provider)
    events.subscribe(listener)
    try:
        with capture_logs(), Runtime("memory://") as runtime:
            job_id = runtime.submit(work, 2)
            runtime.perform(job_id)
    finally:
        events.unsubscribe(listener)
        provider.shutdown()
    records = [each.log_record for each in exporter.get_finished_logs()]
    done = [each for each in records if each.event_name == "tracedjobs.job_step_completed"]
    attributes = dict(done[-1].attributes or {})
    assert attributes["tracedjobs.job.id"] == job_id
    assert attributes["tracedjobs.step.name"] == "items"
    assert attributes["tracedjobs.items.processed"] == 2
    assert done[-1].severity_text == "INFO"
