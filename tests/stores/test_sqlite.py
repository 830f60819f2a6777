"""What only the SQLite store does: addresses, pragmas, files of others, waiting."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.processes import ROOT
from tests.stores.data.make_version_1 import write_job
from tracedjobs._core.records import Change, ControlRecord, JobRecord, Status
from tracedjobs.errors import StoreError, StoreUnavailableError
from tracedjobs.stores import open_store
from tracedjobs.stores.sqlite import SQLiteStore

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


def a_job(job_id: str = "a") -> JobRecord:
    return JobRecord(job_id, "job", "{}", 1.0)


def raw_of(store: SQLiteStore) -> sqlite3.Connection:
    store.load("nobody")
    raw = store._db._raw
    assert raw is not None
    return raw


def opened(url: str) -> SQLiteStore:
    store = open_store(url)
    assert isinstance(store, SQLiteStore)
    return store


# -- addresses ---


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("jobs.db", "No store is known for that address"),
        ("mysql://me:secret@host/x", "No store is known for mysql://…"),
        ("sqlite://jobs.db", "names no file. Write sqlite:///jobs.db"),
        ("sqlite://", "names no file"),
        ("sqlite:///", "names no file"),
        ("sqlite:///:memory:", "use memory:// instead"),
        ("sqlite:///x.db?synchronous=off", "synchronous=OFF in .* is not one of full"),
        ("sqlite:///x.db?timeout=soon", "timeout=soon in .* is no number of seconds"),
        ("sqlite:///x.db?timeout=-1", "timeout=-1 in"),
        ("sqlite:///x.db?timeout=nan", "timeout=nan in"),
        ("sqlite:///x.db?sync=full", "'sync' in .* is unknown; there are synchronous and timeout"),
        ("memory://name", "has something after memory://"),
    ],
)
def test_a_malformed_address_is_refused_with_what_is_amiss(address: str, sentence: str) -> None:
    with pytest.raises(StoreError, match=sentence) as caught:
        open_store(address)
    assert "secret" not in str(caught.value)


def test_an_address_is_relative_absolute_or_quoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for address, file in (
        ("sqlite:///here.db", "here.db"),
        (f"sqlite:///{tmp_path}/there.db", "there.db"),
        (f"sqlite:///{tmp_path}/a%20b%3Fc.db?synchronous=Normal", "a b?c.db"),
    ):
        with closing(opened(address)) as store:
            store.create(a_job())
        assert (tmp_path / file).exists()


def test_a_relative_file_stays_where_it_was_when_the_directory_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with closing(opened("sqlite:///here.db")) as store:
        monkeypatch.chdir("/")
        store.create(a_job())
    assert (tmp_path / "here.db").exists()


# -- pragmas ---


@pytest.mark.parametrize(
    ("query", "level"), [("", 2), ("?synchronous=normal", 1), ("?synchronous=extra", 3)]
)
def test_a_file_is_in_wal_mode_and_fully_synchronous_unless_told_otherwise(
    path: Path, query: str, level: int
) -> None:
    with closing(opened(f"sqlite:///{path}{query}")) as store:
        raw = raw_of(store)
        assert raw.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert raw.execute("PRAGMA synchronous").fetchone() == (level,)


def test_no_write_begins_as_a_read(path: Path) -> None:
    # A deferred transaction that turns into a writer is refused at once, without any waiting.
    statements: list[str] = []
    with closing(SQLiteStore(str(path))) as store:
        raw_of(store).set_trace_callback(statements.append)
        for status in Status:
            write_job(store, status)
        store.purge(limit=5)
        store.page(status=None, name=None, before=None, limit=9)
    inside = ""
    for statement in statements:
        word = statement.split()[0]
        if statement.startswith(("BEGIN", "COMMIT")):
            inside = statement
        elif inside == "BEGIN":
            assert word == "SELECT", statement
    assert "BEGIN IMMEDIATE" in statements


# -- files of others, of later versions, and damaged ones ---


@pytest.mark.parametrize("version", [0, 1, 9])
def test_a_database_of_another_program_is_refused_and_left_as_it_is(
    path: Path, version: int
) -> None:
    with closing(sqlite3.connect(path)) as raw:
        raw.executescript(f"CREATE TABLE cats (name TEXT); PRAGMA user_version = {version};")
    before = path.read_bytes()
    with closing(SQLiteStore(str(path))) as store, pytest.raises(StoreError) as caught:
        store.create(a_job())
    assert f"{path} is a SQLite database of another program" in str(caught.value)
    assert not isinstance(caught.value, StoreUnavailableError)
    assert path.read_bytes() == before
    assert sorted(each.name for each in path.parent.iterdir()) == ["jobs.db"]


def test_what_is_no_database_is_refused(path: Path) -> None:
    path.write_text("name,age\n" * 1000)
    with (
        closing(SQLiteStore(str(path))) as store,
        pytest.raises(StoreError, match="it is no SQLite database"),
    ):
        store.load("a")
    assert path.read_text() == "name,age\n" * 1000


def test_a_damaged_file_is_said_to_be_damaged(path: Path) -> None:
    with closing(SQLiteStore(str(path))) as store:
        for number in range(50):
            store.create(a_job(f"job{number}"))
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (path.stat().st_size - 4096))
    with (
        closing(SQLiteStore(str(path))) as store,
        pytest.raises(StoreError, match="the file is damaged: restore it from a backup"),
    ):
        store.load("job1")


@pytest.mark.parametrize("where", ["no/such/folder/jobs.db", "."])
def test_a_path_that_cannot_be_opened_says_what_to_check(tmp_path: Path, where: str) -> None:
    with (
        closing(SQLiteStore(str(tmp_path / where))) as store,
        pytest.raises(StoreUnavailableError, match="check that its folder exists"),
    ):
        store.load("a")


ORDINARY: Final = """
import os, sys
from tracedjobs import Runtime
from tracedjobs.errors import StoreError
from tracedjobs.stores.sqlite.connection import shipped_migrations
with Runtime("memory://") as other:
    other.list()  # all that is imported late is imported as root
migrations = shipped_migrations()
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
from tracedjobs.stores.sqlite import SQLiteStore
from tracedjobs._core.records import JobRecord
store = SQLiteStore(sys.argv[1], timeout=0.2, migrations=lambda: migrations)
record = JobRecord("b", "job", "{}", 1.0)
for work in (lambda: store.create(record), lambda: store.load("a").job.id):
    try:
        print("did", work())
    except StoreError as error:
        print(type(error).__name__, error)
"""


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that an ordinary user can reach, unlike pytest's."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)


def as_ordinary_user(path: Path) -> list[str]:
    """What comes of writing to the store and of reading it, in a process without root's rights."""
    done = subprocess.run(
        [sys.executable, "-c", ORDINARY, str(path)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=60,
    )
    return done.stdout.splitlines()


def test_a_read_only_file_says_so_and_is_left_as_it_is(open_folder: Path) -> None:
    path = open_folder / "jobs.db"
    with closing(SQLiteStore(str(path))) as store:
        store.create(a_job())
    path.chmod(0o444)
    open_folder.chmod(0o777)  # SQLite needs its two files beside it, also to read
    before = path.read_bytes()
    written, _ = as_ordinary_user(path)
    assert written.startswith("StoreUnavailableError")
    assert "it is read-only: check the permissions of the file and its folder" in written
    assert path.read_bytes() == before


def test_a_read_only_folder_says_what_to_check(open_folder: Path) -> None:
    open_folder.chmod(0o555)
    written, read = as_ordinary_user(open_folder / "jobs.db")
    for line in (written, read):
        assert line.startswith("StoreUnavailableError")
        assert "it cannot be opened: check that its folder exists and is writable" in line
    assert list(open_folder.iterdir()) == []


def test_a_full_disk_says_so_and_loses_nothing(path: Path) -> None:
    with closing(SQLiteStore(str(path))) as store:
        store.create(a_job())
        raw = raw_of(store)
        raw.execute("PRAGMA max_page_count = 1")  # SQLite takes the number of pages there are
        big = JobRecord("big", "job", '"' + "x" * 100_000 + '"', 1.0)
        with pytest.raises(StoreUnavailableError, match="the disk is full: make room"):
            store.create(big)
        assert store.load("big") is None
        assert store.load("a") is not None
        raw.execute("PRAGMA max_page_count = 1000000")
        assert store.create(big)


# -- waiting ---


def hold_lock(path: Path, release: threading.Event) -> threading.Thread:
    """Hold the write lock in another connection, until told."""
    held = threading.Event()

    def hold() -> None:
        with closing(sqlite3.connect(path, isolation_level=None)) as raw:
            raw.execute("BEGIN IMMEDIATE")
            held.set()
            assert release.wait(20)
            raw.execute("ROLLBACK")

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(20)
    return thread


def test_a_call_waits_for_the_lock_as_long_as_its_timeout_and_reads_do_not_wait(
    path: Path,
) -> None:
    release = threading.Event()
    with closing(opened(f"sqlite:///{path}?timeout=0.3")) as store:
        store.create(a_job())
        thread = hold_lock(path, release)
        began = time.monotonic()
        with pytest.raises(StoreUnavailableError, match="another process holds its lock"):
            store.create(a_job("b"))
        assert 0.3 <= time.monotonic() - began < 2
        assert store.load("a") is not None
        release.set()
        thread.join()
        assert store.create(a_job("b"))


def test_a_call_that_waited_goes_through_when_the_lock_is_let_go(path: Path) -> None:
    release = threading.Event()
    with closing(opened(f"sqlite:///{path}?timeout=20")) as store:
        store.create(a_job())
        thread = hold_lock(path, release)
        threading.Timer(0.3, release.set).start()
        assert store.create(a_job("b"))
        thread.join()


def test_what_belongs_to_a_job_is_read_as_of_one_moment(path: Path) -> None:
    def rewrite() -> None:
        # Revision and number of controls go up together.
        with closing(SQLiteStore(str(path), synchronous="NORMAL")) as writer:
            for revision in range(10_000):
                control = ControlRecord(1.0, "pause", "me")
                assert writer.change(Change("a", revision, {}, control=control))
                if enough.is_set():
                    return

    enough = threading.Event()
    with closing(SQLiteStore(str(path))) as store:
        store.create(a_job())
        thread = threading.Thread(target=rewrite)
        thread.start()
        seen: set[tuple[int, int]] = set()
        while thread.is_alive():
            stored = store.load("a")
            assert stored is not None
            seen.add((stored.job.revision, len(stored.controls)))
            if len(seen) > 20:
                enough.set()
        assert all(revision == controls for revision, controls in seen)
        assert len(seen) > 20


def test_a_value_that_sqlite_does_not_take_is_the_callers_error_and_changes_nothing(
    path: Path,
) -> None:
    with closing(SQLiteStore(str(path))) as store:
        for odd in (
            JobRecord("b", "\ud800", "{}", 1.0),
            JobRecord("b", "j", "{}", 1.0, items=2**64),
        ):
            with pytest.raises((UnicodeEncodeError, OverflowError)):
                store.create(odd)
        assert store.load("b") is None
        assert store.create(a_job())  # and no transaction was left open


def test_what_a_signals_handler_raises_as_a_transaction_begins_leaves_none_open(
    tmp_path: Path,
) -> None:
    store = SQLiteStore(str(tmp_path / "jobs.db"))

    class Struck:
        """A connection on which a signal arrives just when BEGIN has returned."""

        def __init__(self, raw: sqlite3.Connection) -> None:
            self._raw = raw

        def execute(self, statement: str) -> None:
            self._raw.execute(statement)
            if statement.startswith("BEGIN"):
                raise KeyboardInterrupt

        def __getattr__(self, name: str) -> Any:
            return getattr(self._raw, name)

    run = store._db.run
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store._db, "run", lambda work: run(lambda raw: work(Struck(raw))))
        with pytest.raises(KeyboardInterrupt):
            store.load("job")
    assert store.load("job") is None
    store.close()
