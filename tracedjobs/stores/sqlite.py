"""Jobs in a SQLite file: for one host, any number of processes, no server.

The lease clock is the host's boot clock. With `synchronous=FULL`, the default, what was
acknowledged outlives a loss of power; `?synchronous=normal` trades that for speed and keeps only
what an ordinary end of process or kill leaves.
"""

from __future__ import annotations

import json
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl, unquote, urlsplit

from tracedjobs._core.clock import boot_id, boot_time, wall_time
from tracedjobs._core.counting import OTHER
from tracedjobs._core.due import columns_of
from tracedjobs._core.records import (
    ALLOWED,
    CONTROL_COLUMNS,
    JOB_COLUMNS,
    NOWHERE,
    POSITION_COLUMNS,
    RECORD_VERSION,
    RUN_COLUMNS,
    STEP_COLUMNS,
    Change,
    ControlRecord,
    Count,
    JobRecord,
    Living,
    RunRecord,
    Save,
    SpansSent,
    Status,
    StepRecord,
    Stored,
    Survey,
)
from tracedjobs._core.trace import FLAGS_AT
from tracedjobs.errors import InvalidTransitionError, StoreError
from tracedjobs.stores.base import LONGEST_CLAIM, STEP_NAMES, written_by_newer
from tracedjobs.stores.sqlite_connection import Connection, Migration, shipped_migrations

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Mapping, Sequence

    from tracedjobs._core.first_run import FirstRun

__all__ = ["SQLiteStore"]

DEFAULT_TIMEOUT: Final = 5.0


# dataclasses.astuple copies every value, and takes ten times as long.
_COLUMNS_OF_JOB: Final = attrgetter(*JOB_COLUMNS)


def _list(columns: Sequence[str]) -> str:
    return ", ".join(f'"{column}"' for column in columns)


_JOB: Final = _list(JOB_COLUMNS)
_KEPT: Final = "(expires_at IS NULL OR expires_at > ?)"
_LOAD: Final = f"SELECT seq, {_JOB} FROM jobs WHERE id = ? AND {_KEPT}"  # noqa: S608
_INSERT_JOB: Final = (
    f"INSERT INTO jobs ({_JOB}) VALUES ({', '.join('?' * len(JOB_COLUMNS))}) "  # noqa: S608
    "ON CONFLICT (id) DO NOTHING"
)
_COMPLETE_STEP: Final = (
    f"INSERT INTO steps (job, position, {_list(STEP_COLUMNS)}) "  # noqa: S608
    f"SELECT seq, ?, {', '.join('?' * len(STEP_COLUMNS))} FROM jobs WHERE id = ? AND token = ? "
    "ON CONFLICT (job, position) DO NOTHING"
)
_CLOSE_STEP: Final = (
    f"UPDATE jobs SET ({_list(POSITION_COLUMNS)}) = ({', '.join('?' * len(NOWHERE))}), "  # noqa: S608
    "counted = 0, meter = NULL, saved_seq = ?, state = coalesce(?, state), "
    "lease_until = coalesce(?, lease_until) WHERE id = ? AND token = ? AND saved_seq < ?"
)
_ADMIT: Final = (
    "INSERT INTO step_names SELECT ?1, ?2 "  # noqa: S608
    f"WHERE (SELECT count(*) FROM step_names WHERE job_name = ?1) < {STEP_NAMES} "
    "ON CONFLICT DO NOTHING"
)
_ADD: Final = (
    "INSERT INTO totals SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), "  # noqa: S608
    "json_extract(value, '$[2]'), coalesce((SELECT step FROM step_names WHERE job_name = "
    "json_extract(value, '$[1]') AND step = json_extract(value, '$[3]')), CASE "
    f"json_extract(value, '$[3]') WHEN '' THEN '' ELSE '{OTHER}' END), "
    "json_extract(value, '$[4]'), json_extract(value, '$[5]') FROM json_each(?) WHERE true "
    "ON CONFLICT DO UPDATE SET value = value + excluded.value"
)
_SAVED: Final = (
    # the columns of one save, in the order of `_saved_values`
    "saved_seq",
    "lease_until",
    *POSITION_COLUMNS,
    "progressed_at",
    "state",
    "meter",
)
_SET_SAVED: Final = ", ".join(
    f"{column} = coalesce({{{column}}}, jobs.{column})"
    if column in {"state", "meter"}
    else f"{column} = {{{column}}}"
    for column in _SAVED
)
_SAVE_ONE: Final = (
    "UPDATE jobs SET "  # noqa: S608
    + _SET_SAVED.format(**dict.fromkeys(_SAVED, "?"))
    + " WHERE id = ? AND token = ? AND saved_seq < ?"
)
# One statement, not one a run: sqlite3 takes the interpreter's lock back after each statement,
# and beside a busy thread every one of those waits 5 ms while it holds the write lock.
_SAVE_MANY: Final = (
    "UPDATE jobs SET "  # noqa: S608
    + _SET_SAVED.format(
        **{column: f"json_extract(s.value, '$[{at}]')" for at, column in enumerate(_SAVED, 2)}
    )
    + " FROM json_each(?) AS s WHERE jobs.id = json_extract(s.value, '$[0]') "
    "AND jobs.token = json_extract(s.value, '$[1]') "
    "AND jobs.saved_seq < json_extract(s.value, '$[2]')"
)
_COUNT_STEPS: Final = (
    "INSERT INTO names (name, steps) SELECT name, (SELECT count(*) FROM steps WHERE job = seq) "
    "FROM jobs WHERE seq = ? ON CONFLICT (name) DO UPDATE SET steps = excluded.steps"
)
_SAMPLED: Final = f"substr(trace, {FLAGS_AT}, 2) = '01'"
_FREE: Final = f"(spans_due IS NULL OR spans_due <= :now OR spans_due > :now + {LONGEST_CLAIM})"
_FORGET_SENT: Final = (
    "UPDATE jobs SET steps_sent = min(steps_sent, (SELECT count(*) FROM steps WHERE job = seq)), "
    "spans_due = CASE WHEN spans_due IS NOT NULL THEN 0 END WHERE seq = ?"
)
_SENT: Final = (
    "UPDATE jobs SET steps_sent = CASE WHEN spans_due = :claim THEN max(steps_sent, :steps) "
    "ELSE steps_sent END, runs_sent = max(runs_sent, :runs), "
    "root_sent = max(root_sent, :root), spans_due = CASE WHEN spans_due IS NOT :claim "
    "THEN spans_due WHEN revision <> :revision THEN :now END WHERE id = :job_id"
)
_HANDED: Final = (
    # The status is in the text, for the index of that status to be taken.
    f"SELECT {_JOB} FROM jobs WHERE status = '{{}}' AND queue IS NOT NULL "  # noqa: S608
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
# One row, not one a run: sqlite3 takes that lock back at each row too.
_WISHES: Final = (
    "SELECT json_group_array(json_array(id, token, wish)) FROM jobs "
    "WHERE id IN (SELECT value FROM json_each(?))"
)


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
            _delete(raw, "id = ? AND expires_at <= ?", (job.id, wall_time()))
            if raw.execute(_INSERT_JOB, _COLUMNS_OF_JOB(job)).rowcount == 0:
                return False
            _add(raw, counts)
            return True

        return self._db.transaction(work)

    def load(self, job_id: str) -> Stored | None:
        """See `Store.load`."""
        return self._db.read(lambda raw: _loaded(raw, job_id))

    def begin(self, job_id: str, first: FirstRun) -> tuple[Stored | None, bool]:
        """See `Store.begin`."""

        def work(raw: sqlite3.Connection) -> tuple[Stored | None, bool]:
            stored = _loaded(raw, job_id)
            change = None if stored is None else first.change(stored)
            if stored is None or change is None:
                return stored, False
            columns = _columns_after(change)
            _change(raw, change, columns)
            columns["revision"] = change.revision + 1
            return Stored(stored.job.changed(columns), runs=(first.record,)), True

        return self._db.transaction(work)

    def page(
        self, *, status: Status | None, name: str | None, before: str | None, limit: int
    ) -> list[Stored]:
        """See `Store.page`."""
        where: list[str] = [_KEPT]
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
            f"SELECT seq, {_JOB} FROM jobs WHERE {' AND '.join(where)} "  # noqa: S608
            "ORDER BY seq DESC LIMIT ?"
        )

        def work(raw: sqlite3.Connection) -> list[Stored]:
            rows = raw.execute(query, (*bound, limit)).fetchall()
            return [_stored(raw, row) for row in rows]

        return self._db.read(work)

    def change(self, change: Change) -> bool:
        """See `Store.change`."""
        columns = _columns_after(change)
        return self._db.transaction(lambda raw: _change(raw, change, columns))

    def save(self, saves: Sequence[Save]) -> Mapping[str, tuple[str | None, str | None]]:
        """See `Store.save`."""
        rows = json.dumps([[save.job_id, save.token, *_saved_values(save)] for save in saves])
        ids = json.dumps([save.job_id for save in saves])
        self._db.run(lambda raw: raw.execute(_SAVE_MANY, (rows,)).rowcount)
        (found,) = self._db.run(lambda raw: raw.execute(_WISHES, (ids,)).fetchone())
        return {job_id: (token, wish) for job_id, token, wish in json.loads(found)}

    def save_one(self, save: Save) -> bool:
        """See `Store.save_one`."""
        values = (*_saved_values(save), save.job_id, save.token, save.seq)
        return self._db.run(lambda raw: raw.execute(_SAVE_ONE, values).rowcount) == 1

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

        def work(raw: sqlite3.Connection) -> bool:
            fence = "SELECT 1 FROM jobs WHERE id = ? AND token = ?"
            if raw.execute(fence, (job_id, token)).fetchone() is None:
                return False
            lease = None if lease_ttl is None else boot_time() + lease_ttl
            raw.execute(_CLOSE_STEP, (*NOWHERE, seq, state, lease, job_id, token, seq))
            values = (position, *step, job_id, token)
            if raw.execute(_COMPLETE_STEP, values).rowcount == 1:
                _add(raw, counts)
            return True

        return self._db.transaction(work)

    def lease_alive(self, job: JobRecord) -> bool:
        """See `Store.lease_alive`."""
        return job.lease_boot == boot_id() and job.lease_until > boot_time()

    def expired(self, *, limit: int) -> list[JobRecord]:
        """See `Store.expired`."""
        rows = self._db.run(
            lambda raw: raw.execute(
                f"SELECT {_JOB} FROM jobs WHERE status = 'running' "  # noqa: S608
                "AND (lease_boot IS NOT ? OR lease_until <= ?) "
                "ORDER BY lease_boot IS NOT ? DESC, lease_until LIMIT ?",
                (boot_id(), boot_time(), boot_id(), limit),
            ).fetchall()
        )
        return [_job(row) for row in rows]

    def steps_of_last_completed(self, name: str) -> int | None:
        """See `Store.steps_of_last_completed`."""
        row = self._db.run(
            lambda raw: raw.execute("SELECT steps FROM names WHERE name = ?", (name,)).fetchone()
        )
        return None if row is None else int(row[0])

    def count(self, counts: Sequence[Count]) -> None:
        """See `Store.count`."""
        self._db.transaction(lambda raw: _add(raw, counts))

    def survey(self) -> Survey:
        """See `Store.survey`."""

        def work(raw: sqlite3.Connection) -> Survey:
            totals = raw.execute("SELECT * FROM totals").fetchall()
            jobs = raw.execute(
                "SELECT name, coalesce(queue, ''), status, count(*) FROM jobs "  # noqa: S608
                f"WHERE {_KEPT} GROUP BY 1, 2, 3",
                (wall_time(),),
            ).fetchall()
            running = raw.execute(f"SELECT {_JOB} FROM jobs WHERE status = 'running'").fetchall()  # noqa: S608

            def oldest(column: str, status: Status) -> dict[tuple[str, str], float]:
                query = (
                    f"SELECT name, coalesce(queue, ''), min({column}) FROM jobs "  # noqa: S608
                    f"WHERE status = ? AND {column} IS NOT NULL GROUP BY 1, 2"
                )
                found = raw.execute(query, (status.value,)).fetchall()
                return {(name, queue): at for name, queue, at in found}

            heads = [_job(row) for row in running]
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
        return [_job(row) for row in self._db.run(lambda raw: raw.execute(query, bound).fetchall())]

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
        return self._db.transaction(lambda raw: _delete(raw, expired, (now, limit)))

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


def _saved_values(save: Save) -> tuple[object, ...]:
    return (
        save.seq,
        boot_time() + save.lease_ttl,
        *(save.position or NOWHERE),
        save.progressed_at,
        save.state,
        save.meter,
    )


def _job(row: tuple[object, ...]) -> JobRecord:
    values = dict(zip(JOB_COLUMNS, row, strict=True))
    version = values["version"]
    if not isinstance(version, int) or version > RECORD_VERSION:
        raise written_by_newer(values["id"], version)
    values["status"] = Status(str(values["status"]))
    return JobRecord(**values)  # type: ignore[arg-type]  # the schema holds their types


def _stored(raw: sqlite3.Connection, row: tuple[object, ...]) -> Stored:
    seq, *columns = row

    def parts(table: str, columns: Sequence[str], order: str) -> list[tuple[object, ...]]:
        query = f"SELECT {_list(columns)} FROM {table} WHERE job = ? ORDER BY {order}"  # noqa: S608
        return raw.execute(query, (seq,)).fetchall()

    runs = parts("runs", RUN_COLUMNS, "number")
    resumed = RUN_COLUMNS.index("resumed")
    return Stored(
        job=_job(tuple(columns)),
        steps=tuple(StepRecord(*each) for each in parts("steps", STEP_COLUMNS, "position")),  # type: ignore[arg-type]  # as above
        runs=tuple(
            RunRecord(*(bool(value) if at == resumed else value for at, value in enumerate(each)))  # type: ignore[arg-type]  # as above
            for each in runs
        ),
        controls=tuple(
            ControlRecord(*each)  # type: ignore[arg-type]  # as above
            for each in parts("controls", CONTROL_COLUMNS, "position")
        ),
    )


def _loaded(raw: sqlite3.Connection, job_id: str) -> Stored | None:
    row = raw.execute(_LOAD, (job_id, wall_time())).fetchone()
    return None if row is None else _stored(raw, row)


def _columns_after(change: Change) -> dict[str, object]:
    """What the change writes in the job's own row, but for its revision."""
    columns = columns_of(change)
    if change.lease_ttl is not None:
        columns.update(lease_until=boot_time() + change.lease_ttl, lease_boot=boot_id())
    return columns


def _change(raw: sqlite3.Connection, change: Change, columns: dict[str, object]) -> bool:
    status = columns.get("status")
    where = "id = ? AND revision = ?"
    condition: list[object] = [change.job_id, change.revision]
    if isinstance(status, Status):
        sources = [old.value for old, news in ALLOWED.items() if status in news]
        where += f" AND status IN ({', '.join('?' * len(sources))})"
        condition += sources
    if change.if_lease_until is not None:
        where += " AND lease_until = ?"
        condition.append(change.if_lease_until)
    if change.if_token is not None:
        where += " AND token = ?"
        condition.append(change.if_token)
    assigned = "".join(f'"{column}" = ?, ' for column in columns)
    values = [value.value if isinstance(value, Status) else value for value in columns.values()]
    if change.owes_spans:
        assigned += f"spans_due = CASE WHEN {_SAMPLED} THEN coalesce(spans_due, 0) END, "
    update = f"UPDATE jobs SET {assigned}revision = revision + 1 WHERE {where} RETURNING seq"  # noqa: S608
    rows = raw.execute(update, (*values, *condition)).fetchall()
    if not rows:
        _refuse_transition(raw, change, status)
        return False
    _write_parts(raw, change, rows[0][0])
    _add(raw, change.counts)
    return True


def _refuse_transition(raw: sqlite3.Connection, change: Change, status: object) -> None:
    row = raw.execute("SELECT revision, status FROM jobs WHERE id = ?", (change.job_id,)).fetchone()
    if row is None or not isinstance(status, Status) or row[0] != change.revision:
        return
    if status not in ALLOWED[Status(row[1])]:
        msg = f"The job {change.job_id} is {row[1]} and cannot become {status.value}."
        raise InvalidTransitionError(msg)


def _write_parts(raw: sqlite3.Connection, change: Change, seq: int) -> None:
    if change.columns.get("status") is Status.COMPLETED:
        raw.execute(_COUNT_STEPS, (seq,))
    for name in change.drop_steps:
        raw.execute("DELETE FROM steps WHERE job = ? AND name = ?", (seq, name))
    if change.drop_steps:
        raw.execute(_FORGET_SENT, (seq,))
    if change.close_run is not None:
        number, *ending = change.close_run
        raw.execute(
            'UPDATE runs SET outcome = ?, reason = ?, ended_at = ?, "left" = ? '
            "WHERE job = ? AND number = ?",
            (*ending, seq, number),
        )
    if change.open_run is not None:
        raw.execute(
            f"INSERT INTO runs (job, {_list(RUN_COLUMNS)}) "  # noqa: S608
            f"VALUES (?{', ?' * len(RUN_COLUMNS)})",
            (seq, *change.open_run),
        )
    if change.control is not None:
        raw.execute(
            f"INSERT INTO controls (job, position, {_list(CONTROL_COLUMNS)}) "  # noqa: S608
            "SELECT ?, (SELECT coalesce(max(position), 0) + 1 FROM controls WHERE job = ?)"
            f"{', ?' * len(CONTROL_COLUMNS)}",
            (seq, seq, *change.control),
        )


def _add(raw: sqlite3.Connection, counts: Sequence[Count]) -> None:
    if counts:
        steps = {(count.job_name, count.step) for count in counts if count.step}
        for step in steps:
            raw.execute(_ADMIT, step)
        raw.execute(_ADD, (json.dumps(counts),))


def _delete(raw: sqlite3.Connection, where: str, bound: tuple[object, ...]) -> int:
    # One statement a table and not one a job, see `_SAVE_MANY`.
    for table in ("steps", "runs", "controls"):
        raw.execute(
            f"DELETE FROM {table} WHERE job IN (SELECT seq FROM jobs WHERE {where})",  # noqa: S608
            bound,
        )
    return raw.execute(f"DELETE FROM jobs WHERE {where}", bound).rowcount  # noqa: S608
