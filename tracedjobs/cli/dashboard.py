"""`tracedjobs dashboard export`: write Grafana's dashboards."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from tracedjobs.cli.written import folder_option, kubernetes_option, write

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["dashboard"]


@click.group("dashboard", short_help="Write dashboards for Grafana.")
def dashboard() -> None:
    """Dashboards for Grafana 11 or later: export writes them as files."""


@dashboard.command(short_help="Write the dashboards.")
@folder_option
@click.option(
    "--datasource",
    metavar="NAME",
    help="Grafana's data source for Prometheus, by name or uid; else its default one.",
)
@click.option("--loki", metavar="NAME", help="That for logs, Loki; else its default one.")
@click.option("--tempo", metavar="NAME", help="That for traces, Tempo; else its default one.")
@kubernetes_option
def export(
    *, folder: Path, datasource: str | None, loki: str | None, tempo: str | None, kubernetes: bool
) -> None:
    """Write the dashboards as JSON, for Grafana's import or its provisioning."""
    from tracedjobs.grafana.kubernetes import config_map  # noqa: PLC0415 - for this command
    from tracedjobs.grafana.shipped import dashboards  # noqa: PLC0415 - for this command

    sources = {"datasource": datasource, "loki_datasource": loki, "tempo_datasource": tempo}
    files = dashboards(sources)
    write(folder, {"dashboards.yaml": config_map(files)} if kubernetes else files)
