"""The flight recorder: where each run of this process is, in a file that outlives the process.

Loops keep their position here and nowhere else, so that it costs them no second write; the saver
reads it here, and so does whoever takes the job over once the process is dead (`takeover`).

The file is the process's lock file (see `owner`), mapped and shared: what a process has stored in
it stays in the kernel's pages when the process dies, however it dies; a loss of power takes it. It
is cut into cells (see `cell_layout`), the first of which is a header; a run has one while it lasts.
A cell is written by its run alone, and given to another run once that one has ended: a run that
is stopped from another thread, while its own goes on, keeps its cell until its own ends.
"""

from __future__ import annotations

import atexit
import contextlib
import mmap
import os
import warnings
from typing import TYPE_CHECKING, Final

from tracedjobs._core import owner
from tracedjobs._core.cell_layout import (
    AHEAD,
    BITS,
    CELL,
    CHECK,
    COUNT,
    COUNT_ALONE,
    COUNTED,
    FEWEST_SLOTS,
    HEADER,
    INTEGER,
    KEY,
    KIND,
    LENGTHS,
    LONGEST_ID,
    NUMBERS,
    OFFSET,
    TEXT,
    check_of,
    key_of,
    mark_of,
    slots_of,
    view_of,
)
from tracedjobs._core.clock import boot_time
from tracedjobs._core.compact import compact

if TYPE_CHECKING:
    from pathlib import Path

    from tracedjobs._core.records import Position

__all__ = ["MOST_LENT", "SEGMENT", "Cell", "forget_kept", "kept_cell", "take_cell"]

SEGMENT: Final = 128 * CELL
"""What the file grows by: 64 KiB, the largest page that Linux is built with."""
MOST_LENT: Final = 16
"""How many loops of a process have views of their slots at a time, of up to 10 KiB each."""


class Cell:
    """One run's cell.

    `numbers` are its integers, for the loops to write. They are released when the run has ended:
    an iterator that outlives its run raises `ValueError` at its next item, and can never write
    into what is another run's by then.
    """

    __slots__ = (
        "_alone",
        "_at",
        "_file",
        "_key",
        "_segment",
        "_slots",
        "_used",
        "numbers",
    )

    def __init__(
        self,
        segment: memoryview,
        at: int,
        job_id: str,
        key: int,
        *,
        file: _File | None = None,
    ) -> None:
        """Lay out the cell at byte `at` of that file's segment; its key is written last."""
        self._file = file
        self._segment = segment
        self._at = at
        self._key = key
        self._alone = 0
        self._slots: tuple[memoryview, ...] = ()
        self.numbers = segment[at : at + CELL].cast("q")
        name = job_id.encode()
        self._used = len(name) if len(name) <= LONGEST_ID else 0
        self._write(0, name[: self._used])
        self.numbers[CHECK] = 0
        self.numbers[LENGTHS] = self._used
        self.numbers[KEY] = key

    def open_step(
        self, position: Position, numbers: memoryview | None, *, completed: int = 0
    ) -> bool:
        """Keep that step from here on, the next after `completed` others.

        `numbers` is where a loop stands, if it is one. `False` where no more than a mark of the
        step fits: the run is to save it before it does anything in it.
        """
        self._take_back()  # else those of a step whose closing was interrupted, in other places
        mine = self.numbers
        mine[CHECK] = 0
        step, text = position.step, _text_of(position)
        fits = len(text) <= TEXT - self._used
        if not fits:
            step, text = "", str(mark_of(step)).encode()
        self._write(self._used, text)
        mine[LENGTHS] = self._used | len(text) << 16 | self._alone
        if numbers is None:
            mine[KIND] = COUNTED
            mine[COUNT] = position.items
        else:
            mine[: AHEAD + 1] = numbers[: AHEAD + 1]
            if mine[KIND] != OFFSET and len(slots_of(mine[LENGTHS])) < FEWEST_SLOTS:
                mine[AHEAD] = 0
        mine[CHECK] = check_of(self._key, step, text, completed)
        return fits

    def note(self, cursor: object, items: int) -> None:
        """Keep the position of a step that is no loop."""
        numbers = self.numbers
        if type(cursor) is int and cursor.bit_length() < BITS:
            numbers[items & 1] = cursor
            numbers[COUNT] = items
            numbers[KIND] = INTEGER
        else:
            numbers[KIND] = COUNTED
            numbers[COUNT] = items

    def slots(self) -> tuple[memoryview, ...]:
        """Views of the slots, for the loop of the open step, until that is closed.

        None where there is no room for them, or so many loops have theirs that these would take
        more memory than they are worth: a loop without them stores two integers for an item.
        """
        if not self._slots and self.numbers[AHEAD] and len(_lent) < MOST_LENT:
            _lent.add(self)
            try:
                places = slots_of(self.numbers[LENGTHS])
                self._slots = tuple(view_of(self.numbers, at) for at in places)
                self.numbers[CHECK]
            except ValueError:  # released meanwhile, by the run's end in another thread
                self._take_back()
                raise
        return self._slots

    def keep_count_alone(self) -> None:
        """Keep how much is done, and no position to go on from, for the rest of the run."""
        self._alone = COUNT_ALONE
        with contextlib.suppress(ValueError):  # as below
            self.numbers[LENGTHS] |= COUNT_ALONE

    def close_step(self) -> None:
        """Keep no step any more."""
        self._take_back()
        with contextlib.suppress(ValueError):  # the cell is that of the process we came from
            self.numbers[CHECK] = 0

    def content(self) -> bytes:
        """All that is in it, at one moment."""
        return bytes(self._segment[self._at : self._at + CELL])

    def release(self) -> None:
        """Write no more, here; the cell stays as it is."""
        self.numbers.release()
        self._take_back()  # after it, so that `slots` in another thread sees it, or is seen

    def keep(self) -> None:
        """Leave it as it is, for the job's next run: the store does not know how this one ended.

        That run may be one of this process, which `kept_cell` is for. What nobody asks for, since
        the job went on elsewhere, goes after a day, as the files of dead processes do.
        """
        self.release()
        with owner.mutex():
            if self._file is not None and self._file is not _file:
                return  # it is the cell of a process we came from
            now = boot_time()
            for key, (since, cell) in [*_kept.items()]:
                if now - since > owner.STALE_AFTER:
                    del _kept[key]
                    cell.free()
            _kept[self._key] = now, self

    def clear(self) -> None:
        """Let nobody find it any more: the store knows how its run ended."""
        with owner.mutex():
            # Else it is the cell of a process we came from.
            if self._file is not None and self._file is _file:
                begin = self._at + 8 * KEY
                self._segment[begin : begin + 8] = bytes(8)

    def free(self) -> None:
        """Give the cell back, for another run."""
        self.release()
        with owner.mutex():
            self.clear()
            file, self._file = self._file, None
            if file is not None and file is _file:
                file.give(self._segment, self._at)

    def _take_back(self) -> None:
        for slot in self._slots:
            slot.release()
        self._slots = ()
        _lent.discard(self)

    def _write(self, at: int, text: bytes) -> None:
        begin = self._at + 8 * NUMBERS + at
        self._segment[begin : begin + len(text)] = text


def take_cell(job_id: str, token: str) -> Cell:
    """A cell for that run.

    Where there is no file to have it in, it is in the process's own memory, after one warning: the
    run goes on, and is resumed from its last save when it is killed.
    """
    global _file, _off  # noqa: PLW0603 - one file a process
    key = key_of(job_id, token)
    with owner.mutex():
        try:
            if _off is None and _file is None and owner.owner_name() is not None:
                _file = _File(owner.held_path())
            if _file is not None:
                segment, at = _file.take()
                return Cell(segment, at, job_id, key, file=_file)
        except (OSError, ValueError) as error:
            if _off is None:
                _off = error
                warnings.warn(
                    f"No flight recorder, so a killed job resumes from its last save: {error}",
                    RuntimeWarning,
                    stacklevel=2,
                )
    return Cell(memoryview(bytearray(CELL)), 0, job_id, key)


def kept_cell(key: int) -> bytes | None:
    """What a run of this process left whose end the store does not know; see `Cell.keep`."""
    with owner.mutex():
        found = _kept.get(key)
        return None if found is None else found[1].content()


def forget_kept(key: int) -> None:
    """Free the cell of such a run: the store knows by now where the job goes on."""
    with owner.mutex():
        found = _kept.pop(key, None)
        if found is not None:
            found[1].free()


class _File:
    """The mapped file of this process. It has a file description of its own, without the lock.

    For a mapping keeps a copy of the description, which in a forked child would hold the lock.
    """

    def __init__(self, path: Path) -> None:
        self._handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        self._size = 0
        self._segments: list[memoryview] = []
        self._free: list[tuple[memoryview, int]] = []

    def take(self) -> tuple[memoryview, int]:
        if not self._free:
            self._grow()
        return self._free.pop()

    def give(self, segment: memoryview, at: int) -> None:
        self._free.append((segment, at))

    def is_idle(self) -> bool:
        return not any(any(each.cast("q")[KEY :: CELL // 8].tolist()) for each in self._segments)

    def close(self) -> None:
        os.close(self._handle)

    def _grow(self) -> None:
        # Allocated, not only made longer: a write to a page that a full disk cannot hold would
        # kill the process.
        os.posix_fallocate(self._handle, self._size, SEGMENT)
        segment = memoryview(mmap.mmap(self._handle, SEGMENT, offset=self._size))
        first = 0
        if self._size == 0:
            segment[: 8 * len(HEADER)].cast("q")[:] = memoryview(
                b"".join(each.to_bytes(8, "little") for each in HEADER)
            ).cast("q")
            first = CELL
        self._size += SEGMENT
        self._segments.append(segment)
        self._free = [(segment, at) for at in range(SEGMENT - CELL, first - 1, -CELL)]


_file: _File | None = None
_off: Exception | None = None
_kept: dict[int, tuple[float, Cell]] = {}
_lent: set[Cell] = set()
"""Those whose slots a loop has views of."""


def _text_of(position: Position) -> bytes:
    kept = (
        position.step,
        position.total,
        position.unit,
        position.started_at,
        position.fingerprint,
    )
    return compact(kept).encode("utf-8", "surrogatepass")


def _leave() -> None:
    """At the process's end: a file in which no run is left need not be looked at by others.

    Comes after the saver has recorded how the runs end that are left: what is registered first
    is called last, and `run` has this module before anybody has the saver.
    """
    if _file is not None and _file.is_idle():
        owner.remove_held()


def _after_fork_in_child() -> None:
    # The runs are the parent's, and `saver` has let go of their cells; the maps go with the last.
    global _file  # noqa: PLW0603 - as above
    _kept.clear()
    _lent.clear()
    if _file is not None:
        _file.close()
        _file = None


atexit.register(_leave)
os.register_at_fork(after_in_child=_after_fork_in_child)
