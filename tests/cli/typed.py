"""A folder with job files, in which commands are typed: into a pipe, or on a terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from contextlib import suppress
from fcntl import ioctl
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

COMMAND: Final = [sys.executable, "-m", "tracedjobs"]
PATIENCE: Final = 20.0
CONTROL: Final = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")

JOBS: Final = """
import time
from pathlib import Path
from tracedjobs import Context, Step, job

@job
def imported(ctx: Context, rows: int, pause: float = 0.0, *, journal: str = "journal") -> int:
    ctx.step("initialize", lambda: None)
    for row in ctx.each("import_rows", range(rows)):
        with open(journal, "a") as file:
            print(row, file=file)
        time.sleep(pause)
    return ctx.step("finalize", lambda: rows)

@job
async def loaded(ctx, rows: int, pause: float = 0.0):
    import asyncio
    async for row in ctx.each("load", range(rows)):
        with open("journal", "a") as file:
            print(row, file=file)
        await asyncio.sleep(pause)

@job
def deaf(ctx):
    ctx.step("deaf", time.sleep, 60)

@job(resume_errors_after_advancing=False)
def fails(ctx):
    for row in ctx.each("rows", range(9)):
        if row == 4:
            raise ValueError("row 4 is\\nbad")

@job
def stumbles(ctx):
    for row in ctx.each("rows", range(9)):
        if row == 4 and not ctx.resumed:
            raise ValueError("row 4 is bad")

@job
def echo(ctx, text, number: int = 0):
    return (text, number)

@job
def many(ctx, number: int):
    for each in range(number):
        ctx.step(f"step_{each}", lambda: None)
    ctx.step("deaf", time.sleep, 60)

def plain(ctx):
    pass

NUMBER = 3
"""


def waited(look: Callable[[], object], what: str) -> object:
    """What `look` gives once it gives something, asked again for some seconds."""
    give_up = time.monotonic() + PATIENCE
    while time.monotonic() < give_up:
        found = look()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"{what}: not within {PATIENCE} s")


class Desk:
    """The folder, its store `tracedjobs.db`, and what is typed there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "jobs.py").write_text(JOBS)
        kept = {
            name: value
            for name, value in os.environ.items()
            if name not in _SETTINGS and not name.startswith("OTEL_")
        }
        self.environment = kept | {"PYTHONPATH": _root(), "LC_ALL": "C.UTF-8"}

    def run(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """The command, done."""
        return subprocess.run(
            [*COMMAND, *words],
            cwd=self.folder,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def start(self, *words: str, **environment: str) -> subprocess.Popen[str]:
        """The command, going on."""
        return subprocess.Popen(
            [*COMMAND, *words],
            cwd=self.folder,
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def job(self, job_id: str) -> dict[str, Any]:
        """What `show --json` says of the job."""
        shown = self.run("show", job_id, "--json")
        assert shown.returncode == 0, shown.stderr
        found: dict[str, Any] = json.loads(shown.stdout)
        return found

    def rows(self) -> list[int]:
        """What the jobs wrote to their journal."""
        journal = self.folder / "journal"
        return [int(line) for line in journal.read_text().splitlines()] if journal.exists() else []

    def wait_for_rows(self, number: int = 5) -> None:
        """Wait until the job has done so many."""
        waited(lambda: len(self.rows()) >= number, f"{number} rows")


class Terminal:
    """A command on a terminal of its own, `columns` wide."""

    def __init__(self, desk: Desk, *words: str, columns: int = 80, **environment: str) -> None:
        self._mine, theirs = pty.openpty()
        ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
        self.process = subprocess.Popen(
            [*COMMAND, *words],
            cwd=desk.folder,
            env=desk.environment | {"TERM": "xterm-256color"} | environment,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=_take_terminal,  # noqa: PLW1509 - no threads are running
        )
        os.close(theirs)
        self.raw = ""

    @property
    def text(self) -> str:
        """What came, without what only moves and colours."""
        return CONTROL.sub("", self.raw).replace("\r", "")

    def wait_for(self, pattern: str) -> str:
        """Read until `pattern` was written; all text until then."""
        waited(lambda: self._read() and re.search(pattern, self.text), pattern)
        return self.text

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self._mine, text.encode())

    def finish(self) -> int:
        """Read to the end; the exit code."""
        while self._read(wait=PATIENCE):
            pass
        os.close(self._mine)
        return self.process.wait(PATIENCE)

    def _read(self, wait: float = 0.02) -> bool:
        ready, _, _ = select.select([self._mine], [], [], wait)
        if not ready:
            return wait < 1
        with suppress(OSError):
            found = os.read(self._mine, 65536)
            self.raw += found.decode("utf-8", "replace")
            return bool(found)
        return False


def _take_terminal() -> None:
    ioctl(0, termios.TIOCSCTTY, 0)


def _root() -> str:
    return str(Path(__file__).parents[2])


_SETTINGS: Final = {
    "COLUMNS",
    "FORCE_COLOR",
    "LANG",
    "LINES",
    "NO_COLOR",
    "PYTHONIOENCODING",
    "TRACEDJOBS_MODULES",
    "TRACEDJOBS_STORE",
}
