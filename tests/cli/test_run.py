"""`tracedjobs run` in a pipe: what it prints, its exit codes, and signals."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from tests.cli.typed import CONTROL, PATIENCE, waited
from tracedjobs.cli.app import group

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.cli.typed import Desk

ENDLESS = "100000"


def test_a_job_that_completes_says_so_and_exits_0(desk: Desk) -> None:
    done = desk.run("run", "jobs:imported", "3")
    assert done.returncode == 0
    assert done.stderr == ""
    assert "✓ import_rows: done" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("Completed: 3 steps, 3 items, ")
    assert done.stdout.endswith(" in 1 run. Result: 3\n")
    assert not CONTROL.search(done.stdout)
    assert desk.rows() == [0, 1, 2]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("function", ["imported", "loaded"])
def test_a_signal_interrupts_and_the_printed_command_goes_on(
    desk: Desk, function: str, number: signal.Signals
) -> None:
    process = desk.start("run", "jobs.py:" + function, "60", "0.02", "--every", "0.1")
    desk.wait_for_rows()
    process.send_signal(number)
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == (75, "")
    assert re.search(r"▸ \w+: \d+%, \d+ of 60, ", out)
    assert f"({number.name}" in out
    assert len(desk.rows()) < 60

    found = re.search(r"To go on:  (.*)", out)
    assert found is not None
    again = subprocess.run(
        shlex.split(found[1]),
        cwd=desk.folder,
        env=desk.environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert again.returncode == 0, again.stderr
    assert "run 2, resumes in " in again.stdout
    assert " in 2 runs." in again.stdout
    assert desk.rows() == list(range(60))


def test_after_a_kill_it_says_where_the_job_really_goes_on(desk: Desk) -> None:
    process = desk.start("run", "jobs:imported", "60", "0.02", "--job-id", "a")
    waited(lambda: len(desk.rows()) > 4, "some rows")
    process.kill()
    process.communicate()
    killed = len(desk.rows())
    again = desk.run("run", "jobs:imported", "--job-id", "a")
    assert again.returncode == 0, again.stderr
    found = re.search(r"run 2, resumes in import_rows after (\d+) items", again.stdout)
    assert found is not None, again.stdout
    assert int(found[1]) == desk.rows()[killed]  # and no save had been made yet


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_kills_by_that_signal(desk: Desk, number: signal.Signals) -> None:
    process = desk.start("run", "jobs:deaf", "--job-id", "a", "--every", "0.1")
    assert process.stdout is not None
    assert process.stdout.readline() == "jobs:deaf  job a\n"
    assert process.stdout.readline().startswith("▸ deaf: ")
    process.send_signal(number)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.3)
    process.send_signal(number)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == -number
    assert desk.job("a")["lost"]


def test_the_same_command_line_with_a_job_id_is_done_once(desk: Desk) -> None:
    words = ("run", "jobs:imported", "3", "--job-id", "monday")
    assert desk.run(*words).returncode == 0
    again = desk.run(*words)
    assert again.returncode == 0
    assert again.stdout.startswith("Completed already: 3 steps, 3 items")
    assert desk.rows() == [0, 1, 2]
    other = desk.run("run", "jobs:imported", "4", "--job-id", "monday")
    assert (other.returncode, other.stdout) == (2, "")
    assert other.stderr.startswith("Error: The job monday exists already with other arguments")
    stranger = desk.run("run", "jobs:deaf", "--job-id", "monday")
    assert stranger.returncode == 2
    assert stranger.stderr == "Error: The job monday is one of jobs:imported, not of jobs:deaf.\n"


def test_a_file_and_a_module_are_the_same_job(desk: Desk) -> None:
    folder = desk.folder / "deep"
    folder.mkdir()
    (desk.folder / "jobs.py").rename(folder / "jobs.py")
    assert desk.run("run", "deep/jobs.py:echo", "x", "--job-id", "a").returncode == 0
    assert desk.run("run", "deep.jobs:echo", "x", "--job-id", "b").returncode == 0
    assert desk.job("a")["name"] == "jobs:echo"
    assert desk.job("b")["name"] == "deep.jobs:echo"


def test_a_failure_exits_1_with_one_line_and_where_to_look(desk: Desk) -> None:
    failed = desk.run("run", "jobs:fails", "--job-id", "a")
    assert failed.returncode == 1
    first, *hints = failed.stderr.splitlines()
    assert first == "Failed in rows after 4 items: ValueError: row 4 is bad"
    assert "show a --traceback" in hints[0]
    assert "Traceback" not in failed.stdout + failed.stderr


def test_an_error_after_progress_exits_75_and_goes_on(desk: Desk) -> None:
    stumbled = desk.run("run", "jobs:stumbles", "--job-id", "a")
    assert stumbled.returncode == 75
    assert "Interrupted in rows after 4 items (ValueError: row 4 is bad)." in stumbled.stdout
    assert desk.run("run", "jobs:stumbles", "--job-id", "a").returncode == 0


@pytest.mark.parametrize(("word", "code"), [("pause", 75), ("cancel", 1)])
def test_what_an_operator_asks_for_stops_it(desk: Desk, word: str, code: int) -> None:
    process = desk.start("run", "jobs:imported", ENDLESS, "0.02", "--job-id", "a")
    desk.wait_for_rows()
    asked = desk.run(word, "a")
    assert asked.returncode == 0
    assert "stops at its next checkpoint" in asked.stdout
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == code
    assert re.search(
        r"^(Paused|Cancelled) in import_rows after \d+ items by \S+\.", out + err, re.MULTILINE
    )
    refused = desk.run("run", "jobs:imported", "--job-id", "a")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("Error: The job a is ")


def test_a_job_that_runs_elsewhere_is_left_alone(desk: Desk) -> None:
    process = desk.start("run", "jobs:imported", ENDLESS, "0.02", "--job-id", "a")
    desk.wait_for_rows()
    second = desk.run("run", "jobs:imported", "--job-id", "a")
    process.terminate()
    process.communicate(timeout=PATIENCE)
    assert (second.returncode, second.stdout) == (2, "")
    assert second.stderr.startswith("Error: The job a is running already: run 1 on ")
    assert process.returncode == 75


def test_a_reader_that_goes_away_does_not_stop_the_job(desk: Desk) -> None:
    process = desk.start("run", "jobs:imported", "60", "0.02", "--job-id", "a", "--every", "0.1")
    assert process.stdout is not None
    with process:
        process.stdout.readline()
        process.stdout.close()
        process.wait(PATIENCE)
    assert process.returncode == 0
    assert desk.rows() == list(range(60))


def test_output_that_has_no_such_characters_gets_others(desk: Desk) -> None:
    done = desk.run("run", "jobs:echo", "naïve ✓", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert "na\\xefve \\u2713" in done.stdout


def test_memory_says_that_nothing_is_left(desk: Desk) -> None:
    stumbled = desk.run("run", "jobs:stumbles", "--store", "memory://")
    assert stumbled.returncode == 75
    assert "It was kept in memory:// and ends with this process." in stumbled.stdout
    assert not (desk.folder / "tracedjobs.db").exists()


def test_the_store_that_was_named_is_in_the_commands(desk: Desk) -> None:
    stumbled = desk.run("run", "jobs:stumbles", "--job-id", "a", "--store", "sqlite:///my jobs.db")
    assert "--job-id a --store 'sqlite:///my jobs.db'" in stumbled.stdout
    named = desk.run(
        "run", "jobs:stumbles", "--job-id", "a", TRACEDJOBS_STORE="sqlite:///my jobs.db"
    )
    assert named.returncode == 0


BROKEN = {
    "broken.py": "import nowhere\n",
    "wrong.py": "def f(:\n",
    "script.py": "raise SystemExit(3)\n",
    "empty.py": "",
}


@pytest.fixture
def nothing_imported(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In the desk's folder, whose modules are forgotten afterwards."""
    monkeypatch.chdir(desk.folder)
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each])
    yield
    for name in ("jobs", *(each.removesuffix(".py") for each in BROKEN)):
        sys.modules.pop(name, None)


@pytest.mark.usefixtures("nothing_imported")
@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("nope:x", "There is no module 'nope' here"),
        ("./nope.py:x", "There is no file ./nope.py."),
        ("broken:x", "Importing broken fails: ModuleNotFoundError: No module named 'nowhere'"),
        ("wrong.py:x", "Importing wrong.py fails: SyntaxError: "),
        ("script:x", "Importing script ends the program (SystemExit: 3)"),
        ("empty:x", "There is no job 'x' in empty; it has no jobs: see @job."),
        ("jobs:importd", "There is no job 'importd' in jobs; jobs there: deaf, echo, "),
        ("jobs:plain", "it is a function, but no job: decorate it with @job"),
        ("jobs:NUMBER", "it is a value, and no job"),
        ("jobs", "Which job of jobs? Write jobs:JOB; jobs there: "),
        (":x", "':x' names no module"),
    ],
)
def test_a_bad_target_gets_one_line(desk: Desk, target: str, said: str) -> None:
    for name, text in BROKEN.items():
        (desk.folder / name).write_text(text)
    refused = CliRunner().invoke(group, ["run", target], catch_exceptions=False)
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert refused.stderr.startswith("Error: ")
    assert refused.stderr.count("\n") == 1
    assert said in refused.stderr
    assert not (desk.folder / "tracedjobs.db").exists()


def test_a_bad_target_is_no_traceback(desk: Desk) -> None:
    refused = desk.run("run", "jobs:importd")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("Error: There is no job 'importd' in jobs; jobs there: deaf, ")


def test_negative_numbers_are_arguments_and_unknown_options_are_not(desk: Desk) -> None:
    assert desk.run("run", "jobs:echo", "-5", "-2").stdout.endswith("Result: ('-5', -2)\n")
    assert desk.run("run", "jobs:echo", "--", "--x").stdout.endswith("Result: ('--x', 0)\n")
    unknown = desk.run("run", "jobs:echo", "x", "--stor", "y")
    assert unknown.returncode == 2
    assert "No such option: --stor" in unknown.stderr or "'--stor'" in unknown.stderr


def test_a_signal_before_the_first_run_is_taken_by_it(desk: Desk) -> None:
    (desk.folder / "slow.py").write_text(
        "import os, signal\n"
        "from tracedjobs import job\n"
        "@job\n"
        "def eager(ctx, path: str):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    for row in ctx.each('rows', range(3)):\n"
        "        pass\n"
        "    ctx.step('more', lambda: None)\n"
    )
    assert desk.run("run", "slow.py:eager", "x", "--job-id", "a").returncode == 75
    waited(lambda: desk.job("a")["status"] == "interrupted", "interrupted")


def test_no_signal_is_ignored_that_was_not_before(desk: Desk) -> None:
    """Under `nohup` and the like an ignored signal stays ignored."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process = desk.start("run", "jobs:imported", "30", "0.02", "--job-id", "a")
    finally:
        signal.signal(signal.SIGINT, before)
    desk.wait_for_rows()
    os.kill(process.pid, signal.SIGINT)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
