"""What `@job` takes, checked once when the function is decorated."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracedjobs._core.trace import Scope

__all__ = ["Duration", "JobOptions", "checked_total", "seconds"]

Duration = float | timedelta
LONGEST: Final = 100 * 366 * 24 * 3600.0
LARGEST_TOTAL: Final = 2**63 - 1


def seconds(value: Duration, option: str, *, zero: bool = False, forever: bool = False) -> float:
    """`value` in seconds; raises `TypeError` or `ValueError` that names `option`.

    `zero` and `forever` (infinity) are allowed where they are said to be.
    """
    if isinstance(value, timedelta):
        number = value.total_seconds()
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        number = float(value)
    else:
        msg = f"{option}={value!r} must be a number of seconds or a timedelta."
        raise TypeError(msg)
    if math.isnan(number) or number < 0 or (number == 0 and not zero):
        least = "0 or more" if zero else "above 0"
        msg = f"{option}={value!r} must be {least} seconds."
        raise ValueError(msg)
    if number > LONGEST and not (forever and math.isinf(number)):
        msg = f"{option}={value!r} is longer than {LONGEST:.0f} s, a hundred years."
        raise ValueError(msg)
    return number


def checked_total(value: object, step: str) -> int | None:
    """`value` as a step's total; raises `TypeError` or `ValueError` that names the step."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        msg = f"total={value!r} of step '{step}' must be an int, or None when it is not known."
        raise TypeError(msg)
    if value < 0:
        msg = f"total={value!r} of step '{step}' must not be negative."
        raise ValueError(msg)
    if value > LARGEST_TOTAL:
        msg = f"total of step '{step}' is more than 2**63 - 1, which no store takes."
        raise ValueError(msg)
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOptions:
    """The options of a job, durations in seconds; see `job` for what each means."""

    max_resumptions: int | None = None
    resume_delay: float = 5.0
    resume_errors_after_advancing: bool = True
    checkpoint_every: float = 1.0
    max_runtime: float | None = None
    stall_after: float = 60.0
    deadline: float | None = None
    steps: int | None = None
    retention: float = 7 * 24 * 3600.0
    trace: Scope = "shared"

    @classmethod
    def checked(
        cls,
        *,
        max_resumptions: int | None,
        resume_delay: Duration,
        resume_errors_after_advancing: bool,
        checkpoint_every: Duration,
        max_runtime: Duration | None,
        stall_after: Duration,
        deadline: Duration | None,
        steps: Sequence[str] | int | None,
        retention: Duration,
        trace: Scope,
    ) -> JobOptions:
        """The options in seconds, or an error that names the one that is wrong."""
        if max_resumptions is not None and _no_count(max_resumptions):
            msg = f"max_resumptions={max_resumptions!r} must be an int of 0 or more, or None."
            raise ValueError(msg)
        if not isinstance(resume_errors_after_advancing, bool):
            msg = (
                f"resume_errors_after_advancing={resume_errors_after_advancing!r} must be True or "
                f"False."
            )
            raise TypeError(msg)
        if trace not in {"shared", "per_run"}:
            msg = f"trace={trace!r} must be 'shared', one trace a job, or 'per_run', one a run."
            raise ValueError(msg)
        if steps is not None and not isinstance(steps, int):
            if isinstance(steps, str):
                msg = f"steps={steps!r} must be a list of names or their number."
                raise TypeError(msg)
            steps = len(steps)
        if steps is not None and _no_count(steps):
            msg = f"steps={steps!r} must be names or a number of 0 or more."
            raise ValueError(msg)
        return cls(
            max_resumptions=max_resumptions,
            resume_delay=seconds(resume_delay, "resume_delay", zero=True),
            resume_errors_after_advancing=resume_errors_after_advancing,
            checkpoint_every=seconds(checkpoint_every, "checkpoint_every", zero=True),
            max_runtime=None if max_runtime is None else seconds(max_runtime, "max_runtime"),
            stall_after=seconds(stall_after, "stall_after"),
            deadline=None if deadline is None else seconds(deadline, "deadline"),
            steps=steps,
            retention=seconds(retention, "retention", zero=True, forever=True),
            trace=trace,
        )


def _no_count(value: object) -> bool:
    return isinstance(value, bool) or not isinstance(value, int) or value < 0
