"""The alerts once more, for a Grafana that evaluates them itself: from Prometheus' rules.

Grafana takes the same expression, and fires where it gives anything above 0. No series is no alert,
as in Prometheus: `ExporterAbsent` is there for that.
"""

from __future__ import annotations

from typing import Any, Final

import yaml

__all__ = ["DATASOURCE", "managed_alerts"]

DATASOURCE: Final = "tracedjobs-prometheus"
"""The uid of the data source; `tracedjobs alerts export --datasource` puts another one in."""

HEAD: Final = """\
# The alerts of tracedjobs.rules.yml, for those who let Grafana evaluate them: a file of its
# provisioning (/etc/grafana/provisioning/alerting). With Prometheus' rules too, each comes twice.
# Written by `make dashboards`.
"""
PAGES: Final = {"tracedjobs-overview": 1, "tracedjobs-job": 1, "tracedjobs-workers": 1}
LOOK_BACK: Final = 3600
EVERY: Final = "30s"
"""Grafana takes multiples of 10 s alone."""


def managed_alerts(rules: str) -> str:
    """The text of the provisioning file."""
    groups = [
        {
            "orgId": 1,
            "name": group["name"],
            "folder": "tracedjobs",
            "interval": EVERY,
            "rules": [_managed(rule) for rule in group["rules"]],
        }
        for group in yaml.safe_load(rules)["groups"]
        if any("alert" in rule for rule in group["rules"])
    ]
    made = {"apiVersion": 1, "groups": groups}
    return HEAD + yaml.safe_dump(made, sort_keys=False, width=100, allow_unicode=True)


def _managed(rule: dict[str, Any]) -> dict[str, Any]:
    annotations = {key: _in_grafana(text) for key, text in rule["annotations"].items()}
    page = annotations.pop("dashboard_url").partition("/d/")[2].partition("?")[0]
    return {
        "uid": f"tracedjobs-{rule['alert'].lower()}",
        "title": rule["alert"],
        "condition": "B",
        "data": [
            {
                "refId": "A",
                "relativeTimeRange": {"from": LOOK_BACK, "to": 0},
                "datasourceUid": DATASOURCE,
                "model": {
                    "refId": "A",
                    "expr": rule["expr"],
                    "instant": True,
                    "range": False,
                },
            },
            {
                "refId": "B",
                "relativeTimeRange": {"from": LOOK_BACK, "to": 0},
                "datasourceUid": "__expr__",
                "model": {
                    "refId": "B",
                    "type": "threshold",
                    "expression": "A",
                    "conditions": [{"evaluator": {"type": "gt", "params": [0]}}],
                },
            },
        ],
        "for": rule["for"],
        "noDataState": "OK",
        "execErrState": "Error",
        "labels": rule["labels"],
        "annotations": {
            **annotations,
            "__dashboardUid__": page,
            "__panelId__": str(PAGES[page]),
        },
    }


def _in_grafana(text: str) -> str:
    # There `$value` is a sentence about all queries; the one asked for is in `$values`.
    return text.replace("$value ", "$values.A.Value ")
