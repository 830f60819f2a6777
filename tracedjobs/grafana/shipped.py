"""Reads what is shipped, with the addresses and the data sources of an installation put in.

Nothing but text is changed, so that neither Grafana's types nor a YAML library is needed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["GRAFANA", "MANAGED", "RULES", "RUNBOOKS", "alerts", "dashboards", "runbooks"]

HERE: Final = Path(__file__).parent
RULES: Final = "tracedjobs.rules.yml"
MANAGED: Final = "grafana-managed.yml"
GRAFANA: Final = "http://127.0.0.1:3000"
"""Where the alerts' links lead unless told otherwise: to the stack of docker-compose.yml."""
RUNBOOKS: Final = "docs/runbooks"
DATASOURCE: Final = "tracedjobs-prometheus"

VARIABLES: Final = ("datasource", "loki_datasource", "tempo_datasource")


def dashboards(sources: Mapping[str, str | None]) -> dict[str, str]:
    """The JSON of each dashboard, by the name of its file.

    `sources`: the name or uid of the data source for each of `VARIABLES`, where one is given.
    Without it Grafana takes its default one of that kind.
    """
    found = {}
    for path in sorted((HERE / "dashboards").glob("*.json")):
        page = json.loads(path.read_text("utf-8"))
        for variable in page["templating"]["list"]:
            source = sources.get(variable["name"])
            if variable["type"] == "datasource" and source is not None:
                variable["current"] = {"selected": True, "text": source, "value": source}
        found[path.name] = json.dumps(page, indent=2, ensure_ascii=False) + "\n"
    return found


def alerts(
    *, grafana: str | None = None, runbooks: str | None = None, datasource: str | None = None
) -> dict[str, str]:
    """The rules for Prometheus and the alerts for Grafana, by the names of their files.

    `grafana` and `runbooks` are the addresses that links begin with; `datasource` is the uid of
    Prometheus in Grafana.
    """
    found = {}
    for name in (RULES, MANAGED):
        text = (HERE / "alerts" / name).read_text("utf-8")
        if grafana is not None:
            text = text.replace(f"{GRAFANA}/", f"{grafana.rstrip('/')}/")
        if runbooks is not None:
            text = text.replace(f"{RUNBOOKS}/", f"{runbooks.rstrip('/')}/")
        if datasource is not None:
            text = text.replace(DATASOURCE, datasource)
        found[name] = text
    return found


def runbooks() -> dict[str, str]:
    """What to do about each alert, by the name of its file."""
    packed = HERE / "runbooks"
    # In the source tree they are among the other pages; packing puts them here.
    folder = packed if packed.is_dir() else HERE.parents[1] / RUNBOOKS
    return {path.name: path.read_text("utf-8") for path in sorted(folder.glob("*.md"))}
