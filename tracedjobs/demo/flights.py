"""The job of the demo: 336,776 flights from a CSV file into a SQLite database, in three steps.

Only the `writes` table and its trigger are there for the demo's sake: they count what is done
again. Without them this is what an import of your own looks like.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import Final

from tracedjobs import Context, job
from tracedjobs.sources import csv_rows

__all__ = ["COLUMNS", "STEPS", "import_flights", "opened"]

STEPS: Final = ("initialize", "import_rows", "finalize")

COLUMNS: Final = {
    "year": "INTEGER",
    "month": "INTEGER",
    "day": "INTEGER",
    "dep_time": "INTEGER",
    "sched_dep_time": "INTEGER",
    "dep_delay": "INTEGER",
    "arr_time": "INTEGER",
    "sched_arr_time": "INTEGER",
    "arr_delay": "INTEGER",
    "carrier": "TEXT",
    "flight": "INTEGER",
    "tailnum": "TEXT",
    "origin": "TEXT",
    "dest": "TEXT",
    "air_time": "INTEGER",
    "distance": "INTEGER",
    "hour": "INTEGER",
    "minute": "INTEGER",
    "time_hour": "TEXT",
}

# The key is where the row begins in the file: a row that is imported again replaces itself.
_TABLES: Final = f"""
CREATE TABLE IF NOT EXISTS flights (
    starts_at INTEGER PRIMARY KEY,
    {", ".join(f"{name} {kind}" for name, kind in COLUMNS.items())}
);
CREATE TABLE IF NOT EXISTS writes (id INTEGER PRIMARY KEY, starts_at INTEGER, at REAL);
CREATE TRIGGER IF NOT EXISTS count_writes AFTER INSERT ON flights BEGIN
    INSERT INTO writes (starts_at, at)
    VALUES (new.starts_at, (julianday('now') - 2440587.5) * 86400.0);
END;
"""  # noqa: S608 - the columns above

_VALUES: Final = ", ".join("nullif(?, 'NA')" for _ in COLUMNS)
_INSERT: Final = f"INSERT OR REPLACE INTO flights VALUES (?, {_VALUES})"  # noqa: S608 - as above


@job(steps=STEPS)
def import_flights(ctx: Context, csv_path: str, database: str) -> int:
    """Import the flights of `csv_path` into the table `flights` of `database`; their number."""
    with closing(opened(database)) as db:  # outside a step: done in every run
        ctx.step("initialize", initialize, db)

        rows = ctx.each("import_rows", csv_rows(csv_path))
        for row in rows:
            # Its own transaction: the row is there before the loop asks for the next one.
            db.execute(_INSERT, (rows.cursor or 0, *row.values()))

        return ctx.step("finalize", finalize, db)


def initialize(db: sqlite3.Connection) -> None:
    """Make the tables."""
    db.executescript(_TABLES)


def finalize(db: sqlite3.Connection) -> int:
    """Make the index, and count."""
    db.execute("CREATE INDEX IF NOT EXISTS flights_by_route ON flights (origin, dest)")
    (count,) = db.execute("SELECT count(*) FROM flights").fetchone()
    return int(count)


def opened(database: str) -> sqlite3.Connection:
    """The database, each statement a transaction.

    NORMAL keeps every row however the process ends. To keep them through a loss of power as well,
    take FULL, and `csv_rows` in batches, for then each transaction waits for the disk.
    """
    db = sqlite3.connect(database, timeout=30.0, isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = NORMAL")
    return db
