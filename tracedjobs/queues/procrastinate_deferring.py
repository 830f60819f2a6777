"""How rows and records come to be together, and under a number that the store does not have yet.

Procrastinate numbers its jobs in each database from 1. The store may have a number from another
database, or from this one before it was made anew; then the row takes a later one.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, contextmanager
from contextvars import copy_context
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from procrastinate import PsycopgConnector, SyncPsycopgConnector
from procrastinate.sync_psycopg_connector import wrap_exceptions

from tracedjobs._core.waiting import Ask, Call, Flow
from tracedjobs.errors import JobConflictError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence

    from procrastinate.jobs import Job as Row

    Record = Callable[[Sequence[Row]], list[int]]

__all__ = ["deferring", "transaction", "transaction_async", "when_committed"]

SKIPS: Final = tuple(2**power for power in range(20))
"""How many numbers are passed over, each time that the next one is taken: a million together."""
FURTHER_ON: Final = """
WITH gone AS (DELETE FROM procrastinate_jobs WHERE id = ANY(%(rows)s))
SELECT count(nextval(pg_get_serial_sequence('procrastinate_jobs', 'id')))
FROM generate_series(1, %(skip)s)
"""


def deferring(
    jobs: list[Row], defer: Callable[..., Any], held: Any, record: Record
) -> Flow[tuple[list[Row], BaseException | None]]:
    """Insert the rows on the connection `held`, in its transaction, and record their jobs.

    `record` gives the places of those whose number the store has. Gives the rows too, and what is
    to be raised after the commit: a cancellation that came when the jobs were recorded already.
    """
    late: BaseException | None = None
    context = copy_context()
    sent: list[Row] = list((yield Call(lambda: defer(jobs=jobs, connection=held))))  # type: ignore[call-overload]  # rows
    left = list(range(len(sent)))
    for skip in SKIPS:
        taken: list[int] = []
        new = [sent[place] for place in left]
        try:
            yield Ask(lambda taken=taken, new=new: taken.extend(context.run(record, new)))  # type: ignore[misc]  # defaults bind
        except asyncio.CancelledError as error:
            late = error
        if not taken:
            return sent, late
        left = [left[place] for place in taken]
        gone = {"rows": [sent[place].id for place in left], "skip": skip}
        again = [jobs[place] for place in left]
        yield Call(lambda gone=gone: held.execute(FURTHER_ON, gone))  # type: ignore[misc]  # a default binds
        made: Any = yield Call(lambda again=again: defer(jobs=again, connection=held))  # type: ignore[misc]  # a default binds
        for place, row in zip(left, made, strict=True):
            sent[place] = row
    msg = (
        f"The store has a job {sent[left[0]].id} already, and many before it, of another database. "
        f"Procrastinate numbers its jobs in each from 1: give each a store of its own."
    )
    raise JobConflictError(msg)


@contextmanager
def transaction(connector: Any) -> Iterator[Any]:
    """A connection on which what is deferred is seen by nobody before the end of the block.

    `None` where the connector is one that is not known.
    """
    if not isinstance(connector, SyncPsycopgConnector):
        yield None
        return
    with wrap_exceptions(), connector.pool.connection() as held, held.transaction():
        yield held


@asynccontextmanager
async def transaction_async(connector: Any) -> AsyncIterator[Any]:
    """See `transaction`."""
    if not isinstance(connector, PsycopgConnector):
        yield None
        return
    with wrap_exceptions():
        async with connector.pool.connection() as held, held.transaction():
            yield held


def when_committed(connector: Any, work: Callable[[], object]) -> None:
    """Now, or at the end of the transaction of Django's that the block is in."""
    if type(connector).__module__.startswith("procrastinate.contrib.django"):
        import_module("django.db.transaction").on_commit(work, using=connector.alias)
    else:
        work()
