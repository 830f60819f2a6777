"""When a job that waits is to be handed back to its queue: the one rule, pure.

It is kept with the job as `hand_at`, so that a store finds those that are due by an index.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tracedjobs._core.records import Status

if TYPE_CHECKING:
    from tracedjobs._core.records import Change

__all__ = ["LATE", "columns_of", "hand_again_at", "hand_at"]

LATE: Final = 30.0
"""Seconds after which a message that somebody was to send counts as lost."""
NOBODY_SENDS: Final = frozenset({"lost", "paused", "retry", "rewound", "exit", "unknown"})
"""Reasons of waiting jobs that have no message on its way. Those that are the name of an
exception, such as KeyboardInterrupt, are others: their process was ended before it sent one."""


def hand_at(reason: str, resume_at: float) -> float:
    """When to send a message for a job that was interrupted so, if it waits until then."""
    nobody = reason in NOBODY_SENDS or reason[:1].isupper()
    return resume_at if nobody else resume_at + LATE


def hand_again_at(resume_at: float, now: float) -> float:
    """When to send the next one, after one that is sent now.

    It still waits then in a long queue, or its message is lost: each time it is given twice as
    long.
    """
    return now + max(LATE, now - resume_at)


def columns_of(change: Change) -> dict[str, object]:
    """The columns of a change as stores keep them: with when the job is to be handed back."""
    columns = dict(change.columns)
    if columns.get("status") is Status.INTERRUPTED:
        reason, resume_at = columns.get("reason"), columns.get("resume_at")
        at = hand_at(str(reason or ""), resume_at) if isinstance(resume_at, (int, float)) else None
        columns.setdefault("hand_at", at)
    return columns
