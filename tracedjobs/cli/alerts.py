"""`tracedjobs alerts export`: write the rules for Prometheus, and the alerts for Grafana."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from tracedjobs.cli.written import folder_option, kubernetes_option, write

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["alerts"]


@click.group("alerts", short_help="Write alerts for Prometheus and Grafana.")
def alerts() -> None:
    """Alerts, for Prometheus or for Grafana itself: export writes them as files."""


@alerts.command(short_help="Write the alerts.")
@folder_option
@click.option("--grafana-url", metavar="URL", help="Where Grafana is, for the links to dashboards.")
@click.option(
    "--runbooks-url",
    metavar="URL",
    help="Where you keep the runbooks, for the links to them; they are written too.",
)
@click.option(
    "--datasource",
    metavar="UID",
    help="The uid of Prometheus in Grafana, for Grafana's own alerts.",
)
@kubernetes_option
def export(
    *,
    folder: Path,
    grafana_url: str | None,
    runbooks_url: str | None,
    datasource: str | None,
    kubernetes: bool,
) -> None:
    """Write the rules for Prometheus, the same as Grafana's own alerts, and the runbooks.

    Use the rules or Grafana's alerts: with both each alert comes twice.
    """
    from tracedjobs.grafana import shipped  # noqa: PLC0415 - for this command
    from tracedjobs.grafana.kubernetes import prometheus_rule  # noqa: PLC0415 - for this command

    files = shipped.alerts(grafana=grafana_url, runbooks=runbooks_url, datasource=datasource)
    if kubernetes:
        files = {"rules.yaml": prometheus_rule(files[shipped.RULES])}
    write(folder, files)
    if not kubernetes:
        write(folder / "runbooks", shipped.runbooks())
