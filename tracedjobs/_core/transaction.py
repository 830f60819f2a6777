"""Effect and cursor in one transaction of the user's own database: items done exactly once.

The ledger is a table `tracedjobs_cursors` beside the user's data. It knows how to talk to the
kinds of connection that `ledger_on` lists; it opens and closes none.

Why an old run cannot commit: whoever takes a job over raises the epoch in the ledger's row and
commits that, before it reads the cursor there. Each commit of an item updates that row `WHERE
epoch =` its own. Either the old run's update came first: then the new run's waits for its commit,
and reads its cursor. Or the new epoch came first: then the old run's update finds no row, and its
item is rolled back. The cursor of the ledger thus wins over the store's, which is saved apart from
it and may be older, or, after a rewind, newer: the number of rewinds tells these apart.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

from tracedjobs._core.clock import wall_time
from tracedjobs._core.records import Position
from tracedjobs._core.waiting import Call

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tracedjobs._core.run import Run
    from tracedjobs._core.waiting import Flow

__all__ = ["Ledger", "ledger_on"]

Row = tuple[Any, ...]
Values = dict[str, object]

CREATE: Final = """CREATE TABLE IF NOT EXISTS tracedjobs_cursors (
    job_id VARCHAR(255) NOT NULL,
    step VARCHAR(255) NOT NULL,
    epoch BIGINT NOT NULL,
    rewinds BIGINT NOT NULL,
    cursor TEXT,
    items BIGINT NOT NULL,
    result TEXT,
    PRIMARY KEY (job_id, step)
)"""
PROBE: Final = "SELECT 1 FROM tracedjobs_cursors WHERE job_id = :job_id AND step = :step"
ADD: Final = """INSERT INTO tracedjobs_cursors (job_id, step, epoch, rewinds, cursor, items, result)
VALUES (:job_id, :step, 0, :rewinds, NULL, 0, NULL) ON CONFLICT (job_id, step) DO NOTHING"""
RAISE_EPOCH: Final = """UPDATE tracedjobs_cursors SET epoch = :epoch
WHERE job_id = :job_id AND step = :step AND epoch < :epoch"""
READ: Final = """SELECT rewinds, cursor, items, result FROM tracedjobs_cursors
WHERE job_id = :job_id AND step = :step"""
WRITE: Final = """UPDATE tracedjobs_cursors
SET rewinds = :rewinds, cursor = :cursor, items = :items, result = :result
WHERE job_id = :job_id AND step = :step AND epoch = :epoch"""


class _Connection(Protocol):
    def begin(self) -> Flow[object]: ...

    def execute(self, sql: str, values: Values) -> Flow[int]: ...

    def fetch(self, sql: str, values: Values) -> Flow[Row | None]: ...

    def commit(self) -> Flow[object]: ...

    def rollback(self) -> Flow[object]: ...


class Ledger:
    """The row of one step of one job, written in the user's transactions."""

    __slots__ = ("_connection", "_run", "_step")

    def __init__(self, connection: _Connection, run: Run, step: str) -> None:
        self._connection = connection
        self._run = run
        self._step = step

    def open(
        self, position: Position | None, start: str
    ) -> Flow[tuple[Position | None, str | None]]:
        """Shut out earlier runs, then read: the position to go on from, and the result if done.

        What the connection had pending is committed with it.
        """
        connection, rewinds = self._connection, self._run.record.rewinds
        yield from self._make_table()
        yield from connection.begin()
        yield from connection.execute(ADD, self._values(rewinds=rewinds))
        if not (yield from connection.execute(RAISE_EPOCH, self._values())):
            yield from self._shut_out()
        row = yield from connection.fetch(READ, self._values())
        known_rewinds, cursor, items, result = cast("Row", row)
        if known_rewinds != rewinds or cursor is None:
            told = position or Position(step=self._step, cursor=start)
            yield from connection.execute(WRITE, self._written(told.cursor, told.items, None))
            found, result = position, None
        elif position is None:
            found = Position(step=self._step, cursor=cursor, items=items, started_at=wall_time())
        else:
            found = replace(position, cursor=cursor, items=items)
        yield from connection.commit()
        return found, result

    def begin(self) -> Flow[None]:
        """Let what the user does from here on be in one transaction."""
        yield from self._connection.begin()

    def write(self, cursor: str, items: int, result: str | None = None) -> Flow[None]:
        """Commit what the user did since the last commit, together with this position.

        Ends the run when its epoch is no longer the row's; then, and on any error, all of it is
        rolled back.
        """
        connection = self._connection
        try:
            ours = yield from connection.execute(WRITE, self._written(cursor, items, result))
            if not ours:
                yield from self._shut_out()
            yield from connection.commit()
        except BaseException:
            yield from connection.rollback()
            raise

    def rollback(self) -> Flow[None]:
        """Take back what the user did since the last commit."""
        yield from self._connection.rollback()

    def _make_table(self) -> Flow[None]:
        # Looked for first: a user who may not create tables is given one by who may.
        connection = self._connection
        try:
            yield from connection.begin()
            yield from connection.fetch(PROBE, self._values())
        except Exception:
            yield from connection.rollback()
            yield from connection.begin()
            yield from connection.execute(CREATE, {})
        yield from connection.commit()

    def _shut_out(self) -> Flow[None]:
        yield from self._connection.rollback()
        self._run.lose("another run has raised the epoch in tracedjobs_cursors")
        self._run.check()

    def _values(self, **more: object) -> Values:
        run = self._run
        return {"job_id": run.record.id, "step": self._step, "epoch": run.number, **more}

    def _written(self, cursor: str, items: int, result: str | None) -> Values:
        rewinds = self._run.record.rewinds
        return self._values(rewinds=rewinds, cursor=cursor, items=items, result=result)


def ledger_on(connection: object, run: Run, step: str) -> Ledger:
    """The ledger on that kind of connection; `TypeError` names the kinds there are."""
    kinds = {each.__module__.partition(".")[0] for each in type(connection).__mro__}
    made: _Connection
    if "sqlite3" in kinds:
        made = _SQLite(connection)
    elif "psycopg" in kinds:
        made = _Psycopg(connection)
    elif "sqlalchemy" in kinds and hasattr(connection, "execute"):
        made = _SQLAlchemy(connection)
    elif "django" in kinds and hasattr(connection, "set_autocommit"):
        made = _Django(connection)
    else:
        msg = (
            f"transaction= of step '{step}' is a {type(connection).__name__}; it must be a "
            f"connection of sqlite3 or psycopg, a SQLAlchemy Session or Connection (async ones "
            f"too), or one of django.db.connections."
        )
        raise TypeError(msg)
    return Ledger(made, run, step)


class _SQLite:
    """sqlite3, in each of its modes of autocommit."""

    def __init__(self, connection: Any) -> None:
        self._raw = connection
        # `autocommit` came with Python 3.12; before it, and beside it, `isolation_level` tells.
        self._explicit = (
            connection.isolation_level is None or getattr(connection, "autocommit", -1) is True
        )

    def begin(self) -> Flow[object]:
        def work() -> None:
            if self._explicit and not self._raw.in_transaction:
                self._raw.execute("BEGIN IMMEDIATE")

        return (yield Call(work))

    def execute(self, sql: str, values: Values) -> Flow[int]:
        cursor = yield Call(lambda: self._raw.execute(sql, values))
        return int(cast("Any", cursor).rowcount)

    def fetch(self, sql: str, values: Values) -> Flow[Row | None]:
        row = yield Call(lambda: self._raw.cursor().execute(sql, values).fetchone())
        return None if row is None else tuple(cast("Row", row))

    def commit(self) -> Flow[object]:
        return (yield Call(lambda: self._end("COMMIT", self._raw.commit)))

    def rollback(self) -> Flow[object]:
        return (yield Call(lambda: self._end("ROLLBACK", self._raw.rollback)))

    def _end(self, word: str, method: Any) -> None:
        if not self._explicit:
            method()
        elif self._raw.in_transaction:
            self._raw.execute(word)


class _Psycopg:
    """psycopg 3, Connection and AsyncConnection."""

    def __init__(self, connection: Any) -> None:
        self._raw = connection

    def begin(self) -> Flow[object]:
        if not self._raw.autocommit or self._raw.info.transaction_status != 0:
            return None
        return (yield Call(lambda: self._raw.execute("BEGIN")))

    def execute(self, sql: str, values: Values) -> Flow[int]:
        cursor = yield Call(lambda: self._raw.execute(_pyformat(sql), values))
        return int(cast("Any", cursor).rowcount)

    def fetch(self, sql: str, values: Values) -> Flow[Row | None]:
        # Its own row factory: the user's may make anything of a row.
        cursor: Any = yield Call(lambda: self._raw.cursor(row_factory=_tuple_row))
        yield Call(lambda: cursor.execute(_pyformat(sql), values))
        row = yield Call(cursor.fetchone)
        return cast("Row | None", row)

    def commit(self) -> Flow[object]:
        return (yield Call(self._raw.commit))

    def rollback(self) -> Flow[object]:
        return (yield Call(self._raw.rollback))


class _SQLAlchemy:
    """SQLAlchemy's Session and Connection, and their async forms."""

    def __init__(self, connection: Any) -> None:
        self._raw = connection

    def begin(self) -> Flow[object]:
        yield from ()  # it begins by itself
        return None

    def execute(self, sql: str, values: Values) -> Flow[int]:
        result = yield Call(lambda: self._raw.execute(_text(sql), values))
        return int(cast("Any", result).rowcount)

    def fetch(self, sql: str, values: Values) -> Flow[Row | None]:
        result = yield Call(lambda: self._raw.execute(_text(sql), values))
        row = cast("Any", result).fetchone()
        return None if row is None else tuple(row)

    def commit(self) -> Flow[object]:
        return (yield Call(self._raw.commit))

    def rollback(self) -> Flow[object]:
        return (yield Call(self._raw.rollback))


class _Django:
    """One of `django.db.connections`, outside of `atomic`."""

    def __init__(self, connection: Any) -> None:
        self._raw = connection

    def begin(self) -> Flow[object]:
        def work() -> None:
            if self._raw.in_atomic_block:
                msg = (
                    "transaction= was given a Django connection inside atomic(): the loop commits "
                    "each item by itself, so run it outside."
                )
                raise TypeError(msg)
            if self._raw.get_autocommit():
                self._raw.set_autocommit(False)

        return (yield Call(work))

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

    def commit(self) -> Flow[object]:
        return (yield Call(lambda: self._end(self._raw.commit)))

    def rollback(self) -> Flow[object]:
        return (yield Call(lambda: self._end(self._raw.rollback)))

    def _end(self, method: Any) -> None:
        method()
        self._raw.set_autocommit(True)


_PARAMETER: Final = re.compile(r":(\w+)")


def _pyformat(sql: str) -> str:
    return _PARAMETER.sub(r"%(\1)s", sql)


def _positional(sql: str, values: Mapping[str, object]) -> tuple[str, list[object]]:
    return _PARAMETER.sub("%s", sql), [values[name] for name in _PARAMETER.findall(sql)]


def _text(sql: str) -> object:
    from sqlalchemy import text  # noqa: PLC0415 - the user's, there when one is given

    return text(sql)


def _tuple_row(cursor: object) -> object:
    from psycopg.rows import tuple_row  # noqa: PLC0415 - the user's, there when one is given

    return tuple_row(cast("Any", cursor))
