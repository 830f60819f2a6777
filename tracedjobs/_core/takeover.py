"""Where a killed run had come to: what it left in its process's flight recorder.

Reads the files of processes that are dead for certain, believes nothing in them that does not
match what the store knows, and tells which jobs they were running.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tracedjobs._core import owner
from tracedjobs._core.flight_recorder import (
    AHEAD,
    CELL,
    CHECK,
    COUNT,
    COUNTED,
    HEADER,
    INTEGER,
    KEY,
    KIND,
    LENGTHS,
    NUMBERS,
    OFFSET,
    check_of,
    key_of,
)
from tracedjobs._core.records import JobRecord, Position, Stored, position_columns

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["Takeover", "columns_of", "forget", "jobs_of_the_dead", "remove_stale", "takeover"]

LARGEST: Final = 64 * 1024 * 1024
PER_CELL: Final = CELL // 8


@dataclass(frozen=True, slots=True)
class Takeover:
    """Where the job goes on, and how many items that were done will be done again."""

    position: Position | None
    redone: int = 0
    found: bool = False
    """Whether the run's cell was there."""


def takeover(stored: Stored) -> Takeover:
    """Where a job whose run was lost goes on: where its recorder says, or else its last save.

    The recorder is believed when its process is dead, its key is that of this very run (the token
    is in it), its step is the open one, or one that the store has not heard of yet, and its count
    is not below the saved one. A count only rises while a step is open, and is raised after its
    item is done: so the position is never behind the saved one, and never past a finished item.
    """
    saved = stored.open_position
    head = stored.job
    token = head.token or head.lost_token
    if token is None or head.owner is None or not owner.owner_is_dead(head.owner, head.lease_boot):
        return Takeover(saved)
    cell = _cell(head.owner, key_of(head.id, token))
    if cell is None:
        return Takeover(saved)
    left = _position(cell, saved)
    done = 0 if saved is None else saved.items
    if (
        left is None
        or any(step.name == left.step for step in stored.steps)
        or (saved is not None and saved.step != left.step)
        or left.items < done
    ):
        return Takeover(saved, found=True)
    if cell.numbers[KIND] == COUNTED:
        return Takeover(saved, redone=left.items - done, found=True)
    return Takeover(left, found=True)


def columns_of(stored: Stored, taken: Takeover) -> dict[str, object]:
    """What the takeover changes in the job's record."""
    return {
        **position_columns(taken.position),
        "items_redone": stored.job.items_redone + taken.redone,
        "saved_seq": 0,
        "lost_token": None,
    }


def forget(head: JobRecord) -> None:
    """Clear the cell of a run that was taken over, and remove its file when it was the last."""
    token = head.token or head.lost_token
    if token is None or head.owner is None or not head.owner.isalnum():
        return
    with contextlib.suppress(OSError):
        path = owner.lock_path(head.owner)
        with _opened(path, os.O_RDWR) as handle:
            if not owner.try_shared(handle):
                return
            keys = _numbers(_read(handle))[KEY::PER_CELL].tolist()
            if key_of(head.id, token) in keys:
                at = keys.index(key_of(head.id, token))
                os.pwrite(handle, bytes(8), at * CELL + 8 * KEY)
                keys[at] = 0
            if keys and not any(keys[1:]):
                path.unlink()


def jobs_of_the_dead() -> Iterator[str]:
    """Ids of jobs that processes of this run directory were running when they died."""
    try:
        paths = sorted(owner.run_directory().glob("*.lock"))
    except OSError:
        return
    for path in paths:
        data = b""
        with contextlib.suppress(OSError):  # of this file: the others are read all the same
            data = _read_dead(path)
        for at in range(CELL, len(data), CELL):
            numbers = _numbers(data[at : at + CELL])
            if numbers[KEY]:
                length = numbers[LENGTHS] & 0xFFFF
                begin = at + 8 * NUMBERS
                with contextlib.suppress(UnicodeDecodeError):
                    name = data[begin : begin + length].decode()
                    if name and len(name.encode()) == length:
                        yield name


def remove_stale(path: Path) -> None:
    """Remove a dead process's file in which no run is left."""
    with contextlib.suppress(OSError), _opened(path, os.O_RDONLY) as handle:
        if owner.try_shared(handle):
            keys = _numbers(_read(handle))[KEY::PER_CELL].tolist()
            if keys and not any(keys[1:]):
                path.unlink()


@dataclass(frozen=True, slots=True)
class _Cell:
    key: int
    numbers: list[int]
    text: bytes


def _cell(name: str, key: int) -> _Cell | None:
    try:
        data = _read_dead(owner.lock_path(name))
    except OSError:
        return None
    keys = _numbers(data)[KEY::PER_CELL].tolist()
    if key not in keys:
        return None
    at = keys.index(key) * CELL
    return _Cell(
        key,
        _numbers(data[at : at + 8 * NUMBERS]).tolist(),
        data[at + 8 * NUMBERS : at + CELL],
    )


def _position(cell: _Cell, saved: Position | None) -> Position | None:
    """What the cell says, or `None` when no step was open or it does not hold together."""
    numbers = cell.numbers
    id_length, length = numbers[LENGTHS] & 0xFFFF, numbers[LENGTHS] >> 16
    if not 0 <= length <= len(cell.text) - id_length:
        return None
    text = cell.text[id_length : id_length + length]
    try:
        position = _begun(text) if text else saved
    except (ValueError, TypeError, OverflowError, RecursionError):
        return None
    if position is None or numbers[CHECK] != check_of(cell.key, position.step, text):
        return None
    items = numbers[COUNT]
    cursor = saved.cursor if saved is not None else "null"
    if numbers[KIND] == OFFSET:
        items = numbers[0] - numbers[AHEAD]
        cursor = str(numbers[0])
        if numbers[0] < 0:
            return None
    elif numbers[KIND] == INTEGER:
        cursor = str(numbers[items & 1])
    elif numbers[KIND] != COUNTED:
        return None
    if not 0 <= items < 1 << 63:
        return None
    return (saved or position)._replace(cursor=cursor, items=items, step=position.step)


def _begun(text: bytes) -> Position:
    found: Any = json.loads(text)
    step, total, unit, started_at, fingerprint = found
    return Position(
        step=str(step),
        total=None if total is None else int(total),
        unit=None if unit is None else str(unit),
        started_at=float(started_at),
        fingerprint=None if fingerprint is None else str(fingerprint),
    )


def _read_dead(path: Path) -> bytes:
    """The cells of that file, if its process is dead; nothing else raises but `OSError`."""
    with _opened(path, os.O_RDONLY) as handle:
        return _read(handle) if owner.try_shared(handle) else b""


def _read(handle: int) -> bytes:
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode) or not CELL <= status.st_size <= LARGEST:
        return b""
    data = os.pread(handle, status.st_size, 0)
    data = data[: len(data) // CELL * CELL]
    return data if data and tuple(_numbers(data)[:2].tolist()) == HEADER else b""


def _numbers(data: bytes) -> memoryview:
    return memoryview(data).cast("q")


@contextlib.contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    handle = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        yield handle
    finally:
        os.close(handle)
