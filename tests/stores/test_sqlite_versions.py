"""A file of SQLite's that an older version wrote, and how it is made one of today's."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Final

import pytest

from tests.stores.data.make_version_1 import FILE as VERSION_1
from tests.stores.data.make_version_1 import write_job
from tests.stores.records import a_job
from tracedjobs import Runtime
from tracedjobs._core.records import JOB_COLUMNS, JobRecord, Status
from tracedjobs.errors import StoreError
from tracedjobs.stores.sqlite import SQLiteStore
from tracedjobs.stores.sqlite.connection import shipped_migrations

if TYPE_CHECKING:
    from pathlib import Path

    from tests.processes import Children

SECOND: Final = """
-- As a later version may do it: a column, filled from what is there.
ALTER TABLE jobs ADD COLUMN lane TEXT;
UPDATE jobs SET lane = 'imports' WHERE name = 'shop:import_users';
CREATE INDEX jobs_by_lane ON jobs (lane);
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


def dump(path: Path) -> tuple[int, list[str]]:
    with closing(sqlite3.connect(path)) as raw:
        return raw.execute("PRAGMA user_version").fetchone()[0], list(raw.iterdump())


@pytest.fixture
def old_file(path: Path) -> Path:
    """A copy of a file that version 0.1.0 wrote."""
    shutil.copy(VERSION_1, path)
    return path


def test_todays_code_reads_a_file_of_version_1_and_works_on_it(
    old_file: Path, tmp_path: Path
) -> None:
    with closing(SQLiteStore(str(tmp_path / "new.db"))) as new:
        for status in Status:
            write_job(new, status)
        with closing(SQLiteStore(str(old_file))) as old:
            for status in Status:
                found, wanted = old.load(status.value), new.load(status.value)
                assert found is not None
                assert wanted is not None
                # The lease is timed by the boot of the machine that wrote it.
                assert without_lease(found.job) == without_lease(wanted.job)
                assert (found.steps, found.runs) == (wanted.steps, wanted.runs)
                assert found.controls == wanted.controls
    with Runtime(f"sqlite:///{old_file}") as runtime:
        assert runtime.get("failed").steps[1].cursor == 433
        assert runtime.retry("failed").status is Status.INTERRUPTED
        assert runtime.recover() == ["running"]
        assert len(runtime.list()) == len(Status)


def without_lease(job: JobRecord) -> dict[str, object]:
    return {
        name: getattr(job, name)
        for name in JOB_COLUMNS
        if name not in {"lease_until", "lease_boot"}
    }


def test_a_history_of_two_steps_upgrades_an_old_file(old_file: Path) -> None:
    with closing(SQLiteStore(str(old_file))) as store:
        before = {status: store.load(status.value) for status in Status}
    history = (*shipped_migrations(), SECOND)
    with closing(SQLiteStore(str(old_file), migrations=lambda: history)) as store:
        assert {status: store.load(status.value) for status in Status} == before
        raw = store._db._raw
        assert raw is not None
        assert raw.execute("SELECT DISTINCT lane FROM jobs").fetchall() == [("imports",)]
        assert raw.execute("PRAGMA user_version").fetchone() == (len(history),)
        assert store.create(a_job())


def test_a_file_of_a_later_version_is_refused_and_left_as_it_is(path: Path) -> None:
    later = (*shipped_migrations(), SECOND)
    with closing(SQLiteStore(str(path), migrations=lambda: later)) as store:
        store.create(a_job())
    before = path.read_bytes()
    with closing(SQLiteStore(str(path))) as store, pytest.raises(StoreError) as caught:
        store.load("a")
    known = len(shipped_migrations())
    assert f"has schema version {known + 1}, written by a newer tracedjobs" in str(caught.value)
    assert f"knows versions up to {known}. Upgrade tracedjobs here" in str(caught.value)
    assert path.read_bytes() == before


UPGRADE: Final = """
from tracedjobs._core.records import JobRecord
from tracedjobs.stores.sqlite import SQLiteStore
from tracedjobs.stores.sqlite.connection import shipped_migrations
FOLDER, NUMBER, ROUNDS = sys.argv[3], sys.argv[4], int(sys.argv[5])
history = shipped_migrations() + tuple(sys.argv[6:])
for number in range(ROUNDS):
    say("ready", number)
    while not os.path.exists(f"{FOLDER}/go{number}"):
        time.sleep(0.001)
    store = SQLiteStore(f"{FOLDER}/{number}.db", migrations=lambda: history)
    assert store.create(JobRecord(f"job{NUMBER}", "job", "{}", 1.0))
    store.close()
say("done")
"""


def race(children: Children, folder: Path, processes: int, rounds: int, *more: str) -> None:
    """Let several processes open each of `rounds` files, all at the same moment."""
    racers = [
        children.start(UPGRADE, "-", "-", folder, number, rounds, *more)
        for number in range(processes)
    ]
    for number in range(rounds):
        for racer in racers:
            racer.says(f"ready {number}")
        (folder / f"go{number}").touch()
    for racer in racers:
        racer.ends()


def test_eight_processes_that_make_the_same_new_file_all_succeed(
    children: Children, tmp_path: Path
) -> None:
    race(children, tmp_path, 8, 20)
    for number in range(20):
        with closing(SQLiteStore(str(tmp_path / f"{number}.db"))) as store:
            page = store.page(status=None, name=None, before=None, limit=99)
            assert {stored.job.id for stored in page} == {f"job{each}" for each in range(8)}


def test_several_processes_that_upgrade_the_same_old_file_do_it_once(
    children: Children, tmp_path: Path
) -> None:
    for number in range(10):
        shutil.copy(VERSION_1, tmp_path / f"{number}.db")
    race(children, tmp_path, 4, 10, SECOND)  # to add the column twice would fail
    for number in range(10):
        version, lines = dump(tmp_path / f"{number}.db")
        assert version == len(shipped_migrations()) + 1
        text = "\n".join(lines)
        assert all(f"'job{each}'" in text for each in range(4))
        assert text.count("'imports'") == len(Status)


@pytest.mark.parametrize("failing", ["INSERT INTO nowhere VALUES (1);", "SELECT raise;"])
def test_a_migration_that_fails_changes_nothing(old_file: Path, failing: str) -> None:
    before = dump(old_file)
    history = (*shipped_migrations(), SECOND + failing)
    for _ in range(2):
        with (
            closing(SQLiteStore(str(old_file), migrations=lambda: history)) as store,
            pytest.raises(StoreError),
        ):
            store.load("failed")
        assert dump(old_file) == before
    with closing(SQLiteStore(str(old_file))) as store:
        assert store.load("failed") is not None


def test_a_migration_that_fails_leaves_a_new_file_empty(path: Path) -> None:
    history = (*shipped_migrations(), "INSERT INTO nowhere VALUES (1);")
    with (
        closing(SQLiteStore(str(path), migrations=lambda: history)) as store,
        pytest.raises(StoreError, match="no such table: nowhere"),
    ):
        store.create(a_job())
    with closing(SQLiteStore(str(path))) as store:
        assert store.create(a_job())
