"""PromQL for panels, from the exporter's own table of names: a metric it does not have is an error.

Several exporters of one store say the same, each with an `instance` (and `pod`) of its own. So what
they say is made one, `ONE`, before anything is added up.
"""

from __future__ import annotations

from typing import Final

from grafana.palette import OF
from tracedjobs.telemetry.metrics import COUNTERS, GAUGES, HISTOGRAMS, OF_EACH_JOB, PREFIX

__all__ = [
    "EXPORTER",
    "FLEET",
    "ONE",
    "ONE_JOB",
    "STATES",
    "counter",
    "gauge",
    "increase",
    "now",
    "of_job",
    "quantile",
    "rate",
    "state",
    "total",
]

ONE: Final = "max without (instance, pod)"
EXPORTER: Final = ('job=~"$job"',)
"""`job` is Prometheus' own label: of the exporter, and so of the store."""
FLEET: Final = (*EXPORTER, 'job_name=~"$job_name"', 'queue=~"$queue"')
ONE_JOB: Final = (*EXPORTER, 'job_id="$job_id"')
_IS: Final = 'state="{}"'
STATES: Final = {
    "0": ("running", OF["running"]),
    "1": ("stalled", OF["stalled"]),
    "2": ("lost", OF["lost"]),
}
"""What the numbers of `state` say, and their colours."""


def counter(name: str, *matchers: str) -> str:
    """A counter of the jobs that are chosen."""
    _ = COUNTERS[name]
    return _selector(f"{name}_total", FLEET, matchers)


def gauge(name: str, *matchers: str) -> str:
    """A gauge of the jobs that are chosen, or of the exporter."""
    labels = {**GAUGES, **OF_EACH_JOB}[name].labels
    return _selector(name, FLEET if "job_name" in labels else EXPORTER, matchers)


def of_job(name: str) -> str:
    """A gauge of the one job that is shown."""
    _ = OF_EACH_JOB[name]
    return _selector(name, ONE_JOB, ())


def rate(selector: str, *, ago: str = "") -> str:
    """How many a second."""
    return f"{ONE} (rate({selector}[$__rate_interval]{_offset(ago)}))"


def increase(selector: str, over: str = "$__range") -> str:
    """How many in the time that is shown."""
    return f"{ONE} (increase({selector}[{over}]))"


def now(selector: str) -> str:
    """What it is."""
    return f"{ONE} ({selector})"


def total(inner: str, *by: str) -> str:
    """Added up, by these labels."""
    return f"sum by ({', '.join(by)}) ({inner})" if by else f"sum({inner})"


def state(by: str, scope: tuple[str, ...]) -> str:
    """The state of running jobs as a number, the worse the greater: see `STATES`."""
    of_each = (
        f"{value} * max by ({by}) ({_selector('job_info', scope, (_IS.format(text),))})"
        for value, (text, _) in STATES.items()
    )
    return " or ".join(of_each)


def quantile(share: float, name: str, *by: str, over: str | None = None, ago: str = "") -> str:
    """Of a histogram of seconds: what that share of the observations stayed below."""
    _ = HISTOGRAMS[name]
    selector = _selector(f"{name}_seconds_bucket", FLEET, ())
    inner = rate(selector, ago=ago) if over is None else increase(selector, over)
    # What has no observation is not a number, and is left out.
    return f"histogram_quantile({share}, {total(inner, 'le', *by)}) >= 0"


def _selector(name: str, scope: tuple[str, ...], matchers: tuple[str, ...]) -> str:
    return f"{PREFIX}{name}{{{','.join((*scope, *matchers))}}}"


def _offset(ago: str) -> str:
    return f" offset {ago}" if ago else ""
