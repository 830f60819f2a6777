"""The flights import as a task of a queue; see README.md."""

import os
import sqlite3
from contextlib import closing

from redis import Redis
from rq import Queue

import tracedjobs
from tracedjobs.queues.rq import continuable
from tracedjobs.sources import csv_rows

REDIS_URL = os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0")  # `rq worker -c tasks` reads it
imports = Queue("imports", connection=Redis.from_url(REDIS_URL))
tracedjobs.configure("sqlite:///jobs.db")

TABLE = """
CREATE TABLE IF NOT EXISTS flights (
    starts_at INTEGER PRIMARY KEY,  -- where the row begins in the file
    carrier TEXT, flight INTEGER, origin TEXT, dest TEXT, time_hour TEXT, arr_delay INTEGER
)
"""
INSERT = "INSERT OR REPLACE INTO flights VALUES (?, ?, ?, ?, ?, ?, nullif(?, 'NA'))"
COLUMNS = ("carrier", "flight", "origin", "dest", "time_hour", "arr_delay")


@continuable(imports, max_resumptions=50)
def import_flights(ctx: tracedjobs.Context, csv_path: str, database: str) -> int:
    with closing(sqlite3.connect(database, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        ctx.step("initialize", initialize, db)
        rows = ctx.each("import_rows", csv_rows(csv_path))
        for row in rows:
            db.execute(INSERT, (rows.cursor or 0, *(row[name] for name in COLUMNS)))
        return ctx.step("finalize", finalize, db)


def initialize(db: sqlite3.Connection) -> None:
    db.execute(TABLE)


def finalize(db: sqlite3.Connection) -> int:
    (rows,) = db.execute("SELECT count(*) FROM flights").fetchone()
    return int(rows)
