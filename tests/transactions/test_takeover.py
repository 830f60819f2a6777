"""How two runs meet in the ledger's row: the interleavings that a test can make, one by one."""

from __future__ import annotations

import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import psycopg
import pytest

from tests.processes import until
from tracedjobs import Runtime, job
from tracedjobs._core import transaction
from tracedjobs._core.run import LeaseLost
from tracedjobs._core.transaction import Ledger, ledger_on
from tracedjobs._core.waiting import drive

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.transactions.databases import Database
    from tracedjobs import Context

ISOLATION = ["read committed", "repeatable read", "serializable"]


class FakeRun:
    """As much of a run as a ledger needs."""

    is_async = False
    state = SimpleNamespace(touched=False)

    def __init__(self, number: int) -> None:
        self.number = number
        self.record = SimpleNamespace(id="j", rewinds=0, submitted_at=1.0)
        self.lost: str | None = None

    def lose(self, why: str) -> None:
        self.lost = why

    def check(self) -> None:
        if self.lost:
            raise LeaseLost("lease_lost", self.lost)

    def attend(self, **_options: object) -> Iterator[Any]:
        yield from ()


def ledger(connection: object, number: int) -> Ledger:
    return ledger_on(connection, cast("Any", FakeRun(number)), "items")


@pytest.fixture(params=ISOLATION)
def address(request: pytest.FixtureRequest, postgresql: Database) -> str:
    """PostgreSQL at each level of isolation."""
    level = request.param.replace(" ", r"\\ ")  # unquoted twice
    return f"{postgresql.address} options='-c default_transaction_isolation={level}'"


@pytest.mark.parametrize("autocommit", [False, True])
@pytest.mark.parametrize("read_first", [False, True])
def test_an_old_run_cannot_commit_what_it_began_before_the_epoch_was_raised(
    postgresql: Database, address: str, *, autocommit: bool, read_first: bool
) -> None:
    with (
        closing(psycopg.connect(address, autocommit=autocommit)) as first,
        closing(psycopg.connect(address, autocommit=autocommit)) as second,
    ):
        old, new = ledger(first, 1), ledger(second, 2)
        assert drive(old.open(None, "0")) == (None, None)
        drive(old.begin())
        if read_first:  # here the snapshot is taken
            first.execute("SELECT * FROM done")
        assert drive(new.open(None, "0"))[0].cursor == "0"  # type: ignore[union-attr]  # there is one
        first.execute("INSERT INTO done VALUES (0)")
        with pytest.raises((LeaseLost, psycopg.errors.SerializationFailure)):
            drive(old.write("1", 1))
        assert postgresql.items == []
        drive(new.begin())
        second.execute("INSERT INTO done VALUES (0)")
        drive(new.write("1", 1))
    assert postgresql.items == [0]


def test_a_new_run_reads_the_cursor_of_a_commit_that_was_under_way(
    postgresql: Database, address: str
) -> None:
    with (
        closing(psycopg.connect(address)) as first,
        closing(psycopg.connect(address)) as second,
        ThreadPoolExecutor(1) as pool,
    ):
        old, new = ledger(first, 1), ledger(second, 2)
        drive(old.open(None, "0"))
        drive(old.begin())
        first.execute("INSERT INTO done VALUES (0)")
        written, go_on = threading.Event(), threading.Event()
        plain = old._connection.commit

        def slow() -> Any:
            written.set()
            assert go_on.wait(30)
            return plain()

        old._connection.commit = slow  # type: ignore[method-assign]  # to stop there
        writing = pool.submit(lambda: drive(old.write("1", 1)))
        assert written.wait(30)
        with ThreadPoolExecutor(1) as other:
            opening = other.submit(lambda: drive(new.open(None, "0")))
            waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
            until(lambda: postgresql.run(waiting) == [(1,)], "the new run waits for the old")
            go_on.set()
            writing.result(30)
            found, _ = opening.result(30)
    assert found is not None
    assert (found.cursor, found.items) == ("1", 1)
    assert postgresql.items == [0]


@pytest.mark.parametrize("isolation_level", ["", None])
def test_on_sqlite_a_new_run_is_interrupted_while_another_holds_the_lock(
    sqlite: Database, isolation_level: str | None
) -> None:
    @job(name="locked")
    def locked(ctx: Context) -> None:
        raw: Any = sqlite3.connect(
            sqlite.address, timeout=0.05, isolation_level=cast("Any", isolation_level)
        )
        with closing(raw):
            for item in ctx.each("items", range(3), transaction=raw):
                raw.execute("INSERT INTO done VALUES (?)", (item,))

    with (
        Runtime("memory://", handle_signals=False) as runtime,
        closing(sqlite3.connect(sqlite.address, isolation_level=None)) as holder,
    ):
        job_id = runtime.submit(locked)
        holder.execute("BEGIN IMMEDIATE")
        outcome = runtime.perform(job_id)
        assert (outcome.status, outcome.reason) == ("interrupted", "database_locked")
        holder.execute("ROLLBACK")
        assert runtime.perform(job_id).ok
    assert sqlite.items == [0, 1, 2]


@pytest.mark.parametrize("options", ["", " options='-c lock_timeout=50'"])
def test_on_postgresql_a_new_run_is_interrupted_while_another_holds_the_lock(
    postgresql: Database, monkeypatch: pytest.MonkeyPatch, options: str
) -> None:
    if not options:
        monkeypatch.setattr(transaction, "LIMIT_WAIT", transaction.LIMIT_WAIT.replace("2000", "40"))

    @job(name="locked-pg")
    def locked(ctx: Context) -> None:
        with closing(psycopg.connect(postgresql.address + options)) as connection:
            for item in ctx.each("items", range(3), transaction=connection):
                limit = connection.execute("SHOW lock_timeout").fetchone()
                assert limit == (("50ms",) if options else ("0",))
                connection.execute("INSERT INTO done VALUES (%s)", (item,))

    with (
        Runtime("memory://", handle_signals=False) as runtime,
        closing(psycopg.connect(postgresql.address)) as holder,
    ):
        job_id = runtime.submit(locked)
        drive(ledger(holder, 1).open(None, "0"))
        holder.execute("LOCK TABLE tracedjobs_cursors")
        outcome = runtime.perform(job_id)
        assert (outcome.status, outcome.reason) == ("interrupted", "database_locked")
        holder.rollback()
        assert runtime.perform(job_id).ok
    assert postgresql.items == [0, 1, 2]


def test_many_first_runs_at_once_make_one_table(postgresql: Database) -> None:
    begin = threading.Barrier(6)

    def one(number: int) -> object:
        with closing(psycopg.connect(postgresql.address)) as connection:
            run = FakeRun(1)
            run.record.id = f"j{number}"
            begin.wait(30)
            return drive(ledger_on(connection, cast("Any", run), "items").open(None, "0"))

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(one, range(6))) == [(None, None)] * 6
    assert postgresql.run("SELECT count(*) FROM tracedjobs_cursors") == [(6,)]
