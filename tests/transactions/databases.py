"""Every kind of connection that `transaction=` takes, opened on a real database.

What is in the table is always read by a connection of its own.
"""

from __future__ import annotations

import sqlite3
import sys
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, cast

import psycopg
import pytest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.both_ways import Flavour

__all__ = ["KINDS", "Database", "Kind", "Opened", "django_connection"]

Server = Literal["sqlite", "postgresql"]
INSERT: Final = "INSERT INTO done (item) VALUES ({})"


@dataclass(frozen=True, slots=True)
class Database:
    """A database with a table `done`, whose items may come twice: that is what is counted."""

    server: Server
    address: str

    def run(self, sql: str) -> list[tuple[Any, ...]]:
        """Do `sql` and commit; the rows."""
        if self.server == "sqlite":
            with closing(sqlite3.connect(self.address, isolation_level=None)) as raw:
                return raw.execute(sql).fetchall()
        with psycopg.connect(self.address, autocommit=True) as connection:
            # Not of psycopg's types: the statement is the test's own.
            cursor = connection.execute(cast("Any", sql))
            return cursor.fetchall() if cursor.description else []

    def make(self) -> None:
        """Begin with an empty table, and no ledger."""
        for table in ("done", "tracedjobs_cursors"):
            self.run(f"DROP TABLE IF EXISTS {table}")
        self.run("CREATE TABLE done (item INTEGER NOT NULL)")

    @property
    def items(self) -> list[int]:
        """What was committed."""
        return [item for (item,) in self.run("SELECT item FROM done ORDER BY item")]

    @property
    def url(self) -> str:
        """The address without driver, as SQLAlchemy writes it."""
        if self.server == "sqlite":
            return f"/{self.address}"
        words = dict(word.split("=") for word in self.address.split())
        return f"{words['user']}@/{words['dbname']}?host={words['host']}"


@dataclass(frozen=True, slots=True)
class Opened:
    """A connection of the user's, and how that user would write with it."""

    raw: Any
    kind: Kind

    async def insert(self, item: object) -> None:
        """Add a row in whatever transaction there is."""
        await self.run(INSERT.format(item))

    async def run(self, sql: str) -> None:
        """Do `sql` in whatever transaction there is."""
        if self.kind.library == "sqlalchemy":
            from sqlalchemy import text  # noqa: PLC0415 - a slow import

            result = self.raw.execute(text(sql))
        elif self.kind.library == "django":
            with self.raw.cursor() as cursor:
                cursor.execute(sql)
            return
        else:
            result = self.raw.execute(sql)
        if self.kind.awaited:
            await result

    async def commit(self) -> None:
        """Commit, where the user may."""
        result = self.raw.commit()
        if self.kind.awaited:
            await result


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of connection in one of its modes."""

    library: Literal["sqlite3", "psycopg", "sqlalchemy", "django"]
    server: Server
    what: str
    awaited: bool = False

    @property
    def flavour(self) -> Flavour:
        """The kind of job that it is for."""
        return "async def" if self.awaited else "def"

    def __str__(self) -> str:
        return f"{self.library}-{self.what}-{self.server}"

    @asynccontextmanager
    async def open(self, database: Database, *, isolation: str = "") -> AsyncIterator[Opened]:
        """A new connection, closed afterwards."""
        if self.library == "sqlite3":
            with closing(_sqlite(database, self.what)) as raw:
                yield Opened(raw, self)
        elif self.library == "django":
            with closing(django_connection(database)) as django:
                yield Opened(django, self)
        elif self.library == "sqlalchemy":
            async with _sqlalchemy(database, self, isolation) as connection:
                yield Opened(connection, self)
        else:
            autocommit = self.what.endswith("autocommit")
            options = f" options='-c default_transaction_isolation={isolation}'"
            address = database.address + (options if isolation else "")
            if self.awaited:
                made = await psycopg.AsyncConnection.connect(address, autocommit=autocommit)
                try:
                    yield Opened(made, self)
                finally:
                    await made.close()
            else:
                with closing(psycopg.connect(address, autocommit=autocommit)) as plain:
                    yield Opened(plain, self)


def _sqlite(database: Database, what: str) -> sqlite3.Connection:
    raw: Any = sqlite3.connect
    if what == "no isolation_level":
        return cast("sqlite3.Connection", raw(database.address, isolation_level=None))
    if what.startswith("autocommit="):
        return cast("sqlite3.Connection", raw(database.address, autocommit=what.endswith("True")))
    return cast("sqlite3.Connection", raw(database.address))


@asynccontextmanager
async def _sqlalchemy(database: Database, kind: Kind, isolation: str) -> AsyncIterator[Any]:
    from sqlalchemy import NullPool, create_engine  # noqa: PLC0415 - a slow import
    from sqlalchemy.ext import asyncio as sa  # noqa: PLC0415 - the same
    from sqlalchemy.orm import Session  # noqa: PLC0415 - the same

    options: dict[str, Any] = {"poolclass": NullPool}
    if isolation:
        options["isolation_level"] = isolation
    if kind.awaited:
        driver = "sqlite+aiosqlite" if kind.server == "sqlite" else "postgresql+psycopg_async"
        async_engine = sa.create_async_engine(f"{driver}://{_slashed(database)}", **options)
        if kind.what == "AsyncSession":
            async with sa.AsyncSession(async_engine) as session:
                yield session
        else:
            async with async_engine.connect() as connection:
                yield connection
        await async_engine.dispose()
        return
    driver = "sqlite" if kind.server == "sqlite" else "postgresql+psycopg"
    engine = create_engine(f"{driver}://{_slashed(database)}", **options)
    if kind.what == "Session":
        with Session(engine) as plain_session:
            yield plain_session
    else:
        with engine.connect() as plain_connection:
            yield plain_connection
    engine.dispose()


def _slashed(database: Database) -> str:
    return database.url if database.server == "postgresql" else f"/{database.address}"


def django_connection(database: Database) -> Any:
    """A connection of Django's to that database, under an alias of its own."""
    import django  # type: ignore[import-untyped]  # noqa: PLC0415 - a slow import
    from django.conf import settings  # type: ignore[import-untyped]  # noqa: PLC0415

    if not settings.configured:
        settings.configure(DATABASES={}, USE_TZ=True)
        django.setup()
    from django.db import connections  # type: ignore[import-untyped]  # noqa: PLC0415

    alias = f"tests_{database.server}"
    if database.server == "sqlite":
        options: dict[str, Any] = {"ENGINE": "django.db.backends.sqlite3", "NAME": database.address}
    else:
        words = dict(word.split("=") for word in database.address.split())
        options = {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": words["dbname"],
            "USER": words["user"],
            "HOST": words["host"],
        }
    connections.settings[alias] = connections.configure_settings({"default": {}, alias: options})[
        alias
    ]
    if hasattr(connections._connections, alias):
        del connections[alias]
    return connections[alias]


_PLAIN: Final = [
    Kind("sqlite3", "sqlite", "isolation_level"),
    Kind("sqlite3", "sqlite", "no isolation_level"),
    Kind("sqlite3", "sqlite", "autocommit=True"),
    Kind("sqlite3", "sqlite", "autocommit=False"),
    Kind("psycopg", "postgresql", "Connection"),
    Kind("psycopg", "postgresql", "Connection-autocommit"),
    Kind("sqlalchemy", "sqlite", "Session"),
    Kind("sqlalchemy", "postgresql", "Session"),
    Kind("sqlalchemy", "sqlite", "Connection"),
    Kind("sqlalchemy", "postgresql", "Connection"),
    Kind("django", "sqlite", "connection"),
    Kind("django", "postgresql", "connection"),
]
_AWAITED: Final = [
    Kind("psycopg", "postgresql", "AsyncConnection", awaited=True),
    Kind("psycopg", "postgresql", "AsyncConnection-autocommit", awaited=True),
    Kind("sqlalchemy", "sqlite", "AsyncSession", awaited=True),
    Kind("sqlalchemy", "postgresql", "AsyncSession", awaited=True),
    Kind("sqlalchemy", "sqlite", "AsyncConnection", awaited=True),
    Kind("sqlalchemy", "postgresql", "AsyncConnection", awaited=True),
]
_SINCE_3_12: Final = pytest.mark.skipif(
    sys.version_info < (3, 12), reason="sqlite3's autocommit came with Python 3.12"
)
KINDS: Final = [
    pytest.param(kind, id=str(kind), marks=_SINCE_3_12 if "autocommit=" in kind.what else ())
    for kind in (*_PLAIN, *_AWAITED)
]
