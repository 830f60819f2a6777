"""The same as objects of Kubernetes: a ConfigMap that Grafana's sidecar loads, a PrometheusRule."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["config_map", "prometheus_rule"]

LABELS = """\
  labels:
    app.kubernetes.io/name: tracedjobs
"""


def config_map(files: Mapping[str, str]) -> str:
    """The dashboards, under the label by which Grafana's sidecar finds them."""
    data = "".join(f"  {name}: |\n{_indented(text, 4)}" for name, text in files.items())
    return (
        "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: tracedjobs-dashboards\n"
        f'{LABELS}    grafana_dashboard: "1"\n  annotations:\n    grafana_folder: tracedjobs\n'
        f"data:\n{data}"
    )


def prometheus_rule(rules: str) -> str:
    """The rules, for the Prometheus operator."""
    groups = rules[rules.index("groups:") :]
    return (
        "apiVersion: monitoring.coreos.com/v1\nkind: PrometheusRule\n"
        f"metadata:\n  name: tracedjobs\n{LABELS}spec:\n{_indented(groups, 2)}"
    )


def _indented(text: str, by: int) -> str:
    return "".join(
        f"{' ' * by}{line}" if line.strip() else line for line in text.splitlines(keepends=True)
    )
