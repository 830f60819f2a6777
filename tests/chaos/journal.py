"""What a job writes down of itself while it runs, in a file that outlives its process.

An entry is one `write` to a file opened for appending: what was written before a kill stays.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Entry", "Journal", "read_journal"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One line: what happened, in which run and process, when, to which step, with what value."""

    kind: str
    run: int
    at: float
    pid: int
    step: str
    value: str


class Journal:
    """The writing end, of one run."""

    def __init__(self, path: str, run: int = 0) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._run = run

    def write(self, kind: str, step: str = "-", value: object = "-") -> None:
        line = f"\n{kind} {self._run} {time.monotonic():.6f} {os.getpid()} {step} {value} ;"
        os.write(self._file, line.encode())


def read_journal(path: Path) -> list[Entry]:
    """All entries, but for a last one that a kill has cut in two."""
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        return []
    found = []
    for line in text.splitlines():
        if line.endswith(" ;"):
            kind, run, at, pid, step, value, _ = line.split(" ")
            found.append(Entry(kind, int(run), float(at), int(pid), step, value))
    return found
