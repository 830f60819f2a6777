"""Events as lines and as OpenTelemetry's log records; the application's own lines in a job."""

from __future__ import annotations

import io
import json
import logging
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from opentelemetry import trace as api
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from structlog.testing import capture_logs

from tests.processes import until
from tracedjobs import AsyncContext, Context, Runtime, Step, events, job, telemetry
from tracedjobs._core.records import Change
from tracedjobs._core.trace import Trace
from tracedjobs.errors import LeaseLostError, StoreError
from tracedjobs.telemetry.otel_logs import OtelLogEvents
from tracedjobs.testing import interrupt_during

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tracedjobs import Job

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


def bound_after(runtime: Runtime, of: Job[..., Any]) -> dict[str, Any]:
    job_id = runtime.submit(of)
    with suppress(StoreError, LeaseLostError):
        runtime.perform(job_id)
    return structlog.contextvars.get_contextvars()


def test_nothing_stays_bound_of_a_run_that_finds_its_job_taken_over() -> None:
    @job(name="test_log_events_taken_over")
    def taken_over(ctx: Context) -> None:
        revision = runtime.store.load(ctx.id).job.revision  # type: ignore[union-attr]  # it is there
        runtime.store.change(Change(ctx.id, revision, {"token": "another's", "run": 2}))

    stream = io.StringIO()
    with logged("json", stream), Runtime("memory://") as runtime:
        assert bound_after(runtime, taken_over) == {}
        counted = runtime.store.survey().totals
    said = [json.loads(line)["event"] for line in stream.getvalue().splitlines()]
    assert said[-1] == "job_lease_lost"
    assert "leases_lost" in str(counted)


def test_nothing_stays_bound_of_a_run_whose_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(change: Change) -> bool:
        raise StoreError("as asked")

    @job(name="test_log_events_refused")
    def refused(ctx: Context) -> None:
        monkeypatch.setattr(runtime.store, "change", refuse)

    stream = io.StringIO()
    with logged("json", stream), Runtime("memory://") as runtime:
        assert bound_after(runtime, refused) == {}
    last = json.loads(stream.getvalue().splitlines()[-1])
    assert (last["event"], last["reason"]) == (
        "job_interrupted",
        "tracedjobs.errors.StoreError",
    )


@pytest.mark.parametrize("form", ["console", "json"])
def test_nothing_stays_bound_where_the_stream_was_closed(form: str) -> None:
    @job(name=f"test_log_events_closed_{form}")
    def closes(ctx: Context) -> None:
        stream.close()

    stream = io.StringIO()
    with (
        logged(form, stream),
        Runtime("memory://") as runtime,
        pytest.warns(RuntimeWarning, match="closed file"),
    ):
        assert bound_after(runtime, closes) == {}


def test_values_that_json_has_not_are_told_as_texts() -> None:
    stream = io.StringIO()
    with logged("json", stream):
        events.notify("odd", a={(1, 2): 3}, b=ValueError("password=hush"))
    (line,) = [json.loads(each) for each in stream.getvalue().splitlines()]
    assert line["a"] == "{(1, 2): 3}"
    assert "hush" not in line["b"]


def test_texts_that_the_stream_has_not_are_escaped() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, "ascii")
    with logged("json", stream):
        events.notify("odd", name="M\u00fcller", lone="\ud800")
        events.notify("plain", name="Ann")
    odd, plain = [json.loads(each) for each in raw.getvalue().decode().splitlines()]
    assert (odd["name"], odd["lone"], plain["name"]) == ("M\u00fcller", "\ud800", "Ann")


def test_another_form_is_refused() -> None:
    with pytest.raises(ValueError, match="one of structlog, console, json"):
        telemetry.log_events("xml")  # type: ignore[arg-type]  # as users do


@contextmanager
def recorded() -> Iterator[Callable[[], list[Any]]]:
    """What is logged meanwhile by OpenTelemetry."""
    exporter = InMemoryLogRecordExporter()  # type: ignore[no-untyped-call]
    provider = LoggerProvider()
    provider.add_log_record_processor(SimpleLogRecordProcessor(exporter))
    listener = OtelLogEvents(provider)
    events.subscribe(listener)
    try:
        yield lambda: [each.log_record for each in exporter.get_finished_logs()]
    finally:
        events.unsubscribe(listener)
        provider.shutdown()


def test_events_are_log_records_of_opentelemetry() -> None:
    with recorded() as records, capture_logs(), Runtime("memory://") as runtime:
        job_id = runtime.submit(work, 2)
        runtime.perform(job_id)
        found = records()
    done = [each for each in found if each.event_name == "tracedjobs.job_step_completed"]
    attributes = dict(done[-1].attributes or {})
    assert attributes["tracedjobs.job.id"] == job_id
    assert attributes["tracedjobs.step.name"] == "items"
    assert attributes["tracedjobs.items.processed"] == 2
    assert done[-1].severity_text == "INFO"


STORED = Trace("1" * 32, "2" * 16, sampled=True)


def submitted(runtime: Runtime, of: Job[..., Any], *args: object) -> str:
    """A job that has that trace."""
    job_id = runtime.submit(of, *args)
    assert runtime.store.change(Change(job_id, 0, {"trace": STORED.text()}))
    return job_id


@job(name="test_log_events_saved", checkpoint_every=0.1)
def saved(ctx: Context) -> None:
    def save(step: Step) -> None:
        step.set(1)
        until(lambda: "job_cursor_advanced" in told, "the saver told")

    told: list[str] = []
    listener = lambda event: told.append(event.name)  # noqa: E731 - to be unsubscribed
    events.subscribe(listener)
    try:
        ctx.step("save", save)
    finally:
        events.unsubscribe(listener)


def test_what_the_saver_and_operators_tell_is_in_the_trace_of_the_job() -> None:
    stream = io.StringIO()
    with recorded() as records, logged("json", stream), Runtime("memory://") as runtime:
        runtime.perform(submitted(runtime, saved))
        paused = submitted(runtime, work, 1)
        runtime.pause(paused)
        found = {each.event_name: each for each in records()}
    lines = {each["event"]: each for each in map(json.loads, stream.getvalue().splitlines())}
    for name, run in (("job_cursor_advanced", 1), ("job_completed", 1), ("job_paused", None)):
        span = STORED.span_of(run)
        assert (lines[name]["trace_id"], lines[name]["span_id"]) == (STORED.trace_id, span)
        record = found[f"tracedjobs.{name}"]
        assert record.trace_id == int(STORED.trace_id, 16)
        assert record.span_id == int(span, 16)
        assert record.trace_flags == 1
    assert "trace_id" not in lines["job_submitted"]


def test_an_event_is_in_the_current_span_where_that_is_in_the_trace_of_the_job() -> None:
    def span(trace_id: str) -> api.Span:
        there = api.SpanContext(int(trace_id, 16), 7, is_remote=False)
        return api.NonRecordingSpan(there)

    stream = io.StringIO()
    with logged("json", stream), Runtime("memory://") as runtime:
        job_id = submitted(runtime, work, 1)
        with api.use_span(span(STORED.trace_id)):
            runtime.pause(job_id)
        with api.use_span(span("3" * 32)):
            runtime.cancel(job_id)
            events.notify("of no job")
    placed = [
        (line["trace_id"], line["span_id"])
        for line in map(json.loads, stream.getvalue().splitlines()[1:])
    ]
    assert placed == [
        (STORED.trace_id, f"{7:016x}"),
        (STORED.trace_id, STORED.root_id),
        ("3" * 32, f"{7:016x}"),
    ]
