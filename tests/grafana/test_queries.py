"""Every query of every page, asked of a real Prometheus that scraped a real fleet: data, and right.

One fleet for the module: what it says that it did is compared with what the panels show.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import yaml

from grafana.written import FOLDER, shipped
from tests.grafana.asked import panels_of, promql_of, substituted, variables_of
from tests.grafana.fleet import INDEX, JOBS, MAILS, ORDERS
from tests.monitoring import Prometheus, got, program, running_prometheus, serving
from tests.processes import until

if TYPE_CHECKING:
    from collections.abc import Iterator

FLEET = Path(__file__).with_name("fleet.py")
EVERY = 1.0


class Recorded(NamedTuple):
    """What was recorded, and by whom it can be asked."""

    prometheus: Prometheus
    exporter: str
    tally: dict[str, int]
    held: dict[str, str]
    began: float
    """Just before the last scrape that saw nothing but the first job of each type."""
    ended: float
    """The newest scrape of the fleet at rest: when all is asked, whenever a test comes to it."""
    stretch: float
    """By what `increase` may at most be more than what happened, see `_stretch`."""

    def filled(self, expr: str) -> str:
        whole = f"{round(1000 * (self.ended - self.began))}ms"
        expr = expr.replace("$__range", whole).replace("$__rate_interval", whole)
        expr = expr.replace("$compare", "5s")
        return substituted(
            expr, job="fleet", job_name=".+", queue=".*", job_id=self.held["slow"], trace_id="x"
        )

    def ask(self, expr: str) -> list[tuple[dict[str, str], float]]:
        """The answer to a query as it was when all was recorded."""
        return self.prometheus.ask(self.filled(expr), at=self.ended)

    def asked(self, page: str, title: str, query: int = 0) -> list[tuple[dict[str, str], float]]:
        """What a panel shows."""
        (panel,) = [each for each in panels_of(shipped()[page]) if each["title"] == title]
        return self.ask(panel["targets"][query]["expr"])

    def about(self, count: float) -> object:
        """What happened since `began`, as `increase` gives it: not less, and at most stretched."""
        most = count * self.stretch
        return pytest.approx((count + most) / 2, abs=(most - count) / 2 + 1e-6)

    def number(self, page: str, title: str) -> float:
        ((_, value),) = self.asked(page, title)
        return value

    def by(self, label: str, page: str, title: str, query: int = 0) -> dict[str, float]:
        return {has[label]: value for has, value in self.asked(page, title, query)}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recorded]:
    """A store with an exporter, a Prometheus that looks at both, and then the fleet."""
    program("prometheus")
    folder = tmp_path_factory.mktemp("fleet")
    url = f"sqlite:///{folder}/jobs.db?synchronous=normal"
    rules = yaml.safe_load((FOLDER / "alerts" / "tracedjobs.rules.yml").read_text("utf-8"))
    for group in rules["groups"]:
        group["interval"] = "1s"
        for rule in group["rules"]:
            if "for" in rule:
                rule["for"] = "0s"
    (folder / "rules.yml").write_text(yaml.safe_dump(rules))
    tracedjobs = [sys.executable, "-m", "tracedjobs"]
    exporter = [*tracedjobs, "exporter", "--store", url, "--port", "0"]
    with serving(exporter, folder, "exporter.log"):

        def address() -> str:
            words = (folder / "exporter.log").read_text().split()
            return next((each for each in words if each.startswith("http://")), "")

        target = until(address, "the exporter").removeprefix("http://").removesuffix("/metrics")
        more = "rule_files: [rules.yml]\n"
        # Two scrapes of one exporter are to Prometheus what two exporters are.
        with running_prometheus(
            folder, {"fleet": f"{target}', '{target.replace('127.0.0.1', 'localhost')}"}, more=more
        ) as prometheus:
            until(lambda: len(prometheus.ask("tracedjobs_jobs_lost")) == 2, "the first scrapes")
            yield from _with_fleet(url, folder, prometheus, target)


def _with_fleet(url: str, folder: Path, prometheus: Prometheus, target: str) -> Iterator[Recorded]:
    with subprocess.Popen(
        [sys.executable, str(FLEET), url],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(FLEET.parents[2])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as fleet:
        assert fleet.stdout is not None
        assert fleet.stdin is not None
        assert fleet.stdout.readline() == "begun\n"
        first = 'tracedjobs_runs_total{outcome="completed"} == 1'
        until(lambda: len(prometheus.ask(first)) == 6, "the first job of each type, twice")
        began = min(_last_scrapes(prometheus)) - 0.001  # a range may be without its very beginning
        fleet.stdin.write("go on\n")
        fleet.stdin.flush()
        said = json.loads(fleet.stdout.readline())
        runs = sum(value for key, value in said["tally"].items() if key.startswith("run "))
        until(
            lambda: (
                prometheus.ask("sum(max without (instance) (tracedjobs_runs_total))")[0][1] == runs
                and prometheus.value("max(tracedjobs_jobs_lost)") == 1
                and prometheus.value("max(tracedjobs_jobs_stalled)") == 1
            ),
            f"{runs} runs, one lost and one stalled",
        )
        rest = time.time() + 2 * EVERY  # what is compared with an earlier time needs one

        def at_rest() -> float:
            scrapes = _last_scrapes(prometheus)
            # A slow job is not estimated at every moment.
            estimate = prometheus.ask("tracedjobs_job_eta_timestamp_seconds", at=max(scrapes))
            return max(scrapes) if min(scrapes) > rest and estimate else 0.0

        ended = until(at_rest, "scrapes of the fleet at rest")
        stretch = _stretch(prometheus, began, ended)
        yield Recorded(prometheus, target, said["tally"], said["held"], began, ended, stretch)
        fleet.stdin.close()
        assert fleet.wait(30) == 0


def _last_scrapes(prometheus: Prometheus) -> list[float]:
    """When each of the two was last scraped."""
    found = [value for _, value in prometheus.ask("timestamp(up)")]
    assert len(found) == 2
    return found


def _stretch(prometheus: Prometheus, began: float, ended: float) -> float:
    """The factor by which `increase` draws out what lies between the first and the last scrape.

    It draws it out to the ends of the range, or less far. The range is as wide as the scrapes, but
    the two are not scraped at the same moment, and on a busy machine late: then the one of which
    less lies in the range is drawn out, and the panels show the greater of the two.
    """
    whole = f"{round(1000 * (ended - began))}ms"
    found = got(f"{prometheus.address}/api/v1/query", query=f"up[{whole}]", time=repr(ended))
    scrapes = [[float(at) for at, _ in each["values"]] for each in found["data"]["result"]]
    assert len(scrapes) == 2
    return max((ended - began) / (each[-1] - each[0]) for each in scrapes)


def test_every_query_of_every_panel_finds_something(recorded: Recorded) -> None:
    empty, asked = [], 0
    for name, page in shipped().items():
        for title, expr in promql_of(page):
            asked += 1
            found = recorded.ask(expr)
            if not found or any(math.isnan(value) for _, value in found):
                empty.append((name, title, recorded.filled(expr), found))
    assert not empty, "\n".join(map(str, empty))
    assert asked > 70


def test_every_choice_offers_what_there_is(recorded: Recorded) -> None:
    offered = {"job": {"fleet"}, "job_name": {ORDERS, MAILS, INDEX}, "queue": {""}}
    for page in shipped().values():
        for variable in variables_of(page, "query"):
            expr, _, label = variable["query"][len("label_values(") : -1].rpartition(", ")
            values = {
                has.get(label, "") for has, _ in recorded.prometheus.ask(recorded.filled(expr))
            }
            if variable["name"] == "trace_id":
                assert all(len(each) == 32 for each in values)
                assert values
            else:
                assert values == offered[variable["name"]]


def test_the_overview_counts_what_is_now(recorded: Recorded) -> None:
    assert recorded.number("overview", "Running") == 1
    assert recorded.number("overview", "Stalled") == 1
    assert recorded.number("overview", "Lost") == 1
    assert recorded.number("overview", "Interrupted") == 2  # one is paused
    assert 0 < recorded.number("overview", "Longest in a queue") < 60
    states = recorded.by("state", "overview", "Jobs by state")
    expected = {"running": 1, "stalled": 1, "lost": 1, "paused": 1, "interrupted": 1, "pending": 1}
    assert states == expected


def test_the_overview_counts_what_happened(recorded: Recorded) -> None:
    tally = recorded.tally
    assert recorded.number("overview", "Failed") == recorded.about(tally["run failed"])
    failed = recorded.by("job_name", "overview", "What failed")
    assert failed == {MAILS: recorded.about(tally["run failed"])}
    reasons = recorded.by("reason", "overview", "Why runs were interrupted")
    assert reasons == {
        reason: recorded.about(tally[f"reason {reason}"])
        for reason in ("stopping", "error", "paused")
    }


def test_the_live_table_has_each_running_job_with_its_state(recorded: Recorded) -> None:
    held = recorded.held
    jobs = {has["job_id"]: has for has, _ in recorded.asked("overview", "Running now", 0)}
    assert jobs.keys() == {held["slow"], held["stalled"], held["lost"]}
    assert jobs[held["stalled"]]["job_name"] == INDEX
    assert jobs[held["stalled"]]["step"] == "pages"
    states = recorded.by("job_id", "overview", "Running now", 1)
    assert states == {held["slow"]: 0, held["stalled"]: 1, held["lost"]: 2}
    progress = recorded.by("job_id", "overview", "Running now", 2)
    assert progress[held["stalled"]] == 10 / 40
    rates = recorded.by("job_id", "overview", "Running now", 3)
    assert 20 < rates[held["slow"]] < 200  # two scrapes are not exactly as far apart as they say
    assert rates[held["stalled"]] == pytest.approx(0, abs=10)
    left = recorded.by("job_id", "overview", "Running now", 4)
    assert left.keys() == {held["slow"]}  # no estimate of what stalls or is lost
    assert 500 < left[held["slow"]] < 6000
    job, run, item = (recorded.by("job_id", "overview", "Running now", n) for n in (5, 6, 7))
    assert item[held["slow"]] < 10
    assert item[held["stalled"]] > 1
    for each in jobs:
        assert item[each] - 10 <= run[each] <= job[each] + 1 < recorded.ended - recorded.began + 1


def test_a_type_of_job_shows_how_its_jobs_ended(recorded: Recorded) -> None:
    tally = recorded.tally
    first = len((ORDERS, MAILS, INDEX))  # one of each was done before what is asked for
    ended = sum(value for key, value in tally.items() if key.startswith("finished ")) - first
    runs = sum(value for key, value in tally.items() if key.startswith("run ")) - first
    assert recorded.number("job-type", "Ended") == recorded.about(ended)
    share = recorded.number("job-type", "Failed")
    assert share == pytest.approx(tally["run failed"] / ended, rel=recorded.stretch - 1)
    assert recorded.number("job-type", "Runs lost") == pytest.approx(
        tally["run lost"] / runs, rel=recorded.stretch - 1
    )
    items = sum(value for key, value in tally.items() if key.startswith("items "))
    redone = recorded.number("job-type", "Items done again")
    # The jobs that run have done items too, which the fleet has not counted.
    assert 0 < redone < 1.5 * tally["redone"] / items
    assert recorded.number("job-type", "Past their deadline") == 2  # the slow one and the lost one
    stops = recorded.asked("job-type", "Where runs stop")
    assert {(has["step"], has["outcome"]) for has, _ in stops} == {
        ("rows", "interrupted"),
        ("mails", "interrupted"),
        ("mails", "failed"),
        ("mails", "lost"),
        ("pages", "interrupted"),
    }


def test_one_job_is_shown_by_its_id(recorded: Recorded) -> None:
    held = recorded.held["slow"]
    assert recorded.number("job", "State") == 0
    assert recorded.number("job", "Run") == 1
    assert 0 < recorded.number("job", "Progress") < 0.1
    assert recorded.number("job", "Stalls after") == 60
    assert recorded.number("job", "Until the deadline") < 0
    steps = recorded.prometheus.over(
        recorded.filled(f'max by (step) (tracedjobs_job_info{{job=~"$job",job_id="{held}"}})'),
        recorded.began,
        recorded.ended,
    )
    assert {each["metric"].get("step") for each in steps} >= {"rows"}
    (runs,) = recorded.ask(shipped()["job"]["annotations"]["list"][0]["expr"])
    assert runs == ({"run": "1"}, 1.0)


def test_workers_and_the_exporter_are_shown(recorded: Recorded) -> None:
    assert recorded.number("workers", "Workers alive") == 1
    assert recorded.number("workers", "Workers gone") == 1
    assert recorded.number("workers", "Exporters") == 2
    assert recorded.number("workers", "Store last read") < 10
    assert recorded.number("workers", "Jobs without lines") == 0
    assert sum(recorded.by("worker", "workers", "Jobs of each worker").values()) == 3
    ((_, refused),) = recorded.asked("workers", "Copies refused, leases lost")
    assert refused == recorded.about(recorded.tally["refused"])


def test_two_scrapes_of_one_store_are_counted_once(recorded: Recorded) -> None:
    expr = "sum by (job_name) (max without (instance, pod) (tracedjobs_jobs_enqueued_total))"
    found = {has["job_name"]: value for has, value in recorded.ask(expr)}
    assert found == {name: recorded.tally[f"enqueued {name}"] for name in (ORDERS, MAILS, INDEX)}
    assert found[ORDERS] >= JOBS


def test_items_have_the_traces_of_jobs_at_work_as_exemplars(recorded: Recorded) -> None:
    found = got(
        f"{recorded.prometheus.address}/api/v1/query_exemplars",
        query="tracedjobs_items_processed_total",
        start=repr(recorded.began),
        end=repr(recorded.ended),
    )["data"]
    traces = {each["labels"]["trace_id"] for series in found for each in series["exemplars"]}
    # Some were at work at one scrape and not at the next.
    at_any_time = recorded.ask("last_over_time(tracedjobs_job_info[$__range])")
    at_work = {has["trace_id"] for has, _ in at_any_time}
    assert traces
    assert traces <= at_work


def test_alerts_that_fire_have_their_words(recorded: Recorded) -> None:
    """With `for` at 0 s: what is wrong with this fleet fires at once, and nothing else does."""
    found = got(f"{recorded.prometheus.address}/api/v1/alerts")["data"]["alerts"]
    firing = {each["labels"]["alertname"]: each for each in found if each["state"] == "firing"}
    assert firing.keys() == {"CursorStalled", "JobStalled", "JobLost", "DeadlineAtRisk"}
    stalled = firing["JobStalled"]
    assert stalled["labels"]["job_id"] == recorded.held["stalled"]
    assert stalled["annotations"]["summary"] == (f"{INDEX} {recorded.held['stalled']} stands still")
    assert stalled["annotations"]["dashboard_url"].endswith(recorded.held["stalled"])
    for each in firing.values():
        text: dict[str, Any] = each["annotations"]
        assert "error expanding" not in "".join(text.values())
        assert "<no value>" not in "".join(text.values())


def test_what_is_recorded_is_what_was_counted(recorded: Recorded) -> None:
    found = recorded.prometheus.ask("job_name_queue:tracedjobs_jobs_failed:ratio_increase1h")
    ratios = {has["job_name"]: value for has, value in found}
    mails = recorded.tally["run failed"] / (recorded.tally[f"enqueued {MAILS}"] - 1)
    assert ratios[MAILS] == pytest.approx(mails, rel=0.1)
    assert ratios[ORDERS] == 0
    assert recorded.prometheus.ask("job_name_queue:tracedjobs_job_duration_seconds:p95_1h")
    assert recorded.prometheus.ask("job_name_queue:tracedjobs_items_processed:rate5m")
    assert recorded.prometheus.ask("job_name_queue:tracedjobs_runs_lost:ratio_increase1h")
