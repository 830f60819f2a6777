"""The acts of the demo: each run of the job is a real process, ended as the script says.

The processes are those of the command line, `python -m tracedjobs run …`; nothing is simulated.
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NoReturn

from tracedjobs.demo.data import RunFailedError
from tracedjobs.demo.flights import import_flights

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    from tracedjobs.demo.data import Folder

__all__ = ["JOB_ID", "SCRIPT", "Act", "Ending", "Pulse", "arguments", "look", "play"]

JOB_ID: Final = "flights"
PATIENCE: Final = 60.0
"""Seconds without a new row after which a run counts as stuck."""
LOOK_EVERY: Final = 0.005
SHOW_EVERY: Final = 0.1
TAIL: Final = 12


@dataclass(frozen=True, slots=True)
class Ending:
    """How a run is to end: by `kill`, sent somewhere between two shares of the file, or by itself.

    The place is drawn anew each time: what is promised holds at any.
    """

    exit_code: int
    kill: signal.Signals | None = None
    between: tuple[float, float] = (1.0, 1.0)

    @property
    def name(self) -> str:
        """The signal's name, or `completed`."""
        return self.kill.name if self.kill else "completed"


SCRIPT: Final = (
    Ending(75, signal.SIGTERM, (0.25, 0.4)),
    Ending(-signal.SIGKILL, signal.SIGKILL, (0.6, 0.75)),
    Ending(0),
)


@dataclass(frozen=True, slots=True)
class View:
    """What the database holds: rows, how often one was written, and the share of the file."""

    rows: int = 0
    writes: int = 0
    share: float = 0.0


@dataclass(frozen=True, slots=True)
class Pulse:
    """A run under way: `rows` are there, of a `share` of the file."""

    run: int
    rows: int
    share: float


@dataclass(frozen=True, slots=True)
class Act:
    """One run as it went; durations in seconds.

    `before` and `after` are what the database held. `first_write` is the time from the start of
    the process to its first row, `died_in` that from the signal to the end of the process.
    """

    run: int
    ending: Ending
    exit_code: int
    before: View
    after: View
    seconds: float
    first_write: float
    died_in: float

    @property
    def redone(self) -> int:
        """How many rows it wrote that were there already."""
        return (self.after.writes - self.before.writes) - (self.after.rows - self.before.rows)


def arguments(folder: Folder) -> list[str]:
    """What to give to `tracedjobs` for the first run of the job, and for all later ones."""
    return [
        "run",
        "--store",
        folder.store,
        "--job-id",
        JOB_ID,
        import_flights.name,
        str(folder.csv),
        str(folder.database),
    ]


def play(
    folder: Folder, run: int, ending: Ending, size: int, environment: Mapping[str, str]
) -> Generator[Pulse, None, Act]:
    """Start a run, tell how it goes, and end it as `ending` says.

    `environment`: what the process has besides that of this one.

    Raises `RunFailedError` when it ends before or otherwise. When the caller leaves early, the
    run is interrupted with SIGTERM, so that it can be resumed.
    """
    before = look(folder, size)
    place = random.uniform(*ending.between)  # noqa: S311 - no secret
    began, began_at = time.monotonic(), time.time()
    with _process(folder, environment) as process:
        yield from _watch(process, folder, run, size, place if ending.kill else None)
        sent = time.monotonic()
        if ending.kill:
            process.send_signal(ending.kill)
        try:
            exit_code = process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            _fail(folder, run, f"had not ended {PATIENCE:.0f} s after {ending.name}")
    ended = time.monotonic()
    after = look(folder, size)
    if exit_code != ending.exit_code:
        too_soon = ", done before it could be stopped; take more rows" if exit_code == 0 else ""
        what = f"ended with exit code {exit_code} instead of {ending.exit_code}{too_soon}"
        _fail(folder, run, what)
    return Act(
        run=run,
        ending=ending,
        exit_code=exit_code,
        before=before,
        after=after,
        seconds=ended - began,
        first_write=_first_write(folder, before) - began_at,
        died_in=ended - sent,
    )


def look(folder: Folder, size: int) -> View:
    """What the database of a job that does not run just now holds."""
    with closing(_reader(folder)) as db:
        share = _share(db, size)
        if share is None:
            return View()
        (rows,) = db.execute("SELECT count(*) FROM flights").fetchone()
        return View(rows, _writes(db), share)


def _watch(
    process: subprocess.Popen[bytes], folder: Folder, run: int, size: int, place: float | None
) -> Generator[Pulse, None, None]:
    """Until the run has ended, or has reached `place`, a share of the file."""
    moved_at = shown_at = time.monotonic()
    last = -1.0
    with closing(_reader(folder)) as db:
        while process.poll() is None:
            now = time.monotonic()
            share = _share(db, size) or 0.0
            if place is not None and share >= place:
                return
            if share != last:
                last, moved_at = share, now
            elif now - moved_at > PATIENCE:
                _fail(folder, run, f"has written no row for {PATIENCE:.0f} s")
            if now - shown_at >= SHOW_EVERY:
                shown_at = now
                yield Pulse(run, _rows_so_far(db), share)
            time.sleep(LOOK_EVERY)


@contextmanager
def _process(folder: Folder, environment: Mapping[str, str]) -> Generator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "tracedjobs", *arguments(folder)]
    with folder.log.open("ab") as log:
        # A group of its own: Ctrl-C on a terminal goes to all of a group, and is ours to pass on.
        process = subprocess.Popen(  # noqa: S603 - this package
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            process_group=0,
            env={**os.environ, **environment},
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(PATIENCE)
            finally:
                process.kill()  # a second Ctrl-C, or it hangs; what it saved can be resumed
                process.wait()


def _reader(folder: Folder) -> sqlite3.Connection:
    # The file is there and in WAL mode before the first run, so that looking is never in its way.
    return sqlite3.connect(f"{folder.database.resolve().as_uri()}?mode=ro", uri=True, timeout=30.0)


def _share(db: sqlite3.Connection, size: int) -> float | None:
    try:
        (starts_at,) = db.execute("SELECT max(starts_at) FROM flights").fetchone()
    except sqlite3.OperationalError:
        return None  # the step that makes the tables is yet to come
    return int(starts_at or 0) / size


def _writes(db: sqlite3.Connection) -> int:
    (last,) = db.execute("SELECT max(id) FROM writes").fetchone()
    return int(last or 0)


def _rows_so_far(db: sqlite3.Connection) -> int:
    try:
        (rows,) = db.execute("SELECT count(*) FROM flights").fetchone()
    except sqlite3.OperationalError:
        return 0
    return int(rows)


def _first_write(folder: Folder, before: View) -> float:
    with closing(_reader(folder)) as db:
        found = db.execute("SELECT at FROM writes WHERE id > ? LIMIT 1", (before.writes,))
        (at,) = found.fetchone() or (float("nan"),)
    return float(at)


def _fail(folder: Folder, run: int, what: str) -> NoReturn:
    try:
        lines = folder.log.read_text("utf-8", "replace").splitlines()[-TAIL:]
    except OSError:
        lines = []
    printed = "".join(f"\n  {line}" for line in lines)
    msg = f"Run {run} {what}. The end of {folder.log}:{printed}"
    raise RunFailedError(msg)
