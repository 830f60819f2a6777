"""The change that ends the run of a job which is done, as a script of its own takes it.

Nearly every job makes it once, and of the short ones it is a third of all they cost: so it has a
quarter of the words that a change of any kind has. Whatever is not quite that is none of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tracedjobs._core.records import LOST_GAP, POSITION_COLUMNS, Status
from tracedjobs.stores.redis.changing import milliseconds_until, owes, runs_after
from tracedjobs.stores.redis.keys import shard_of
from tracedjobs.stores.redis.packing import end_entry, later_text

if TYPE_CHECKING:
    from tracedjobs._core.records import Change, JobRecord, Stored
    from tracedjobs.stores.redis.keys import Keys

__all__ = ["completion_arguments"]

_EMPTIED: Final = ("token", "owner", "wish", "reason", "error", "step")
_COLUMNS: Final = frozenset(
    {*_EMPTIED, *POSITION_COLUMNS, "status", "lease_until", "saved_seq", "counted"}
    | {"ended_at", "expires_at", "result"}
)


def completion_arguments(
    names: Keys, stored: Stored, change: Change, new: JobRecord, *, now: float
) -> tuple[list[str], list[str | int]] | None:
    """Keys and arguments, but for the totals; `None` for a change that is another.

    `new` is the job after it, and `now` the time on the server's clock.
    """
    old, columns = stored.job, change.columns
    if (
        new.status is not Status.COMPLETED
        or old.status is not Status.RUNNING
        or columns.keys() != _COLUMNS
        or any(columns[name] is not None for name in _EMPTIED)
        or columns["lease_until"]
        or columns["counted"]
        or old.token is None
        or change.if_token != old.token
        or old.expires_at is not None
        or change[3:5] != (None, None)  # of leases
        or change.open_run is not None
        or change.close_run is None
        or change.drop_steps
        or change.control is not None
    ):
        return None
    shard = shard_of(old.id)
    last, _ = runs_after(stored.runs, change)
    first = old.revision == 1 and len(stored.runs) == 1 and not (stored.steps or stored.controls)
    keep, entry = "", ""
    if new.expires_at is not None:
        keep = milliseconds_until(new.expires_at, now)
        entry = end_entry(new.id, new.status, new.name)
    keys = [
        *names.job(old.id),
        *names.indexes(shard, "running", old.name),
        *names.indexes(shard, "completed", old.name),
        *(names.leases(shard), names.ends(shard), names.totals(shard), names.spans(shard)),
    ]
    return keys, [
        *(old.id, old.revision, old.token, new.saved_seq, LOST_GAP),
        *(later_text(new, last), keep, entry, owes(old, change)),
        "1" if first and old.state is None else "",
    ]
