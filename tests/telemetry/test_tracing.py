"""The spans of one process: what they say, and what is the current one in a job."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry import trace as api
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from prometheus_client import CollectorRegistry
from prometheus_client import generate_latest as as_text
from prometheus_client.openmetrics.exposition import generate_latest

from tracedjobs import AsyncContext, Context, Runtime, events, job, telemetry
from tracedjobs._core import trace
from tracedjobs.telemetry import setup, tracing
from tracedjobs.telemetry.exporting import WholeTrees
from tracedjobs.testing import interrupt_during

if TYPE_CHECKING:
    from collections.abc import Iterator


class Traced:
    """Telemetry that joined a provider, and what was exported."""

    def __init__(self, **options: Any) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(resource=Resource({"service.name": "tests"}), **options)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.provider.get_tracer("the application's")
        tracing = setup._joined(self.provider, segments=True)
        assert tracing is not None
        self.tracing = tracing

    @property
    def spans(self) -> list[ReadableSpan]:
        self.provider.force_flush()
        return list(self.exporter.get_finished_spans())

    def named(self, start: str) -> list[ReadableSpan]:
        return [span for span in self.spans if span.name.startswith(start)]


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[Traced]:
    made = Traced()
    monkeypatch.setattr(trace, "installed", made.tracing)
    yield made
    made.provider.shutdown()


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def id_of(span: ReadableSpan) -> int:
    assert span.context is not None
    return int(span.context.span_id)


def parent_of(span: ReadableSpan) -> int:
    assert span.parent is not None
    return int(span.parent.span_id)


@job(name="test_tracing")
def work(ctx: Context, items: int) -> None:
    here = api.get_current_span()
    here.set_attribute("mine", "run")
    ctx.step("prepare", lambda: api.get_current_span().set_attribute("mine", "step"))
    for item in ctx.each("items", range(items), total=items):
        if item == 2:
            ctx.notify("halfway", item=item)
            api.get_current_span().record_exception(ValueError("seen"))
    assert api.get_current_span().get_span_context() == here.get_span_context()


@job(name="test_tracing_per_run", trace="per_run")
def per_run(ctx: Context, items: int) -> None:
    for _ in ctx.each("items", range(items)):
        pass


@job(name="test_tracing_failing")
def failing(ctx: Context) -> None:
    def fail() -> None:
        raise LookupError("a secret value")

    ctx.step("fail", fail)


def test_a_job_from_its_submission_to_its_end(traced: Traced) -> None:
    with Runtime("memory://") as runtime, traced.tracer.start_as_current_span("request"):
        job_id = runtime.submit(work, 4)
        runtime.perform(job_id, stopping=interrupt_during("items", cursor=3))
        runtime.perform(job_id)
        snapshot = runtime.get(job_id)
        spans = traced.spans
    (send,) = [span for span in spans if span.name == "send test_tracing"]
    (root,) = [span for span in spans if span.name == "job test_tracing"]
    first, second = [span for span in spans if span.name == "process test_tracing"]
    assert send.kind is api.SpanKind.PRODUCER
    assert send.parent is not None
    assert root.parent is None
    assert root.context is not None
    assert f"{root.context.trace_id:032x}" == snapshot.trace_id
    assert [link.context.span_id for link in root.links] == [id_of(send)]
    assert [link.context.span_id for link in second.links] == [id_of(first)]
    assert first.kind is second.kind is api.SpanKind.CONSUMER
    assert parent_of(first) == parent_of(second) == id_of(root)
    assert attributes(first)["tracedjobs.run.outcome"] == "interrupted"
    assert attributes(first)["tracedjobs.run.reason"] == "stopping"
    assert attributes(first)["messaging.system"] == "tracedjobs"
    assert attributes(first)["mine"] == "run"
    assert first.status.status_code is api.StatusCode.UNSET
    assert attributes(root)["tracedjobs.items.processed"] == 4
    assert root.resource.attributes["service.name"] == "tests"
    prepare, before, after = sorted(
        (span for span in spans if span.name.startswith("step ")),
        key=lambda span: span.start_time or 0,
    )
    assert attributes(prepare)["mine"] == "step"
    assert attributes(prepare)["tracedjobs.step.resumed"] is False
    assert attributes(before)["tracedjobs.step.resumed"] is False
    assert [parent_of(each) for each in (prepare, before)] == [id_of(first)] * 2
    assert parent_of(after) == id_of(second)
    assert attributes(before)["tracedjobs.step.outcome"] == "interrupted"
    assert attributes(before)["tracedjobs.cursor.end"] == "3"
    assert attributes(before)["tracedjobs.items.processed"] == 3
    assert [event.name for event in before.events] == ["exception"]
    assert attributes(after)["tracedjobs.cursor.start"] == "3"
    assert attributes(after)["tracedjobs.step.resumed"] is True
    assert attributes(after)["tracedjobs.items.expected"] == 4


def test_what_a_job_tells_is_an_event_of_its_span(traced: Traced) -> None:
    events.subscribe(traced.tracing.note_event, setup._is_the_users)
    try:
        with Runtime("memory://") as runtime:
            runtime.perform(runtime.submit(work, 4))
            (step,) = traced.named("step items")
    finally:
        events.unsubscribe(traced.tracing.note_event)
    told = {event.name: dict(event.attributes or {}) for event in step.events}
    assert told["tracedjobs.halfway"] == {"tracedjobs.event.item": 2}


def test_the_users_spans_are_children_of_the_step(traced: Traced) -> None:
    @job(name="test_tracing_children")
    def own(ctx: Context) -> None:
        with traced.tracer.start_as_current_span("in the run"):
            pass
        for _ in ctx.each("items", range(1)):
            with traced.tracer.start_as_current_span("in the step"):
                pass

    with Runtime("memory://") as runtime:
        job_id = runtime.submit(own)
        thread = threading.Thread(target=runtime.perform, args=(job_id,))
        thread.start()
        thread.join()
        (process,) = traced.named("process ")
        (step,) = traced.named("step ")
        (in_run,) = traced.named("in the run")
        (in_step,) = traced.named("in the step")
    assert parent_of(in_run) == id_of(process)
    assert parent_of(in_step) == id_of(step)
    assert not api.get_current_span().get_span_context().is_valid


async def test_an_async_job_has_its_step_as_the_current_span(traced: Traced) -> None:
    @job(name="test_tracing_async")
    async def own(ctx: AsyncContext) -> None:
        async for _ in ctx.each("items", range(2)):
            await asyncio.sleep(0)
            with traced.tracer.start_as_current_span("in the step"):
                await asyncio.sleep(0)

    with Runtime("memory://") as runtime:
        jobs = [runtime.submit(own) for _ in range(3)]
        await asyncio.gather(*(runtime.perform_async(job_id) for job_id in jobs))
        assert not api.get_current_span().get_span_context().is_valid
        spans = traced.spans
    steps = {id_of(span) for span in spans if span.name == "step items"}
    inside = [parent_of(span) for span in spans if span.name == "in the step"]
    assert len(steps) == 3
    assert sorted(inside) == sorted([*steps, *steps])


def test_a_trace_a_run_is_linked(traced: Traced) -> None:
    with Runtime("memory://") as runtime:
        job_id = runtime.submit(per_run, 4)
        runtime.perform(job_id, stopping=interrupt_during("items", cursor=2))
        runtime.perform(job_id)
        first, second = traced.named("process ")
        (root,) = traced.named("job ")
        steps = traced.named("step ")
    traces = {span.context.trace_id for span in (first, second, root) if span.context}
    assert len(traces) == 3
    assert first.parent is second.parent is None
    assert [link.context.span_id for link in second.links] == [id_of(root), id_of(first)]
    assert {link.context.span_id for link in root.links} >= {id_of(first), id_of(second)}
    assert {parent_of(step) for step in steps} == {id_of(first), id_of(second)}


def test_a_failure_is_an_error_with_its_type_and_without_its_values(traced: Traced) -> None:
    with Runtime("memory://") as runtime:
        with pytest.raises(LookupError):
            runtime.perform(runtime.submit(failing))
        spans = [*traced.named("job "), *traced.named("process "), *traced.named("step ")]
    assert [span.status.status_code for span in spans] == [api.StatusCode.ERROR] * 3
    assert [attributes(span)["error.type"] for span in spans] == ["LookupError"] * 3
    assert "secret value" not in str([span.to_json() for span in spans])


def test_cancelled_paused_and_never_started_jobs_end_right(traced: Traced) -> None:
    with Runtime("memory://") as runtime:
        never = runtime.submit(work, 1)
        runtime.cancel(never)
        paused = runtime.submit(work, 5)
        runtime.perform(paused, stopping=interrupt_during("items", cursor=1))
        runtime.pause(paused)
        assert len(traced.named("job ")) == 1
        assert len(traced.named("process ")) == 1
        runtime.cancel(paused)
        roots = traced.named("job ")
        assert len(traced.named("process ")) == 1
    assert [attributes(root)["tracedjobs.job.outcome"] for root in roots] == ["cancelled"] * 2
    assert [event.name for event in roots[1].events] == ["tracedjobs.pause", "tracedjobs.cancel"]


def test_a_retried_job_has_one_root_and_a_span_each_run(traced: Traced) -> None:
    with Runtime("memory://") as runtime:
        job_id = runtime.submit(failing)
        for _ in range(2):
            with pytest.raises(LookupError):
                runtime.perform(job_id)
            assert len(traced.named("job ")) == 1
        assert len(traced.named("process ")) == 2


def test_a_rewound_job_does_its_steps_in_a_new_run_with_new_spans(traced: Traced) -> None:
    with Runtime("memory://") as runtime:
        job_id = runtime.submit(work, 3)
        runtime.perform(job_id)
        assert len(traced.named("step items")) == 1
        runtime.rewind(job_id, "items")
        runtime.perform(job_id)
        spans = traced.spans
    steps = [span for span in spans if span.name == "step items"]
    assert len({id_of(span) for span in steps}) == len(steps) == 2
    assert len([span for span in spans if span.name == "step prepare"]) == 1
    assert len([span for span in spans if span.name.startswith("job ")]) == 1


def test_an_unsampled_job_has_no_spans_and_says_so_to_those_within(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = Traced(sampler=ALWAYS_OFF)
    monkeypatch.setattr(trace, "installed", made.tracing)
    flags = []

    @job(name="test_tracing_unsampled")
    def own(ctx: Context) -> None:
        ctx.step("one", lambda: flags.append(api.get_current_span().get_span_context()))

    with Runtime("memory://") as runtime:
        job_id = runtime.submit(own)
        runtime.perform(job_id)
        snapshot = runtime.get(job_id)
        assert made.spans == []
        assert runtime.store.owing(limit=10) == []
    assert f"{flags[0].trace_id:032x}" == snapshot.trace_id
    assert not flags[0].trace_flags.sampled
    made.provider.shutdown()


def test_secrets_in_cursors_and_reasons_do_not_reach_spans(traced: Traced) -> None:
    @job(name="test_tracing_secrets")
    def own(ctx: Context) -> None:
        def pages(step: Any) -> None:
            step.set({"page": 1, "page_token": "hush!"})

        ctx.step("pages", pages, start={"page": 0, "page_token": "hush!"})
        ctx.interrupt("refused: token=hush!")

    with Runtime("memory://") as runtime:
        runtime.perform(runtime.submit(own))
        (step,) = traced.named("step ")
        (run,) = traced.named("process ")
    assert "hush!" not in step.to_json()
    assert attributes(run)["tracedjobs.run.reason"] == "refused: token=[FILTERED]"
    assert '"page": 1' in attributes(step)["tracedjobs.cursor.end"]


def test_spans_within_others_leave_with_them(traced: Traced) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(WholeTrees(SimpleSpanProcessor(exporter)))
    tracer = provider.get_tracer("x")
    seen: list[list[str]] = []

    def names() -> list[str]:
        return [span.name for span in exporter.get_finished_spans()]

    @job(name="test_tracing_whole")
    def own(ctx: Context) -> None:
        def nested() -> None:
            with tracer.start_as_current_span("outer"):
                with tracer.start_as_current_span("inner"):
                    pass
                seen.append(names())
            seen.append(names())

        ctx.step("nested", nested)

    with Runtime("memory://") as runtime:
        runtime.perform(runtime.submit(own))
    with tracer.start_as_current_span("outside"), tracer.start_as_current_span("within"):
        pass
    assert seen == [[], ["inner", "outer"]]
    assert names()[2:] == ["within", "outside"]


def test_metrics_name_the_trace_of_a_running_job(traced: Traced) -> None:
    pages: list[str] = []
    plain: list[str] = []

    @job(name="test_tracing_exemplar", checkpoint_every=0)
    def own(ctx: Context) -> None:
        for item in ctx.each("items", range(4)):
            if item == 3:
                registry = CollectorRegistry()
                registry.register(telemetry.collector(runtime))
                page = generate_latest(registry)  # type: ignore[no-untyped-call]
                pages.append(page.decode())
                plain.append(as_text(registry).decode())

    with Runtime("memory://") as runtime:
        job_id = runtime.submit(own)
        runtime.perform(job_id)
        trace_id = runtime.get(job_id).trace_id
    lines = pages[0].splitlines()
    (info,) = [line for line in lines if line.startswith("tracedjobs_job_info{")]
    (items,) = [line for line in lines if line.startswith("tracedjobs_items_processed_total{")]
    assert f'trace_id="{trace_id}"' in info
    assert f'# {{trace_id="{trace_id}"}} 3.0' in items
    told = [line.partition("{")[0] for line in lines if f'# {{trace_id="{trace_id}"}}' in line]
    assert told == [
        "tracedjobs_jobs_enqueued_total",
        "tracedjobs_items_processed_total",
        "tracedjobs_queue_wait_seconds_bucket",
    ]
    assert all(len(line.partition(" # ")[2].partition("}")[0]) < 128 for line in lines)
    assert "# {" not in plain[0]


def test_a_step_that_takes_long_shows_parts_of_itself_before_it_ends(
    traced: Traced, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing, "FIRST_SEGMENT", 0.0)
    before: list[ReadableSpan] = []

    @job(name="test_tracing_segments")
    def own(ctx: Context) -> None:
        for item in ctx.each("items", range(10)):
            if item in {2, 5, 9}:
                traced.tracing._ticked_at = 0.0
                traced.tracing._tick()
        before.extend(traced.exporter.get_finished_spans())

    with Runtime("memory://") as runtime:
        runtime.perform(runtime.submit(own))
        (step,) = traced.named("step ")
    segments = [span for span in before if span.name == "segment items"]
    assert [attributes(each)["tracedjobs.cursor.end"] for each in segments] == ["5", "9"]
    assert [attributes(each)["tracedjobs.items.processed"] for each in segments] == [3, 4]
    assert {parent_of(each) for each in segments} == {id_of(step)}
    assert len({id_of(each) for each in segments}) == 2


def test_nothing_is_told_of_a_job_after_its_context_is_left(traced: Traced) -> None:
    with Runtime("memory://") as runtime, traced.tracer.start_as_current_span("around") as around:
        with pytest.raises(LookupError):
            runtime.perform(runtime.submit(failing))
        assert api.get_current_span() is around
