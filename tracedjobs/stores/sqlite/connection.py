"""One SQLite connection for all threads of a process: opened late, dropped at fork, retried.

It knows pragmas, locks, versions of the file and what SQLite's error codes mean; not jobs.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
import weakref
from importlib import resources
from typing import TYPE_CHECKING, Final, TypeVar

from tracedjobs.errors import StoreError, StoreUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Connection", "Migration", "shipped_migrations"]

T = TypeVar("T")
Migration = str

OLDEST_SQLITE: Final = (3, 35, 0)
APPLICATION_ID: Final = int.from_bytes(b"trjb", "big")
"""What says in a file's header that it is ours."""
BUSY_WAIT: Final = 0.05
"""Seconds SQLite itself waits for a lock. It cannot be interrupted by a signal while it does, so
it waits briefly and is asked again from Python."""

_AGAIN: Final = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_PROTOCOL,
    }
)
_UNAVAILABLE: Final = _AGAIN | {
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_READONLY,
}
_ADVICE: Final = {
    sqlite3.SQLITE_FULL: "the disk is full: make room, nothing that was saved is lost",
    sqlite3.SQLITE_READONLY: "it is read-only: check the permissions of the file and its folder",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened: check that its folder exists and is writable",
    sqlite3.SQLITE_NOTADB: "it is no SQLite database",
    sqlite3.SQLITE_CORRUPT: "the file is damaged: restore it from a backup",
    sqlite3.SQLITE_BUSY: "another process holds its lock",
}

_connections: weakref.WeakSet[Connection] = weakref.WeakSet()
_registry = threading.Lock()


def shipped_migrations() -> tuple[Migration, ...]:
    """The SQL that makes each version of the file from the one before, in order."""
    folder = resources.files("tracedjobs.stores.sqlite") / "migrations"
    files = sorted((each for each in folder.iterdir()), key=lambda each: each.name)
    return tuple(each.read_text("utf-8") for each in files if each.name.endswith(".sql"))


class Connection:
    """A connection that threads take turns on.

    One connection and a lock, rather than one a thread: SQLite has one writer anyway, and a
    single owner is what can be dropped safely at a fork.
    """

    def __init__(
        self,
        path: str,
        *,
        synchronous: str,
        timeout: float,
        migrations: Callable[[], tuple[Migration, ...]] = shipped_migrations,
    ) -> None:
        self.path = path
        self._synchronous = synchronous
        self._timeout = timeout
        self._migrations = migrations
        self._lock = threading.RLock()
        self._raw: sqlite3.Connection | None = None
        self._spare: sqlite3.Cursor | None = None
        """A cursor of that connection which nobody uses, see `write`."""
        self._closed = False
        with _registry:
            _connections.add(self)

    def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do `work`, one statement that commits by itself, again while the file is locked."""
        give_up = time.monotonic() + self._timeout
        pause = 0.001
        while True:
            try:
                with self._lock:
                    return work(self._raw or self._opened())
            except sqlite3.Error as error:
                code = _primary_code(error)
                if code not in _AGAIN or time.monotonic() >= give_up:
                    raise self._explained(error, code) from error
            time.sleep(pause)
            pause = min(pause * 2, 0.05)

    def write(self, statement: str, values: Sequence[object]) -> int:
        """Do one statement that commits by itself, as `run` does; how many rows it wrote.

        For what is written at each item, where that is saved before the next: all such statements
        share a cursor, for to make one takes as long as to bind the values. It is taken away while
        in use: Python from 3.12 on crashes where a cursor is used within itself, as a finalizer
        might that writes, too.
        """
        try:
            with self._lock:
                cursor, self._spare = self._spare or (self._raw or self._opened()).cursor(), None
                written = cursor.execute(statement, values).rowcount
                self._spare = cursor
                return written
        except sqlite3.Error:
            pass  # whatever it is, it is met again there, or is over
        return self.run(lambda raw: raw.execute(statement, values).rowcount)

    def transaction(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do `work` in a transaction that takes the write lock at once.

        Never a deferred one: a reader that turns into a writer is refused without waiting when
        another has written in between.
        """
        return self._whole(work, "BEGIN IMMEDIATE")

    def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do `work`, several statements that only read, all as of the same moment."""
        return self._whole(work, "BEGIN")

    def _whole(self, work: Callable[[sqlite3.Connection], T], begin: str) -> T:
        def whole(raw: sqlite3.Connection) -> T:
            try:
                # Within: a signal's handler may raise as soon as it has begun.
                raw.execute(begin)
                value = work(raw)
                raw.execute("COMMIT")
            except BaseException:
                # A full disk has rolled back already; a second ROLLBACK would hide the cause.
                if raw.in_transaction:
                    raw.execute("ROLLBACK")
                raise
            return value

        return self.run(whole)

    def close(self) -> None:
        """Close the file; the connection cannot be used again."""
        with self._lock:
            self._closed = True
            self._spare = None
            if self._raw is not None:
                self._raw.close()
                self._raw = None

    def _opened(self) -> sqlite3.Connection:
        if self._closed:
            msg = f"The store {self.path} is closed."
            raise StoreError(msg)
        raw = sqlite3.connect(
            self.path, timeout=BUSY_WAIT, isolation_level=None, check_same_thread=False
        )
        try:
            # Looked at first: to switch it to WAL already changes a file.
            raw.execute("BEGIN")  # or another's migration could come between two looks
            self._version(raw, len(self._migrations()))
            raw.execute("COMMIT")
            raw.execute("PRAGMA journal_mode = WAL")
            raw.execute(f"PRAGMA synchronous = {self._synchronous}")
            self._migrate(raw)
        except BaseException:
            raw.close()
            raise
        self._raw = raw
        return raw

    def _migrate(self, raw: sqlite3.Connection) -> None:
        migrations = self._migrations()
        if int(raw.execute("PRAGMA user_version").fetchone()[0]) == len(migrations):
            return
        raw.execute("BEGIN IMMEDIATE")  # several processes may open a new file at a time
        try:
            version = self._version(raw, len(migrations))
            for migration in migrations[version:]:
                for statement in _statements(migration):
                    raw.execute(statement)
            raw.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            raw.execute(f"PRAGMA user_version = {len(migrations)}")
            raw.execute("COMMIT")
        except BaseException:
            if raw.in_transaction:
                raw.execute("ROLLBACK")
            raise

    def _version(self, raw: sqlite3.Connection, known: int) -> int:
        version = int(raw.execute("PRAGMA user_version").fetchone()[0])
        application = int(raw.execute("PRAGMA application_id").fetchone()[0])
        if application != APPLICATION_ID and (
            version or raw.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone()
        ):
            msg = (
                f"{self.path} is a SQLite database of another program; name a file of its own "
                f"for the jobs. The file was not changed."
            )
            raise StoreError(msg)
        if version > known:
            msg = (
                f"The store {self.path} has schema version {version}, written by a newer "
                f"tracedjobs; this one knows versions up to {known}. Upgrade tracedjobs here; "
                f"the file was not changed."
            )
            raise StoreError(msg)
        return version

    def _explained(self, error: sqlite3.Error, code: int) -> StoreError:
        advice = _ADVICE.get(code, "")
        text = f"The store {self.path} failed: {error}" + (f" ({advice})" if advice else "")
        return StoreUnavailableError(text) if code in _UNAVAILABLE else StoreError(text)

    def _drop_in_child(self) -> None:
        # Closing it here would drop locks and may remove files that the parent uses, so it is
        # kept from being closed for as long as the process lives.
        if self._raw is not None and self.path != ":memory:":
            _never_closed(self._raw)
            self._raw = self._spare = None


def _never_closed(raw: sqlite3.Connection) -> None:
    import ctypes  # noqa: PLC0415 - in forked children only

    ctypes.pythonapi.Py_IncRef(ctypes.py_object(raw))


def _primary_code(error: sqlite3.Error) -> int:
    # ProgrammingError and the like have no code
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF


def _statements(script: str) -> list[str]:
    found: list[str] = []
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            found.append(statement)
            statement = ""
    return found


# A fork while another thread is inside SQLite would leave the child with a lock that nobody
# holds: so the forking thread takes each lock first, and the child lets go of all it inherited.
_held_for_fork: list[Connection] = []


def _before_fork() -> None:
    with _registry:
        connections = list(_connections)
    for connection in connections:
        connection._lock.acquire()  # noqa: SLF001
        _held_for_fork.append(connection)


def _after_fork_in_parent() -> None:
    # Taken out of the list before the first is let go: then another thread may begin its fork.
    held, _held_for_fork[:] = list(_held_for_fork), []
    for connection in held:
        connection._lock.release()  # noqa: SLF001


def _after_fork_in_child() -> None:
    global _registry  # noqa: PLW0603 - its holder is not in the child
    _registry = threading.Lock()
    while _held_for_fork:
        connection = _held_for_fork.pop()
        connection._drop_in_child()  # noqa: SLF001
        connection._lock = threading.RLock()  # noqa: SLF001


os.register_at_fork(
    before=_before_fork,
    after_in_parent=_after_fork_in_parent,
    after_in_child=_after_fork_in_child,
)

if sqlite3.sqlite_version_info < OLDEST_SQLITE:  # pragma: no cover - no such Python at hand
    _msg = (
        f"tracedjobs needs SQLite {'.'.join(map(str, OLDEST_SQLITE))} or later; "
        f"this Python was built with {sqlite3.sqlite_version}."
    )
    raise StoreError(_msg)
