"""Import a CSV file into SQLite: stop it with Ctrl-C, kill it, and it goes on where it was.

    tracedjobs run examples/flights_import.py:import_flights flights.csv flights.db --job-id flights

The same line resumes it. `tracedjobs demo` does this to 336,776 flights, and checks every row.
"""

import sqlite3
from contextlib import closing

from tracedjobs import Context, job
from tracedjobs.sources import csv_rows

TABLE = """
CREATE TABLE IF NOT EXISTS flights (
    starts_at INTEGER PRIMARY KEY,  -- where the row begins in the file
    carrier TEXT, flight INTEGER, origin TEXT, dest TEXT, time_hour TEXT, arr_delay INTEGER
)
"""
INSERT = "INSERT OR REPLACE INTO flights VALUES (?, ?, ?, ?, ?, ?, nullif(?, 'NA'))"
COLUMNS = ("carrier", "flight", "origin", "dest", "time_hour", "arr_delay")


@job
def import_flights(ctx: Context, csv_path: str, database: str) -> int:
    with closing(sqlite3.connect(database, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")

        ctx.step("initialize", initialize, db)

        rows = ctx.each("import_rows", csv_rows(csv_path))
        for row in rows:
            # Committed at once: an item counts as done when the loop asks for the next one. And
            # what a killed run had done since its last save is done again: it replaces itself.
            db.execute(INSERT, (rows.cursor or 0, *(row[name] for name in COLUMNS)))

        return ctx.step("finalize", finalize, db)


def initialize(db: sqlite3.Connection) -> None:
    db.execute(TABLE)


def finalize(db: sqlite3.Connection) -> int:
    db.execute("CREATE INDEX IF NOT EXISTS by_route ON flights (origin, dest)")
    (rows,) = db.execute("SELECT count(*) FROM flights").fetchone()
    return int(rows)
