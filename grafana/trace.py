"""One trace, by its id: where the points on other pages lead, also for those who may only view."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grafana.page import Page
from grafana.panels import said, trace

if TYPE_CHECKING:
    from grafana_foundation_sdk.models.dashboard import Dashboard

__all__ = ["dashboard"]


def dashboard() -> Dashboard:
    """Make it."""
    page = Page(
        "trace",
        "A job's trace, and what was logged in it.",
        since="now-24h",
        logs_and_traces=True,
    ).typed("trace_id", "Trace")
    page.put(
        trace("Trace", "The job with its runs and steps, and what its code traced.", "$trace_id"),
        width=24,
        height=16,
    )
    page.put(
        said(
            "Log",
            "What was told in this trace, the application's own lines too.",
            '{service_name=~".+"} | trace_id="$trace_id"',
        ),
        width=24,
        height=10,
    )
    return page.made()
