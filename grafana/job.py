"""One job: where it stands, its steps and runs over time, its log and its trace."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.models.dashboard import VariableHide, VariableRefresh

from grafana import queries as q
from grafana.page import LOGS, METRICS, Page
from grafana.palette import OF
from grafana.panels import Line, lines, number, said, spans, timeline, trace

if TYPE_CHECKING:
    from grafana_foundation_sdk.models.dashboard import Dashboard

__all__ = ["dashboard"]


NO_LINE = "It did not run in this time, or was not among the 200 jobs that have series."
LOG = '{service_name=~".+"} | tracedjobs_job_id="$job_id" or job_id="$job_id"'
"""As the library tells it, and as an application's own lines are bound to their job."""


def dashboard() -> Dashboard:
    """Make it."""
    page = Page(
        "job",
        "One job, by its id: progress over time with its runs, each step as a bar, interruptions "
        "with their reasons, what it logged, and its trace.",
        since="now-3h",
        logs_and_traces=True,
    ).typed("job_id", "Job")
    page.variable(
        build.QueryVariable("trace_id")
        .label("Trace")
        .datasource(METRICS)
        .query('label_values(tracedjobs_job_info{job_id="$job_id",trace_id!=""}, trace_id)')
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .hide(VariableHide.DONT_HIDE)
    )
    page.annotation(
        build.AnnotationQuery()
        .name("Runs")
        .datasource(METRICS)
        .enable(enable=True)
        .icon_color(OF["running"])
        # A series for each run, as long as that run: shown as its stretch of time.
        .expr(f'count_values("run", max by (job_id) ({q.of_job("job_runs")}))')
    )
    page.annotation(
        build.AnnotationQuery()
        .name("Interruptions")
        .datasource(LOGS)
        .enable(enable=True)
        .icon_color(OF["interrupted"])
        .expr(
            f"{LOG} |~ `^job_(interrupted|paused|lost|failed)`"
            " | line_format `{{ __line__ }} {{.tracedjobs_run_reason}}`"
        )
    )
    _figures(page)
    _over_time(page)
    page.put(
        said(
            "Stops",
            "Why its runs ended, newest first, and what was told of kills and stalls.",
            f"{LOG} |~ `^job_(interrupted|paused|lost|failed|completed|cancelled|stalled|resumed)`"
            " | line_format `{{ __line__ }}  run {{.tracedjobs_run_number}}"
            "  {{.tracedjobs_run_reason}}  {{.tracedjobs_step_name}}`",
        ),
        width=12,
    )
    page.put(
        spans(
            "Runs",
            "Each run with its outcome and reason, the items it did, and those it did again.",
            '{ span.tracedjobs.job.id = "$job_id" && name =~ "process .*" } | select('
            "span.tracedjobs.run.number, span.tracedjobs.run.outcome, span.tracedjobs.run.reason, "
            "span.tracedjobs.items.processed, span.tracedjobs.items.redone, "
            "span.tracedjobs.worker)",
        ),
        width=12,
    )
    page.put(
        said("Log", "All that was told of this job, and the application's own lines in it.", LOG),
        width=24,
        height=10,
    )
    page.put(
        trace(
            "Trace",
            "Its submission, runs and steps, and what its code traced. Of a job that ended before "
            "this time, open a run above.",
            "$trace_id",
        ),
        width=24,
        height=14,
    )
    return page.made()


def _figures(page: Page) -> None:
    def most(name: str) -> str:
        return f"max({q.of_job(name)})"

    heartbeat, moved = (
        most("job_heartbeat_timestamp_seconds"),
        most("job_last_progress_timestamp_seconds"),
    )
    for title, description, line, unit, says in (
        (
            "State",
            "Whether it runs, moves, and still has its process.",
            q.state("job_id", q.ONE_JOB),
            "none",
            q.STATES,
        ),
        (
            "Progress",
            "How much of the open step is done.",
            most("job_progress_ratio"),
            "percentunit",
            None,
        ),
        (
            "Left",
            "How long the open step will take, as far as that can be told.",
            f"{most('job_eta_timestamp_seconds')} - time()",
            "s",
            None,
        ),
        ("Run", "Its number: how often it was begun or resumed.", most("job_runs"), "none", None),
        (
            "Job for",
            "Since its first run began.",
            f"time() - {most('job_started_timestamp_seconds')}",
            "s",
            None,
        ),
        (
            "Run for",
            "Since this run began.",
            f"time() - {most('job_run_started_timestamp_seconds')}",
            "s",
            None,
        ),
        (
            "Step for",
            "Since the open step began.",
            f"time() - {most('job_step_started_timestamp_seconds')}",
            "s",
            None,
        ),
        ("Item for", "Since its cursor last moved.", f"time() - {moved}", "s", None),
        (
            "Last sign of life",
            "How long ago its process was last heard of: lost when longer than its lease, 30 s.",
            f"time() - {heartbeat}",
            "s",
            None,
        ),
        (
            "Stalls after",
            "Its own threshold: no progress for this long is a stall.",
            most("job_stall_after_seconds"),
            "s",
            None,
        ),
        (
            "Until the deadline",
            "How long until it should be done; below 0 it is late.",
            f"{most('job_deadline_timestamp_seconds')} - time()",
            "s",
            None,
        ),
        (
            "Items",
            "Items of the open step that are done.",
            most("job_items_processed"),
            "short",
            None,
        ),
    ):
        empty = {
            "Until the deadline": "It has none, or does not run",
            "Stalls after": "Not watched, or it does not run",
            "Progress": "No total, or it does not run",
            "Left": "Cannot be told",
        }.get(title, "It does not run")
        panel = number(title, description, Line(line), unit=unit, says=says, empty=empty)
        page.put(panel, width=4, height=3)


def _over_time(page: Page) -> None:
    page.put(
        lines(
            "Progress over time",
            "How much of the open step is done; it begins anew with each step. Shaded: its runs.",
            Line(f"max by (job_id) ({q.of_job('job_progress_ratio')})", "done"),
            unit="percentunit",
            empty=NO_LINE,
        ),
        width=12,
    )
    page.put(
        lines(
            "Items over time",
            "Done, and how many there are where that is known. After a kill those that are done "
            "again show as a step down.",
            Line(f"max by (job_id) ({q.of_job('job_items_processed')})", "done"),
            Line(f"max by (job_id) ({q.of_job('job_items_expected')})", "expected"),
            unit="short",
            empty=NO_LINE,
        ),
        width=12,
    )
    page.put(
        timeline(
            "Steps",
            "Each step while it was open, in this time.",
            Line(f"max by (step) ({q.of_job('job_info')})", "{{step}}"),
            empty=NO_LINE,
        ),
        width=12,
    )
    page.put(
        timeline(
            "Workers",
            "Which worker had it, in this time.",
            Line(f"max by (worker) ({q.of_job('job_info')})", "{{worker}}"),
            empty=NO_LINE,
            colour="completed",
        ),
        width=12,
    )
    page.put(
        lines(
            "Items a second",
            "Of the open step.",
            Line(
                "max by (job_id) (clamp_min("
                f"deriv({q.of_job('job_items_processed')}[$__rate_interval]), 0))",
                "items",
            ),
            unit="short",
            empty=NO_LINE,
        ),
        width=12,
    )
    page.put(
        lines(
            "When it will be done",
            "How long the open step had left, as it was estimated at each moment.",
            Line(
                f"max by (job_id) ({q.of_job('job_eta_timestamp_seconds')}"
                f" - timestamp({q.of_job('job_eta_timestamp_seconds')}))",
                "left",
            ),
            unit="s",
            empty=NO_LINE,
        ),
        width=12,
    )
