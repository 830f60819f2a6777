"""What `transaction=` refuses, what it makes of users' settings, and its table."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import psycopg
import pytest
from psycopg.rows import dict_row

from tests.transactions.databases import django_connection
from tracedjobs import job
from tracedjobs._core.transaction import CREATE
from tracedjobs.errors import InvalidStepError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.transactions.databases import Database
    from tracedjobs import AsyncContext, Context, Job, Runtime

INSERT = "INSERT INTO done VALUES (1)"


def looping(connection: object, body: Callable[[], object] = lambda: None) -> Job[..., Any]:
    """A job of three items on that connection."""

    @job(name="looping")
    def looping(ctx: Context) -> None:
        for _ in ctx.each("items", range(3), transaction=connection):
            body()

    return looping


class Nothing:
    """No connection."""


@pytest.mark.parametrize(
    "wrong", [Nothing(), "postgresql://", sqlite3, sqlite3.connect], ids=lambda each: repr(each)[:9]
)
def test_what_is_no_connection_is_refused_with_the_kinds_there_are(
    runtime: Runtime, wrong: object
) -> None:
    with pytest.raises(TypeError) as refused:
        runtime.perform(runtime.submit(looping(wrong)))
    assert str(refused.value) == (
        f"transaction= of step 'items' is a {type(wrong).__name__}; it must be a connection of "
        f"sqlite3 or psycopg, a SQLAlchemy Session or Connection (async ones too), or one of "
        f"django.db.connections."
    )


def test_cursors_and_engines_are_no_connections(runtime: Runtime, sqlite: Database) -> None:
    from sqlalchemy import create_engine  # noqa: PLC0415 - a slow import

    with closing(sqlite3.connect(sqlite.address)) as raw:
        for wrong in (raw.cursor(), create_engine("sqlite://")):
            with pytest.raises(TypeError, match="it must be a connection of"):
                runtime.perform(runtime.submit(looping(wrong)))


def test_another_database_than_the_two_is_refused_by_name(runtime: Runtime) -> None:
    class Dialect:
        name = "mysql"

    class Session:
        bind = Dialect()
        dialect = bind

        def commit(self) -> None: ...

        rollback = commit

    Session.__module__ = "sqlalchemy.orm.session"
    with pytest.raises(TypeError, match="to mysql; it must be to postgresql or sqlite"):
        runtime.perform(runtime.submit(looping(Session())))


def test_an_awaited_connection_in_a_def_job_is_refused(
    runtime: Runtime, postgresql: Database
) -> None:
    async def opened() -> psycopg.AsyncConnection[Any]:
        return await psycopg.AsyncConnection.connect(postgresql.address)

    async def everything() -> None:
        connection = await opened()
        with pytest.raises(TypeError, match="make the job an async def function"):
            runtime.perform(runtime.submit(looping(connection)))
        await connection.close()

    asyncio.run(everything())


@pytest.mark.parametrize("server", ["sqlite", "postgresql"])
def test_an_engine_in_autocommit_is_refused(
    runtime: Runtime, server: str, request: pytest.FixtureRequest
) -> None:
    from sqlalchemy import NullPool, create_engine  # noqa: PLC0415 - a slow import

    database = request.getfixturevalue(server)
    driver = "sqlite:///" if server == "sqlite" else "postgresql+psycopg://"
    engine = create_engine(
        driver + database.url.removeprefix("/"), isolation_level="AUTOCOMMIT", poolclass=NullPool
    )
    if server == "sqlite":
        engine = create_engine(
            f"sqlite:///{database.address}", isolation_level="AUTOCOMMIT", poolclass=NullPool
        )
    with engine.connect() as connection, pytest.raises(TypeError, match="without AUTOCOMMIT"):
        runtime.perform(runtime.submit(looping(connection)))


def test_psycopg_and_django_refuse_a_commit_inside_an_item(
    runtime: Runtime, postgresql: Database
) -> None:
    from django.db.transaction import (  # type: ignore[import-untyped]  # noqa: PLC0415
        TransactionManagementError,
    )

    with closing(psycopg.connect(postgresql.address)) as connection:

        def body() -> None:
            connection.execute(INSERT)
            connection.commit()

        with pytest.raises(psycopg.ProgrammingError, match="Explicit commit"):
            runtime.perform(runtime.submit(looping(connection, body)))
    with closing(django_connection(postgresql)) as django:

        def other() -> None:
            with django.cursor() as cursor:
                cursor.execute(INSERT)
            django.commit()

        with pytest.raises(TransactionManagementError):
            runtime.perform(runtime.submit(looping(django, other)))
    assert postgresql.items == []


def test_psycopg_s_own_blocks_are_savepoints_inside_an_item(
    runtime: Runtime, postgresql: Database
) -> None:
    with closing(psycopg.connect(postgresql.address, autocommit=True)) as connection:

        def body() -> None:
            connection.execute(INSERT)
            with connection.transaction() as block:
                connection.execute("INSERT INTO done VALUES (2)")
                raise psycopg.Rollback(block)

        assert runtime.perform(runtime.submit(looping(connection, body))).ok
    assert postgresql.items == [1, 1, 1]


@pytest.mark.parametrize("server", ["sqlite", "postgresql"])
def test_django_s_atomic_inside_an_item_is_a_savepoint(
    runtime: Runtime, server: str, request: pytest.FixtureRequest
) -> None:
    database = request.getfixturevalue(server)
    ran: list[str] = []
    with closing(django_connection(database)) as connection:
        from django.db import transaction  # type: ignore[import-untyped]  # noqa: PLC0415

        def body() -> None:
            with transaction.atomic(using=connection.alias):
                with connection.cursor() as cursor:
                    cursor.execute(INSERT)
                transaction.on_commit(lambda: ran.append("hook"), using=connection.alias)
            if len(database.items) == 2:
                raise OSError

        job_id = runtime.submit(looping(connection, body))
        assert runtime.perform(job_id).reason == "error"
        assert (database.items, ran) == ([1, 1], ["hook", "hook"])
        assert connection.get_autocommit()


def test_django_s_atomic_around_the_loop_and_its_manual_mode_are_refused(
    runtime: Runtime, sqlite: Database
) -> None:
    from django.db import transaction  # noqa: PLC0415 - a slow import

    with closing(django_connection(sqlite)) as connection:
        job_id = runtime.submit(looping(connection))
        with (
            transaction.atomic(using=connection.alias),
            pytest.raises(TypeError, match=r"inside atomic\(\)"),
        ):
            runtime.perform(job_id)
        connection.set_autocommit(False)
        with pytest.raises(TypeError, match="leave AUTOCOMMIT on"):
            runtime.perform(job_id)
        connection.set_autocommit(True)
        assert runtime.perform(job_id).ok


def test_a_source_may_read_from_the_same_connection(runtime: Runtime, postgresql: Database) -> None:
    postgresql.run("CREATE TABLE IF NOT EXISTS wanted (item INTEGER)")
    postgresql.run("INSERT INTO wanted SELECT * FROM generate_series(0, 4)")

    @job(name="reading")
    def reading(ctx: Context) -> None:
        with closing(psycopg.connect(postgresql.address)) as connection:

            def wanted(cursor: object) -> Any:
                while row := connection.execute(
                    "SELECT item FROM wanted WHERE item > %s ORDER BY item LIMIT 1", (cursor,)
                ).fetchone():
                    cursor = row[0]
                    yield row[0], row[0]

            for item in ctx.each("items", wanted, start=-1, transaction=connection):
                connection.execute("INSERT INTO done VALUES (%s)", (item,))
                if (item, ctx.run) == (2, 1):
                    raise OSError

    job_id = runtime.submit(reading)
    assert runtime.perform(job_id).reason == "error"
    assert postgresql.items == [0, 1]
    assert runtime.perform(job_id).ok
    assert postgresql.items == [0, 1, 2, 3, 4]
    postgresql.run("DROP TABLE wanted")


def test_an_error_at_the_commit_moves_nothing(runtime: Runtime, postgresql: Database) -> None:
    postgresql.run("ALTER TABLE done ADD UNIQUE (item) DEFERRABLE INITIALLY DEFERRED")
    with closing(psycopg.connect(postgresql.address)) as connection:
        job_id = runtime.submit(looping(connection, lambda: connection.execute(INSERT)))
        outcome = runtime.perform(job_id)
        assert isinstance(outcome.error, psycopg.errors.UniqueViolation)
        assert postgresql.items == [1]
        current = runtime.get(job_id).current
        assert current is not None
        assert (current.cursor, current.items) == (1, 1)
        assert postgresql.run("SELECT cursor, items FROM tracedjobs_cursors") == [("1", 1)]


def test_a_closed_connection_does_not_hide_why_the_job_failed(
    runtime: Runtime, postgresql: Database, sqlite: Database
) -> None:
    for connection in (psycopg.connect(postgresql.address), sqlite3.connect(sqlite.address)):

        def body(connection: Any = connection) -> None:
            connection.close()
            raise KeyError("the cause")

        job_id = runtime.submit(looping(connection, body))
        with pytest.raises(KeyError, match="the cause"):
            runtime.perform(job_id)
        assert runtime.get(job_id).status == "failed"


def test_a_connection_s_own_block_around_the_loop_commits_no_item_that_was_left(
    runtime: Runtime, sqlite: Database
) -> None:
    @job(name="leaving")
    def leaving(ctx: Context) -> None:
        with closing(sqlite3.connect(sqlite.address)) as raw, raw:
            loop = ctx.each("items", range(3), transaction=raw)
            for item in loop:
                raw.execute("INSERT INTO done VALUES (?)", (item,))
                if item == 1:
                    break
            with pytest.raises(InvalidStepError, match="Call it before the break"):
                loop.finish()

    with pytest.raises(InvalidStepError, match="left at cursor 1"):
        runtime.perform(runtime.submit(leaving))
    assert sqlite.items == [0]


def test_factories_of_the_user_do_not_matter(
    runtime: Runtime, sqlite: Database, postgresql: Database
) -> None:
    with closing(sqlite3.connect(sqlite.address)) as raw:
        raw.row_factory = lambda cursor, row: dict(enumerate(row))
        raw.text_factory = bytes
        job_id = runtime.submit(looping(raw, lambda: raw.execute(INSERT)))
        assert runtime.perform(job_id, stopping=lambda ctx: ctx.current.cursor == 1).reason
        sqlite.run("UPDATE tracedjobs_cursors SET cursor = '2', items = 2")
        assert runtime.perform(job_id).ok
        assert sqlite.items == [1, 1]
    with closing(
        psycopg.connect(
            postgresql.address, row_factory=dict_row, cursor_factory=cast("Any", psycopg.RawCursor)
        )
    ) as connection:
        job_id = runtime.submit(looping(connection, lambda: connection.execute(INSERT)))
        assert runtime.perform(job_id, stopping=lambda ctx: ctx.current.cursor == 1).reason
        postgresql.run("UPDATE tracedjobs_cursors SET cursor = '2', items = 2")
        assert runtime.perform(job_id).ok
        assert postgresql.items == [1, 1]


def test_a_pipeline_which_cannot_tell_is_refused(runtime: Runtime, postgresql: Database) -> None:
    with (
        closing(psycopg.connect(postgresql.address)) as connection,
        connection.pipeline(),
        pytest.raises(TypeError, match="pipeline mode"),
    ):
        runtime.perform(runtime.submit(looping(connection)))


def test_a_user_who_may_create_no_table_is_told_what_to_do_or_given_one(
    runtime: Runtime, postgresql: Database
) -> None:
    postgresql.run("DROP ROLE IF EXISTS humble")
    postgresql.run("CREATE ROLE humble LOGIN")
    postgresql.run("GRANT SELECT, INSERT, UPDATE ON done TO humble")
    address = postgresql.address.replace("user=postgres", "user=humble")
    with closing(psycopg.connect(address)) as connection:
        job_id = runtime.submit(looping(connection, lambda: connection.execute(INSERT)))
        with pytest.raises(psycopg.errors.InsufficientPrivilege) as refused:
            runtime.perform(job_id)
        assert CREATE in "".join(refused.value.__notes__)
        postgresql.run(CREATE)
        postgresql.run("GRANT SELECT, INSERT, UPDATE ON tracedjobs_cursors TO humble")
        assert runtime.perform(job_id).ok
    assert postgresql.items == [1, 1, 1]
    postgresql.run("DROP TABLE tracedjobs_cursors, done")
    postgresql.run("DROP ROLE humble")


def test_a_step_that_catches_the_error_of_an_advance_goes_on_in_a_transaction(
    runtime: Runtime, postgresql: Database
) -> None:
    postgresql.run("ALTER TABLE done ADD UNIQUE (item) DEFERRABLE INITIALLY DEFERRED")

    @job(name="catching")
    def catching(ctx: Context) -> None:
        with closing(psycopg.connect(postgresql.address, autocommit=True)) as connection:

            @ctx.step("pages", start=0, transaction=connection)
            def pages(step: Any) -> None:
                connection.execute(INSERT)
                step.advance()
                connection.execute(INSERT)
                with pytest.raises(psycopg.errors.UniqueViolation):
                    step.advance()
                assert step.cursor == 1
                connection.execute("INSERT INTO done VALUES (2)")
                raise OSError

    assert runtime.perform(runtime.submit(catching)).reason == "error"
    assert postgresql.items == [1]


def test_a_cancelled_task_leaves_the_item_undone(runtime: Runtime, postgresql: Database) -> None:
    @job(name="cancelled")
    async def cancelled(ctx: AsyncContext) -> None:
        connection = await psycopg.AsyncConnection.connect(postgresql.address)
        try:
            async for item in ctx.each("items", range(3), transaction=connection):
                await connection.execute("INSERT INTO done VALUES (%s)", (item,))
                if (item, ctx.run) == (1, 1):
                    asyncio.current_task().cancel()  # type: ignore[union-attr]  # there is one
                    await asyncio.sleep(0)
        finally:
            await connection.close()

    job_id = runtime.submit(cancelled)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(runtime.perform_async(job_id))
    assert postgresql.items == [0]
    assert asyncio.run(runtime.perform_async(job_id)).ok
    assert postgresql.items == [0, 1, 2]


def test_the_page_shows_the_table_as_it_is_made() -> None:
    page = Path(__file__).parents[2] / "docs" / "transactions.md"
    assert f"```sql\n{CREATE}\n```" in page.read_text("utf-8")
