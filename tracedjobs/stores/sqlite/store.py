"""The SQLite store: each method one statement, or one transaction, of the file's one connection."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl, unquote, urlsplit

from tracedjobs._core.clock import boot_id, boot_time, wall_time
from tracedjobs._core.records import (
    Change,
    Count,
    JobRecord,
    Living,
    Save,
    SpansSent,
    Status,
    StepRecord,
    Stored,
    Survey,
)
from tracedjobs.errors import StoreError
from tracedjobs.stores.base import LONGEST_CLAIM
from tracedjobs.stores.sqlite.changing import change_job, columns_after, delete, insert
from tracedjobs.stores.sqlite.connection import Connection, Migration, shipped_migrations
from tracedjobs.stores.sqlite.reading import JOB, KEPT, job_of, loaded, stored_of
from tracedjobs.stores.sqlite.saving import Saves, complete_step
from tracedjobs.stores.sqlite.totals import add

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Mapping, Sequence

    from tracedjobs._core.first_run import FirstRun

__all__ = ["SQLiteStore"]

DEFAULT_TIMEOUT: Final = 5.0

_FREE: Final = f"(spans_due IS NULL OR spans_due <= :now OR spans_due > :now + {LONGEST_CLAIM})"
_SENT: Final = (
    "UPDATE jobs SET steps_sent = CASE WHEN spans_due = :claim THEN max(steps_sent, :steps) "
    "ELSE steps_sent END, runs_sent = max(runs_sent, :runs), "
    "root_sent = max(root_sent, :root), spans_due = CASE WHEN spans_due IS NOT :claim "
    "THEN spans_due WHEN revision <> :revision THEN :now END WHERE id = :job_id"
)
_HANDED: Final = (
    # The status is in the text, for the index of that status to be taken.
    f"SELECT {JOB} FROM jobs WHERE status = '{{}}' AND queue IS NOT NULL "  # noqa: S608
    "AND hand_at > ? AND hand_at <= ? ORDER BY hand_at LIMIT ?"
)
_WAITING: Final = _HANDED.format("interrupted")
_UNBEGUN: Final = _HANDED.format("pending")
_ELECTED: Final = "SELECT holder, until FROM elections WHERE name = ? AND boot = ? AND until > ?"
_ELECT: Final = (
    "INSERT INTO elections VALUES (:name, :holder, :until, :boot) ON CONFLICT DO UPDATE "
    "SET holder = excluded.holder, until = excluded.until, boot = excluded.boot "
    "WHERE holder = excluded.holder OR boot <> excluded.boot OR until <= :now"
)
_RESIGN: Final = "DELETE FROM elections WHERE name = :name AND holder = :holder"
_ANY_EXPIRED: Final = "SELECT 1 FROM jobs WHERE expires_at <= ? LIMIT 1"


class SQLiteStore:
    """Jobs in the file `path`, made when it is not there.

    `synchronous` is `FULL` or `NORMAL`; `timeout` how many seconds a call waits while another
    process holds the file's write lock.
    """

    def __init__(
        self,
        path: str,
        *,
        synchronous: str = "FULL",
        timeout: float = DEFAULT_TIMEOUT,
        migrations: Callable[[], tuple[Migration, ...]] = shipped_migrations,
    ) -> None:
        """Remember the file; it is opened at the first use."""
        self.url = f"sqlite:///{path}"
        if path != ":memory:":
            path = str(Path(path).absolute())  # it may be opened after a change of directory
        self._db = Connection(path, synchronous=synchronous, timeout=timeout, migrations=migrations)
        self._saves = Saves(self._db)

    @classmethod
    def from_url(cls, url: str, *, timeout: float = DEFAULT_TIMEOUT) -> SQLiteStore:
        """Read `sqlite:///file.db` (`sqlite:////absolute.db`), `?synchronous=`, `&timeout=`."""
        parts = urlsplit(url)
        path = unquote(parts.path.removeprefix("/"))
        if parts.netloc or not path:
            msg = (
                f"The store {url!r} names no file. Write sqlite:///jobs.db for a file in the "
                f"working directory, or sqlite:////var/lib/jobs.db with four slashes."
            )
            raise StoreError(msg)
        if path == ":memory:":
            msg = f"The store {url!r} would be private to one connection: use memory:// instead."
            raise StoreError(msg)
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        synchronous = options.pop("synchronous", "FULL").upper()
        if synchronous not in {"FULL", "NORMAL", "EXTRA"}:
            msg = f"synchronous={synchronous} in {url!r} is not one of full, extra and normal."
            raise StoreError(msg)
        timeout = _seconds(options.pop("timeout", str(timeout)), url)
        if options:
            msg = f"{min(options)!r} in {url!r} is unknown; there are synchronous and timeout."
            raise StoreError(msg)
        return cls(path, synchronous=synchronous, timeout=timeout)

    def create(self, job: JobRecord, counts: Sequence[Count] = ()) -> bool:
        """See `Store.create`."""

        def work(raw: sqlite3.Connection) -> bool:
            delete(raw, "id = ? AND expires_at <= ?", (job.id, wall_time()))
            if not insert(raw, job):
                return False
            add(raw, counts)
            return True

        return self._db.transaction(work)

    def load(self, job_id: str) -> Stored | None:
        """See `Store.load`."""
        return self._db.read(lambda raw: loaded(raw, job_id))

    def begin(self, job_id: str, first: FirstRun) -> tuple[Stored | None, bool]:
        """See `Store.begin`."""

        def work(raw: sqlite3.Connection) -> tuple[Stored | None, bool]:
            stored = loaded(raw, job_id)
            change = None if stored is None else first.change(stored)
            if stored is None or change is None:
                return stored, False
            columns = columns_after(change)
            change_job(raw, change, columns)
            columns["revision"] = change.revision + 1
            return Stored(stored.job.changed(columns), runs=(first.record,)), True

        return self._db.transaction(work)

    def page(
        self, *, status: Status | None, name: str | None, before: str | None, limit: int
    ) -> list[Stored]:
        """See `Store.page`."""
        where: list[str] = [KEPT]
        bound: list[object] = [wall_time()]
        if status is not None:
            where.append("status = ?")
            bound.append(status.value)
        if name is not None:
            where.append("name = ?")
            bound.append(name)
        if before is not None:
            where.append("seq < (SELECT seq FROM jobs WHERE id = ?)")
            bound.append(before)
        query = (
            f"SELECT seq, {JOB} FROM jobs WHERE {' AND '.join(where)} "  # noqa: S608
            "ORDER BY seq DESC LIMIT ?"
        )

        def work(raw: sqlite3.Connection) -> list[Stored]:
            rows = raw.execute(query, (*bound, limit)).fetchall()
            return [stored_of(raw, row) for row in rows]

        return self._db.read(work)

    def change(self, change: Change) -> bool:
        """See `Store.change`."""
        columns = columns_after(change)
        return self._db.transaction(lambda raw: change_job(raw, change, columns))

    def save(self, saves: Sequence[Save]) -> Mapping[str, tuple[str | None, str | None]]:
        """See `Store.save`."""
        return self._saves.many(saves)

    def save_one(self, save: Save) -> bool:
        """See `Store.save_one`."""
        return self._saves.one(save)

    def complete_step(
        self,
        job_id: str,
        token: str,
        step: StepRecord,
        *,
        position: int,
        seq: int,
        state: str | None,
        lease_ttl: float | None = None,
        counts: Sequence[Count] = (),
    ) -> bool:
        """See `Store.complete_step`."""
        return self._db.transaction(
            lambda raw: complete_step(
                raw,
                job_id,
                token,
                step,
                position=position,
                seq=seq,
                state=state,
                lease_ttl=lease_ttl,
                counts=counts,
            )
        )

    def lease_alive(self, job: JobRecord) -> bool:
        """See `Store.lease_alive`."""
        return job.lease_boot == boot_id() and job.lease_until > boot_time()

    def expired(self, *, limit: int) -> list[JobRecord]:
        """See `Store.expired`."""
        rows = self._db.run(
            lambda raw: raw.execute(
                f"SELECT {JOB} FROM jobs WHERE status = 'running' "  # noqa: S608
                "AND (lease_boot IS NOT ? OR lease_until <= ?) "
                "ORDER BY lease_boot IS NOT ? DESC, lease_until LIMIT ?",
                (boot_id(), boot_time(), boot_id(), limit),
            ).fetchall()
        )
        return [job_of(row) for row in rows]

    def steps_of_last_completed(self, name: str) -> int | None:
        """See `Store.steps_of_last_completed`."""
        row = self._db.run(
            lambda raw: raw.execute("SELECT steps FROM names WHERE name = ?", (name,)).fetchone()
        )
        return None if row is None else int(row[0])

    def count(self, counts: Sequence[Count]) -> None:
        """See `Store.count`."""
        self._db.transaction(lambda raw: add(raw, counts))

    def survey(self) -> Survey:
        """See `Store.survey`."""

        def work(raw: sqlite3.Connection) -> Survey:
            totals = raw.execute("SELECT * FROM totals").fetchall()
            jobs = raw.execute(
                "SELECT name, coalesce(queue, ''), status, count(*) FROM jobs "  # noqa: S608
                f"WHERE {KEPT} GROUP BY 1, 2, 3",
                (wall_time(),),
            ).fetchall()
            running = raw.execute(f"SELECT {JOB} FROM jobs WHERE status = 'running'").fetchall()  # noqa: S608

            def oldest(column: str, status: Status) -> dict[tuple[str, str], float]:
                query = (
                    f"SELECT name, coalesce(queue, ''), min({column}) FROM jobs "  # noqa: S608
                    f"WHERE status = ? AND {column} IS NOT NULL GROUP BY 1, 2"
                )
                found = raw.execute(query, (status.value,)).fetchall()
                return {(name, queue): at for name, queue, at in found}

            heads = [job_of(row) for row in running]
            return Survey(
                now=wall_time(),
                totals={tuple(key): value for *key, value in totals},
                jobs={(name, queue, status): n for name, queue, status, n in jobs},
                living=[
                    Living(head, self.heartbeat(head), self.lease_alive(head)) for head in heads
                ],
                oldest_pending=oldest("submitted_at", Status.PENDING),
                oldest_interrupted=oldest("resume_at", Status.INTERRUPTED),
            )

        return self._db.read(work)

    def time(self) -> float:
        """See `Store.time`: the host's clock."""
        return wall_time()

    def heartbeat(self, job: JobRecord) -> float | None:
        """See `Store.heartbeat`."""
        if job.lease_ttl is None or job.lease_boot != boot_id():
            return None
        return wall_time() - (boot_time() - (job.lease_until - job.lease_ttl))

    def claim_spans(self, ids: Sequence[str], *, seconds: float) -> Mapping[str, float]:
        """See `Store.claim_spans`."""
        now = wall_time()
        bound = {
            "ids": json.dumps(list(ids)),
            "now": now,
            "ends": now + min(seconds, LONGEST_CLAIM),
        }
        claim = (
            "UPDATE jobs SET spans_due = :ends "  # noqa: S608
            f"WHERE id IN (SELECT value FROM json_each(:ids)) AND {_FREE} RETURNING id, spans_due"
        )
        return dict(self._db.transaction(lambda raw: raw.execute(claim, bound).fetchall()))

    def spans_sent(self, sent: Sequence[SpansSent]) -> None:
        """See `Store.spans_sent`."""
        rows = [{**each._asdict(), "now": wall_time()} for each in sent]
        self._db.transaction(lambda raw: raw.executemany(_SENT, rows).rowcount)

    def owing(self, *, limit: int) -> list[str]:
        """See `Store.owing`."""
        query = "SELECT id FROM jobs WHERE spans_due <= ? ORDER BY spans_due LIMIT ?"
        rows = self._db.run(lambda raw: raw.execute(query, (wall_time(), limit)).fetchall())
        return [job_id for (job_id,) in rows]

    def waiting(self, *, limit: int, after: float = 0.0) -> list[JobRecord]:
        """See `Store.waiting`."""
        return self._to_be_handed(_WAITING, limit, after)

    def unbegun(self, *, limit: int, after: float = 0.0) -> list[JobRecord]:
        """See `Store.unbegun`."""
        return self._to_be_handed(_UNBEGUN, limit, after)

    def _to_be_handed(self, query: str, limit: int, after: float) -> list[JobRecord]:
        bound = (after, wall_time(), limit)
        return [
            job_of(row) for row in self._db.run(lambda raw: raw.execute(query, bound).fetchall())
        ]

    def elect(self, name: str, holder: str, *, seconds: float) -> bool:
        """See `Store.elect`; most of the time it only reads."""
        now, boot = boot_time(), boot_id()
        bound = {"name": name, "holder": holder, "until": now + seconds, "boot": boot, "now": now}
        if not seconds:
            self._db.transaction(lambda raw: raw.execute(_RESIGN, bound).rowcount)
            return False
        row = self._db.run(lambda raw: raw.execute(_ELECTED, (name, boot, now)).fetchone())
        if row is not None and (row[0] != holder or row[1] > now + seconds / 2):
            return bool(row[0] == holder)
        return self._db.transaction(lambda raw: raw.execute(_ELECT, bound).rowcount) == 1

    def purge(self, *, limit: int) -> int:
        """See `Store.purge`."""
        now = wall_time()
        if not self._db.run(lambda raw: raw.execute(_ANY_EXPIRED, (now,)).fetchone()):
            return 0  # as most of the time: then nobody waits for the write lock
        expired = "seq IN (SELECT seq FROM jobs WHERE expires_at <= ? ORDER BY expires_at LIMIT ?)"
        return self._db.transaction(lambda raw: delete(raw, expired, (now, limit)))

    def close(self) -> None:
        """See `Store.close`."""
        self._db.close()


def _seconds(text: str, url: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        msg = f"timeout={text} in {url!r} is no number of seconds."
        raise StoreError(msg)
    return value
