"""Real child processes for tests: started from a script, stopped, killed, and waited for.

Everything that waits does so for a condition and has a bound; nothing sleeps for luck.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self, TypeVar

from tracedjobs import Context, job

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = [
    "PATIENCE",
    "PERFORM",
    "PRELUDE",
    "Child",
    "Children",
    "count",
    "counted",
    "state_of",
    "until",
]

T = TypeVar("T")
ROOT: Final = Path(__file__).parent.parent
PATIENCE: Final = 30.0
"""Seconds after which what was waited for is given up: far more than it takes on a busy machine."""

PRELUDE: Final = '''\
import os, signal, subprocess, sys, threading, time
from tracedjobs import Context, Runtime, Step, job
from tracedjobs.errors import *

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

URL, JOB_ID = sys.argv[1:3]

@job(name="count")
def count(ctx: Context, path: str, items: int, pace: float) -> str:
    """Writes a line an item: which run, which item."""
    with open(path, "a", buffering=1) as file:
        say("run", ctx.run)
        for item in ctx.each("items", range(items)):
            file.write(f"{ctx.run} {item}\\n")
            time.sleep(pace)
    return "counted"
'''
PERFORM: Final = """
LEASE = float(sys.argv[3]) if len(sys.argv) > 3 else 30.0
with Runtime(URL, lease_ttl=LEASE) as runtime:
    try:
        outcome = runtime.perform(JOB_ID)
        say("outcome", outcome.status, outcome.reason)
    except TracedJobsError as error:
        say("raised", type(error).__name__)
"""


@job(name="count")
def count(ctx: Context, path: str, items: int, pace: float) -> str:
    """As in `PRELUDE`, for the test's own process."""
    with Path(path).open("a", buffering=1) as file:
        for item in ctx.each("items", range(items)):
            file.write(f"{ctx.run} {item}\n")
            time.sleep(pace)
    return "counted"


def counted(path: Path) -> list[tuple[int, int]]:
    """Run and item of each line that `count` wrote."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [(int(run), int(item)) for run, item in map(str.split, lines)]


def until(condition: Callable[[], T], what: str, *, within: float = PATIENCE) -> T:
    """What `condition` returns once it is true; fails, saying `what`, when it never is."""
    give_up = time.monotonic() + within
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < give_up, f"waited {within} s in vain for: {what}"
        time.sleep(0.01)


class Child:
    """A process that runs a script."""

    def __init__(self, command: list[str], env: Mapping[str, str], folder: Path, name: str) -> None:
        self.out = folder / f"{name}.out"
        with self.out.open("wb") as out:
            self.process = subprocess.Popen(
                command, cwd=folder, env=env, stdout=out, stderr=subprocess.STDOUT
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def text(self) -> str:
        """What it has written so far."""
        return self.out.read_text("utf-8", "replace")

    def says(self, line: str, *, within: float = PATIENCE) -> None:
        """Wait until it has written that line."""

        def said() -> bool:
            if line in self.text().splitlines():
                return True
            code = self.process.poll()
            # Looked at once more: it may have written the line just before it ended.
            assert code is None or line in self.text().splitlines(), (code, self.text())
            return False

        until(said, f"{line!r} in {self.text()!r}", within=within)

    def send(self, number: int) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def stop(self) -> None:
        """SIGSTOP it, and wait until the kernel says that it is stopped."""
        self.send(signal.SIGSTOP)
        until(lambda: state_of(self.pid) in "tT", "the child is stopped")

    def cont(self) -> None:
        """Let it go on."""
        self.send(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL it and wait for its end."""
        self.send(signal.SIGKILL)
        assert self.process.wait(PATIENCE) == -signal.SIGKILL

    def ends(self, code: int | None = 0, *, within: float = PATIENCE) -> str:
        """Wait for its end, check the exit code unless it is `None`; what it wrote."""
        found = self.process.wait(within)
        assert code is None or found == code, (found, self.text())
        return self.text()


class Children:
    """Starts children in a folder, and leaves none behind."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._all: list[Child] = []

    def start(
        self,
        source: str,
        *args: object,
        env: Mapping[str, str] | None = None,
        prelude: str = PRELUDE,
    ) -> Child:
        """Run `source`, after `prelude`, with these arguments."""
        name = f"child{len(self._all)}"
        script = self._folder / f"{name}.py"
        script.write_text(prelude + source, "utf-8")
        command = [sys.executable, "-W", "error", str(script), *map(str, args)]
        child = Child(
            command, {**os.environ, "PYTHONPATH": str(ROOT), **(env or {})}, self._folder, name
        )
        self._all.append(child)
        return child

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for child in self._all:
            if child.process.poll() is None:
                child.process.kill()
            child.process.wait(PATIENCE)


def state_of(pid: int) -> str:
    """The kernel's letter for the state of a process, or an empty text when it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("ascii")
    except FileNotFoundError:
        return ""
    return stat.rpartition(")")[2].split()[0]
