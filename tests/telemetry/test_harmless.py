"""What tracing costs a job: nothing that fails in it, none of its own spans, little memory."""

from __future__ import annotations

import os
import threading
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry import baggage, context
from opentelemetry import trace as api

from tests.telemetry.test_owed_spans import once, steps
from tracedjobs import Context, Runtime, job
from tracedjobs._core import trace
from tracedjobs._core.saver import saver

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from opentelemetry.sdk.trace.export import SpanExportResult

    from tests.telemetry.test_tracing import Traced


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Runtime]:
    with Runtime(f"sqlite:///{tmp_path}/jobs.db") as made:
        yield made


@job(name="owed_around")
def around(ctx: Context) -> None:
    token = context.attach(baggage.set_baggage("tenant", "42"))
    outer = api.get_current_span()
    ctx.step("a", lambda: ctx.state.update(inside=baggage.get_baggage("tenant")))
    assert api.get_current_span() is outer
    assert baggage.get_baggage("tenant") == "42"
    assert ctx.state["inside"] == "42"
    context.detach(token)


@job(name="owed_forks")
def forks(ctx: Context, path: str) -> None:
    def fork() -> None:
        installed: Any = trace.installed
        pid = os.fork()
        if pid == 0:
            with open(path, "w") as out:  # noqa: PTH123 - nothing more than needed in a fork
                out.write(f"{len(installed._runs)} {len(installed.extras)}")
            os._exit(0)
        os.waitpid(pid, 0)

    ctx.step("fork", fork)


def test_an_exporter_that_raises_neither_fails_the_job_nor_keeps_the_store_open(
    traced: Traced,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def boom(spans: object) -> SpanExportResult:
        raise RuntimeError(f"a defect, with {spans}")

    monkeypatch.setattr(traced.exporter, "export", boom)
    with Runtime(f"sqlite:///{tmp_path}/other.db") as runtime:
        traced.tracing.sender.watch(runtime.store)
        runtime.perform(runtime.submit(steps, "a"))
    assert [record for record in caplog.records if "raised RuntimeError" in record.getMessage()]


@pytest.mark.parametrize("hook", ["submitting", "new_trace", "began", "entered", "left", "ended"])
def test_telemetry_that_fails_harms_no_job(
    traced: Traced,
    runtime: Runtime,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    hook: str,
) -> None:
    def boom(*_: object, **__: object) -> Any:
        raise RuntimeError("can't start new thread")

    if hook == "new_trace":
        monkeypatch.setattr(trace, "installed", None)
    job_id = runtime.submit(steps, "ab")
    monkeypatch.setattr(trace, "installed", traced.tracing)
    monkeypatch.setattr(traced.tracing, hook, boom)
    if hook == "submitting":
        job_id = runtime.submit(steps, "ab")
    assert copy_context().run(runtime.perform, job_id).ok
    assert "the job goes on" in caplog.text


def test_a_job_whose_sender_can_start_no_thread_runs_on(
    traced: Traced, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime.perform(runtime.submit(steps, "a"))  # the saver's own is there now
    monkeypatch.undo()
    monkeypatch.setattr(trace, "installed", traced.tracing)

    def full(thread: threading.Thread) -> None:
        raise RuntimeError(f"can't start new thread {thread.name}")

    monkeypatch.setattr(threading.Thread, "start", full)
    assert runtime.perform(runtime.submit(steps, "b")).ok
    assert "step b" in once(traced.spans)


def test_baggage_and_spans_of_the_jobs_own_go_into_its_steps_and_stay(
    traced: Traced, runtime: Runtime
) -> None:
    assert runtime.perform(runtime.submit(around)).ok
    assert len(traced.named("step a")) == 1


def test_a_forked_child_knows_nothing_of_its_parents_runs(
    traced: Traced, runtime: Runtime, tmp_path: Path
) -> None:
    assert runtime.perform(runtime.submit(forks, str(tmp_path / "child"))).ok
    assert (tmp_path / "child").read_text() == "0 0"
    assert len(traced.named("step fork")) == 1


def test_what_is_kept_for_spans_goes_when_they_are_sent(traced: Traced, runtime: Runtime) -> None:
    seen: list[int] = []

    @job(name="owed_many_steps")
    def many(ctx: Context) -> None:
        for number in range(50):
            ctx.step(str(number), lambda: None)
            traced.provider.force_flush()
            seen.append(len(traced.tracing.extras))

    runtime.perform(runtime.submit(many))
    assert max(seen) <= 2
    traced.provider.force_flush()
    assert not traced.tracing.extras


def test_nothing_is_kept_of_what_is_put_on_a_span_that_has_ended(
    traced: Traced, runtime: Runtime
) -> None:
    spans: list[api.Span] = []

    @job(name="owed_late")
    def late(ctx: Context) -> None:
        ctx.step("a", lambda: spans.append(api.get_current_span()))
        spans.append(api.get_current_span())
        assert [span.is_recording() for span in spans] == [False, True]
        spans[0].set_attribute("too late", value=True)

    runtime.perform(runtime.submit(late))
    spans[1].add_event("too late")
    assert not spans[1].is_recording()
    assert not traced.tracing.extras
    assert "too late" not in str([span.to_json() for span in traced.spans])


def test_the_spans_of_a_long_run_are_looked_through_seldom(
    traced: Traced, runtime: Runtime
) -> None:
    lengths: list[int] = []

    @job(name="owed_long")
    def long(ctx: Context) -> None:
        (run,) = saver.runs()
        for number in range(400):
            ctx.step(str(number), lambda: api.get_current_span().set_attribute("mine", value=1))
            if number % 50 == 0:
                traced.provider.force_flush()
            lengths.append(len(traced.tracing._runs[run].spans))

    runtime.perform(runtime.submit(long))
    assert 50 < max(lengths) <= 130
    assert once(traced.spans).count("step 399") == 1
