"""What goes wrong on a span's way: refusals, outages, rewinds; each span arrives once."""

from __future__ import annotations

import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry import context
from opentelemetry import trace as api
from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SpanExportResult

from tests.telemetry.test_tracing import Traced, attributes, id_of, parent_of
from tracedjobs import Context, Runtime, events, job, telemetry
from tracedjobs._core import clock, trace
from tracedjobs._core.performing import release
from tracedjobs._core.saver import saver
from tracedjobs.errors import LeaseLostError, StoreUnavailableError
from tracedjobs.stores.base import LONGEST_CLAIM
from tracedjobs.telemetry import sender as sending
from tracedjobs.telemetry import setup
from tracedjobs.telemetry.exporting import OfJobs
from tracedjobs.testing import interrupt_after

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from opentelemetry.sdk.trace import ReadableSpan

    from tracedjobs._core.records import SpansSent


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Runtime]:
    with Runtime(f"sqlite:///{tmp_path}/jobs.db") as made:
        yield made


def once(spans: Sequence[ReadableSpan]) -> list[str]:
    """The names of spans, none of which came twice."""
    assert not [each for each, n in Counter(map(id_of, spans)).items() if n > 1]
    return sorted(span.name for span in spans)


@job(name="owed_steps")
def steps(ctx: Context, names: str) -> None:
    for name in names:
        ctx.step(name, lambda: None)


@job(name="owed_notes")
def notes(ctx: Context, length: int) -> None:
    ctx.step("told", lambda: ctx.notify("page", html="x" * length))
    api.get_current_span().set_attribute("mine", "y" * length)


@job(name="owed_release")
def waits(ctx: Context, gate: list[int]) -> None:
    BEGUN.set()
    GATE.wait(30)


BEGUN, GATE = threading.Event(), threading.Event()


def test_a_step_whose_completion_got_through_unheard_has_one_span(
    traced: Traced, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, heard = runtime.store.complete_step, []

    def unheard(*args: Any, **named: Any) -> bool:
        real(*args, **named)
        heard.append(args)
        raise KeyboardInterrupt

    job_id = runtime.submit(steps, "ab")
    monkeypatch.setattr(runtime.store, "complete_step", unheard)
    with pytest.raises(KeyboardInterrupt):
        runtime.perform(job_id)
    monkeypatch.setattr(runtime.store, "complete_step", real)
    assert runtime.perform(job_id).ok
    assert len(heard) == 1
    named = [name for name in once(traced.spans) if name.startswith("step")]
    assert named == ["step a", "step b"]


def test_a_rewind_while_spans_are_sent_makes_no_later_step_count_as_sent(
    traced: Traced, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = runtime.submit(steps, "abcd")
    runtime.perform(job_id, stopping=interrupt_after("c"))
    real = runtime.store.spans_sent

    def late(sent: Sequence[SpansSent]) -> None:
        monkeypatch.setattr(runtime.store, "spans_sent", real)
        runtime.rewind(job_id, "b")
        real(sent)

    monkeypatch.setattr(runtime.store, "spans_sent", late)
    traced.provider.force_flush()
    assert runtime.perform(job_id).ok
    ran = Counter(
        (span.name, attributes(span).get("tracedjobs.run.number")) for span in traced.spans
    )
    assert {("step b", 2), ("step c", 2), ("step d", 2)} <= set(ran)
    assert ran["process owed_steps", 1] == ran["process owed_steps", 2] == 1


def test_a_claim_holds_whatever_others_would_ask_for(traced: Traced, runtime: Runtime) -> None:
    job_id = runtime.submit(steps, "a")
    runtime.perform(job_id)
    assert runtime.store.claim_spans([job_id], seconds=200)
    assert not runtime.store.claim_spans([job_id], seconds=1)
    assert "job owed_steps" not in [span.name for span in traced.spans]


def test_no_claim_is_longer_than_the_longest(traced: Traced, runtime: Runtime) -> None:
    job_id = runtime.submit(steps, "a")
    runtime.perform(job_id)
    (claim,) = runtime.store.claim_spans([job_id], seconds=float("inf")).values()
    assert claim <= runtime.store.time() + LONGEST_CLAIM
    assert traced.tracing is trace.installed


def test_what_could_not_be_noted_is_noted_later_and_not_sent_again(
    traced: Traced, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = runtime.submit(steps, "a")
    runtime.perform(job_id)
    real = runtime.store.spans_sent

    def away(sent: Sequence[SpansSent]) -> None:
        monkeypatch.setattr(runtime.store, "spans_sent", real)
        raise StoreUnavailableError(f"{len(sent)} not noted")

    monkeypatch.setattr(runtime.store, "spans_sent", away)
    traced.provider.force_flush()
    assert runtime.store.load(job_id).job.spans_due is not None  # type: ignore[union-attr]  # as above
    traced.tracing.sender._note()
    assert runtime.store.load(job_id).job.spans_due is None  # type: ignore[union-attr]  # as above
    assert "job owed_steps" in once(traced.spans)


def test_one_refused_job_does_not_hold_up_the_others(
    traced: Traced, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = runtime.submit(notes, 10)
    others = [runtime.submit(steps, "a") for _ in range(5)]
    real = traced.exporter.export

    def picky(spans: Sequence[ReadableSpan]) -> SpanExportResult:
        if any(attributes(span).get("tracedjobs.job.id") == refused for span in spans):
            return SpanExportResult.FAILURE
        return real(spans)

    monkeypatch.setattr(traced.exporter, "export", picky)
    for job_id in (refused, *others):
        runtime.perform(job_id)
    assert once(traced.spans).count("job owed_steps") == len(others)
    monkeypatch.setattr(traced.exporter, "export", real)
    assert "job owed_notes" in once(traced.spans)


def test_long_texts_of_the_users_are_cut(traced: Traced, runtime: Runtime) -> None:
    events.subscribe(traced.tracing.note_event, setup._is_the_users)
    try:
        runtime.perform(runtime.submit(notes, 1 << 20))
    finally:
        events.unsubscribe(traced.tracing.note_event)
    (step,) = traced.named("step told")
    assert max(len(str(value)) for each in step.events for value in attributes_of(each)) == 1024
    (run,) = traced.named("process owed_notes")
    assert attributes(run)["mine"] == "y" * 1024


def attributes_of(event: Any) -> list[object]:
    return list((event.attributes or {}).values())


def test_requests_are_of_a_size_that_collectors_take(
    traced: Traced, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "LARGEST", 3)
    for _ in range(4):
        runtime.perform(runtime.submit(steps, "abcdefgh"))
    sizes: list[int] = []
    real = traced.exporter.export

    def measured(spans: Sequence[ReadableSpan]) -> SpanExportResult:
        sizes.append(len(spans))
        return real(spans)

    monkeypatch.setattr(traced.exporter, "export", measured)
    assert once(traced.spans).count("job owed_steps") == 4
    assert len(traced.named("step")) == 32
    assert max(sizes) <= 3 + 2  # a job's last part brings its run and its root along


def test_a_process_that_slept_through_its_claim_sends_nothing(
    traced: Traced, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = runtime.submit(steps, "a")
    runtime.perform(job_id)
    asleep, real = [0.0], clock.boot_time
    load = runtime.store.load

    def sleeps(job_id: str) -> object:
        asleep[0] += 100.0
        return load(job_id)

    monkeypatch.setattr(sending, "boot_time", lambda: real() + asleep[0])
    monkeypatch.setattr(runtime.store, "load", sleeps)
    assert traced.named("process") == []
    monkeypatch.setattr(runtime.store, "load", load)
    assert len(traced.named("process")) == 1


def test_what_sends_spans_is_not_traced_itself(
    traced: Traced, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []
    real = traced.exporter.export

    def looks(spans: Sequence[ReadableSpan]) -> SpanExportResult:
        seen.append(context.get_value(_SUPPRESS_INSTRUMENTATION_KEY))
        return real(spans)

    runtime.perform(runtime.submit(steps, "a"))
    monkeypatch.setattr(traced.exporter, "export", looks)
    traced.provider.force_flush()
    assert seen == [True]
    assert context.get_value(_SUPPRESS_INSTRUMENTATION_KEY) is None


def test_a_run_that_lost_its_lease_is_not_saved_for_its_spans(
    traced: Traced, runtime: Runtime
) -> None:
    @job(name="owed_lost")
    def losing(ctx: Context) -> None:
        for _ in ctx.each("items", range(3)):
            (run,) = saver.runs()
            run.lose("the test took it")
            before = runtime.store.load(ctx.id)
            traced.tracing.make_parents_known()
            assert runtime.store.load(ctx.id) == before

    with pytest.raises(LeaseLostError):
        runtime.perform(runtime.submit(losing))


def test_a_run_that_is_released_tells_of_itself(traced: Traced, runtime: Runtime) -> None:
    BEGUN.clear()
    GATE.clear()
    job_id = runtime.submit(waits, [])

    def perform() -> None:
        with pytest.raises(LeaseLostError):
            runtime.perform(job_id)

    thread = threading.Thread(target=perform)
    thread.start()
    assert BEGUN.wait(10)
    (run,) = [run for run in saver.runs() if run.record.id == job_id]
    release(run)
    assert traced.tracing.sender._news
    (process,) = traced.named("process owed_release")
    assert attributes(process)["tracedjobs.run.reason"] == "exit"
    GATE.set()
    thread.join(10)


def test_a_job_that_is_not_kept_has_its_whole_trace_all_the_same(
    traced: Traced, runtime: Runtime
) -> None:
    @job(name="owed_not_kept", retention=0)
    def gone(ctx: Context) -> None:
        ctx.step("a", lambda: None)

    runtime.perform(runtime.submit(gone))
    assert {"job owed_not_kept", "step a"} <= set(once(traced.spans))


def test_a_step_is_in_the_store_before_a_span_within_it_can_leave(
    traced: Traced, runtime: Runtime
) -> None:
    found: list[object] = []

    @job(name="owed_parents", checkpoint_every=60)
    def parents(ctx: Context) -> None:
        for item in ctx.each("items", range(3)):
            if item == 1:
                with traced.tracer.start_as_current_span("mine"):
                    stored = runtime.store.load(ctx.id)
                    found.append(stored and stored.job.entered)

    runtime.perform(runtime.submit(parents))
    assert found[0] is not None
    (mine,) = traced.named("mine")
    assert parent_of(mine) == id_of(traced.named("step items")[0])


class _Fails(SpanProcessor):
    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return timeout_millis < 0


@pytest.mark.parametrize("fails", [False, True])
def test_a_flush_looks_once_for_what_is_owed_whatever_other_processors_do(
    traced: Traced, runtime: Runtime, monkeypatch: pytest.MonkeyPatch, *, fails: bool
) -> None:
    monkeypatch.setattr(setup, "_tracing", traced.tracing)
    provider = traced.provider
    if fails:
        provider = TracerProvider()
        provider.add_span_processor(_Fails())
        provider.add_span_processor(OfJobs(traced.tracing, made_here=False))
    monkeypatch.setattr(api, "get_tracer_provider", lambda: provider)
    runtime.perform(runtime.submit(steps, "a"))
    looks: list[int] = []
    owing = runtime.store.owing

    def counted(*, limit: int) -> object:
        looks.append(limit)
        return owing(limit=limit)

    monkeypatch.setattr(runtime.store, "owing", counted)
    telemetry.flush()
    assert len(looks) == (2 if fails else 1)  # who failed may have kept ours from their turn
    names = [span.name for span in traced.exporter.get_finished_spans()]
    assert sorted(names) == ["job owed_steps", "process owed_steps", "send owed_steps", "step a"]
