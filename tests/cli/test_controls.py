"""`pause`, `resume`, `cancel`, `retry`, `rewind` and `recover`, typed."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from tests.cli.typed import PATIENCE, waited

if TYPE_CHECKING:
    from tests.cli.typed import Desk


def test_a_job_is_paused_resumed_rewound_and_cancelled(desk: Desk) -> None:
    desk.run("run", "jobs:stumbles", "--job-id", "a")
    assert desk.run("pause", "a").stdout.startswith("a  paused; to let it run again:  ")
    assert desk.run("resume", "a").stdout.startswith("a  interrupted, in rows; to run it here:  ")
    rewound = desk.run("rewind", "a", "rows", "--cursor", "2")
    assert rewound.returncode == 0
    assert desk.job("a")["steps"][0]["cursor"] == 2
    refused = desk.run("rewind", "a", "rows", "--cursor", "x")
    assert refused.returncode == 2
    assert "A text needs quotes of its own: --cursor '\"x\"'." in refused.stderr
    assert "has not begun a step 'nope'" in desk.run("rewind", "a", "nope").stderr
    assert desk.run("cancel", "a").stdout == "a  cancelled\n"
    actions = [each["action"] for each in desk.job("a")["controls"]]
    assert actions == ["pause", "resume", "rewind", "cancel"]


def test_a_failed_job_is_retried(desk: Desk) -> None:
    desk.run("run", "jobs:fails", "--job-id", "a")
    retried = desk.run("retry", "a")
    assert retried.stdout.startswith("a  interrupted, in rows; to run it here:  ")
    assert retried.stdout.endswith(" run jobs:fails --job-id a\n")
    assert desk.run("retry", "a").returncode == 2


def test_of_several_jobs_those_that_can_be_are_done(desk: Desk) -> None:
    desk.run("run", "jobs:stumbles", "--job-id", "one")
    desk.run("run", "jobs:stumbles", "--job-id", "two")
    done = desk.run("pause", "one", "nobody", "two")
    assert done.returncode == 2
    assert done.stderr.startswith("Error: There is no job 'nobody' in sqlite:///")
    assert done.stderr.count("\n") == 1
    assert [desk.job(each)["status"] for each in ("one", "two")] == ["paused", "paused"]


def test_a_killed_job_is_lost_until_it_is_recovered(desk: Desk) -> None:
    process = desk.start("run", "jobs:imported", "60", "0.01", "--job-id", "a")
    desk.wait_for_rows()
    process.kill()
    process.communicate(timeout=PATIENCE)
    assert " lost " in desk.run("list").stdout
    page = desk.run("show", "a").stdout
    assert page.splitlines()[1].startswith("lost · ")
    assert "go on with it here" in page

    found = desk.run("recover")
    assert found.returncode == 0
    assert found.stdout.startswith("a  jobs:imported: run 1 on ")
    assert "was lost; it is interrupted now\n  To go on here:  " in found.stdout
    assert desk.run("recover").stdout.startswith("No lost jobs in sqlite:///")
    assert desk.run("run", "jobs:imported", "--job-id", "a").returncode == 0
    rows = desk.rows()
    assert sorted(set(rows)) == list(range(60))


def test_watching_finds_what_is_lost_later_and_ends_at_a_signal(desk: Desk) -> None:
    process = desk.start("run", "jobs:imported", "100000", "0.01", "--job-id", "a")
    desk.wait_for_rows()
    watcher = desk.start("recover", "--watch", "--every", "0.1")
    assert watcher.stdout is not None
    assert watcher.stdout.readline().startswith("Looking for lost jobs in ")
    process.kill()
    process.communicate(timeout=PATIENCE)
    assert watcher.stdout.readline().startswith("a  jobs:imported: run 1 on ")
    waited(lambda: desk.job("a")["status"] == "interrupted", "interrupted")
    watcher.send_signal(signal.SIGTERM)
    _, err = watcher.communicate(timeout=PATIENCE)
    assert (watcher.returncode, err) == (0, "")
