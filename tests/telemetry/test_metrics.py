"""What the collector says of jobs: the truth, at every moment, and after a kill too."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as as_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from tests.processes import PERFORM, PRELUDE, Children, count, until
from tests.telemetry.scrapes import Samples, Watch, check_conserved, scraped, value
from tracedjobs import Context, Runtime, job
from tracedjobs._core.records import Position, Save, StepRecord
from tracedjobs.errors import JobRunningError, StoreUnavailableError
from tracedjobs.telemetry import collector
from tracedjobs.telemetry.metrics import COUNTERS, GAUGES, HISTOGRAMS, OF_EACH_JOB, PREFIX
from tracedjobs.telemetry.store_collector import StoreCollector
from tracedjobs.testing import interrupt_after, interrupt_during

if TYPE_CHECKING:
    from collections.abc import Iterator


AT_THE_END: Final = Position("rows", "10", 10, 10, None, 1.0)


@job(name="metrics:walk", resume_delay=0)
def walk(ctx: Context, items: int, fails: bool) -> None:  # noqa: FBT001 - a job's argument
    ctx.step("first", lambda: 1)
    for _ in ctx.each("rows", range(items), total=items):
        pass
    if fails:
        msg = "as asked"
        raise ValueError(msg)


def test_an_empty_store_has_the_series_that_alerts_compare_with_0(runtime: Runtime) -> None:
    samples = scraped(runtime)
    assert samples["tracedjobs_jobs_stalled"] == [({"job_name": "", "queue": ""}, 0.0)]
    assert samples["tracedjobs_jobs_lost"] == [({"job_name": "", "queue": ""}, 0.0)]
    assert value(samples, "exporter_last_success_timestamp_seconds") == pytest.approx(
        time.time(), abs=5
    )


def test_a_job_from_submission_to_its_end(runtime: Runtime) -> None:
    job_id = runtime.submit(walk, 10, fails=False)
    samples = scraped(runtime)
    assert value(samples, "jobs_enqueued_total", job_name="metrics:walk") == 1
    assert value(samples, "jobs", state="pending") == 1
    runtime.perform(job_id, stopping=interrupt_during("rows", 4))
    samples = scraped(runtime)
    assert value(samples, "items_processed_total", step="rows") == 4
    assert value(samples, "runs_total", outcome="interrupted") == 1
    assert value(samples, "interruptions_total", reason="stopping") == 1
    assert value(samples, "steps_total", step="rows", outcome="interrupted") == 1
    assert value(samples, "jobs", state="interrupted") == 1
    runtime.perform(job_id)
    samples = scraped(runtime)
    assert value(samples, "items_processed_total") == 10
    assert value(samples, "items_redone_total") == 0
    assert value(samples, "resumptions_total") == 1
    assert value(samples, "runs_total", outcome="completed") == 1
    assert value(samples, "jobs_finished_total", outcome="completed") == 1
    assert value(samples, "steps_total", outcome="completed") == 2
    assert value(samples, "queue_wait_seconds_count") == 1
    assert value(samples, "resume_delay_seconds_count") == 1
    assert value(samples, "run_duration_seconds_count") == 2
    assert value(samples, "job_duration_seconds_count") == 1
    assert (
        value(samples, "stop_latency_seconds_count") == 0
    )  # `stopping` is no request from outside
    assert value(samples, "step_duration_seconds_bucket", step="rows", le="+Inf") == 1
    assert value(samples, "jobs", state="completed") == 1


def test_a_failure_is_one_and_an_interruption_is_none(runtime: Runtime) -> None:
    failed = walk.name
    job_id = runtime.submit(walk, 0, fails=True)
    runtime.perform(job_id, stopping=interrupt_after("first"))
    samples = scraped(runtime)
    assert value(samples, "jobs_finished_total") == 0
    assert value(samples, "runs_total", outcome="failed", job_name=failed) == 0
    outcome = runtime.perform(job_id)  # it made progress before it raised: an interruption
    assert outcome.reason == "error"
    with pytest.raises(ValueError, match="as asked"):
        runtime.perform(job_id)
    samples = scraped(runtime)
    assert value(samples, "runs_total", outcome="failed") == 1
    assert value(samples, "interruptions_total", reason="error") == 1
    assert value(samples, "jobs_finished_total", outcome="failed") == 1


def test_a_run_that_ends_before_it_comes_to_its_step_is_not_counted_with_it(
    runtime: Runtime,
) -> None:
    @job(name="counted_steps", resume_delay=0)
    def counted_steps(ctx: Context) -> None:
        if ctx.run == 2:
            ctx.interrupt("too early")
        for _ in ctx.each("rows", range(9)):
            pass

    job_id = runtime.submit(counted_steps)
    runtime.perform(job_id, stopping=interrupt_during("rows", cursor=4))
    assert runtime.perform(job_id).reason == "too early"
    samples = scraped(runtime)
    assert value(samples, "runs_total", outcome="interrupted") == 2
    assert value(samples, "steps_total", outcome="interrupted") == 1
    assert runtime.perform(job_id).ok
    assert value(scraped(runtime), "items_processed_total") == 9


def test_a_job_that_never_ran_is_cancelled(runtime: Runtime) -> None:
    runtime.cancel(runtime.submit(walk, 1, fails=False))
    samples = scraped(runtime)
    assert value(samples, "jobs_finished_total", outcome="cancelled") == 1
    assert value(samples, "runs_total") == 0


def test_reasons_of_applications_are_one_label(runtime: Runtime) -> None:
    for number in range(5):
        job_id = runtime.submit(walk, 3, fails=False)
        runtime.perform(job_id, stopping=lambda ctx, number=number: f"reason {number}")
    samples = scraped(runtime)
    assert value(samples, "interruptions_total", reason="other") == 5
    assert [has for has, number in samples["tracedjobs_interruptions_total"] if number] == [
        {"job_name": walk.name, "queue": "", "reason": "other"}
    ]


def test_saves_of_the_jobs_own_thread_are_measured_too(runtime: Runtime) -> None:
    @job(name="metrics:durable", checkpoint_every=0)
    def durable(ctx: Context) -> None:
        for _ in ctx.each("rows", range(20)):
            pass

    runtime.perform(runtime.submit(durable))
    samples = scraped(runtime)
    saves = value(samples, "checkpoints_total", step="rows")
    assert saves > 10  # the last item goes with the completion, and the saver may be faster
    assert value(samples, "checkpoint_duration_seconds_count") == saves
    assert value(samples, "checkpoint_duration_seconds_sum") > 0


def test_what_has_not_happened_yet_is_0_and_not_absent(runtime: Runtime) -> None:
    runtime.submit(walk, 1, fails=False)
    samples = scraped(runtime)
    for name, label, some in (
        ("jobs_finished", "outcome", {"failed", "cancelled", "completed"}),
        ("runs", "outcome", {"lost", "interrupted", "paused"}),
        ("interruptions", "reason", {"error", "max_runtime", "other"}),
    ):
        found = {has[label]: number for has, number in samples[f"tracedjobs_{name}_total"]}
        assert some <= found.keys()
        assert set(found.values()) == {0}
    assert samples["tracedjobs_stop_latency_seconds_count"] == [
        ({"job_name": walk.name, "queue": ""}, 0)
    ]
    runtime.perform(runtime.submit(walk, 1, fails=False))
    steps = scraped(runtime)["tracedjobs_steps_total"]
    assert {(has["step"], has["outcome"]) for has, number in steps if not number} == {
        (step, outcome)
        for step in ("first", "rows")
        for outcome in ("interrupted", "failed", "lost")
    }


def test_a_running_job_has_series_of_its_own_and_its_items_count_at_once(
    runtime: Runtime,
) -> None:
    seen: list[Samples] = []

    @job(name="metrics:looks", deadline=0.001)
    def looks(ctx: Context) -> None:
        for item in ctx.each("rows", range(10), total=10):
            if item == 5:
                ctx.checkpoint()
                until(lambda: runtime.get(ctx.id).items == 5, "the save")
                seen.append(scraped(runtime))
                with pytest.raises(JobRunningError):
                    runtime.perform(ctx.id)

    job_id = runtime.submit(looks)
    runtime.perform(job_id)
    (samples,) = seen
    assert value(samples, "items_processed_total", step="rows") == 5
    assert value(samples, "job_items_processed", job_id=job_id) == 5
    assert value(samples, "job_items_expected", job_id=job_id) == 10
    assert value(samples, "job_progress_ratio", job_id=job_id) == 0.5
    assert value(samples, "job_stall_after_seconds", job_id=job_id) == 60
    assert value(samples, "job_runs", job_id=job_id) == 1
    for moment in ("job_heartbeat", "job_last_progress", "job_run_started", "job_step_started"):
        at = value(samples, f"{moment}_timestamp_seconds", job_id=job_id)
        assert at == pytest.approx(time.time(), abs=30), moment
    assert value(samples, "jobs", state="running") == 1
    assert value(samples, "workers", state="alive") == 1
    assert value(samples, "deadline_missed") == 1
    samples = scraped(runtime)
    assert value(samples, "items_processed_total", step="rows") == 10
    assert value(samples, "duplicates_refused_total") == 1
    assert not samples.get("tracedjobs_job_runs")


def test_more_running_jobs_than_are_shown_are_told_as_a_number(runtime: Runtime) -> None:
    seen: list[Samples] = []

    @job(name="metrics:nest")
    def nest(ctx: Context, depth: int) -> None:
        if depth:
            runtime.perform(runtime.submit(nest, depth - 1))
        else:
            seen.append(scraped(runtime, most_jobs=2))

    runtime.perform(runtime.submit(nest, 4))
    assert len(seen[0]["tracedjobs_job_runs"]) == 2
    assert value(seen[0], "exporter_jobs_omitted") == 3
    assert value(seen[0], "jobs", state="running") == 5


def test_a_store_that_is_away_shows_the_last_figures_and_their_age(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    runtime.submit(walk, 1, fails=False)
    shown = StoreCollector(runtime, age=0)
    registry = CollectorRegistry()
    registry.register(shown)
    before = generate_latest(registry)
    msg = "it is away"

    def away() -> None:
        raise StoreUnavailableError(msg)

    monkeypatch.setattr(runtime.store, "survey", away)
    assert generate_latest(registry) == before
    assert "it is away" in caplog.text
    assert shown.check() == msg


def test_both_formats_have_what_every_metric_needs(runtime: Runtime) -> None:
    runtime.perform(runtime.submit(walk, 3, fails=False))
    registry = CollectorRegistry()
    registry.register(collector(runtime))
    text = as_openmetrics(registry).decode()  # type: ignore[no-untyped-call]  # prometheus-client's
    assert text.endswith("# EOF\n")
    assert 'tracedjobs_jobs_enqueued_total{job_name="metrics:walk",queue=""} 1.0' in text
    assert "_created" not in text
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        assert family.documentation.endswith("."), family.name
        for sample in family.samples:
            assert not {"job", "instance"} & sample.labels.keys()


KILLS = 8


@pytest.mark.timeout(300)
def test_nothing_is_lost_or_counted_twice_or_goes_backwards_however_runs_end(
    runtime: Runtime, store_url: str, children: Children, tmp_path: Path
) -> None:
    chance = random.Random(17)
    items = 3000
    ids = [runtime.submit(count, str(tmp_path / f"{n}.txt"), items, 0.001) for n in range(4)]
    watch = Watch()

    def look() -> Samples:
        samples = scraped(runtime)
        watch.see(samples)
        return samples

    kills = 0
    while any(runtime.get(job_id).status != "completed" for job_id in ids):
        job_id = chance.choice([each for each in ids if runtime.get(each).status != "completed"])
        run = runtime.get(job_id).run
        child = children.start(PRELUDE + PERFORM, store_url, job_id)
        child.says(f"run {run + 1}")
        for _ in range(chance.randrange(6)):
            look()
            time.sleep(chance.random() / 20)
        if kills < KILLS:
            kills += 1
            child.send(signal.SIGKILL if chance.random() < 0.7 else signal.SIGTERM)
        child.process.wait()
        check_conserved(look(), map(runtime.get, ids))
    samples = look()
    jobs = [runtime.get(job_id) for job_id in ids]
    processed = value(samples, "items_processed_total")
    redone = value(samples, "items_redone_total")
    assert processed - redone == sum(each.items for each in jobs) == len(ids) * items
    assert redone == sum(each.items_redone for each in jobs)
    assert value(samples, "runs_total") == sum(each.run for each in jobs)
    lost = [run for each in jobs for run in each.runs if run.outcome == "lost"]
    assert value(samples, "runs_total", outcome="lost") == len(lost) > 0
    assert value(samples, "jobs_finished_total", outcome="completed") == len(ids)
    assert value(samples, "run_duration_seconds_count") == sum(each.run for each in jobs)


UNSAVED = """
@job(name="metrics:unsaved", checkpoint_every=60)
def unsaved(ctx: Context) -> None:
    def source(cursor):
        for at in range(int(cursor or 0), 9):
            yield at, f"{at + 1}"
    for at in ctx.each("rows", source):
        if at == 5:
            os.kill(os.getpid(), signal.SIGKILL)
"""


@job(name="metrics:unsaved")
def unsaved(ctx: Context) -> None:
    """As in `UNSAVED`, to be submitted and taken over here."""
    for _ in ctx.each("rows", lambda cursor: [(at, str(at)) for at in range(9)]):
        pass


def test_items_of_a_step_that_was_never_saved_are_counted_as_done_again(
    runtime: Runtime, store_url: str, children: Children
) -> None:
    job_id = runtime.submit(unsaved)
    children.start(UNSAVED + PERFORM, store_url, job_id).ends(-signal.SIGKILL)
    assert value(scraped(runtime), "jobs", state="lost") == 1
    runtime.recover()
    check_conserved(scraped(runtime), [runtime.get(job_id)])
    assert runtime.perform(job_id).ok
    samples = scraped(runtime)
    check_conserved(samples, [runtime.get(job_id)])
    assert value(samples, "items_redone_total") == runtime.get(job_id).items_redone == 5


@pytest.fixture
def runtime(store_url: str, request: pytest.FixtureRequest) -> Iterator[Runtime]:
    if store_url == "memory://" and "children" in request.fixturenames:
        pytest.skip("it is private to its process")
    with Runtime(store_url) as made:
        yield made


@pytest.mark.parametrize("written", [True, False])
def test_items_of_a_step_whose_completion_got_no_answer_count_on(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch, *, written: bool
) -> None:
    complete, watch = runtime.store.complete_step, Watch()

    def unanswered(job_id: str, token: str, step: StepRecord, **named: Any) -> bool:
        if step.name == "first":
            return complete(job_id, token, step, **named)
        assert runtime.store.save_one(Save(job_id, token, 10**6 + 500, 30.0, AT_THE_END, 1.0))
        watch.see(scraped(runtime))
        if written:
            complete(job_id, token, step, **named)
        raise KeyboardInterrupt

    job_id = runtime.submit(walk, 10, fails=False)
    monkeypatch.setattr(runtime.store, "complete_step", unanswered)
    with pytest.raises(KeyboardInterrupt):
        runtime.perform(job_id)
    monkeypatch.undo()
    samples = scraped(runtime)
    watch.see(samples)
    assert value(samples, "items_processed_total") == 10
    assert runtime.perform(job_id).ok
    samples = scraped(runtime)
    watch.see(samples)
    assert value(samples, "items_processed_total") == 10
    check_conserved(samples, runtime.list())


def test_the_page_lists_every_metric_with_its_labels() -> None:
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text("utf-8")
    suffixes = [(COUNTERS, "_total"), (HISTOGRAMS, "_seconds"), (GAUGES, ""), (OF_EACH_JOB, "")]
    for table, suffix in suffixes:
        for name, metric in table.items():
            labels = ", ".join(f"`{label}`" for label in metric.labels) or "none"
            assert f"| `{PREFIX}{name}{suffix}` | {labels} | {metric.help} |" in page
