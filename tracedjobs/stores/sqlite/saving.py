"""Saves of positions and completed steps, behind the fence of each run's token."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final, TypeAlias

from tracedjobs._core.clock import boot_time
from tracedjobs._core.records import NOWHERE, POSITION_COLUMNS, STEP_COLUMNS
from tracedjobs.stores.sqlite.reading import listed
from tracedjobs.stores.sqlite.totals import add

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Mapping, Sequence

    from tracedjobs._core.records import Count, Save, StepRecord
    from tracedjobs.stores.sqlite.connection import Connection

__all__ = ["Saves", "complete_step"]

MANY: Final = 10_000
"""Runs whose last save is known, at most: of a run nobody says that it has ended."""
_Opened: TypeAlias = "tuple[object, ...]"
"""What a save says of its step beside the place in it."""

_COMPLETE_STEP: Final = (
    f"INSERT INTO steps (job, position, {listed(STEP_COLUMNS)}) "  # noqa: S608
    f"SELECT seq, ?, {', '.join('?' * len(STEP_COLUMNS))} FROM jobs WHERE id = ? AND token = ? "
    "ON CONFLICT (job, position) DO NOTHING"
)
_CLOSE_STEP: Final = (
    f"UPDATE jobs SET ({listed(POSITION_COLUMNS)}) = ({', '.join('?' * len(NOWHERE))}), "  # noqa: S608
    "counted = 0, meter = NULL, saved_seq = ?, state = coalesce(?, state), "
    "lease_until = coalesce(?, lease_until) WHERE id = ? AND token = ? AND saved_seq < ?"
)
_FENCE: Final = "SELECT 1 FROM jobs WHERE id = ? AND token = ?"
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
# Of a run that goes on in its step, what moves. The rest of the position would be written as it is,
# which takes a sixth as long again as a commit that is not synced.
#
# What is known of a run is a fact: that its save of that number was made, and what it said of the
# step. A run gives each of its saves another number, so whoever finds its token and that number in
# the row finds the rest as that save has left it: no other write of it leaves both, for a newer
# save and a completed step leave their own number, a takeover and a rewind no token or another.
# Where they are not found nothing is written, and the whole save is asked: the run was fenced off,
# or the saver's thread was quicker.
_SAVE_PLACE: Final = (
    "UPDATE jobs SET saved_seq = ?, lease_until = ?, cursor = ?, items = ?, progressed_at = ? "
    "WHERE id = ? AND token = ? AND saved_seq = ?"
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
# One row, not one a run: sqlite3 takes that lock back at each row too.
_WISHES: Final = (
    "SELECT json_group_array(json_array(id, token, wish)) FROM jobs "
    "WHERE id IN (SELECT value FROM json_each(?))"
)


class Saves:
    """The saves of the runs of this process: whole, or of their place alone, see `_SAVE_PLACE`."""

    def __init__(self, db: Connection) -> None:
        self._db = db
        self._last: dict[str, tuple[int, _Opened]] = {}
        """By the token of each run the last save that it made by itself, and what that said."""

    def many(self, saves: Sequence[Save]) -> Mapping[str, tuple[str | None, str | None]]:
        """See `Store.save`."""
        rows = json.dumps([[save.job_id, save.token, *_saved_values(save)] for save in saves])
        ids = json.dumps([save.job_id for save in saves])
        self._db.run(lambda raw: raw.execute(_SAVE_MANY, (rows,)).rowcount)
        (found,) = self._db.run(lambda raw: raw.execute(_WISHES, (ids,)).fetchone())
        return {job_id: (token, wish) for job_id, token, wish in json.loads(found)}

    def one(self, save: Save) -> bool:
        """See `Store.save_one`."""
        position = save.position
        if position is None:
            return self._whole(save)
        token, seq, opened = save.token, save.seq, (position[0], position[3:])
        last = self._last.get(token)
        if (
            last is not None
            and last[1] == opened
            and last[0] < seq
            and save.state is None
            and save.meter is None
        ):
            lease, at = boot_time() + save.lease_ttl, save.progressed_at
            place = (seq, lease, position[1], position[2], at, save.job_id, token, last[0])
            if self._db.write(_SAVE_PLACE, place):
                self._last[token] = seq, opened
                return True
        if not self._whole(save):
            return False
        if len(self._last) >= MANY:
            self._last.clear()
        self._last[token] = seq, opened
        return True

    def _whole(self, save: Save) -> bool:
        values = (*_saved_values(save), save.job_id, save.token, save.seq)
        return self._db.write(_SAVE_ONE, values) == 1


def complete_step(
    raw: sqlite3.Connection,
    job_id: str,
    token: str,
    step: StepRecord,
    *,
    position: int,
    seq: int,
    state: str | None,
    lease_ttl: float | None,
    counts: Sequence[Count],
) -> bool:
    """See `Store.complete_step`; in a transaction."""
    lease = None if lease_ttl is None else boot_time() + lease_ttl
    closed = raw.execute(_CLOSE_STEP, (*NOWHERE, seq, state, lease, job_id, token, seq)).rowcount
    if not closed and raw.execute(_FENCE, (job_id, token)).fetchone() is None:
        return False
    values = (position, *step, job_id, token)
    if raw.execute(_COMPLETE_STEP, values).rowcount == 1:
        add(raw, counts)
    return True


def _saved_values(save: Save) -> tuple[object, ...]:
    return (
        save.seq,
        boot_time() + save.lease_ttl,
        *(save.position or NOWHERE),
        save.progressed_at,
        save.state,
        save.meter,
    )
