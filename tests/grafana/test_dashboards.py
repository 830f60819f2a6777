"""The dashboards that are shipped: written by the code, by the linter's rules, of our metrics."""

from __future__ import annotations

import json
import re
from itertools import combinations
from typing import TYPE_CHECKING, Any

import promql_parser
import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as sdk

from grafana.palette import SAFE
from grafana.written import DASHBOARDS, FOLDER, ROOT, everything, shipped
from tests.grafana.asked import (
    EXPORTED,
    PROMETHEUS_OWN,
    panels_of,
    promql_of,
    selectors,
    substituted,
    variables_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

pages = pytest.mark.parametrize("name", DASHBOARDS)
WITH_DATA = {"stat", "timeseries", "bargauge", "table", "state-timeline", "logs", "traces"}
SOURCES = {"prometheus": "datasource", "loki": "loki_datasource", "tempo": "tempo_datasource"}
UNITS = {"none", "s", "short", "percentunit", "string"}


FLEET = pytest.mark.parametrize("name", ["overview", "job-type", "workers"])


@pytest.fixture
def page(name: str) -> dict[str, Any]:
    return shipped()[name]


def test_what_is_shipped_is_what_the_code_writes() -> None:
    differ = [
        name for name, text in everything().items() if (ROOT / name).read_text("utf-8") != text
    ]
    assert not differ, "`make dashboards` writes them"
    there = {str(path.relative_to(ROOT)) for path in FOLDER.glob("*/*.json")}
    assert there == {name for name in everything() if name.endswith(".json")}


@pages
def test_it_is_a_dashboard_by_grafanas_own_types(page: dict[str, Any]) -> None:
    read = sdk.Dashboard.from_json(page)
    assert json.loads(json.dumps(read, cls=JSONEncoder)) == page


@pages
def test_it_cannot_be_edited_and_has_an_identity(name: str, page: dict[str, Any]) -> None:
    assert page["editable"] is False
    assert page["uid"] == f"tracedjobs-{name}"
    assert page["tags"] == ["tracedjobs"]
    assert page["refresh"] in {"5s", "10s", "30s", "1m"}  # 5 s is Grafana's shortest


@pages
def test_each_panel_says_what_it_shows_and_what_is_missing(page: dict[str, Any]) -> None:
    for panel in panels_of(page):
        assert panel["type"] in WITH_DATA
        assert panel["title"]
        assert panel["description"].endswith("."), panel["title"]
        defaults = panel["fieldConfig"]["defaults"]
        assert defaults["unit"] in UNITS, panel["title"]
        assert defaults["noValue"], panel["title"]
        assert panel["targets"], panel["title"]
    titles = [panel["title"] for panel in panels_of(page)]
    assert len({panel["id"] for panel in panels_of(page)}) == len(titles)


@pages
def test_its_sources_are_variables(page: dict[str, Any]) -> None:
    sources = {each["query"]: each for each in variables_of(page, "datasource")}
    assert {kind: each["name"] for kind, each in sources.items()} == SOURCES
    assert sources["prometheus"]["label"] == "Data source"
    for panel in panels_of(page):
        for asked in (panel, *panel["targets"]):
            source = asked["datasource"]
            assert source["uid"] == f"${{{SOURCES[source['type']]}}}", panel["title"]


@pages
def test_choices_are_of_several_values_and_looked_up_again(page: dict[str, Any]) -> None:
    queried = {each["name"]: each for each in variables_of(page, "query")}
    assert queried["job"]["allValue"] == ".+"
    if "job_name" in queried:
        assert queried["job_name"]["allValue"] == ".+"
        # A job that no queue brought has an empty label, which `.+` would leave out.
        assert queried["queue"]["allValue"] == ".*"
    for name, each in queried.items():
        assert each["refresh"] == 2  # with the time that is shown
        matched = re.fullmatch(r"label_values\((.+), (\w+)\)", each["query"])
        assert matched is not None, each["query"]
        for metric, labels in selectors(substituted(matched[1])):
            assert {*labels, matched[2]} <= {*EXPORTED[metric], "job"}
        if name != "trace_id":
            assert (each["multi"], each["includeAll"]) == (True, True)


@pages
def test_its_queries_follow_the_linters_rules(page: dict[str, Any]) -> None:
    """Those of grafana/dashboard-linter for PromQL, without `instance`: ours are of no process."""
    for title, expr in promql_of(page):
        parsed = promql_parser.parse(substituted(expr))
        assert parsed is not None
        assert 'job=~"$job"' in expr, title
        for function, window in re.findall(r"\b(i?rate|deriv)\([^[]*\[([^]]+)\]", expr):
            assert window == "$__rate_interval", (title, function)
        for before in re.findall(r"(\w*)\(tracedjobs_\w+_(?:total|bucket)\{", expr):
            assert before in {"rate", "irate", "increase"}, (title, before)


@pages
def test_its_queries_ask_for_what_the_exporter_has(page: dict[str, Any]) -> None:
    for title, expr in promql_of(page):
        for metric, labels in selectors(substituted(expr)):
            assert metric in EXPORTED or metric in PROMETHEUS_OWN, (title, metric)
            known = {*EXPORTED.get(metric, ()), "job"}
            assert labels <= known, (title, metric, labels - known)


@pages
def test_what_is_grouped_by_is_a_label_of_what_is_asked(page: dict[str, Any]) -> None:
    for title, expr in promql_of(page):
        has = {"job", "instance", "pod", "le", "run"}
        for metric, _ in selectors(substituted(expr)):
            has |= set(EXPORTED.get(metric, ()))
        grouped = re.findall(r"\b(?:by|without|on|group_left) \(([^)]*)\)", expr)
        assert {each.strip() for group in grouped for each in group.split(",") if each} <= has, (
            title
        )


@pages
def test_two_exporters_are_one_before_anything_is_added_up(page: dict[str, Any]) -> None:
    for title, expr in promql_of(page):
        for added in re.finditer(r"\b(?:sum|avg|count)(?: by \([^)]*\))? ?\(", expr):
            inside = expr[added.end() :]
            # How many exporters there are is the one thing to be counted of each.
            assert inside.startswith(("max without", "max by", "up{")), (title, expr)


@pages
def test_links_lead_to_pages_that_are_there_with_variables_that_they_have(
    page: dict[str, Any],
) -> None:
    all_pages = {each["uid"]: each for each in shipped().values()}
    found = list(_links(page))
    for url in found:
        uid, _, query = url.removeprefix("/d/").partition("?")
        variables = {each["name"] for each in all_pages[uid]["templating"]["list"]}
        for part in query.split("&"):
            given = re.match(r"var-(\w+)=|\$\{(\w+):queryparam\}|\$\{__url_time_range\}", part)
            assert given is not None, url
            if given[1]:
                assert given[1] in variables, url
            elif given[2]:
                here = {each["name"] for each in page["templating"]["list"]}
                assert given[2] in here & variables, url
    if page["uid"] not in {"tracedjobs-job", "tracedjobs-trace"}:
        assert found


@FLEET
def test_every_number_of_many_jobs_leads_to_fewer(page: dict[str, Any]) -> None:
    for panel in panels_of(page):
        if panel["type"] != "logs":
            assert list(_links(panel)), panel["title"]


@pages
def test_panels_fill_the_grid_and_none_lies_on_another(page: dict[str, Any]) -> None:
    places = [panel["gridPos"] for panel in panels_of(page)]
    for place in places:
        assert place["x"] + place["w"] <= 24
    for one, other in combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or above, (one, other)


@pages
def test_its_colours_can_be_told_apart_by_all(page: dict[str, Any]) -> None:
    text = json.dumps(page)
    assert set(re.findall(r"#[0-9A-Fa-f]{6}", text)) <= SAFE
    named = re.findall(r'"(?:color|fixedColor)": "([^"#]+)"', text)
    assert not named, "only those of the palette"


def _links(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if str(value.get("url", "")).startswith("/d/"):
            yield value["url"]
        for each in value.values():
            yield from _links(each)
    elif isinstance(value, list):
        for each in value:
            yield from _links(each)
