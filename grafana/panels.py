"""The kinds of panels that the pages are made of, each with what this house wants of it.

Every panel says what it shows, in which unit, and what is missing where it shows nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

from grafana_foundation_sdk.builders import (
    bargauge,
    common,
    dashboard,
    logs,
    loki,
    prometheus,
    stat,
    statetimeline,
    table,
    tempo,
    timeseries,
)
from grafana_foundation_sdk.models import common as shapes
from grafana_foundation_sdk.models.dashboard import (
    DataTransformerConfig,
    DynamicConfigValue,
    FieldColorModeId,
    Threshold,
    ThresholdsMode,
    ValueMap,
    ValueMappingResult,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat
from grafana_foundation_sdk.models.tempo import SearchTableType

from grafana.page import LOGS, METRICS, TRACES
from grafana.palette import OF

if TYPE_CHECKING:
    from collections.abc import Sequence

    from grafana.page import Placed

__all__ = [
    "Column",
    "Line",
    "bars",
    "lines",
    "number",
    "rows",
    "said",
    "spans",
    "timeline",
    "trace",
]

T = TypeVar("T")

NO_LOGS: Final = "No such lines in this time. No logs at all? Choose their source above."
NO_TRACES: Final = "No such spans in this time. No traces at all? Choose their source above."


class Line:
    """A query of a panel, and the name of what it gives."""

    def __init__(self, expr: str, legend: str = "", *, exemplars: bool = False) -> None:
        """`legend` may have labels in it, `{{job_name}}`."""
        self.expr = expr
        self.legend = legend
        self.exemplars = exemplars

    def over_time(self, ref_id: str) -> prometheus.Dataquery:
        """For a panel of lines."""
        made = prometheus.Dataquery().ref_id(ref_id).expr(self.expr).range().datasource(METRICS)
        return made.legend_format(self.legend or "__auto").exemplar(exemplar=self.exemplars)

    def at_the_end(self, ref_id: str) -> prometheus.Dataquery:
        """For a panel of numbers."""
        made = prometheus.Dataquery().ref_id(ref_id).expr(self.expr).instant().datasource(METRICS)
        return made.legend_format(self.legend or "__auto")

    def as_table(self, ref_id: str) -> prometheus.Dataquery:
        """For a table."""
        return self.at_the_end(ref_id).format(PromQueryFormat.TABLE)


class Column:
    """A column of a table: a label, or the value of a query."""

    def __init__(
        self,
        name: str,
        expr: str = "",
        *,
        unit: str = "none",
        width: int = 110,
        to: str = "",
        says: dict[str, tuple[str, str]] | None = None,
        bar: bool = False,
    ) -> None:
        """`says`: the text and the colour of values. `to`: where a cell links."""
        self.name = name
        self.expr = expr
        self._unit = unit
        self._width = width
        self._to = to
        self._says = says
        self._bar = bar

    def looks(self) -> list[DynamicConfigValue]:
        """How its cells look."""
        found = [_set("custom.width", self._width), _set("unit", self._unit)]
        if self._to:
            found.append(_set("links", [{"title": "Open ${__value.text}", "url": self._to}]))
        if self._says:
            found += [
                _set("mappings", [_mapping(self._says)]),
                _set("custom.cellOptions", {"type": "color-background", "mode": "basic"}),
            ]
        if self._bar:
            found += [
                _set("min", 0),
                _set("max", 1),
                _set("color", {"mode": "fixed", "fixedColor": OF["running"]}),
                _set(
                    "custom.cellOptions",
                    {"type": "gauge", "mode": "basic", "valueDisplayMode": "text"},
                ),
            ]
        return found


def number(
    title: str,
    description: str,
    line: Line,
    *,
    unit: str = "none",
    empty: str = "0",
    bad: float | None = None,
    colour: str = "lost",
    to: str = "",
    decimals: int | None = None,
    says: dict[str, tuple[str, str]] | None = None,
) -> Placed:
    """One number, of now or of the whole time; from `bad` on it has that colour."""
    steps = [Threshold(value=None, color=OF["pending"])]
    if bad is not None:
        steps.append(Threshold(value=bad, color=OF[colour]))
    made = (
        stat.Panel()
        .title(title)
        .description(description)
        .datasource(METRICS)
        .with_target(line.at_the_end("A"))
        .unit(unit)
        .no_value(empty)
        .color_scheme(dashboard.FieldColor().mode(FieldColorModeId.THRESHOLDS))
        .thresholds(dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps))
        .color_mode(
            shapes.BigValueColorMode.NONE if bad is None else shapes.BigValueColorMode.BACKGROUND
        )
        .graph_mode(shapes.BigValueGraphMode.NONE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    )
    if to:
        made.data_links([dashboard.DashboardLink(title="Look closer").url(to)])
    if decimals is not None:
        made.decimals(decimals)
    if says:
        made.mappings([_mapping(says)])
    return made


def lines(
    title: str,
    description: str,
    *of: Line,
    unit: str,
    empty: str,
    to: str = "",
    coloured: bool = False,
    stacked: bool = False,
    as_bars: bool = False,
    least: str | None = None,
) -> Placed:
    """Values over time. `coloured`: their names are outcomes or states, which have colours.

    `least`: the shortest step, for what happens seldom.
    """
    made = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .datasource(METRICS)
        .targets([each.over_time(ref) for ref, each in _lettered(of)])
        .unit(unit)
        .min(0)
        .no_value(empty)
        .color_scheme(dashboard.FieldColor().mode(FieldColorModeId.PALETTE_CLASSIC_BY_NAME))
        .line_width(2)
        .fill_opacity(60 if stacked else 0)
        .show_points(shapes.VisibilityMode.AUTO)
        .legend(
            common.VizLegendOptions()
            .display_mode(shapes.LegendDisplayMode.LIST)
            .placement(shapes.LegendPlacement.BOTTOM)
            .show_legend(show_legend=True)
        )
        .tooltip(
            common.VizTooltipOptions()
            .mode(shapes.TooltipDisplayMode.MULTI)
            .sort(shapes.SortOrder.DESCENDING)
        )
    )
    if stacked:
        made.stacking(common.StackingConfig().mode(shapes.StackingMode.NORMAL).group("A"))
    if as_bars:
        made.draw_style(shapes.GraphDrawStyle.BARS)
    if to:
        made.data_links([dashboard.DashboardLink(title="Look closer").url(to)])
    if least is not None:
        made.interval(least)
    if coloured:
        for name, colour in OF.items():
            fixed = {"mode": "fixed", "fixedColor": colour}
            made.override_by_name(name, [_set("color", fixed)])
    return made


def bars(
    title: str, description: str, line: Line, *, unit: str, empty: str, to: str = ""
) -> Placed:
    """A bar for each value, of the whole time."""
    made = (
        bargauge.Panel()
        .title(title)
        .description(description)
        .datasource(METRICS)
        .with_target(line.at_the_end("A"))
        .unit(unit)
        .decimals(0)
        .min(0)
        .no_value(empty)
        .orientation(shapes.VizOrientation.HORIZONTAL)
        .display_mode(shapes.BarGaugeDisplayMode.BASIC)
        .color_scheme(
            dashboard.FieldColor().mode(FieldColorModeId.FIXED).fixed_color(OF["interrupted"])
        )
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    )
    if to:
        made.data_links([dashboard.DashboardLink(title="Look closer").url(to)])
    return made


def rows(
    title: str,
    description: str,
    columns: Sequence[Column],
    *,
    of: str,
    empty: str,
    first: str,
) -> Placed:
    """A table: a line for each series of `of`, and columns of its labels and of other queries.

    `first`: the column by which it is sorted, the greatest first.
    """
    asked = [each for each in columns if each.expr]
    exprs = [of, *(each.expr for each in asked)]
    shown = {f"Value #{ref}": each.name for ref, each in _lettered([None, *asked]) if each}
    order = [each.name for each in columns]
    given = {**{each.name: each.name for each in columns if not each.expr}, **shown}
    made = (
        table.Panel()
        .title(title)
        .description(description)
        .datasource(METRICS)
        .targets([Line(expr).as_table(ref) for ref, expr in _lettered(exprs)])
        .unit("none")
        .no_value(empty)
        .with_transformation(DataTransformerConfig(id_val="merge", options={}))
        .with_transformation(
            DataTransformerConfig(
                id_val="organize",
                options={
                    "excludeByName": {"Time": True, "Value #A": True},
                    "indexByName": {key: order.index(name) for key, name in given.items()},
                    "renameByName": shown,
                },
            )
        )
        .sort_by([common.TableSortByFieldState().display_name(first).desc(desc=True)])
    )
    for each in columns:
        made.override_by_name(each.name, each.looks())
    return made


def timeline(
    title: str, description: str, line: Line, *, empty: str, colour: str = "running"
) -> Placed:
    """A bar on the time line for each, while it is."""
    return (
        statetimeline.Panel()
        .title(title)
        .description(description)
        .datasource(METRICS)
        .with_target(line.over_time("A"))
        .unit("none")
        .no_value(empty)
        .mappings([_mapping({"1": ("at work", OF[colour])})])
        .color_scheme(dashboard.FieldColor().mode(FieldColorModeId.FIXED).fixed_color(OF[colour]))
        .show_value(shapes.VisibilityMode.NEVER)
        .merge_values(merge_values=True)
        .row_height(0.8)
    )


def said(title: str, description: str, expr: str, *, empty: str = NO_LOGS) -> Placed:
    """Lines of the log."""
    return (
        logs.Panel()
        .title(title)
        .description(description)
        .datasource(LOGS)
        .with_target(loki.Dataquery().ref_id("A").expr(expr).datasource(LOGS))
        .unit("string")
        .no_value(empty)
        .show_time(show_time=True)
        .wrap_log_message(wrap_log_message=True)
        .enable_log_details(enable_log_details=True)
        .sort_order(shapes.LogsSortOrder.DESCENDING)
    )


def spans(title: str, description: str, query: str) -> Placed:
    """A table of spans that Tempo finds."""
    return (
        table.Panel()
        .title(title)
        .description(description)
        .datasource(TRACES)
        .with_target(_tempo(query).limit(200).spss(100).table_type(SearchTableType.SPANS))
        .unit("none")
        .no_value(NO_TRACES)
    )


def trace(title: str, description: str, trace_id: str) -> Placed:
    """A trace, drawn by Grafana's own panel."""
    return (
        dashboard.Panel()
        .type("traces")
        .title(title)
        .description(description)
        .datasource(TRACES)
        .with_target(_tempo(trace_id))
        .unit("none")
        .no_value(NO_TRACES)
    )


def _tempo(query: str) -> tempo.TempoQuery:
    return tempo.TempoQuery().ref_id("A").query_type("traceql").query(query).datasource(TRACES)


def _lettered(of: Sequence[T]) -> list[tuple[str, T]]:
    return list(zip("ABCDEFGHIJKLMNOP", of, strict=False))


def _set(name: str, value: object) -> DynamicConfigValue:
    return DynamicConfigValue(id_val=name, value=value)


def _mapping(says: dict[str, tuple[str, str]]) -> ValueMap:
    return ValueMap(
        options={
            value: ValueMappingResult(text=text, color=colour, index=index)
            for index, (value, (text, colour)) in enumerate(says.items())
        }
    )
