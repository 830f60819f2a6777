"""A job's snapshot as plain JSON. The keys are public: they may be added to, and never change.

Values are shown as JSON has them; dates and times as ISO 8601; what JSON has not as its `repr`.
"""

from __future__ import annotations

import json
import math
from datetime import UTC, date, datetime, time
from typing import TYPE_CHECKING, Final

from tracedjobs._core.snapshot import Unreadable

if TYPE_CHECKING:
    from tracedjobs._core.snapshot import JobSnapshot, RunSnapshot, StepSnapshot

__all__ = ["job_as_json", "print_json"]

BITS: Final = 10_000
"""Of an int that is still written out; Python refuses to write much longer ones."""


def print_json(value: object, *, indent: int | None = 2) -> None:
    """Print it, in one line without `indent`; in ASCII, so that any output takes it."""
    print(json.dumps(value, indent=indent, allow_nan=False), flush=True)


def job_as_json(job: JobSnapshot) -> dict[str, object]:
    """All there is to know of the job."""
    current = job.current
    return {
        "id": job.id,
        "name": job.name,
        "status": str(job.status),
        "lost": job.lost,
        "stalled": job.stalled,
        "wish": job.wish,
        "reason": job.reason,
        "run": job.run,
        "resumptions": job.resumptions,
        "worker": job.worker,
        "queue": job.queue,
        "trace_id": job.trace_id,
        "step": None if current is None else current.name,
        "steps_completed": sum(step.status == "completed" for step in job.steps),
        "steps_expected": job.steps_expected,
        "items": job.items,
        "items_redone": job.items_redone,
        "time_left_s": None if job.time_left is None else job.time_left.total_seconds(),
        "stall": None
        if job.stall is None
        else {
            "at": _moment(datetime.fromtimestamp(job.stall.at, UTC)),
            "step": job.stall.step,
            "stack": list(job.stall.stack),
        },
        "arguments": {name: _plain(value) for name, value in job.arguments.items()},
        "state": _plain(job.state),
        "result": _plain(job.result),
        "error": None
        if job.error is None
        else {
            "type": job.error.type,
            "message": job.error.message,
            "traceback": job.error.traceback,
        },
        "submitted_at": _moment(job.submitted_at),
        "started_at": _moment(job.started_at),
        "progressed_at": _moment(job.progressed_at),
        "heartbeat_at": _moment(job.heartbeat_at),
        "ended_at": _moment(job.ended_at),
        "resume_at": _moment(job.resume_at),
        "deadline_at": _moment(job.deadline_at),
        "expires_at": _moment(job.expires_at),
        "steps": [_step(step) for step in job.steps],
        "runs": [_run(run) for run in job.runs],
        "controls": [
            {
                "at": _moment(control.at),
                "action": control.action,
                "by": control.by,
                "detail": control.detail,
            }
            for control in job.controls
        ],
    }


def _step(step: StepSnapshot) -> dict[str, object]:
    return {
        "name": step.name,
        "status": step.status,
        "cursor": _plain(step.cursor),
        "items": step.items,
        "total": step.total,
        "unit": step.unit or "items",
        "run": step.run,
        "started_at": _moment(step.started_at),
        "ended_at": _moment(step.ended_at),
        "result": _plain(step.result),
    }


def _run(run: RunSnapshot) -> dict[str, object]:
    return {
        "number": run.number,
        "worker": run.worker,
        "started_at": _moment(run.started_at),
        "ended_at": _moment(run.ended_at),
        "resumed": run.resumed,
        "outcome": run.outcome,
        "reason": run.reason,
    }


def _moment(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat()


def _plain(value: object) -> object:
    if value is None or isinstance(value, (bool, str)):
        return value
    if type(value) is int:
        return value if value.bit_length() <= BITS else hex(value)
    if type(value) is float and math.isfinite(value):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, (datetime, date, time)):
        return value.isoformat()
    if isinstance(value, Unreadable):
        return value.text
    try:
        return repr(value)
    except ValueError:  # it holds an int of thousands of digits
        return f"<{type(value).__name__}, too long to show>"
