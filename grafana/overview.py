"""The first page: what runs now, what is wrong, and what happened."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grafana import queries as q
from grafana.page import Page, link
from grafana.panels import Column, Line, bars, lines, number, rows, said

if TYPE_CHECKING:
    from grafana_foundation_sdk.models.dashboard import Dashboard

    from grafana.page import Placed

__all__ = ["dashboard"]

TO_TYPE = link("job-type", "var-job_name=${__field.labels.job_name}")
TO_TYPES = link("job-type", "${job_name:queryparam}", "${queue:queryparam}")
TO_JOB = link("job", "var-job_id=${__value.raw}")
NOTHING_RUNS = "Nothing runs. If jobs do run: is the exporter scraped? See Workers and exporter."


def dashboard() -> Dashboard:
    """Make it."""
    page = Page(
        "overview",
        "What runs now, what hangs or is gone, and what failed or was interrupted, and why.",
        logs_and_traces=True,
    ).fleet()
    _figures(page)
    page.put(_running(), width=24, height=10)
    _happened(page)
    page.put(
        said(
            "What went wrong",
            "Failed, lost and stalled jobs, and refused copies, as they were told.",
            '{service_name=~".+"} |~ "^job_(failed|lost|lease_lost|stalled|duplicate_refused)"'
            ' | tracedjobs_job_name=~"$job_name"'
            ' | line_format "{{ __line__ }}  {{.tracedjobs_job_name}}  {{.tracedjobs_job_id}}'
            '  run {{.tracedjobs_run_number}}  {{.tracedjobs_step_name}}"',
        ),
        width=24,
    )
    return page.made()


def _figures(page: Page) -> None:
    waits = q.now(q.gauge("oldest_queued_timestamp_seconds"))
    for title, description, line, bad, colour, unit, empty in (
        (
            "Running",
            "Jobs at work now; those that stall or are lost are not among them.",
            q.total(q.now(q.gauge("jobs", 'state="running"'))),
            None,
            "",
            "none",
            "0",
        ),
        (
            "Stalled",
            "Running jobs whose cursor has not moved for their own threshold.",
            q.total(q.now(q.gauge("jobs_stalled"))),
            1,
            "stalled",
            "none",
            "Is the exporter scraped?",
        ),
        (
            "Lost",
            "Jobs whose process is gone, and that nobody has taken over yet.",
            q.total(q.now(q.gauge("jobs_lost"))),
            1,
            "lost",
            "none",
            "Is the exporter scraped?",
        ),
        (
            "Failed",
            "Jobs that failed in the time shown. An interruption is no failure.",
            q.total(q.increase(q.counter("jobs_finished", 'outcome="failed"'))),
            0.5,
            "failed",
            "none",
            "0",
        ),
        (
            "Interrupted",
            "Jobs that stopped before their end and wait to go on, paused ones among them.",
            q.total(q.now(q.gauge("jobs", 'state=~"interrupted|paused"'))),
            None,
            "",
            "none",
            "0",
        ),
        (
            "Longest in a queue",
            "How long the oldest job that never ran has waited.",
            f"time() - min({waits})",
            900,
            "interrupted",
            "s",
            "Nothing waits",
        ),
    ):
        panel = number(
            title,
            description,
            Line(line),
            unit=unit,
            bad=bad,
            colour=colour or "lost",
            empty=empty,
            decimals=0,
            to=TO_TYPES,
        )
        page.put(panel, width=4, height=4)


def _running() -> Placed:
    def since(name: str) -> str:
        return f"time() - max by (job_id) ({q.gauge(name)})"

    return rows(
        "Running now",
        "Each running job, stalled and lost ones first: how far its open step is, and for how long "
        "the job, this run, and the item in hand have been going. At most 200 jobs have a line, "
        "see Workers and exporter.",
        [
            Column("State", q.state("job_id", q.FLEET), says=q.STATES, width=90),
            Column("job_id", to=TO_JOB, width=280),
            Column("job_name", width=180),
            Column("step", width=130),
            Column(
                "Progress",
                f"max by (job_id) ({q.gauge('job_progress_ratio')})",
                unit="percentunit",
                bar=True,
                width=140,
            ),
            Column(
                "Items/s",
                f"max by (job_id) (clamp_min(deriv({q.gauge('job_items_processed')}"
                "[$__rate_interval]), 0))",
                unit="short",
                width=80,
            ),
            Column(
                "Left",
                f"max by (job_id) ({q.gauge('job_eta_timestamp_seconds')}) - time()",
                unit="s",
                width=90,
            ),
            Column("Job", since("job_started_timestamp_seconds"), unit="s", width=90),
            Column("Run", since("job_run_started_timestamp_seconds"), unit="s", width=90),
            Column("Item", since("job_last_progress_timestamp_seconds"), unit="s", width=90),
            Column("Runs", f"max by (job_id) ({q.gauge('job_runs')})", width=70),
            Column("worker", width=200),
        ],
        of=f"max by (job_id, job_name, step, worker) ({q.gauge('job_info')})",
        first="State",
        empty=NOTHING_RUNS,
    )


def _happened(page: Page) -> None:
    page.put(
        lines(
            "Runs that ended",
            "By how they ended. Interrupted runs go on later; lost ones were killed.",
            Line(
                q.total(q.increase(q.counter("runs"), "$__rate_interval"), "outcome"), "{{outcome}}"
            ),
            unit="none",
            empty="No run has ended in this time.",
            coloured=True,
            stacked=True,
            as_bars=True,
            to=TO_TYPES,
        ),
        width=8,
    )
    page.put(
        bars(
            "Why runs were interrupted",
            "Interruptions in the time shown, by reason; other: reasons that applications give.",
            Line(
                f"{q.total(q.increase(q.counter('interruptions')), 'reason')} >= 0.5", "{{reason}}"
            ),
            unit="none",
            empty="No run was interrupted in this time.",
            to=TO_TYPES,
        ),
        width=8,
    )
    failed = q.increase(q.counter("jobs_finished", 'outcome="failed"'))
    page.put(
        bars(
            "What failed",
            "Failed jobs in the time shown, by type.",
            Line(f"{q.total(failed, 'job_name')} >= 0.5", "{{job_name}}"),
            unit="none",
            empty="Nothing has failed in this time.",
            to=TO_TYPE,
        ),
        width=8,
    )
    page.put(
        lines(
            "Items a second",
            "Items done, by type of job. Points are traces of jobs at work: click one.",
            Line(
                q.total(q.rate(q.counter("items_processed")), "job_name"),
                "{{job_name}}",
                exemplars=True,
            ),
            unit="short",
            empty="No items in this time.",
            to=TO_TYPE,
        ),
        width=8,
    )
    page.put(
        lines(
            "Wait in the queue",
            "From the submission of a job to its first run: half and 95 % waited less.",
            Line(q.quantile(0.5, "queue_wait"), "half"),
            Line(q.quantile(0.95, "queue_wait"), "95 %"),
            unit="s",
            empty="No job was begun in this time.",
            least="1m",
            to=TO_TYPES,
        ),
        width=8,
    )
    page.put(
        lines(
            "Jobs by state",
            "What there is and has not ended.",
            Line(
                q.total(
                    q.now(q.gauge("jobs", 'state!~"completed|failed|cancelled"')),
                    "state",
                ),
                "{{state}}",
            ),
            unit="none",
            empty="Is the exporter scraped? See Workers and exporter.",
            coloured=True,
            stacked=True,
            to=TO_TYPES,
        ),
        width=8,
    )
