"""`list` and `show`: what is read from a store, and what is said where there is nothing to read."""

from __future__ import annotations

import json
import sqlite3
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from tracedjobs import Context, Runtime, job
from tracedjobs.cli.app import group
from tracedjobs.cli.phrases import ago, duration, size
from tracedjobs.testing import interrupt_during

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.cli.typed import Desk

JOB_KEYS = {
    *("id", "name", "status", "lost", "wish", "reason", "run", "resumptions", "worker", "step"),
    *(
        "steps_completed",
        "steps_expected",
        "items",
        "items_redone",
        "arguments",
        "state",
        "result",
        "error",
    ),
    *("submitted_at", "started_at", "progressed_at", "ended_at", "resume_at", "deadline_at"),
    *("expires_at", "steps", "runs", "controls"),
    *("trace_id", "stalled", "stall", "queue", "time_left_s", "heartbeat_at"),
}
STEP_KEYS = {
    *("name", "status", "cursor", "items", "total", "unit", "run", "started_at", "ended_at"),
    "result",
}


@job(name="shop:orders")
def orders(ctx: Context, number: int, when: object = None) -> tuple[int, str]:
    ctx.step("initialize", lambda: None)
    for row in ctx.each("import_rows", range(number)):
        ctx.state["seen"] = {row}
    ctx.step("finalize", lambda: None)
    return number, "\x1b[31mred"


@job(name="shop:early")
def early_bird(ctx: Context) -> None:
    ctx.interrupt("before any step")


@job(name="shop:broken", resume_errors_after_advancing=False)
def broken(ctx: Context) -> None:
    for row in ctx.each("rows", range(5)):
        if row == 2:
            msg = "two\nlines"
            raise ValueError(msg)


class Shop:
    """A store with some jobs, and the command line on it."""

    def __init__(self, folder: Path) -> None:
        self.url = f"sqlite:///{folder / 'shop.db'}"
        self.runtime = Runtime(self.url, handle_signals=False)

    def type(self, *words: str) -> str:
        """What the command prints; it succeeds."""
        result = CliRunner().invoke(group, [*words, "--store", self.url], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout

    def refused(self, *words: str) -> str:
        """What the command says that it refuses, in one line."""
        result = CliRunner().invoke(group, [*words, "--store", self.url], catch_exceptions=False)
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr.count("\n") == 1
        return result.stderr

    def complete(self, number: int = 3, **options: Any) -> str:
        job_id = self.runtime.submit(orders, number, **options)
        self.runtime.perform(job_id)
        return job_id

    def interrupt(self, at: int = 4, **options: Any) -> str:
        job_id = self.runtime.submit(orders, 10, **options)
        self.runtime.perform(job_id, stopping=interrupt_during("import_rows", cursor=at))
        return job_id


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    made = Shop(tmp_path)
    with made.runtime:
        yield made


def test_a_list_is_newest_first_with_whole_ids_in_a_pipe(shop: Shop) -> None:
    done, stopped = shop.complete(), shop.interrupt(job_id="monday")
    waiting = shop.runtime.submit(orders, 5)
    head, *rows = [line.split() for line in shop.type("list").splitlines()]
    assert head == ["ID", "JOB", "STATUS", "STEP", "PROGRESS", "RUNS", "AGE", "WORKER"]
    assert [row[0] for row in rows] == [waiting, stopped, done]
    assert rows[0][1:6] == ["shop:orders", "pending", "0", "of", "3"]
    assert rows[1][1:9] == ["shop:orders", "interrupted", "2", "of", "3", "import_rows", "40%", "4"]
    assert rows[2][1:7] == ["shop:orders", "completed", "3", "steps", "3", "items"]
    early = shop.runtime.submit(early_bird)
    shop.runtime.perform(early)
    row = shop.type("list").splitlines()[1].split()
    assert row[:4] == [early, "shop:early", "interrupted", "1"]  # run: no step is told


def test_a_list_can_be_filtered_and_paged(shop: Shop) -> None:
    ids = [shop.complete(job_id=f"job-{each}") for each in range(4)]
    shop.interrupt(job_id="other")
    assert [each["id"] for each in json.loads(shop.type("list", "--json"))] == ["other", *ids[::-1]]
    found = json.loads(shop.type("list", "--status", "interrupted", "--json"))
    assert [each["id"] for each in found] == ["other"]
    page = shop.type("list", "--status", "completed", "--limit", "2")
    assert [line.split()[0] for line in page.splitlines()[1:3]] == ["job-3", "job-2"]
    assert page.splitlines()[3].strip().startswith("Older ones:")
    assert "list --before job-2" in page
    last = shop.type("list", "--before", "job-2")
    assert [line.split()[0] for line in last.splitlines()] == ["ID", "job-1", "job-0"]


def test_an_empty_list_says_what_to_type(shop: Shop) -> None:
    assert shop.runtime.list() == []
    assert "No jobs yet in sqlite:///" in shop.type("list")
    assert "run MODULE:JOB" in shop.type("list")
    shop.complete()
    assert "No such jobs" in shop.type("list", "--status", "lost")
    assert "No such jobs" in shop.type("list", "--status", "stalled")
    assert "most are MODULE:JOB" in shop.type("list", "--name", "orders")


def test_json_has_the_keys_it_promised(shop: Shop) -> None:
    when = datetime(2026, 3, 1, 10, tzinfo=UTC)
    job_id = shop.runtime.submit(orders, 3, (when, {1}, b"x", 10**5000, float("nan")))
    shop.runtime.perform(job_id)
    found = json.loads(shop.type("show", job_id, "--json"))
    assert set(found) == JOB_KEYS
    assert {frozenset(step) for step in found["steps"]} == {frozenset(STEP_KEYS)}
    moment, a_set, some_bytes, big, nan = found["arguments"]["when"]
    assert (moment, a_set, some_bytes, nan) == ("2026-03-01T10:00:00+00:00", "{1}", "b'x'", "nan")
    assert int(big, 16) == 10**5000
    assert found["result"] == [3, "\x1b[31mred"]
    assert datetime.fromisoformat(found["submitted_at"]).tzinfo is not None
    assert found["runs"][0]["outcome"] == "completed"


def test_a_page_shows_steps_done_open_and_expected(shop: Shop) -> None:
    shop.complete()
    page = shop.type("show", shop.interrupt(job_id="monday"))
    lines = page.splitlines()
    assert lines[0] == "shop:orders  job monday"
    assert lines[1] == "interrupted (stopping) · 1 of 3 steps done · 4 items · 1 run"
    assert lines[4].startswith("  ✓ initialize ")
    assert lines[5].startswith("  ▸ import_rows  ━━━━━━━━━━━━━━━━──")
    assert "40%  4 of 10  cursor 4" in lines[5]
    assert lines[6] == "  · finalize"
    assert "Arguments\n  number  10\n" in page
    assert "State\n  'seen'  {3}\n" in page
    assert "\n  1  20" in page
    assert page.splitlines()[-2].split(maxsplit=4)[:4] == ["go", "on", "with", "it"]
    assert "run PATH/shop.py:orders --job-id monday" in page


def test_what_a_job_returned_cannot_colour_the_page(shop: Shop) -> None:
    page = shop.type("show", shop.complete())
    assert "\x1b" not in page
    assert "the job  (3, '\\x1b[31mred')" in page


def test_an_error_is_one_line_and_its_traceback_behind_an_option(shop: Shop) -> None:
    job_id = shop.runtime.submit(broken)
    with pytest.raises(ValueError, match="two"):
        shop.runtime.perform(job_id)
    page = shop.type("show", job_id)
    assert "  ✗ rows" in page
    assert "Error\n  ValueError: two lines\n" in page
    assert "Traceback (most" not in page
    assert "try again from there" in page
    assert f"rewind {job_id} rows" in page
    assert "  Traceback (most recent call last):\n" in shop.type("show", job_id, "--traceback")


def test_the_beginning_of_an_id_is_enough_if_it_is_the_only_one(shop: Shop) -> None:
    shop.complete(job_id="monday-1")
    shop.complete(job_id="monday-2")
    shop.complete(job_id="tuesday")
    assert "job tuesday" in shop.type("show", "tues")
    assert "2 jobs begin with 'mond': monday-2, monday-1." in shop.refused("show", "mond")
    assert "There is no job 'tue' in sqlite:///" in shop.refused("show", "tue")
    assert "There is no job 'nobody' in sqlite:///" in shop.refused("show", "nobody")


@pytest.mark.parametrize("command", ["list", "show", "pause", "recover"])
def test_a_store_that_is_not_there_is_not_made(
    desk: Desk, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(desk.folder)
    monkeypatch.delenv("TRACEDJOBS_STORE", raising=False)
    words = [command, "x"] if command in {"show", "pause"} else [command]
    for more in ([], ["--store", "sqlite:///other.db"]):
        done = CliRunner().invoke(group, [*words, *more], catch_exceptions=False)
        assert (done.exit_code, done.stdout) == (2, "")
        assert done.stderr.startswith("Error: There is no store ")
        assert done.stderr.count("\n") == 1
    assert sorted(each.name for each in desk.folder.iterdir()) == ["jobs.py"]


def test_bad_stores_get_one_line(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(desk.folder)
    (desk.folder / "text.db").write_text("not a database, but some text" * 100)
    with sqlite3.connect(desk.folder / "alien.db") as alien:
        alien.execute("CREATE TABLE theirs (x)")
    alien.close()
    before = (desk.folder / "alien.db").read_bytes()
    for url, said in (
        ("foo://x", "No store is known for foo://…"),
        ("sqlite:///", "names no file"),
        ("sqlite:///text.db", "it is no SQLite database"),
        ("sqlite:///alien.db", "is a SQLite database of another program"),
        ("memory://", "ends with its process"),
    ):
        done = CliRunner().invoke(group, ["list"], env={"TRACEDJOBS_STORE": url})
        assert (done.exit_code, done.stdout) == (2, "")
        assert said in done.stderr
        assert done.stderr.count("\n") == 1
    assert (desk.folder / "alien.db").read_bytes() == before


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.004, "0.00 s"),
        (3.14, "3.1 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (200, "3 min 20 s"),
        (7500, "2 h 5 min"),
        (273600, "3 d 4 h"),
    ],
)
def test_durations_are_read_at_a_glance(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_times_are_told_from_now() -> None:
    now = datetime(2026, 3, 1, tzinfo=UTC)
    assert ago(now - timedelta(seconds=130), now) == "2 min ago"
    assert ago(now + timedelta(days=7, seconds=-1), now) == "in 7 d"
    assert ago(now, now) == "just now"
    assert [size(999), size(1000), size(31_053_850)] == ["999 B", "1.0 kB", "31.1 MB"]
