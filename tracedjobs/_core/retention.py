"""How long the record of a job is kept after it has ended: the one rule, pure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from tracedjobs._core.trace import Trace

if TYPE_CHECKING:
    from tracedjobs._core.records import JobRecord

__all__ = ["expiry"]

LONG_ENOUGH_TO_SEND: Final = 600.0
"""Seconds that a job with a trace is kept at least: its spans are made from its record."""


def expiry(head: JobRecord, now: float, retention: float) -> float | None:
    """When the record of a job that ends now is to go; `None` for one that is kept."""
    if math.isinf(retention):
        return None
    trace = Trace.read(head.trace)
    traced = trace is not None and trace.sampled
    return now + (max(retention, LONG_ENOUGH_TO_SEND) if traced else retention)
