"""Where a killed run had come to: what it left in its process's flight recorder.

Reads the files of processes that are dead for certain, and what runs of this process have left,
believes nothing in them that does not match what the store knows, and tells which jobs they were
running.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from tracedjobs._core import owner
from tracedjobs._core.cell_layout import (
    AHEAD,
    CELL,
    CHECK,
    COUNT_ALONE,
    COUNTED,
    HEADER,
    INTEGER,
    KEY,
    KIND,
    LENGTHS,
    NUMBERS,
    OFFSET,
    check_of,
    integers_of,
    key_of,
    mark_of,
)
from tracedjobs._core.flight_recorder import forget_kept, kept_cell
from tracedjobs._core.records import JobRecord, Position, Stored, position_columns

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = [
    "Takeover",
    "columns_of",
    "forget",
    "jobs_of_the_dead",
    "left_for_others",
    "remove_stale",
    "takeover",
]

LARGEST: Final = 64 * 1024 * 1024
PER_CELL: Final = CELL // 8


@dataclass(frozen=True, slots=True)
class Takeover:
    """Where the job goes on, and how many items that were done will be done again."""

    position: Position | None
    redone: int = 0
    redone_in: str = ""
    """Their step, if its name is known."""
    found: bool = False
    """Whether the run's cell was there."""
    open: bool = field(default=False, compare=False)
    """Whether it said that the run had the step of `position` open."""


def takeover(stored: Stored) -> Takeover:
    """Where a job whose run was lost goes on: where its recorder says, or else its last save.

    The recorder is believed when its process is dead, or its run of this process has ended, its
    key is that of this very run (the token is in it), its step is the open one, or one that the
    store has not heard of yet, and its count is not below the saved one. A count only rises while
    a step is open, and is raised after its item is done: so the position is never behind the saved
    one, and never past a finished item. As many steps were completed before it as the store knows:
    one that has lost its newest writes may lack some.

    `stored` is from after the death where that can be, see `lost.looked_at`. One from before may
    lack a step that has been completed since: then what is found of the next one is not believed.
    It lacks no save, for a save renews the lease, and
    what is made of the answer holds only for the lease that was read.
    """
    saved = stored.open_position
    cell = _cell_of(stored.job)
    if cell is None:
        return Takeover(saved)
    left = _position(cell, stored)
    done = 0 if saved is None else saved.items
    if (
        left is None
        or any(step.name == left.step for step in stored.steps)
        or (saved is not None and saved.step != left.step)
        or left.items < done
    ):
        return Takeover(saved, found=True)
    alone = cell.numbers[KIND] == COUNTED or cell.numbers[LENGTHS] & COUNT_ALONE
    if not left.step or alone:
        known = saved is not None and saved.step == left.step
        redone = left.items - done
        return Takeover(saved, redone=redone, redone_in=left.step, found=True, open=known)
    return Takeover(left, found=True, open=True)


def columns_of(stored: Stored, taken: Takeover) -> dict[str, object]:
    """What the takeover changes in the job's record."""
    return {
        **position_columns(taken.position),
        "items_redone": stored.job.items_redone + taken.redone,
        "counted": 0 if taken.position is None else taken.position.items,
        "saved_seq": 0,
        "lost_token": None,
    }


def left_for_others(head: JobRecord, taken: Takeover) -> dict[str, object]:
    """What is noted of a run that ends as lost, and is not taken over by another one at once.

    What the run's host knows better than the store is left for a run there to find.
    """
    return {"owner": None} if taken.found else {"lost_token": head.token or head.lost_token}


def forget(head: JobRecord) -> None:
    """Clear the cell of a run that was taken over, and remove its file when it was the last."""
    token = head.token or head.lost_token
    if token is None:
        return
    key = key_of(head.id, token)
    forget_kept(key)
    if head.owner is None or not head.owner.isalnum():
        return
    with contextlib.suppress(OSError):
        path = owner.lock_path(head.owner)
        with _opened(path, os.O_RDWR) as handle:
            if not owner.try_shared(handle):
                return
            keys = _keys(handle)
            if key in keys:
                os.pwrite(handle, bytes(8), keys.index(key) * CELL + 8 * KEY)
                # Read again: of several who clear the last cells at the same time, each after its
                # own write, the one who reads last sees the writes of all.
                keys = _keys(handle)
            if keys and not any(keys):
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
            keys = _keys(handle)
            if keys and not any(keys):
                path.unlink()


@dataclass(frozen=True, slots=True)
class _Cell:
    key: int
    numbers: list[int]
    text: bytes


def _cell_of(head: JobRecord) -> _Cell | None:
    token = head.token or head.lost_token
    if token is None:
        return None
    key = key_of(head.id, token)
    data = kept_cell(key)
    if data is None and owner.owner_is_dead(head.owner, head.lease_boot):
        data = _left_cell(str(head.owner), key)
    if data is None:
        return None
    return _Cell(key, _numbers(data).tolist(), data[8 * NUMBERS :])


def _left_cell(name: str, key: int) -> bytes | None:
    try:
        data = _read_dead(owner.lock_path(name))
    except OSError:
        return None
    keys = _numbers(data)[KEY::PER_CELL].tolist()
    if key not in keys:
        return None
    at = keys.index(key) * CELL
    return data[at : at + CELL]


def _position(cell: _Cell, stored: Stored) -> Position | None:
    """What the cell says, or `None` when no step was open or it does not hold together.

    Its step is empty where a mark was kept of it alone, and the store does not know it.
    """
    numbers = cell.numbers
    id_length, length = numbers[LENGTHS] & 0xFFFF, numbers[LENGTHS] >> 16 & 0xFFFF
    if not 0 <= length <= len(cell.text) - id_length:
        return None
    text = cell.text[id_length : id_length + length]
    try:
        step, begun = _begun(text, stored)
    except (ValueError, TypeError, OverflowError, RecursionError):
        return None
    if numbers[CHECK] != check_of(cell.key, step, text, len(stored.steps)):
        return None
    saved = stored.open_position
    after, items = integers_of(numbers)
    cursor = saved.cursor if saved is not None else "null"
    if numbers[KIND] == OFFSET:
        items = numbers[0] - numbers[AHEAD]
        cursor = str(numbers[0])
        if numbers[0] < 0:
            return None
    elif numbers[KIND] == INTEGER:
        cursor = str(after)
    elif numbers[KIND] != COUNTED:
        return None
    if not 0 <= items < 1 << 63:
        return None
    return (saved or begun)._replace(cursor=cursor, items=items, step=begun.step)


def _named(mark: int, stored: Stored) -> str:
    known = [step.name for step in stored.steps]
    if stored.job.step is not None:
        known.append(stored.job.step)
    return next((name for name in known if mark_of(name) == mark), "")


def _begun(text: bytes, stored: Stored) -> tuple[str, Position]:
    """The step's name as it is part of the check, and how the step begins."""
    found: Any = json.loads(text)
    if type(found) is int:
        return "", Position(_named(found, stored))
    step, total, unit, started_at, fingerprint = found
    return str(step), Position(
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


def _keys(handle: int) -> list[int]:
    """The key of each cell in the file, 0 for the header; none where it is no such file."""
    keys = _numbers(_read(handle))[KEY::PER_CELL].tolist()
    return [0, *keys[1:]] if keys else []


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
