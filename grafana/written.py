"""What is written: each dashboard's JSON, and the alerts as Grafana evaluates them itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from grafana import job, job_type, overview, trace, workers
from grafana.managed_alerts import managed_alerts
from tracedjobs.grafana.kubernetes import config_map, prometheus_rule

if TYPE_CHECKING:
    from grafana_foundation_sdk.models.dashboard import Dashboard

__all__ = ["DASHBOARDS", "FOLDER", "ROOT", "everything", "shipped"]

ROOT: Final = Path(__file__).parents[1]
FOLDER: Final = ROOT / "tracedjobs" / "grafana"
KUBERNETES: Final = "examples/kubernetes"
DASHBOARDS: Final = {
    "overview": overview.dashboard,
    "job": job.dashboard,
    "job-type": job_type.dashboard,
    "workers": workers.dashboard,
    "trace": trace.dashboard,
}


def everything() -> dict[str, str]:
    """The text of each file, by its place in the tree."""
    pages = {f"{name}.json": _text(made()) for name, made in DASHBOARDS.items()}
    rules = (FOLDER / "alerts" / "tracedjobs.rules.yml").read_text("utf-8")
    package = FOLDER.relative_to(ROOT)
    return {
        **{f"{package}/dashboards/{name}": text for name, text in pages.items()},
        f"{package}/alerts/grafana-managed.yml": managed_alerts(rules),
        f"{KUBERNETES}/dashboards.yaml": config_map(dict(sorted(pages.items()))),
        f"{KUBERNETES}/rules.yaml": prometheus_rule(rules),
    }


def shipped() -> dict[str, dict[str, Any]]:
    """The dashboards as they are in the package, by name."""
    return {
        name: json.loads((FOLDER / "dashboards" / f"{name}.json").read_text("utf-8"))
        for name in DASHBOARDS
    }


def _text(made: Dashboard) -> str:
    # The types of the SDK leave out what is not set, in the order of Grafana's schema.
    return json.dumps(made, cls=JSONEncoder, indent=2, ensure_ascii=False) + "\n"
