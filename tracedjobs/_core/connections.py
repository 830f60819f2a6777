"""The kinds of connection that `transaction=` takes, each behind the same six calls.

None is opened or closed here, and of the drivers none is imported before it is used.
"""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

from tracedjobs._core.waiting import Call

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tracedjobs._core.waiting import Flow

__all__ = ["Connection", "Row", "Values", "connection_of", "is_contention"]

Row = tuple[Any, ...]
Values = dict[str, object]

DATABASES: Final = frozenset({"sqlite", "postgresql"})
CONTENDED: Final = frozenset({"40001", "40P01", "55P03"})
"""PostgreSQL: serialization failure, deadlock, lock not available."""
SQLITE_CONTENDED: Final = frozenset({5, 6})
"""SQLITE_BUSY and SQLITE_LOCKED."""


class Connection(Protocol):
    """What the ledger needs of a connection; parameters are written `:name`."""

    @property
    def database(self) -> str:
        """One of `DATABASES`."""
        ...

    def settle(self) -> Flow[None]:
        """Commit what is pending from before."""
        ...

    def begin(self) -> Flow[None]:
        """Let what follows be in one transaction."""
        ...

    def execute(self, sql: str, values: Values) -> Flow[int]:
        """How many rows it changed; negative where the driver cannot tell yet."""
        ...

    def fetch(self, sql: str, values: Values) -> Flow[Row | None]:
        """The first row."""
        ...

    def commit(self) -> Flow[None]:
        """Commit what was done since `begin`."""
        ...

    def rollback(self) -> Flow[None]:
        """Take back what was done since `begin`."""
        ...


def connection_of(raw: object, step: str, *, is_async: bool) -> Connection:
    """The one for that kind; `TypeError` names the kinds there are."""
    kinds = {each.__module__.partition(".")[0] for each in type(raw).__mro__}
    made: type[_SQLite | _Psycopg | _SQLAlchemy | _Django] | None = None
    if hasattr(raw, "commit") and hasattr(raw, "rollback"):
        if "sqlite3" in kinds:
            made = _SQLite
        elif "psycopg" in kinds:
            made = _Psycopg
        elif "sqlalchemy" in kinds:
            made = _SQLAlchemy
        elif "django" in kinds and hasattr(raw, "set_autocommit"):
            made = _Django
    what = f"transaction= of step '{step}' is a {type(raw).__name__}"
    if made is None:
        msg = (
            f"{what}; it must be a connection of sqlite3 or psycopg, a SQLAlchemy Session or "
            f"Connection (async ones too), or one of django.db.connections."
        )
        raise TypeError(msg)
    if not is_async and inspect.iscoroutinefunction(cast("Any", raw).commit):
        msg = f"{what}, which must be awaited; make the job an async def function."
        raise TypeError(msg)
    connection = made(raw)
    if connection.database not in DATABASES:
        msg = f"{what} to {connection.database}; it must be to {' or '.join(sorted(DATABASES))}."
        raise TypeError(msg)
    return connection


def is_contention(error: BaseException | None) -> bool:
    """Whether the database refused because of what others are doing just now."""
    while error is not None:
        code = getattr(error, "sqlite_errorcode", None)
        if isinstance(code, int) and code & 0xFF in SQLITE_CONTENDED:
            return True
        if getattr(error, "sqlstate", None) in CONTENDED:
            return True
        error = getattr(error, "orig", None) or error.__cause__
    return False


class _SQLite:
    """sqlite3, in each of its modes of autocommit."""

    database: Final = "sqlite"

    def __init__(self, raw: Any) -> None:
        self._raw = raw
        # `autocommit` came with Python 3.12; -1 is its word for "as `isolation_level` says".
        autocommit = getattr(raw, "autocommit", -1)
        self._explicit = autocommit is True or (
            autocommit is not False and raw.isolation_level is None
        )

    def settle(self) -> Flow[None]:
        yield from self.commit()

    def begin(self) -> Flow[None]:
        # IMMEDIATE: with a plain BEGIN, an item that reads before it writes could fail at once
        # when another process has written in between.
        if self._explicit and not self._raw.in_transaction:
            yield Call(lambda: self._raw.execute("BEGIN IMMEDIATE"))

    def execute(self, sql: str, values: Values) -> Flow[int]:
        cursor = yield Call(lambda: self._raw.execute(sql, values))
        return int(cast("Any", cursor).rowcount)

    def fetch(self, sql: str, values: Values) -> Flow[Row | None]:
        def work() -> Row | None:
            # The user's factories may make anything of a row and of a text.
            cursor = self._raw.cursor()
            cursor.row_factory = None
            row = cursor.execute(sql, values).fetchone()
            return None if row is None else tuple(_text_of(each) for each in row)

        return cast("Row | None", (yield Call(work)))

    def commit(self) -> Flow[None]:
        yield Call(lambda: self._end("COMMIT", self._raw.commit))

    def rollback(self) -> Flow[None]:
        yield Call(lambda: self._end("ROLLBACK", self._raw.rollback))

    def _end(self, word: str, method: Any) -> None:
        if not self._explicit:
            method()
        elif self._raw.in_transaction:
            self._raw.execute(word)


class _Psycopg:
    """psycopg 3, Connection and AsyncConnection.

    With its own transaction blocks, for these refuse a commit by the user inside an item.
    """

    database: Final = "postgresql"

    def __init__(self, raw: Any) -> None:
        import psycopg  # noqa: PLC0415 - the user's, there when one is given

        self._raw = raw
        self._is_async = isinstance(raw, psycopg.AsyncConnection)
        self._block: Any = None

    def settle(self) -> Flow[None]:
        if not self._idle:
            yield Call(self._raw.commit)

    def begin(self) -> Flow[None]:
        # Else the block would be a savepoint in what the source's reading has begun.
        yield from self.settle()
        from psycopg import AsyncTransaction, Transaction  # noqa: PLC0415 - as above

        block: Any = (AsyncTransaction if self._is_async else Transaction)(self._raw)
        yield Call(block.__aenter__ if self._is_async else block.__enter__)
        self._block = block

    def execute(self, sql: str, values: Values) -> Flow[int]:
        cursor = yield from self._run(sql, values)
        return int(cursor.rowcount)

    def fetch(self, sql: str, values: Values) -> Flow[Row | None]:
        cursor = yield from self._run(sql, values)
        return cast("Row | None", (yield Call(cursor.fetchone)))

    def commit(self) -> Flow[None]:
        yield from self._leave(None)

    def rollback(self) -> Flow[None]:
        from psycopg import Rollback  # noqa: PLC0415 - as above

        yield from self._leave(Rollback())
        if not self._idle:
            yield Call(self._raw.rollback)

    def _leave(self, error: BaseException | None) -> Flow[None]:
        block, self._block = self._block, None
        if block is not None:
            leave = block.__aexit__ if self._is_async else block.__exit__
            yield Call(lambda: leave(None if error is None else type(error), error, None))

    def _run(self, sql: str, values: Values) -> Flow[Any]:
        import psycopg  # noqa: PLC0415 - as above
        from psycopg.rows import tuple_row  # noqa: PLC0415 - as above

        # A cursor of our own: the user's factories may make anything of a query and of a row.
        kind: Any = psycopg.AsyncCursor if self._is_async else psycopg.Cursor
        cursor = kind(self._raw, row_factory=tuple_row)
        yield Call(lambda: cursor.execute(_PARAMETER.sub(r"%(\1)s", sql), values))
        return cursor

    @property
    def _idle(self) -> bool:
        return int(self._raw.info.transaction_status) == 0


class _SQLAlchemy:
    """SQLAlchemy's Session and Connection, and their async forms."""

    def __init__(self, raw: Any) -> None:
        self._raw = raw
        bound = raw.get_bind() if hasattr(raw, "get_bind") else raw
        self.database = str(bound.dialect.name)

    def settle(self) -> Flow[None]:
        yield from self.commit()

    def begin(self) -> Flow[None]:
        yield from ()  # it begins by itself

    def execute(self, sql: str, values: Values) -> Flow[int]:
        result = yield from self._run(sql, values)
        return int(result.rowcount)

    def fetch(self, sql: str, values: Values) -> Flow[Row | None]:
        row = (yield from self._run(sql, values)).fetchone()
        return None if row is None else tuple(row)

    def commit(self) -> Flow[None]:
        yield Call(self._raw.commit)

    def rollback(self) -> Flow[None]:
        yield Call(self._raw.rollback)

    def _run(self, sql: str, values: Values) -> Flow[Any]:
        from sqlalchemy import text  # noqa: PLC0415 - the user's, there when one is given

        # It wants all that the statement names, and nothing else.
        wanted = {name: values[name] for name in _PARAMETER.findall(sql)}
        return (yield Call(lambda: self._raw.execute(text(sql), wanted)))


class _Django:
    """One of `django.db.connections`. With its own `atomic`, for that refuses a user's commit."""

    def __init__(self, raw: Any) -> None:
        self._raw = raw
        self._atomic: Any = None
        self.database = str(raw.vendor)

    def settle(self) -> Flow[None]:
        yield Call(self._check_free)

    def begin(self) -> Flow[None]:
        # The user's, there when one is given; it brings no types.
        from django.db.transaction import (  # type: ignore[import-untyped]  # noqa: PLC0415
            Atomic,
        )

        atomic: Any = Atomic(self._raw.alias, savepoint=True, durable=False)
        yield Call(atomic.__enter__)
        self._atomic = atomic

    def execute(self, sql: str, values: Values) -> Flow[int]:
        def work() -> int:
            with self._raw.cursor() as cursor:
                cursor.execute(*_positional(sql, values))
                return int(cursor.rowcount)

        return cast("int", (yield Call(work)))

    def fetch(self, sql: str, values: Values) -> Flow[Row | None]:
        def work() -> Row | None:
            with self._raw.cursor() as cursor:
                cursor.execute(*_positional(sql, values))
                return cast("Row | None", cursor.fetchone())

        return cast("Row | None", (yield Call(work)))

    def commit(self) -> Flow[None]:
        yield from self._leave(None)

    def rollback(self) -> Flow[None]:
        yield from self._leave(_TakenBackError())

    def _leave(self, error: BaseException | None) -> Flow[None]:
        atomic, self._atomic = self._atomic, None
        if atomic is not None:
            kind = None if error is None else type(error)
            yield Call(lambda: atomic.__exit__(kind, error, None))

    def _check_free(self) -> None:
        # Django's TestCase wraps each test in one; its end takes everything back anyway.
        blocks: Any = getattr(self._raw, "atomic_blocks", ())
        of_test = bool(blocks) and getattr(blocks[-1], "_from_testcase", False)
        if self._raw.in_atomic_block and not of_test:
            msg = (
                "transaction= is a Django connection inside atomic(): each item is committed by "
                "itself, so run the job outside of it."
            )
            raise TypeError(msg)
        if not self._raw.in_atomic_block and not self._raw.get_autocommit():
            msg = "transaction= is a Django connection without autocommit; leave AUTOCOMMIT on."
            raise TypeError(msg)


class _TakenBackError(Exception):
    """Tells `atomic` to roll back."""


_PARAMETER: Final = re.compile(r":(\w+)")


def _positional(sql: str, values: Mapping[str, object]) -> tuple[str, list[object]]:
    return _PARAMETER.sub("%s", sql), [values[name] for name in _PARAMETER.findall(sql)]


def _text_of(value: object) -> object:
    return value.decode() if isinstance(value, bytes) else value
