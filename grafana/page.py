"""A dashboard: its variables, its links to the others, and its panels laid out on the grid."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol, Self, cast

from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.models import dashboard as made
from grafana_foundation_sdk.models.dashboard import DataSourceRef, GridPos, VariableOption

if TYPE_CHECKING:
    from grafana_foundation_sdk.builders.dashboard import Dashboard
    from grafana_foundation_sdk.cog.builder import Builder

__all__ = ["LOGS", "METRICS", "TRACES", "Page", "Placed", "link"]

METRICS: Final = DataSourceRef(type_val="prometheus", uid="${datasource}")
LOGS: Final = DataSourceRef(type_val="loki", uid="${loki_datasource}")
TRACES: Final = DataSourceRef(type_val="tempo", uid="${tempo_datasource}")

WIDTH: Final = 24
TITLES: Final = {
    "overview": "tracedjobs / Overview",
    "job": "tracedjobs / Job",
    "job-type": "tracedjobs / Job type",
    "workers": "tracedjobs / Workers and exporter",
    "trace": "tracedjobs / Trace",
}
NONE: Final = "-"
"""No id: nothing typed would match what has none, such as lines of the log outside of jobs."""
ALL: Final = VariableOption(selected=True, text=["All"], value=["$__all"])


def link(name: str, *values: str) -> str:
    """The address of a dashboard, with these variables set; time, store and sources go along."""
    sources = ("${datasource:queryparam}", "${loki_datasource:queryparam}")
    shared = (*sources, "${tempo_datasource:queryparam}", "${job:queryparam}")
    return f"/d/tracedjobs-{name}?{'&'.join((*values, *shared, '${__url_time_range}'))}"


class Placed(Protocol):
    """Any panel's builder, as far as a page needs it."""

    def id(self, id_val: int) -> Self:
        """Number it."""
        ...

    def grid_pos(self, grid_pos: GridPos) -> Self:
        """Place it."""
        ...

    def build(self) -> made.Panel:
        """Make it."""
        ...


class Page:
    """Collects panels from left to right and from top to bottom."""

    def __init__(
        self, name: str, description: str, *, since: str = "now-1h", logs_and_traces: bool
    ) -> None:
        """Begin that dashboard, with the sources of its data as variables."""
        self._x = self._y = self._height = 0
        self._number = 0
        self._page: Dashboard = (
            build.Dashboard(TITLES[name])
            .uid(f"tracedjobs-{name}")
            .description(description)
            .tags(["tracedjobs"])
            .readonly()
            .time(since, "now")
            .refresh("10s")
            .timezone("browser")
            .tooltip(made.DashboardCursorSync.CROSSHAIR)
            .link(
                build.DashboardLink("tracedjobs")
                .type(made.DashboardLinkType.DASHBOARDS)
                .tags(["tracedjobs"])
                .as_dropdown(as_dropdown=False)
                .keep_time(keep_time=True)
                .include_vars(include_vars=False)
            )
        )
        self._source("datasource", "Data source", "prometheus")
        # On every page, so that links hand them on; shown where something is read from them.
        self._source("loki_datasource", "Loki data source", "loki", shown=logs_and_traces)
        self._source("tempo_datasource", "Tempo data source", "tempo", shown=logs_and_traces)
        self.choice(
            "job",
            "Exporter",
            "label_values(tracedjobs_exporter_last_success_timestamp_seconds, job)",
            all_value=".+",
        )

    def fleet(self) -> Page:
        """Let the reader choose job types and queues."""
        self.choice(
            "job_name",
            "Job type",
            'label_values(tracedjobs_jobs{job=~"$job",job_name!=""}, job_name)',
            all_value=".+",
        )
        # Jobs that no queue brought have no queue: `.+` would hide them.
        return self.choice(
            "queue",
            "Queue",
            'label_values(tracedjobs_jobs{job=~"$job",job_name=~"$job_name"}, queue)',
            all_value=".*",
        )

    def choice(self, name: str, label: str, query: str, *, all_value: str) -> Page:
        """A variable of several values, looked up in Prometheus."""
        self._page.with_variable(
            build.QueryVariable(name)
            .label(label)
            .datasource(METRICS)
            .query(query)
            .refresh(made.VariableRefresh.ON_TIME_RANGE_CHANGED)
            .sort(made.VariableSort.ALPHABETICAL_ASC)
            .multi(multi=True)
            .include_all(include_all=True)
            .all_value(all_value)
            .current(ALL)
        )
        return self

    def typed(self, name: str, label: str) -> Page:
        """A variable that is typed in, or given by a link: any job, also one that has ended."""
        self._page.with_variable(build.TextBoxVariable(name).label(label).default_value(NONE))
        return self

    def variable(self, variable: build.QueryVariable | build.CustomVariable) -> Page:
        """Any other variable."""
        self._page.with_variable(variable)
        return self

    def annotation(self, annotation: build.AnnotationQuery) -> Page:
        """Mark moments on all panels."""
        self._page.annotation(annotation)
        return self

    def put(self, panel: Placed, *, width: int, height: int = 8) -> Page:
        """Place a panel beside the last one, or below where the line is full."""
        if self._x + width > WIDTH:
            self._x, self._y, self._height = 0, self._y + self._height, 0
        self._number += 1
        # Not left to the SDK, which moves what stands in the corner.
        place = GridPos(x=self._x, y=self._y, w=width, h=height)
        built = cast("Builder[made.Panel]", panel.id(self._number).grid_pos(place))
        self._page.with_panel(built)
        self._x += width
        self._height = max(self._height, height)
        return self

    def made(self) -> made.Dashboard:
        """The dashboard."""
        return self._page.build()

    def _source(self, name: str, label: str, kind: str, *, shown: bool = True) -> None:
        hide = made.VariableHide.DONT_HIDE if shown else made.VariableHide.HIDE_VARIABLE
        self._page.with_variable(build.DatasourceVariable(name).label(label).type(kind).hide(hide))
