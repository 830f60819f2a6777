"""A type of job: how long its jobs take, how they fail, and how good its estimates are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.models.dashboard import DataSourceRef

from grafana import queries as q
from grafana.page import Page, link
from grafana.palette import OF
from grafana.panels import Line, bars, lines, number

if TYPE_CHECKING:
    from grafana_foundation_sdk.models.dashboard import Dashboard

__all__ = ["dashboard"]

FAILED = 'outcome="failed"'
LOST = 'outcome="lost"'
SELDOM = "5m"
"""The shortest step where a few observations are all there are."""
NO_JOBS = "No job of this type has ended in this time."
NO_RUNS = "No run of this type has ended in this time."
HERE = link("overview", "${job_name:queryparam}", "${queue:queryparam}")


def dashboard() -> Dashboard:
    """Make it."""
    page = Page(
        "job-type",
        "Jobs of a type: durations, failures, resumptions, the quality of estimates, and all of "
        "that beside an earlier time, such as before a deploy.",
        since="now-24h",
        logs_and_traces=False,
    ).fleet()
    page.variable(
        build.CustomVariable("compare").label("Compare with, ago").values("1h,6h,1d,7d,28d")
    )
    page.annotation(
        build.AnnotationQuery()
        .name("Deploys")
        .datasource(DataSourceRef(type_val="grafana", uid="-- Grafana --"))
        .enable(enable=True)
        .icon_color(OF["paused"])
        .target(
            build.AnnotationTarget()
            .type("tags")
            .tags(["deploy"])
            .match_any(match_any=True)
            .limit(100)
        )
    )
    _figures(page)
    _durations(page)
    _failures(page)
    return page.made()


def _figures(page: Page) -> None:
    def in_all(name: str, *matchers: str) -> str:
        return q.total(q.increase(q.counter(name, *matchers)))

    share = "percentunit"
    for title, description, line, unit, bad, empty in (
        (
            "Ended",
            "Jobs that completed, failed or were cancelled.",
            in_all("jobs_finished"),
            "short",
            None,
            "0",
        ),
        (
            "Failed",
            "Of those that ended, how many failed.",
            f"{in_all('jobs_finished', FAILED)} / ({in_all('jobs_finished')} > 0)",
            share,
            0.05,
            "None ended",
        ),
        (
            "Resumptions a job",
            "How often a job that ended had been resumed, on average.",
            f"{in_all('resumptions')} / ({in_all('jobs_finished')} > 0)",
            "short",
            None,
            "None ended",
        ),
        (
            "Runs lost",
            "Of the runs that ended, how many were killed.",
            f"{in_all('runs', LOST)} / ({in_all('runs')} > 0)",
            share,
            0.05,
            "None ended",
        ),
        (
            "Items done again",
            "Of the items done, how many were done again after a kill.",
            f"{in_all('items_redone')} / ({in_all('items_processed')} > 0)",
            share,
            0.01,
            "None",
        ),
        (
            "Past their deadline",
            "Running jobs that should be done by now.",
            q.total(q.now(q.gauge("deadline_missed"))),
            "none",
            1,
            "0",
        ),
    ):
        panel = number(
            title,
            description,
            Line(line),
            unit=unit,
            bad=bad,
            colour="failed",
            empty=empty,
            to=HERE,
        )
        page.put(panel, width=4, height=4)


def _durations(page: Page) -> None:
    for title, description, name, by, empty in (
        (
            "How long jobs take",
            "From submission to end: 95 % of jobs took less; beside it, the same of earlier.",
            "job_duration",
            "job_name",
            NO_JOBS,
        ),
        (
            "How long runs take",
            "From lease to end: 95 % of runs took less; beside it, the same of earlier.",
            "run_duration",
            "job_name",
            NO_RUNS,
        ),
        (
            "How long steps take",
            "Of completed steps, interruptions included: 95 % took less; and the same of earlier.",
            "step_duration",
            "step",
            "No step was completed in this time.",
        ),
        (
            "Wait until the next run",
            "From when a job could be resumed to its next run: 95 % waited less.",
            "resume_delay",
            "job_name",
            "No job was resumed in this time.",
        ),
    ):
        panel = lines(
            title,
            description,
            Line(q.quantile(0.95, name, by), f"{{{{{by}}}}}"),
            Line(q.quantile(0.95, name, by, ago="$compare"), f"{{{{{by}}}}}, $compare before"),
            unit="s",
            empty=empty,
            least=SELDOM,
            to=HERE,
        )
        page.put(panel, width=12)
    items = q.counter("items_processed")
    page.put(
        lines(
            "Items a second",
            "Beside the same of earlier. Points are traces of jobs at work.",
            Line(q.total(q.rate(items), "job_name"), "{{job_name}}", exemplars=True),
            Line(
                q.total(q.rate(items, ago="$compare"), "job_name"), "{{job_name}}, $compare before"
            ),
            unit="short",
            empty="No items in this time.",
            to=HERE,
        ),
        width=12,
    )
    eta = q.gauge("job_eta_timestamp_seconds")
    page.put(
        lines(
            "How far estimates wander",
            "By how much the expected end of a running job moved, the most among jobs of the type: "
            "the nearer to 0, the better the estimates.",
            Line(
                f"max by (job_name) (max by (job_name, job_id) (max_over_time({eta}"
                f"[$__rate_interval])) - min by (job_name, job_id) (min_over_time({eta}"
                "[$__rate_interval])))",
                "{{job_name}}",
            ),
            unit="s",
            empty="No running job has an estimate in this time: it takes a total.",
            least=SELDOM,
            to=HERE,
        ),
        width=12,
    )


def _failures(page: Page) -> None:
    runs = q.increase(q.counter("runs"), "$__rate_interval")
    page.put(
        lines(
            "Runs that ended",
            "By how they ended.",
            Line(q.total(runs, "outcome"), "{{outcome}}"),
            unit="none",
            empty=NO_RUNS,
            coloured=True,
            stacked=True,
            as_bars=True,
            to=HERE,
        ),
        width=8,
    )
    failed = q.increase(q.counter("jobs_finished", FAILED), "$__rate_interval")
    ended = q.increase(q.counter("jobs_finished"), "$__rate_interval")
    page.put(
        lines(
            "Share of jobs that failed",
            "Of the jobs that ended.",
            Line(
                f"{q.total(failed, 'job_name')} / ({q.total(ended, 'job_name')} > 0)",
                "{{job_name}}",
            ),
            unit="percentunit",
            empty=NO_JOBS,
            least=SELDOM,
            to=HERE,
        ),
        width=8,
    )
    interruptions = q.increase(q.counter("interruptions"), "$__rate_interval")
    page.put(
        lines(
            "Interruptions",
            "By reason.",
            Line(f"{q.total(interruptions, 'reason')} > 0", "{{reason}}"),
            unit="none",
            empty="No run was interrupted in this time.",
            stacked=True,
            as_bars=True,
            to=HERE,
        ),
        width=8,
    )
    steps = q.increase(q.counter("steps", 'outcome!="completed"'))
    page.put(
        bars(
            "Where runs stop",
            "The steps that were left open, in the time shown, and how.",
            Line(f"{q.total(steps, 'step', 'outcome')} >= 0.5", "{{step}}: {{outcome}}"),
            unit="none",
            empty="No step was left open in this time.",
            to=HERE,
        ),
        width=12,
    )
    page.put(
        lines(
            "Stops",
            "From the moment a run was asked to stop to its end: half and 95 % took less.",
            Line(q.quantile(0.5, "stop_latency"), "half"),
            Line(q.quantile(0.95, "stop_latency"), "95 %"),
            unit="s",
            empty="No run was asked to stop in this time.",
            least=SELDOM,
            to=HERE,
        ),
        width=12,
    )
