"""Saves of a run that just goes on: of what moves alone, and behind the same fence."""

from __future__ import annotations

import os
import random
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Final

import pytest

from tests.stores.chances import Chances, told
from tests.stores.records import TOKEN, a_job, a_save, a_step, loaded, running
from tracedjobs._core.records import SEQ_GAP, Change, JobRecord, Position, Save, Status
from tracedjobs.errors import StoreUnavailableError
from tracedjobs.stores.memory import MemoryStore
from tracedjobs.stores.sqlite import SQLiteStore, saving
from tracedjobs.stores.sqlite.connection import Connection

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

OTHER: Final = "fedcba9876543210"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


@pytest.fixture
def store(path: Path) -> Iterator[SQLiteStore]:
    with closing(SQLiteStore(str(path), synchronous="NORMAL")) as made:
        yield made


@pytest.fixture
def other(path: Path) -> Iterator[SQLiteStore]:
    """The same file, as another process has it."""
    with closing(SQLiteStore(str(path), synchronous="NORMAL")) as made:
        yield made


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Of each save whether it was short or whole, and how many rows it wrote."""
    found: list[tuple[str, int]] = []
    write = Connection.write

    def noted(self: Connection, statement: str, values: Sequence[object]) -> int:
        rows = write(self, statement, values)
        found.append(("whole" if "fingerprint" in statement else "short", rows))
        return rows

    monkeypatch.setattr(Connection, "write", noted)
    return found


def told_of(store: SQLiteStore) -> JobRecord:
    return told(loaded(store).job)


def saved_whole(*saves: Save) -> JobRecord:
    """The job after those saves in a store that makes them all whole."""
    with closing(_Whole()) as model:
        running(model)
        for save in saves:
            assert model.save_one(save)
        return told_of(model)


class _Whole(MemoryStore):
    """Does not know of any last save."""

    def save_one(self, save: Save) -> bool:
        self._saves._last.clear()
        return super().save_one(save)


# -- what is written ---


def test_a_run_that_goes_on_writes_only_what_moves(
    store: SQLiteStore, written: list[tuple[str, int]]
) -> None:
    running(store)
    saves = [a_save(seq, str(seq), progressed_at=10.5 + seq) for seq in (1, 2, 3, 7)]
    for save in saves:
        before = loaded(store).job.lease_until
        assert store.save_one(save)
        assert loaded(store).job.lease_until >= before
    assert written == [("whole", 1), ("short", 1), ("short", 1), ("short", 1)]
    assert told_of(store) == saved_whole(*saves)
    assert store.save_one(a_save(8, "9", lease_ttl=3_000.0))
    assert loaded(store).job.lease_until > before + 2_000


@pytest.mark.parametrize(
    "change",
    [
        {"position": Position("two", "4", 4, 10, "bytes", 4.25, '"print"')},
        {"position": Position("one", "4", 4, 11, "bytes", 4.25, '"print"')},
        {"position": Position("one", "4", 4, None, "bytes", 4.25, '"print"')},
        {"position": Position("one", "4", 4, 10, None, 4.25, '"print"')},
        {"position": Position("one", "4", 4, 10, "bytes", 5.25, '"print"')},
        {"position": Position("one", "4", 4, 10, "bytes", 4.25, '"other"')},
        {"position": Position("one", "4", 4, 10, "bytes", 4.25, '"print"', "[1]")},
        {"position": None},
        {"state": '{"n":1}'},
        {"meter": "[1]"},
    ],
)
def test_what_says_more_than_how_far_it_is_is_saved_whole(
    store: SQLiteStore, written: list[tuple[str, int]], change: dict[str, object]
) -> None:
    running(store)
    saves = [a_save(1), a_save(2), a_save(3, "4", **change), a_save(4, "5")]
    for save in saves:
        assert store.save_one(save)
    assert written[:3] == [("whole", 1), ("short", 1), ("whole", 1)]
    assert told_of(store) == saved_whole(*saves)


def test_the_last_saves_of_so_many_runs_are_known_and_the_rest_is_saved_whole(
    store: SQLiteStore, written: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "MANY", 2)
    for job_id in "abc":
        running(store, job_id)
    for seq in (1, 2):
        for job_id in "abc":
            token = f"token {job_id}"
            store.change(Change(job_id, seq, {"token": token}))
            assert store.save_one(a_save(seq, job_id=job_id, token=token))
    assert len(store._saves._last) <= 2
    assert ("short", 0) not in written
    assert [loaded(store, job_id).job.saved_seq for job_id in "abc"] == [2, 2, 2]


# -- the fence ---


def test_a_run_that_was_taken_over_writes_nothing_more(
    store: SQLiteStore, other: SQLiteStore
) -> None:
    head = running(store)
    for seq in range(1, 4):
        assert store.save_one(a_save(seq))
    # The new run is in the same step, and has just saved under the number that the old one knows.
    taken = {"token": OTHER, "run": 2, "saved_seq": 0}
    assert other.change(Change("a", head.revision, taken))
    assert other.save_one(a_save(3, "5", token=OTHER))
    before = loaded(store)
    for seq in range(4, 7):
        assert not store.save_one(a_save(seq, "9"))
    assert loaded(store) == before
    assert other.save_one(a_save(4, "6", token=OTHER))
    assert not store.save_one(a_save(7, "9"))
    assert (loaded(store).job.cursor, loaded(store).job.token) == ("6", OTHER)


@pytest.mark.parametrize("saved_seq", [0, 3])
def test_a_job_that_was_rewound_is_left_where_it_was_put(
    store: SQLiteStore, other: SQLiteStore, saved_seq: int
) -> None:
    head = running(store)
    for seq in range(1, 4):
        assert store.save_one(a_save(seq, "8"))
    put = {"status": Status.INTERRUPTED, "token": None, "cursor": "2", "saved_seq": saved_seq}
    assert other.change(Change("a", head.revision, put))
    assert not store.save_one(a_save(4, "9"))
    assert loaded(store).job.cursor == "2"


def test_a_job_that_is_gone_or_created_anew_is_not_saved(
    store: SQLiteStore, other: SQLiteStore
) -> None:
    running(store)
    for seq in range(1, 4):
        assert store.save_one(a_save(seq))
    over = {"status": Status.CANCELLED, "token": None, "expires_at": store.time() - 1}
    assert other.change(Change("a", 1, over))
    assert other.purge(limit=5) == 1
    assert not store.save_one(a_save(4))
    assert other.create(a_job(saved_seq=3))
    assert not store.save_one(a_save(5))
    assert loaded(store).job.step is None


def test_the_savers_thread_and_the_jobs_write_in_order_whatever_each_of_them_knows(
    store: SQLiteStore, written: list[tuple[str, int]]
) -> None:
    running(store)
    assert store.save_one(a_save(1, "1"))
    assert store.save([a_save(3, "3", meter="[3]")]) == {"a": (TOKEN, None)}
    assert not store.save_one(a_save(2, "2"))
    assert (loaded(store).job.cursor, loaded(store).job.meter) == ("3", "[3]")
    assert store.save_one(a_save(4, "4"))
    assert store.save_one(a_save(5, "5"))
    assert not store.save_one(a_save(4, "4"))
    assert loaded(store).job.position == a_save(5, "5").position
    whole, short = "whole", "short"
    assert written == [
        (whole, 1),
        (short, 0),
        (whole, 0),
        (short, 0),
        (whole, 1),
        (short, 1),
        (whole, 0),
    ]


def test_after_a_step_the_next_one_is_saved_whole_and_a_late_save_of_it_not_at_all(
    store: SQLiteStore, written: list[tuple[str, int]]
) -> None:
    running(store)
    assert store.save_one(a_save(1))
    assert store.save_one(a_save(2))
    assert store.complete_step(
        "a", TOKEN, a_step(), position=0, seq=3 + SEQ_GAP, state=None, lease_ttl=30.0
    )
    assert not store.save_one(a_save(4, "9"))
    assert loaded(store).open_position is None
    # A step of the same name and shape, as the one before it: nothing of that is in the row now.
    newer = a_save(4 + SEQ_GAP, "1")
    assert store.save_one(newer)
    assert loaded(store).job.position == newer.position
    assert written[-2:] == [("short", 0), ("whole", 1)]


def test_a_save_whose_answer_was_lost_is_not_built_upon(
    store: SQLiteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    running(store)
    assert store.save_one(a_save(1))
    lost = a_save(2, "2", position=a_save(2, "2").position._replace(total=99))  # type: ignore[union-attr]  # it has one
    with monkeypatch.context() as patch:
        patch.setattr(Connection, "write", _answer_lost)
        with pytest.raises(StoreUnavailableError):
            store.save_one(lost)
    assert loaded(store).job.total == 99
    assert not store.save_one(lost)  # and whoever is told so asks whether the job is still its own
    assert store.save_one(a_save(3, "3"))
    assert loaded(store).job.position == a_save(3, "3").position


def _answer_lost(self: Connection, statement: str, values: Sequence[object]) -> int:
    self.run(lambda raw: raw.execute(statement, tuple(values)).rowcount)
    msg = "an error after the commit"
    raise StoreUnavailableError(msg)


# -- beside a store that saves everything whole ---


def test_whatever_happens_between_saves_they_do_what_whole_ones_do(
    store: SQLiteStore, other: SQLiteStore, written: list[tuple[str, int]]
) -> None:
    seed = random.randrange(10**9)
    chances = Chances(random.Random(seed))
    with closing(MemoryStore()) as memory, closing(_Whole()) as model:
        for each in (store, memory, model):
            running(each)
        for _ in range(1_000):
            act = chances.act(loaded(model).job)
            expected = act(model)
            here = chances.of((store,) * 5 + (other,))
            assert act(here) == act(memory) == expected, f"seed {seed}"
            assert told_of(here) == told_of(memory) == told_of(model), f"seed {seed}"
    assert written.count(("short", 1)) > 50, f"seed {seed}"


# -- the cursor that all writes share ---


def test_a_write_within_a_write_has_a_cursor_of_its_own(store: SQLiteStore) -> None:
    running(store)
    raw = _raw_of(store)

    def within() -> int:
        return store._db.write("UPDATE jobs SET counted = 5 WHERE id = ?", ("a",))

    raw.create_function("within", 0, within)
    assert store._db.write("UPDATE jobs SET items = 7 + within() WHERE id = ?", ("a",)) == 1
    assert (loaded(store).job.items, loaded(store).job.counted) == (8, 5)


def test_a_write_after_one_that_failed_is_made(store: SQLiteStore) -> None:
    running(store)
    with pytest.raises(Exception, match="no such column"):
        store._db.write("UPDATE jobs SET nowhere = 1 WHERE id = ?", ("a",))
    with pytest.raises(OverflowError):
        store._db.write("UPDATE jobs SET items = ?", (2**64,))
    assert store.save_one(a_save(1))
    assert store.save_one(a_save(2, "5"))
    assert loaded(store).job.cursor == "5"


def test_a_save_that_finds_the_file_locked_is_made_when_it_is_let_go(
    store: SQLiteStore, path: Path
) -> None:
    running(store)
    assert store.save_one(a_save(1))
    with closing(sqlite3.connect(path, isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        store._db._timeout = 0.1
        with pytest.raises(StoreUnavailableError, match="another process holds its lock"):
            store.save_one(a_save(2, "5"))
        holder.execute("ROLLBACK")
    assert loaded(store).job.cursor == "3"
    assert store.save_one(a_save(2, "5"))
    assert loaded(store).job.cursor == "5"


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_forked_child_writes_through_a_connection_of_its_own(store: SQLiteStore) -> None:
    running(store)
    assert store.save_one(a_save(1))
    before = _raw_of(store)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            saved = store.save_one(a_save(2, "5"))
            cursor = store._db._spare
            assert cursor is not None
            status = 0 if saved and cursor.connection is not before else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert loaded(store).job.cursor == "5"
    assert store.save_one(a_save(3, "6"))
    assert loaded(store).job.position == a_save(3, "6").position


def _raw_of(store: SQLiteStore) -> sqlite3.Connection:
    raw = store._db._raw
    assert raw is not None
    return raw
