"""The workers, what saving costs them, and the exporter that tells all this."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grafana import queries as q
from grafana.page import Page, link
from grafana.panels import Line, bars, lines, number

if TYPE_CHECKING:
    from grafana_foundation_sdk.models.dashboard import Dashboard

__all__ = ["dashboard"]

NO_EXPORTER = "Nothing from an exporter: does Prometheus scrape one? See `tracedjobs exporter`."
OVERVIEW = link("overview", "${job_name:queryparam}", "${queue:queryparam}")


def dashboard() -> Dashboard:
    """Make it."""
    page = Page(
        "workers",
        "Which workers live, what saving costs them, and whether the exporter can be believed.",
        logs_and_traces=False,
    ).fleet()
    _figures(page)
    _workers(page)
    _saves(page)
    _exporter(page)
    return page.made()


def _figures(page: Page) -> None:
    for title, description, line, unit, bad, empty in (
        (
            "Workers alive",
            "Processes that have a job in hand.",
            q.total(q.now(q.gauge("workers", 'state="alive"'))),
            "none",
            None,
            NO_EXPORTER,
        ),
        (
            "Workers gone",
            "Processes that died with a job in hand, which nobody has taken over yet.",
            q.total(q.now(q.gauge("workers", 'state="lost"'))),
            "none",
            1,
            NO_EXPORTER,
        ),
        (
            "Exporters",
            "That Prometheus reaches; two say the same as one.",
            'sum(up{job=~"$job"})',
            "none",
            None,
            NO_EXPORTER,
        ),
        (
            "Store last read",
            "How old the figures are. While the store is away the last ones are shown.",
            f"time() - max({q.gauge('exporter_last_success_timestamp_seconds')})",
            "s",
            120,
            NO_EXPORTER,
        ),
        (
            "Reading takes",
            "How long a reading of the store takes.",
            f"max({q.gauge('exporter_collect_duration_seconds')})",
            "s",
            1,
            NO_EXPORTER,
        ),
        (
            "Jobs without lines",
            "Running jobs beyond the 200 that have series of their own (`exporter --jobs`).",
            f"max({q.gauge('exporter_jobs_omitted')})",
            "none",
            1,
            NO_EXPORTER,
        ),
    ):
        panel = number(title, description, Line(line), unit=unit, bad=bad, empty=empty, to=OVERVIEW)
        page.put(panel, width=4, height=4)


def _workers(page: Page) -> None:
    info = f"max by (job_id, worker) ({q.gauge('job_info')})"
    heartbeat = q.gauge("job_heartbeat_timestamp_seconds")
    silence = f"min by (job_id) (timestamp({heartbeat}) - {heartbeat})"
    page.put(
        lines(
            "Workers",
            "Alive, and gone with a job in hand.",
            Line(q.total(q.now(q.gauge("workers")), "state"), "{{state}}"),
            unit="none",
            empty=NO_EXPORTER,
            coloured=True,
            to=OVERVIEW,
        ),
        width=8,
    )
    page.put(
        bars(
            "Jobs of each worker",
            "Running jobs, of those that have series of their own.",
            Line(f"count by (worker) ({info})", "{{worker}}"),
            unit="none",
            empty="No worker has a job in hand.",
            to=OVERVIEW,
        ),
        width=8,
    )
    page.put(
        bars(
            "Silence",
            "How long ago each worker last gave a sign of life, as of the last scrape: it is lost "
            "when that is longer than its lease, 30 s.",
            Line(
                f"max by (worker) ({info} * on (job_id) group_left () {silence})",
                "{{worker}}",
            ),
            unit="s",
            empty="No worker has a job in hand.",
            to=OVERVIEW,
        ),
        width=8,
    )


def _saves(page: Page) -> None:
    page.put(
        lines(
            "Positions saved a second",
            "By type of job: at most one a run and `checkpoint_every`, 1 s.",
            Line(q.total(q.rate(q.counter("checkpoints")), "job_name"), "{{job_name}}"),
            unit="short",
            empty="Nothing was saved in this time.",
            to=OVERVIEW,
        ),
        width=8,
    )
    page.put(
        lines(
            "How long saves take",
            "One write for all runs of a process: half, 95 % and 99 % took less.",
            *(
                Line(q.quantile(share, "checkpoint_duration"), name)
                for share, name in ((0.5, "half"), (0.95, "95 %"), (0.99, "99 %"))
            ),
            unit="s",
            empty="Nothing was saved in this time.",
            to=OVERVIEW,
        ),
        width=8,
    )
    page.put(
        lines(
            "Copies refused, leases lost",
            "Attempts to run a job that runs already, and runs whose job another one took over.",
            Line(
                q.total(q.increase(q.counter("duplicates_refused"), "$__rate_interval")),
                "copies refused",
            ),
            Line(q.total(q.increase(q.counter("leases_lost"), "$__rate_interval")), "leases lost"),
            unit="none",
            empty="None in this time.",
            to=OVERVIEW,
        ),
        width=8,
    )


def _exporter(page: Page) -> None:
    page.put(
        lines(
            "Age of the figures",
            "How long ago each exporter had last read the store.",
            Line(
                "time() - max by (job, instance) "
                f"({q.gauge('exporter_last_success_timestamp_seconds')})",
                "{{job}} {{instance}}",
            ),
            unit="s",
            empty=NO_EXPORTER,
            to=OVERVIEW,
        ),
        width=12,
    )
    page.put(
        lines(
            "Reading and scraping",
            "How long a reading of the store takes, and a scrape in all.",
            Line(
                f"max by (job) ({q.gauge('exporter_collect_duration_seconds')})", "{{job}}, reading"
            ),
            Line('max by (job) (scrape_duration_seconds{job=~"$job"})', "{{job}}, scrape"),
            unit="s",
            empty=NO_EXPORTER,
            to=OVERVIEW,
        ),
        width=12,
    )
