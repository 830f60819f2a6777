"""How loud an event is, for all who log: the words of the standard library's levels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tracedjobs.events import Event

__all__ = ["level_of"]

LEVELS: Final = {
    "job_cursor_advanced": "debug",
    "job_step_skipped": "debug",
    "job_stalled": "warning",
    "job_lost": "warning",
    "job_lease_lost": "warning",
    "job_duplicate_refused": "warning",
    "job_failed": "error",
    "job_step_failed": "error",
}
"""An interruption is no failure: it is told as `info`, as everything else is."""


def level_of(event: Event) -> str:
    """`debug`, `info`, `warning` or `error`."""
    return LEVELS.get(event.name, "info")
