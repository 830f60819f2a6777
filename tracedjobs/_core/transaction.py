"""Effect and cursor in one transaction of the user's own database: items done exactly once.

The ledger is a table `tracedjobs_cursors` beside the user's data. The kinds of connection are in
`connections`; none is opened or closed here.

Why an old run cannot commit: whoever takes a job over raises the epoch in the ledger's row and
commits that, before it goes on from the cursor there. Each commit of an item updates that row
`WHERE epoch =` its own. Either the old run's update came first: then the new run's waits for its
commit, and reads its cursor. Or the new epoch came first: then the old run's update finds no row,
and its item is rolled back. Under REPEATABLE READ and SERIALIZABLE the second of two updates that
overlap fails instead of waiting on: the old run's item is then rolled back, the new run begins
with a new snapshot. What the new run reads is never older than its own update, for that would
have failed had the row changed since its snapshot.

The cursor of the ledger thus wins over the store's, which is saved apart from it and may be older,
or, after a rewind, newer: the number of rewinds tells these apart. A job that was purged and
submitted again under its id is another one: the time of its submission tells.
"""

from __future__ import annotations

import random
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NoReturn, cast

from tracedjobs._core import values
from tracedjobs._core.clock import wall_time
from tracedjobs._core.connections import connection_of, is_contention
from tracedjobs._core.records import Position
from tracedjobs._core.waiting import Ask

if TYPE_CHECKING:
    from tracedjobs._core.connections import Connection, Row, Values
    from tracedjobs._core.run import Run
    from tracedjobs._core.waiting import Flow

__all__ = ["CREATE", "Ledger", "ledger_on"]

TRIES: Final = 3
"""How often a ledger that others hold is asked, each time as long as its database waits."""

CREATE: Final = """CREATE TABLE IF NOT EXISTS tracedjobs_cursors (
    job_id VARCHAR(255) NOT NULL,
    step TEXT NOT NULL,
    submitted_at BIGINT NOT NULL,
    epoch BIGINT NOT NULL,
    rewinds BIGINT NOT NULL,
    cursor TEXT,
    items BIGINT NOT NULL,
    state TEXT,
    result TEXT,
    PRIMARY KEY (job_id, step)
)"""
LIMIT_WAIT: Final = """SELECT set_config('lock_timeout', '2000', true)
WHERE current_setting('lock_timeout') = '0'"""
"""For PostgreSQL, which else waits for ever; in this transaction alone, and only where the user has
set no limit."""
PROBE: Final = "SELECT 1 FROM tracedjobs_cursors WHERE job_id = :job_id AND step = :step"
ADD: Final = """INSERT INTO tracedjobs_cursors
(job_id, step, submitted_at, epoch, rewinds, cursor, items, state, result)
VALUES (:job_id, :step, :submitted_at, 0, :rewinds, NULL, 0, NULL, NULL)
ON CONFLICT (job_id, step) DO NOTHING"""
RAISE_EPOCH: Final = """UPDATE tracedjobs_cursors SET epoch = :epoch, submitted_at = :submitted_at,
cursor = CASE WHEN submitted_at = :submitted_at THEN cursor END
WHERE job_id = :job_id AND step = :step AND (submitted_at < :submitted_at
OR (submitted_at = :submitted_at AND epoch < :epoch))"""
READ: Final = """SELECT submitted_at, epoch, rewinds, cursor, items, state, result
FROM tracedjobs_cursors WHERE job_id = :job_id AND step = :step"""
WRITE: Final = """UPDATE tracedjobs_cursors
SET rewinds = :rewinds, cursor = :cursor, items = :items, state = :state, result = :result
WHERE job_id = :job_id AND step = :step AND submitted_at = :submitted_at AND epoch = :epoch"""


class Ledger:
    """The row of one step of one job, written in the user's transactions."""

    __slots__ = ("_begun", "_connection", "_run", "_step")

    def __init__(self, connection: Connection, run: Run, step: str) -> None:
        self._connection = connection
        self._run = run
        self._step = step
        self._begun = False

    def open(
        self, position: Position | None, start: str
    ) -> Flow[tuple[Position | None, str | None]]:
        """Shut out earlier runs, then read: the position to go on from, and the result if done.

        What the connection had pending is committed before. While others hold the ledger's row or
        the database's lock it is tried again a few times; then the run is interrupted, to wait for
        them in a later one: nothing is lost, and nothing was done.
        """
        yield from self._connection.settle()
        for tried in range(1, TRIES + 1):
            try:
                yield from self._make_table()
                return (yield from self._take_over(position, start))
            except BaseException as error:
                yield from self.rollback()
                if not isinstance(error, Exception) or not is_contention(error):
                    raise
                if tried == TRIES:
                    self._run.interrupt("database_locked")
            yield Ask(lambda: time.sleep(random.uniform(0.05, 0.2)))  # noqa: S311 - spreads retries
            yield from self._run.attend(advanced=False, consult=False)
        raise AssertionError

    def begin(self) -> Flow[None]:
        """Let what the user does from here on be in one transaction."""
        self._begun = True
        yield from self._connection.begin()

    def write(self, cursor: str, items: int, result: str | None = None) -> Flow[None]:
        """Commit what the user did since the last commit, together with this position.

        Ends the run when its epoch is no longer the row's; then, and on any error, all of it is
        rolled back.
        """
        try:
            written = self._written(cursor, items, result)
            changed = yield from self._connection.execute(WRITE, written)
            self._check_ours(changed)
            yield from self._commit()
        except BaseException:
            yield from self.rollback()
            raise

    def rollback(self) -> Flow[None]:
        """Take back what the user did since the last commit, if anything is pending.

        A connection that cannot is broken or closed: then its database does it.
        """
        if self._begun:
            self._begun = False
            with suppress(Exception):
                yield from self._connection.rollback()

    def _commit(self) -> Flow[None]:
        yield from self._connection.commit()
        self._begun = False

    def _make_table(self) -> Flow[None]:
        # Looked for first: a user who may not create tables is given one by who may.
        try:
            yield from self._look()
        except Exception as error:
            yield from self.rollback()
            if is_contention(error):
                raise
        else:
            return
        try:
            yield from self._begin_shortly()
            yield from self._connection.execute(CREATE, {})
            yield from self._commit()
        except Exception as error:
            yield from self.rollback()
            if is_contention(error):
                raise
            try:
                yield from self._look()  # somebody else may have made it just now
            except Exception:
                error.add_note(
                    f"tracedjobs keeps the cursor of step '{self._step}' in a table "
                    f"tracedjobs_cursors beside your data, and could not create it. Create it "
                    f"with a user who may:\n{CREATE}"
                )
                raise error from None

    def _begin_shortly(self) -> Flow[None]:
        yield from self.begin()
        if self._connection.database == "postgresql":
            yield from self._connection.fetch(LIMIT_WAIT, {})

    def _look(self) -> Flow[None]:
        yield from self._begin_shortly()
        yield from self._connection.fetch(PROBE, self._values())
        yield from self._commit()

    def _take_over(
        self, position: Position | None, start: str
    ) -> Flow[tuple[Position | None, str | None]]:
        # Twice: taking it back and doing it again shows that the connection has transactions.
        yield from self._raise_epoch(trial=True)
        yield from self.rollback()
        _, _, rewinds, cursor, items, state, result = yield from self._raise_epoch(trial=False)
        if rewinds != self._run.record.rewinds or cursor is None:
            told = position or Position(step=self._step, cursor=start)
            yield from self._connection.execute(WRITE, self._written(told.cursor, told.items, None))
            yield from self._commit()
            return position, None
        yield from self._commit()
        if position is None:
            found = Position(step=self._step, cursor=cursor, items=items, started_at=wall_time())
            newer = (cursor, items) != (start, 0)
        else:
            found = position._replace(cursor=cursor, items=items)
            newer = found != position
        if state is not None and (newer or result is not None):
            self._restore_state(state)
        return found, result

    def _raise_epoch(self, *, trial: bool) -> Flow[Row]:
        connection, ours = self._connection, self._values()
        yield from self._begin_shortly()
        yield from connection.execute(ADD, ours | {"rewinds": self._run.record.rewinds})
        changed = yield from connection.execute(RAISE_EPOCH, ours)
        row = cast("Row", (yield from connection.fetch(READ, ours)))
        if not trial and changed == 0 and row[:2] == (ours["submitted_at"], ours["epoch"]):
            msg = (
                f"transaction= of step '{self._step}' is a connection that commits each statement "
                f"by itself: what was rolled back is still there. Give one without AUTOCOMMIT."
            )
            raise TypeError(msg)
        self._check_ours(changed)
        return row

    def _restore_state(self, text: str) -> None:
        # The store's is older than the ledger's cursor. In place: the job may hold it already.
        state = self._run.touch_state()
        state.clear()
        state.update(cast("dict[object, object]", values.decode(text)))

    def _check_ours(self, changed: int) -> None:
        if changed < 0:
            msg = (
                f"transaction= of step '{self._step}' is a connection that does not tell how many "
                f"rows it changed, as in psycopg's pipeline mode; use it without."
            )
            raise TypeError(msg)
        if changed == 0:
            self._shut_out()

    def _shut_out(self) -> NoReturn:
        self._run.lose("another run has raised the epoch in tracedjobs_cursors")
        self._run.check()
        raise AssertionError

    def _values(self) -> Values:
        run = self._run
        return {
            "job_id": run.record.id,
            "step": self._step,
            "submitted_at": round(run.record.submitted_at * 1e6),
            "epoch": run.number,
        }

    def _written(self, cursor: str, items: int, result: str | None) -> Values:
        run = self._run
        state = run.state.text() if run.state.touched else None
        return self._values() | {
            "rewinds": run.record.rewinds,
            "cursor": cursor,
            "items": items,
            "state": state,
            "result": result,
        }


def ledger_on(connection: object, run: Run, step: str) -> Ledger:
    """The ledger on that connection; `TypeError` names the kinds there are."""
    return Ledger(connection_of(connection, step, is_async=run.is_async), run, step)
