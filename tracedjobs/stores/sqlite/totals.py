"""What is added to the totals, with the change that it comes from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tracedjobs._core.compact import compact
from tracedjobs._core.counting import OTHER
from tracedjobs.stores.base import STEP_NAMES

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

    from tracedjobs._core.records import Count

__all__ = ["add"]

_ADMIT: Final = (
    # Looked for first: to count the others takes longer.
    "INSERT INTO step_names SELECT ?1, ?2 "  # noqa: S608
    "WHERE NOT EXISTS (SELECT 1 FROM step_names WHERE job_name = ?1 AND step = ?2) "
    f"AND (SELECT count(*) FROM step_names WHERE job_name = ?1) < {STEP_NAMES}"
)
_ADD: Final = (
    "INSERT INTO totals SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), "  # noqa: S608
    "json_extract(value, '$[2]'), coalesce((SELECT step FROM step_names WHERE job_name = "
    "json_extract(value, '$[1]') AND step = json_extract(value, '$[3]')), CASE "
    f"json_extract(value, '$[3]') WHEN '' THEN '' ELSE '{OTHER}' END), "
    "json_extract(value, '$[4]'), json_extract(value, '$[5]') FROM json_each(?) WHERE true "
    "ON CONFLICT DO UPDATE SET value = value + excluded.value"
)


def add(raw: sqlite3.Connection, counts: Sequence[Count]) -> None:
    """Add those counts, of each job name with the step names that it has room for."""
    if counts:
        steps = {(count.job_name, count.step) for count in counts if count.step}
        for step in steps:
            raw.execute(_ADMIT, step)
        raw.execute(_ADD, (compact(counts),))
