"""What a cell of the flight recorder holds, and why it is true whenever its writer is killed.

A cell is 512 bytes. It begins with eight integers of 64 bits, in the machine's order:

    0, 1    EVEN, ODD   the cursor after an even, an odd count of items; a sequence's offset in 0
    2       COUNT       how many items are done, in all runs together; the complement of how many
                        were before those of the slots, while slots are in use
    3       KIND        what of these is to be read: OFFSET, INTEGER, or COUNTED
    4       AHEAD       of an offset: by how much it is ahead of the count; else what an empty slot
                        holds, or 0 where there is hardly room for slots
    5       CHECK       a digest of key, step, text and the number of steps before it; 0 while no
                        step is open
    6       KEY         a digest of the job's id and the run's token; 0 in a free cell
    7       LENGTHS     of the two texts that follow: the job's id, and what is kept of the step;
                        and COUNT_ALONE

and after the texts has as many more as there is room for, the slots: the cursors after the items
that a loop has done since it emptied them, in their order, so that how many are filled says how
many.

No write is ever half done for a reader. Each integer is aligned and stored by one instruction,
which neither x86-64 nor ARM64 tears. A process can be killed between any two instructions; those
before are done then, those after are not, in the order of the program: for whoever reads once the
process is dead the order in which a *living* core lets others see its stores, weak on ARM64, does
not matter, and the lock that tells of the death is the barrier. So it is enough that each prefix
of the writes says something true:

- An item of a sequence is one store, the offset; the count follows from it.
- An item of another loop is one, the cursor, into the next slot: the count follows from it. When
  all are filled, the last one's cursor is stored as below, for while slots are in use, and some
  filled, EVEN and ODD are not read; and the count, of which it makes the simple one in that same
  store. Then the slots are emptied, unread, and the count's complement puts them in use again.
- Without slots an item is two: the cursor goes where the count does not point to yet, and then the
  count makes it the one that counts. Killed in between, the old pair stands.
- A kind that promises a cursor is written after it, and taken back before it is gone.
- A step is opened by writing CHECK last, and closed by taking it back first.
"""

from __future__ import annotations

import hashlib
import os
from typing import Final

__all__ = [
    "AHEAD",
    "BITS",
    "CELL",
    "CHECK",
    "COUNT",
    "COUNTED",
    "COUNT_ALONE",
    "EMPTY",
    "FEWEST_SLOTS",
    "HEADER",
    "INTEGER",
    "KEY",
    "KIND",
    "LENGTHS",
    "LONGEST_ID",
    "NUMBERS",
    "OFFSET",
    "TEXT",
    "check_of",
    "integers_of",
    "key_of",
    "mark_of",
    "private_numbers",
    "slots_of",
    "view_of",
]

CELL: Final = 512
NUMBERS: Final = 8
TEXT: Final = CELL - 8 * NUMBERS
COUNT: Final = 2
KIND: Final = 3
AHEAD: Final = 4
CHECK: Final = 5
KEY: Final = 6
LENGTHS: Final = 7
COUNTED: Final = 0
OFFSET: Final = 1
INTEGER: Final = 2
FEWEST_SLOTS: Final = 8
"""To empty and to count fewer would cost more than they save."""
EMPTY: Final = int.from_bytes(os.urandom(8), "little", signed=True) or 1
"""What an empty slot holds: drawn for this process, so that no source can mean it for a cursor."""
COUNT_ALONE: Final = 1 << 32
"""In LENGTHS: the job does not go on here, for it has state that belongs to its last save; how many
items it has done since then is right."""
HEADER: Final = (int.from_bytes(b"trjcells", "little"), 3)
"""The mark of such a file, and the version of what is described above."""
LONGEST_ID: Final = 255
"""Bytes of an id that is kept: of any in ASCII. A job with a longer one is found by its lease."""
BITS: Final = 64
"""An `int` of fewer bits fits one of the numbers."""


def private_numbers() -> memoryview:
    """The integers of a cell that is in no file."""
    return memoryview(bytearray(CELL)).cast("q")


def view_of(numbers: memoryview, at: int) -> memoryview:
    """One of the integers, as a view without dimensions: it is set by `view[()] = value`.

    That is a quarter cheaper than by an index, for there is none to be looked at.
    """
    return numbers[at : at + 1].cast("B").cast("q", shape=())


def slots_of(lengths: int) -> range:
    """Where the slots are among the integers of a cell whose LENGTHS are these."""
    texts = (lengths & 0xFFFF) + (lengths >> 16 & 0xFFFF)
    return range(NUMBERS + (texts + 7) // 8, CELL // 8)


def integers_of(numbers: list[int]) -> tuple[int, int]:
    """The cursor and the count of items that a cell's integers say, unless its kind is OFFSET."""
    count = numbers[COUNT]
    if count >= 0:
        return numbers[count & 1], count
    slots = numbers[slots_of(numbers[LENGTHS]).start :]
    empty = numbers[AHEAD]
    filled = slots.index(empty) if empty in slots else len(slots)
    before = ~count
    return slots[filled - 1] if filled else numbers[before & 1], before + filled


def key_of(job_id: str, token: str) -> int:
    """What a run's cell is known by: nobody who does not know its token can make one."""
    return _digest(token, job_id)


def check_of(key: int, step: str, text: bytes, completed: int) -> int:
    """What holds in a cell whose step is that one, with that text, after so many others.

    So it is not believed by who reads it beside a store that has lost the completion of one.
    """
    return _digest(str(key), step, text.hex(), str(completed))


def mark_of(step: str) -> int:
    """What is kept of a step that does not fit: known again by who knows its name."""
    return _digest(step)


def _digest(*texts: str) -> int:
    parts = "\0".join(texts).encode("utf-8", "surrogatepass")
    digest = hashlib.blake2b(parts, digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True) or 1
