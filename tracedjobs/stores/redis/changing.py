"""A change as the script takes it: what was read, what it is to become, and which indexes it moves.

Nothing here talks to a server; the script makes the change only if the job is as it was read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tracedjobs._core.clock import boot_id
from tracedjobs._core.compact import compact
from tracedjobs._core.due import columns_of
from tracedjobs._core.records import (
    ALLOWED,
    LOST_GAP,
    POSITION_COLUMNS,
    Change,
    JobRecord,
    RunRecord,
    Status,
)
from tracedjobs._core.trace import Trace
from tracedjobs.errors import InvalidTransitionError
from tracedjobs.stores.redis.keys import shard_of
from tracedjobs.stores.redis.packing import (
    end_entry,
    hand_micros,
    is_submitted_alike,
    later_text,
    packed,
    submitted_text,
    to_micros,
)

if TYPE_CHECKING:
    from tracedjobs._core.records import Stored
    from tracedjobs.stores.redis.keys import Keys

__all__ = [
    "change_arguments",
    "changed",
    "check_transition",
    "milliseconds_until",
    "owes",
    "runs_after",
]


def change_arguments(
    names: Keys,
    stored: Stored,
    new: JobRecord,
    change: Change,
    added: list[str | int],
    *,
    now: float,
) -> tuple[list[str], list[str | int]]:
    """Keys and arguments of the script that makes the change of the job to `new`.

    `added`: fields of totals, then what is added to each. `now`: the time on the server's clock.
    """
    old, columns = stored.job, change.columns
    shard = shard_of(old.id)
    keys = [
        *names.job(old.id),
        *names.indexes(shard, old.status, old.name),
        *names.indexes(shard, new.status, new.name),
        names.leases(shard),
        names.ends(shard),
        names.totals(shard),
        names.spans(shard),
        names.handed(shard, old.status),
        names.handed(shard, new.status),
    ]
    texts = packed(new)
    moves = not columns.keys().isdisjoint(POSITION_COLUMNS)
    held = "" if change.if_lease_until is None else to_micros(change.if_lease_until)
    for_ttl = "" if change.lease_ttl is None else to_micros(change.lease_ttl)
    state = ("-" if new.state is None else new.state) if "state" in columns else ""
    keep = "same"
    if "expires_at" in columns or new.status is not old.status:
        keep = "" if new.expires_at is None else milliseconds_until(new.expires_at, now)
    last, pushed = runs_after(stored.runs, change)
    head = later_text(new, last)
    if not is_submitted_alike(old, new):
        head = submitted_text(new) + head
    dropped = bool(change.drop_steps)
    left: list[str] = []
    if dropped:
        left = [compact(each) for each in stored.steps if each.name not in change.drop_steps]
    return keys, [
        *(old.id, old.revision, old.status, old.token or "", held),
        *(new.revision, new.status, new.token or "", new.wish or ""),
        head,
        for_ttl,
        to_micros(new.lease_until) if "lease_until" in columns else "",
        str(new.saved_seq) if "saved_seq" in columns else "",
        texts.items if moves else "",
        texts.progressed if "progressed_at" in columns else "",
        *("1" if moves else "", texts.cursor, texts.open),
        *(texts.spilled_cursor, texts.spilled_open, state, keep),
        "" if old.expires_at is None else end_entry(old.id, old.status, old.name),
        end_entry(new.id, new.status, new.name) if keep not in {"", "same"} else "",
        "" if pushed is None else compact(pushed),
        "" if change.control is None else compact(change.control),
        str(len(stored.steps)) if dropped else "",
        # A run may have completed a step since `old` was read, which clears them both.
        (new.meter or "") if "meter" in columns else "=",
        (new.counted or "") if "counted" in columns else "=",
        owes(old, change),
        str(LOST_GAP) if change.if_token is not None and "saved_seq" in columns else "",
        *(hand_micros(new), len(added) // 2, *added, *left),
    ]


def milliseconds_until(expires_at: float, now: float) -> str:
    """How long a record is kept from now on.

    Both are on the server's clock, as all times in records are: those of workers may be wrong.
    """
    return str(round((expires_at - now) * 1000))


def changed(old: JobRecord, change: Change) -> JobRecord:
    """The job as it is to be."""
    columns = columns_of(change)
    if change.lease_ttl is not None:
        columns["lease_boot"] = boot_id()  # by which others on the same host know the owner's lock
    columns["revision"] = old.revision + 1
    return old.changed(columns)


def check_transition(old: JobRecord, status: Status) -> None:
    """Raise `InvalidTransitionError` for what the table of statuses does not have."""
    if status not in ALLOWED[old.status]:
        msg = f"The job {old.id} is {old.status.value} and cannot become {status.value}."
        raise InvalidTransitionError(msg)


def owes(old: JobRecord, change: Change) -> str:
    """Whether the job owes spans from that change on: '1', or '' where it does not."""
    if old.trace is None or not change.owes_spans:
        return ""
    trace = Trace.read(old.trace)
    return "1" if trace is not None and trace.sampled else ""


def runs_after(
    runs: tuple[RunRecord, ...], change: Change
) -> tuple[RunRecord | None, RunRecord | None]:
    """The last run, which is kept in the head, and the one that is to go to the list before it."""
    last = runs[-1] if runs else None
    end = change.close_run
    if end is not None and last is not None and last.number == end.number:
        last = RunRecord(*last[:4], end.ended_at, end.outcome, end.reason, end.left)
    if change.open_run is None:
        return last, None
    return change.open_run, last
