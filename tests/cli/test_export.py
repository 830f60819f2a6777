"""What is written for Grafana and Prometheus: from an installed package, for an installation."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import kubernetes_validate
import pytest
import yaml

from grafana.written import DASHBOARDS, FOLDER
from tests.monitoring import program

if TYPE_CHECKING:
    from tests.cli.typed import Desk

ROOT = Path(__file__).parents[2]


def test_dashboards_are_written_with_the_data_sources_of_an_installation(desk: Desk) -> None:
    done = desk.run("dashboard", "export", "--to", "out", "--datasource", "Mimir", "--loki", "logs")
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.splitlines()) == {f"out/{name}.json" for name in DASHBOARDS}
    for name in DASHBOARDS:
        page = json.loads((desk.folder / "out" / f"{name}.json").read_text("utf-8"))
        shipped = json.loads((FOLDER / "dashboards" / f"{name}.json").read_text("utf-8"))
        found = {each["name"]: each for each in page["templating"]["list"]}
        assert found["datasource"]["current"]["value"] == "Mimir"
        assert found["loki_datasource"]["current"]["value"] == "logs"
        assert "current" not in found["tempo_datasource"]
        for each in ("datasource", "loki_datasource"):
            del found[each]["current"]
        assert page == shipped


def test_alerts_are_written_with_the_addresses_of_an_installation(desk: Desk) -> None:
    words = ["--grafana-url", "https://grafana.example/", "--runbooks-url", "https://wiki/jobs"]
    done = desk.run("alerts", "export", "--to", "out", *words, "--datasource", "mimir")
    assert done.returncode == 0, done.stderr
    out = desk.folder / "out"
    rules = (out / "tracedjobs.rules.yml").read_text("utf-8")
    assert "https://grafana.example/d/tracedjobs-job?var-job_id={{ $labels.job_id }}" in rules
    assert "runbook_url: https://wiki/jobs/JobLost.md" in rules
    assert not re.search("127.0.0.1|docs/runbooks", rules)
    managed = (out / "grafana-managed.yml").read_text("utf-8")
    assert "datasourceUid: mimir" in managed
    assert "tracedjobs-prometheus" not in managed
    names = {path.name for path in (out / "runbooks").iterdir()}
    assert names == {path.name for path in (ROOT / "docs" / "runbooks").iterdir()}
    check = [program("promtool"), "check", "rules", str(out / "tracedjobs.rules.yml")]
    assert subprocess.run(check, check=False, capture_output=True).returncode == 0


def test_for_kubernetes_they_are_objects_with_the_same_in_them(desk: Desk) -> None:
    for what in ("dashboard", "alerts"):
        assert desk.run(what, "export", "--kubernetes").returncode == 0
    made = yaml.safe_load((desk.folder / "dashboards.yaml").read_text("utf-8"))
    kubernetes_validate.validate(made, "1.30", strict=True)
    assert made["metadata"]["labels"]["grafana_dashboard"] == "1"
    for name, text in made["data"].items():
        assert text == (FOLDER / "dashboards" / name).read_text("utf-8")
    rule = yaml.safe_load((desk.folder / "rules.yaml").read_text("utf-8"))
    shipped = yaml.safe_load((FOLDER / "alerts" / "tracedjobs.rules.yml").read_text("utf-8"))
    assert rule["spec"] == shipped


def test_where_it_cannot_be_written_is_said_in_a_line(desk: Desk) -> None:
    (desk.folder / "taken").write_text("a file")
    done = desk.run("alerts", "export", "--to", "taken/here")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "Error: It cannot be written to taken/here: Not a directory.\n"


def test_the_wheel_has_all_of_it(tmp_path: Path) -> None:
    """As built: what a user installs, unpacked, writes the same as the source tree."""
    built = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as files:
        names = set(files.namelist())
        files.extractall(tmp_path / "site")
    assert not {name for name in names if name.startswith(("grafana/", "tests/"))}
    code = (
        "import sys; sys.path.insert(0, 'site')\n"
        "from tracedjobs.grafana import shipped\n"
        "assert 'site' in shipped.__file__, shipped.__file__\n"
        "print(len(shipped.dashboards({})), len(shipped.alerts()), len(shipped.runbooks()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, check=False, capture_output=True, text=True
    )
    assert done.stdout == "5 2 9\n", done.stderr


@pytest.mark.parametrize("what", ["dashboard", "alerts"])
def test_its_help_says_what_each_option_is_for(desk: Desk, what: str) -> None:
    done = desk.run(what, "export", "--help")
    assert done.returncode == 0
    assert "--to DIR" in done.stdout
    assert all(len(line) <= 88 for line in done.stdout.splitlines())
