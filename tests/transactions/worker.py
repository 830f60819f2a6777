"""A process that does the job of the chaos tests: `python -m tests.transactions.worker …`."""

from __future__ import annotations

import os
import sqlite3
import sys
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any

import psycopg

from tracedjobs import Context, Runtime, job
from tracedjobs.errors import LeaseLostError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.transactions.databases import Server

__all__ = ["fill"]


def connected(server: Server, address: str) -> Any:
    """A connection such as a user would open."""
    if server == "postgresql":
        return closing(psycopg.connect(f"{address} options='-c lock_timeout=300'"))
    raw = sqlite3.connect(address, timeout=0.2)
    with suppress(sqlite3.OperationalError):  # another holds the lock just now
        # The machine is not what fails here, and an fsync an item is slow.
        raw.execute("PRAGMA synchronous = OFF")
    return closing(raw)


@job(name="fill", max_resumptions=None)
def fill(ctx: Context, server: Server, address: str, items: int) -> str:
    """Inserts each number once, in a loop and then in a step; says when the first is in hand."""
    placeholder = "%s" if server == "postgresql" else "?"
    insert = f"INSERT INTO done (item) VALUES ({placeholder})"
    with connected(server, address) as connection:

        def numbers(cursor: object) -> Iterator[tuple[int, str]]:
            # Texts: the flight recorder holds integers only, so that the ledger alone knows.
            for number in range(int(str(cursor)) if cursor else 0, items):
                yield number, str(number + 1)

        for number in ctx.each("loop", numbers, transaction=connection):
            connection.execute(insert, (number,))
            say_once()

        def pages(step: Any) -> None:
            for number in range(step.cursor, 2 * items):
                connection.execute(insert, (number,))
                say_once()
                step.advance()

        ctx.step("pages", pages, start=items, transaction=connection)

        def last() -> None:
            connection.execute(insert, (2 * items,))

        ctx.step("last", last, transaction=connection)
    return "filled"


def say_once(said: list[bool] = []) -> None:  # noqa: B006 - remembers
    """Tell the parent that it is in the middle of an item."""
    if not said:
        said.append(True)
        os.write(1, b"in hand\n")


def main(store: str, job_id: str, lease_ttl: str) -> None:
    """Perform the job once."""
    with Runtime(store, lease_ttl=float(lease_ttl)) as runtime:
        try:
            outcome = runtime.perform(job_id)
        except LeaseLostError:
            os.write(1, b"lease lost\n")
        else:
            os.write(1, f"{outcome.status} {outcome.reason}\n".encode())


if __name__ == "__main__":
    main(*sys.argv[1:])
