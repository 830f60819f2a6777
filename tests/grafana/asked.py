"""What dashboards ask: their panels and queries, and the names that the exporter has."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import promql_parser

from tracedjobs.telemetry.metrics import COUNTERS, GAUGES, HISTOGRAMS, OF_EACH_JOB, PREFIX

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "EXPORTED",
    "PROMETHEUS_OWN",
    "panels_of",
    "promql_of",
    "selectors",
    "substituted",
    "variables_of",
]

EXPORTED: Final[dict[str, tuple[str, ...]]] = {
    **{f"{PREFIX}{name}_total": metric.labels for name, metric in COUNTERS.items()},
    **{
        f"{PREFIX}{name}_seconds_{part}": (*metric.labels, *more)
        for name, metric in HISTOGRAMS.items()
        for part, more in (("bucket", ("le",)), ("sum", ()), ("count", ()))
    },
    **{f"{PREFIX}{name}": metric.labels for name, metric in {**GAUGES, **OF_EACH_JOB}.items()},
}
"""The labels of every series that there can be, by its name."""
PROMETHEUS_OWN: Final = frozenset({"up", "scrape_duration_seconds"})
DURATIONS: Final = {"$__rate_interval": "1m", "$__range": "1h", "$__interval": "15s"}


def panels_of(page: dict[str, Any]) -> list[dict[str, Any]]:
    """Its panels."""
    panels: list[dict[str, Any]] = page["panels"]
    return panels


def variables_of(page: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    """Its variables of that type."""
    return [each for each in page["templating"]["list"] if each["type"] == kind]


def promql_of(page: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The title of the panel and the query, of each that Prometheus is asked."""
    for panel in panels_of(page):
        for target in panel["targets"]:
            if target["datasource"]["type"] == "prometheus":
                yield panel["title"], target["expr"]
    for each in (page.get("annotations") or {}).get("list") or ():
        if each["datasource"]["type"] == "prometheus":
            yield each["name"], each["expr"]


def substituted(expr: str, **values: str) -> str:
    """The query with Grafana's variables filled in, as Grafana would."""
    given = {**DURATIONS, "$compare": "1h", **{f"${key}": text for key, text in values.items()}}
    # The longest name first: `$job` is the beginning of `$job_id`.
    for name in sorted(given, key=len, reverse=True):
        expr = expr.replace(name, given[name])
    return re.sub(r"\$(\w+)", ".+", expr)


def selectors(expr: str) -> list[tuple[str, set[str]]]:
    """The metrics that a query reads, with the labels that each is matched by."""
    promql_parser.parse(expr)
    return [
        (name, set(re.findall(r"(\w+)(?:=~|!~|!=|=)\"", inside)))
        for name, inside in re.findall(r"\b(tracedjobs_\w+|up|scrape_\w+)(?:\{([^}]*)\})?", expr)
    ]
