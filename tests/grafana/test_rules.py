"""The alerts, each by `promtool test rules`: just before its time and just after, and where silent.

Samples are 15 s apart and begin at 0, which is also what `time()` then says. An exporter that is
well is in every case that does not say otherwise, and no alert but those that are named may fire.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import yaml

from grafana.written import FOLDER
from tests.grafana.asked import EXPORTED, selectors
from tests.monitoring import program

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

RULES = FOLDER / "alerts" / "tracedjobs.rules.yml"
MANAGED = FOLDER / "alerts" / "grafana-managed.yml"
DOCS = Path(__file__).parents[2] / "docs"
ONE = 'job_name="imports",queue="q"'
JOB = f'{ONE},job_id="j1"'
WELL = {"exporter_last_success_timestamp_seconds": ["0+15x400"]}
SEVERITY = {"JobLost": "critical", "ExporterStale": "critical", "ExporterAbsent": "critical"}


class Case(NamedTuple):
    """Series by name and labels, and what fires at which seconds."""

    name: str
    series: Mapping[str, Sequence[str]]
    """Of one exporter each: so two texts are two replicas."""
    fires: Mapping[int, Sequence[str]]
    """The alerts and their labels, besides severity, by seconds."""


def stalls(labels: str = ONE) -> str:
    return f"CursorStalled {labels}"


def of_job(name: str, *, heartbeat: str, moved: str, after: str = "60x400") -> dict[str, list[str]]:
    labels = f'{{{ONE},job_id="{name}"}}'
    return {
        f"job_heartbeat_timestamp_seconds{labels}": [heartbeat],
        f"job_last_progress_timestamp_seconds{labels}": [moved],
        f"job_stall_after_seconds{labels}": [after],
    }


def twice(series: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    return {name: [*texts, *texts] for name, texts in series.items()}


STALLED = f"jobs_stalled{{{ONE}}}"
LOST = f"jobs_lost{{{ONE}}}"
INTERRUPTED = f"oldest_interrupted_timestamp_seconds{{{ONE}}}"
QUEUED = f"oldest_queued_timestamp_seconds{{{ONE}}}"
ETA = f"job_eta_timestamp_seconds{{{JOB}}}"
DEADLINE = f"job_deadline_timestamp_seconds{{{JOB}}}"


def looping(
    *,
    items: str = "500x400",
    runs: str = "1x20 2x20 3x20 4x20 5x20 6x20 7x20 8x20 9x20",
    ends: str = "0x20 1x20 2x20 3x20 4x20 5x20 6x20 7x20 8x20",
    kind: str = 'runs_total{%s,outcome="lost"}',
    step: str = "1x400",
    others: str = "0+10x400",
) -> dict[str, list[str]]:
    """A job in its third half hour, whose type has another job that gets on."""
    return {
        f"job_runs{{{JOB}}}": [runs],
        f"job_items_processed{{{JOB}}}": [items],
        f'job_info{{{JOB},step="rows",state="running",worker="w",trace_id=""}}': [step],
        kind % ONE: [ends],
        f'items_processed_total{{{ONE},step="rows"}}': [others],
    }


LOOPS = 'ResumeLoop job_name="imports",queue="q",job_id="j1"'
TYPE_LOOPS = f"ResumeLoop {ONE}"
UNSEEN = {
    f'interruptions_total{{{ONE},reason="error"}}': ["0x8 1x8 2x8 3x8 4x8 5x8 6x8 7x8"],
    f'runs_total{{{ONE},outcome="lost"}}': ["0x400"],
}
"""A run every two minutes, none of which a scrape saw."""
LATE = f"DeadlineAtRisk {JOB}"

CASES = [
    Case("stalled for its time", {STALLED: ["0x4 1x60"]}, {180: [], 195: [stalls()]}),
    Case(
        "stalled, by two exporters",
        {STALLED: ["0x4 1x60", "0x5 2x60"]},
        {180: [], 195: [stalls()], 300: [stalls()]},
    ),
    Case(
        "stalled, and one exporter goes",
        {STALLED: ["1x6 stale", "1x60"]},
        {105: [], 120: [stalls()], 300: [stalls()]},
    ),
    Case(
        "stalled, and all exporters' series end",
        {STALLED: ["1x12 stale"]},
        {180: [stalls()], 210: []},
    ),
    Case(
        "stalled for a minute, twice", {STALLED: ["1x4 0x4 1x4 0x60"]}, {60: [], 135: [], 240: []}
    ),
    Case(
        "two types, of which one stalls",
        {STALLED: ["0x60"], 'jobs_stalled{job_name="mails",queue=""}': ["1x60"]},
        {300: ['CursorStalled job_name="mails"']},
    ),
    Case(
        "paused and waiting jobs do not stall",
        {
            STALLED: ["0x100"],
            LOST: ["0x100"],
            f'jobs{{{ONE},state="paused"}}': ["3x100"],
            f'jobs{{{ONE},state="interrupted"}}': ["3x100"],
            f'jobs{{{ONE},state="pending"}}': ["3x100"],
        },
        {300: [], 900: []},
    ),
    Case(
        "a job stands still",
        of_job("j1", heartbeat="0+15x100", moved="0x100"),
        {180: [], 195: [f"JobStalled {JOB}"]},
    ),
    Case(
        "a job stands still, by two exporters",
        twice(of_job("j1", heartbeat="0+15x100", moved="0x100")),
        {180: [], 195: [f"JobStalled {JOB}"]},
    ),
    Case(
        "a slow job moves within its threshold",
        of_job("j1", heartbeat="0+15x100", moved="0x3 60x3 120x3 180x3 240x3 300x3 360x100"),
        {195: [], 300: [], 420: []},
    ),
    Case(
        "each job has its own threshold",
        {
            **of_job("j1", heartbeat="0+15x100", moved="0x100", after="600x100"),
            **of_job("j2", heartbeat="0+15x100", moved="0x100"),
        },
        {300: [f'JobStalled {ONE},job_id="j2"'], 600: [f'JobStalled {ONE},job_id="j2"']},
    ),
    Case(
        "a plain call without a threshold takes its time",
        {
            f"job_heartbeat_timestamp_seconds{{{JOB}}}": ["0+15x100"],
            f"job_last_progress_timestamp_seconds{{{JOB}}}": ["0x100"],
        },
        {300: [], 1200: []},
    ),
    Case(
        "a job that stands still is paused",
        of_job("j1", heartbeat="0+15x6 stale", moved="0x6 stale", after="60x6 stale"),
        {120: [], 240: [], 360: []},
    ),
    Case(
        "a process that dies is lost, and does not stall",
        {**of_job("j1", heartbeat="0+15x2 30x100", moved="0+15x2 30x100"), LOST: ["0x4 1x60"]},
        {360: [], 375: [f"JobLost {ONE}"]},
    ),
    Case(
        "lost, by two exporters",
        {LOST: ["0x4 1x60", "0x5 1x60"]},
        {360: [], 375: [f"JobLost {ONE}"]},
    ),
    Case("lost, and handed back in time", {LOST: ["0x4 1x10 0x60"]}, {240: [], 375: [], 600: []}),
    Case("lost, and the exporter goes", {LOST: ["1x24 stale"]}, {345: [f"JobLost {ONE}"], 390: []}),
    Case(
        "nobody resumes",
        {INTERRUPTED: ["0x400"]},
        {900: [], 960: [], 975: [f"ResumeOverdue {ONE}"]},
    ),
    Case(
        "nobody resumes, by two exporters",
        {INTERRUPTED: ["0x400", "0x400"]},
        {960: [], 975: [f"ResumeOverdue {ONE}"]},
    ),
    Case(
        "interrupted jobs wait for their delay, and are resumed",
        {INTERRUPTED: ["1200x100 stale"]},
        {975: [], 1500: []},
    ),
    Case("a job gets nowhere", looping(), {1200: [], 2100: [LOOPS]}),
    Case("a job gets nowhere, by two exporters", twice(looping()), {1200: [], 2100: [LOOPS]}),
    Case("a job is killed often, and gets on", looping(items="500+1x400"), {1950: [], 2100: []}),
    Case(
        "a job waits by interrupting itself",
        looping(kind='interruptions_total{%s,reason="other"}'),
        {1950: [], 2100: []},
    ),
    Case(
        "a job's isolated steps are set apart",
        looping(kind='interruptions_total{%s,reason="isolating"}'),
        {1950: [], 2100: []},
    ),
    Case(
        "a job is paused and resumed",
        looping(kind='interruptions_total{%s,reason="paused"}'),
        {1950: [], 2100: []},
    ),
    Case(
        "a job is resumed now and then",
        looping(runs="1x60 2x60 3x60 4x60", ends="0x60 1x60 2x60 3x60"),
        {1950: [], 2700: []},
    ),
    Case("runs that no scrape sees get nowhere", UNSEEN, {600: [], 900: [TYPE_LOOPS]}),
    Case(
        "runs that no scrape sees, by two exporters",
        twice(UNSEEN),
        {600: [], 900: [TYPE_LOOPS]},
    ),
    Case(
        "killed in the same item again and again",
        {
            f'runs_total{{{ONE},outcome="lost"}}': ["0x8 1x8 2x8 3x8 4x8 5x8 6x8 7x8"],
            f'items_processed_total{{{ONE},step="rows"}}': ["7x8 8x8 9x8 10x8 11x8 12x8 13x8"],
            f'items_redone_total{{{ONE},step="rows"}}': ["0x8 1x8 2x8 3x8 4x8 5x8 6x8 7x8"],
        },
        {600: [], 900: [TYPE_LOOPS]},
    ),
    Case(
        "four kills and one",
        {f'runs_total{{{ONE},outcome="lost"}}': ["0x8 1x8 2x8 3x8 4x8 5x100"]},
        {600: [], 900: [TYPE_LOOPS]},
    ),
    Case(
        "four kills",
        {f'runs_total{{{ONE},outcome="lost"}}': ["0x8 1x8 2x8 3x8 4x100"]},
        {600: [], 900: [], 1200: []},
    ),
    Case(
        "short runs that each do an item",
        {**UNSEEN, f'items_processed_total{{{ONE},step="rows"}}': ["0x8 1x8 2x8 3x8 4x8 5x100"]},
        {900: [], 1050: []},
    ),
    Case(
        "short runs that each do a step",
        {
            **UNSEEN,
            f'steps_total{{{ONE},step="a",outcome="completed"}}': ["0x8 1x8 2x8 3x8 4x8 5x100"],
        },
        {900: [], 1050: []},
    ),
    Case(
        "the estimate is past the deadline",
        {ETA: ["3600x400"], DEADLINE: ["1800x400"]},
        {285: [], 300: [LATE]},
    ),
    Case(
        "the estimate is past the deadline, by two exporters",
        {ETA: ["3600x400", "3590x400"], DEADLINE: ["1800x400", "1800x400"]},
        {285: [], 300: [LATE]},
    ),
    Case(
        "a job without an estimate is late",
        {DEADLINE: ["100x400"]},
        {390: [], 405: [LATE]},
    ),
    Case(
        "a job will be done in time", {ETA: ["1500x90"], DEADLINE: ["1800x90"]}, {300: [], 1350: []}
    ),
    Case("a job without a deadline", {ETA: ["1500x400"]}, {300: [], 900: []}),
    Case(
        "an estimate is bad for a while",
        {ETA: ["3600x10 1500x100"], DEADLINE: ["1800x110"]},
        {300: [], 600: []},
    ),
    Case("nobody begins", {QUEUED: ["0x400"]}, {1200: [], 1215: [f"QueueWaitHigh {ONE}"]}),
    Case(
        "nobody begins, by two exporters",
        {QUEUED: ["0x400", "0x400"]},
        {1200: [], 1215: [f"QueueWaitHigh {ONE}"]},
    ),
    Case("jobs wait, and are begun", {QUEUED: ["0+15x400"]}, {1215: [], 1500: []}),
    Case(
        "the store is away",
        {"exporter_last_success_timestamp_seconds": ["0x400"]},
        {180: [], 195: ['ExporterStale job="tracedjobs"']},
    ),
    Case(
        "the store is away for one of two exporters",
        {"exporter_last_success_timestamp_seconds": ["0x400", "0+15x400"]},
        {195: [], 900: []},
    ),
    Case(
        "no exporter",
        {"exporter_last_success_timestamp_seconds": ["0+15x10 stale"]},
        {450: [], 465: ["ExporterAbsent "]},
    ),
    Case(
        "one of two exporters is gone",
        {"exporter_last_success_timestamp_seconds": ["0+15x10 stale", "0+15x400"]},
        {465: [], 900: []},
    ),
]
TOLD = [
    next(case for case in CASES if any(alert in str(at) for at in case.fires.values()))
    for alert in (
        *("CursorStalled", "JobStalled", "JobLost", "ResumeOverdue", "ResumeLoop"),
        *("DeadlineAtRisk", "QueueWaitHigh", "ExporterStale", "ExporterAbsent"),
    )
]
"""One case for each alert."""
TOLD.append(next(case for case in CASES if case.name == "four kills and one"))


def written(case: Case) -> dict[str, Any]:
    """The case as promtool wants it."""
    series = []
    for name, texts in {**WELL, **case.series}.items():
        metric, _, labels = name.partition("{")
        labels = labels.removesuffix("}")
        assert re.fullmatch(r"\w+", metric), name
        assert f"tracedjobs_{metric}" in EXPORTED, metric
        for number, text in enumerate(texts):
            target = f'job="tracedjobs",instance="exporter-{number}:9464"'
            full = ",".join(part for part in (labels, target) if part)
            series.append({"series": f"tracedjobs_{metric}{{{full}}}", "values": text})
    checks = []
    for at, alerts in case.fires.items():
        samples = []
        for each in alerts:
            alert, _, labels = each.partition(" ")
            severity = SEVERITY.get(alert, "warning")
            labels = f'{labels + "," if labels else ""}severity="{severity}"'
            full = f'ALERTS{{alertname="{alert}",alertstate="firing",{labels}}}'
            samples.append({"labels": full, "value": 1})
        checks.append(
            {
                # The comment is what names the case in promtool's complaints.
                "expr": f'ALERTS{{alertstate="firing"}} # {case.name};',
                "eval_time": f"{at}s",
                "exp_samples": samples,
            }
        )
    return {
        "name": case.name,
        "interval": "15s",
        "input_series": series,
        "promql_expr_test": checks,
    }


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text("utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def alerts() -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


@pytest.fixture(scope="module")
def complaints(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What promtool says of all cases: asked once, for its start takes longer than a case."""
    folder = tmp_path_factory.mktemp("rules")
    text = yaml.safe_dump(
        {
            "rule_files": [str(RULES)],
            "evaluation_interval": "15s",
            "tests": [written(case) for case in CASES],
        }
    )
    (folder / "test.yml").write_text(text, "utf-8")
    done = subprocess.run(
        [program("promtool"), "test", "rules", "test.yml"],
        cwd=folder,
        check=False,
        capture_output=True,
        text=True,
    )
    said = f"{done.stdout}{done.stderr}"
    assert done.returncode in {0, 1}, said
    assert (done.returncode == 1) == any(f"# {case.name};" in said for case in CASES), said
    return said


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_it_fires_when_it_should_and_only_then(case: Case, complaints: str) -> None:
    assert f"# {case.name};" not in complaints, complaints


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each case's alerts say, by the case; promtool prints it where it expected nothing."""
    folder = tmp_path_factory.mktemp("texts")
    tests = []
    for case in TOLD:
        at, (first, *_) = next(item for item in case.fires.items() if item[1])
        expected = [{"eval_time": f"{at}s", "alertname": first.partition(" ")[0]}]
        test = {**written(case), "alert_rule_test": expected}
        del test["promql_expr_test"]
        tests.append(test)
    made = {"rule_files": [str(RULES)], "evaluation_interval": "15s", "tests": tests}
    (folder / "test.yml").write_text(yaml.safe_dump(made), "utf-8")
    done = subprocess.run(
        [program("promtool"), "test", "rules", "test.yml"],
        cwd=folder,
        check=False,
        capture_output=True,
        text=True,
    )
    got = re.findall(r"Annotations:\{(.+)\}", f"{done.stdout}{done.stderr}")
    return {case.name: text for case, text in zip(TOLD, got, strict=True)}


def test_what_alerts_say_is_whole(texts: dict[str, str]) -> None:
    for text in texts.values():
        assert "error" not in text.replace("reason error", "")
        assert "no value" not in text
        assert "{{" not in text
    assert "imports j1 stands still" in texts["a job stands still"]
    assert "has not moved for 3m 15s" in texts["a job stands still"]
    assert "/d/tracedjobs-job?var-job_id=j1" in texts["a job gets nowhere"]
    assert "imports j1 is resumed again" in texts["a job gets nowhere"]
    assert "/d/tracedjobs-overview?var-job_name=imports" in texts["four kills and one"]
    assert "imports is resumed again" in texts["four kills and one"]


def test_promtool_finds_nothing_to_complain_of() -> None:
    done = subprocess.run(
        [program("promtool"), "check", "rules", "--lint=all", "--lint-fatal", str(RULES)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"


def test_every_alert_has_cases_that_fire_and_cases_with_two_exporters() -> None:
    named = {each.partition(" ")[0] for case in CASES for at in case.fires.values() for each in at}
    assert named == set(alerts())
    doubled = {
        each.partition(" ")[0]
        for case in CASES
        if any(len(texts) > 1 for texts in case.series.values())
        for at in case.fires.values()
        for each in at
    }
    # Of two exporters these are silent: one that is well is enough.
    assert doubled | {"ExporterStale", "ExporterAbsent"} == set(alerts())


def test_rules_read_what_the_exporter_has() -> None:
    for rule in rules():
        for metric, labels in selectors(rule["expr"]):
            assert metric in EXPORTED, metric
            assert labels <= set(EXPORTED[metric])


@pytest.mark.parametrize("name", alerts())
def test_each_alert_has_words_links_and_a_runbook(name: str) -> None:
    alert = alerts()[name]
    assert alert["labels"].keys() == {"severity"}
    assert alert["annotations"].keys() == {"summary", "description", "runbook_url", "dashboard_url"}
    assert alert["annotations"]["runbook_url"] == f"docs/runbooks/{name}.md"
    runbook = (DOCS / "runbooks" / f"{name}.md").read_text("utf-8")
    assert runbook.startswith(f"# {name}\n")
    headings = re.findall(r"^## (.+)$", runbook, re.MULTILINE)
    assert headings == ["What it means", "What to look at", "What to type", "How to silence it"]
    uid = alert["annotations"]["dashboard_url"].partition("/d/")[2].partition("?")[0]
    assert (FOLDER / "dashboards" / f"{uid.removeprefix('tracedjobs-')}.json").is_file()
    by_job = "job_id" in alert["expr"]
    assert ("var-job_id={{ $labels.job_id }}" in alert["annotations"]["dashboard_url"]) == by_job


@pytest.mark.parametrize("name", alerts())
def test_the_page_tells_of_each_alert(name: str) -> None:
    alert = alerts()[name]
    minutes = f"{alert['for'].removesuffix('m')} min"
    row = f"| [{name}](runbooks/{name}.md) | {minutes} | {alert['labels']['severity']} | "
    assert row in (DOCS / "grafana.md").read_text("utf-8")


def test_grafanas_own_alerts_are_the_same() -> None:
    groups = yaml.safe_load(MANAGED.read_text("utf-8"))["groups"]
    assert all(int(group["interval"].removesuffix("s")) % 10 == 0 for group in groups)
    managed = {rule["title"]: rule for group in groups for rule in group["rules"]}
    assert managed.keys() == alerts().keys()
    for name, rule in managed.items():
        alert = alerts()[name]
        query, condition = rule["data"]
        assert query["model"]["expr"] == alert["expr"]
        assert (query["model"]["instant"], query["datasourceUid"]) == (
            True,
            "tracedjobs-prometheus",
        )
        assert (rule["condition"], condition["model"]["expression"]) == ("B", "A")
        assert rule["for"] == alert["for"]
        assert rule["labels"] == alert["labels"]
        # No series is no alert there either, but a query that cannot be asked is one.
        assert (rule["noDataState"], rule["execErrState"]) == ("OK", "Error")
        assert len(rule["uid"]) <= 40
        text = yaml.safe_dump(rule["annotations"])
        assert not re.search(r"\$value\b(?!s)", text)
    assert len({rule["uid"] for rule in managed.values()}) == len(managed)
