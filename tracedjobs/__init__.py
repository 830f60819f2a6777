"""Background jobs made of named steps and cursors, which stop and pick up where they left off.

The public names; each is loaded when it is first used. See `Context` for what a job can do.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tracedjobs._core.context import AsyncContext, Context
    from tracedjobs._core.job import Job, job
    from tracedjobs._core.loop import Loop
    from tracedjobs._core.outcome import Outcome
    from tracedjobs._core.records import Status
    from tracedjobs._core.runtime import Runtime, configure, default_runtime
    from tracedjobs._core.snapshot import JobSnapshot
    from tracedjobs._core.step import Step
    from tracedjobs._core.values import register_type
    from tracedjobs.errors import Interrupt, TracedJobsError

__all__ = [
    "AsyncContext",
    "Context",
    "Interrupt",
    "Job",
    "JobSnapshot",
    "Loop",
    "Outcome",
    "Runtime",
    "Status",
    "Step",
    "TracedJobsError",
    "__version__",
    "configure",
    "default_runtime",
    "job",
    "register_type",
]

_WHERE: Final = {
    "AsyncContext": "tracedjobs._core.context",
    "Context": "tracedjobs._core.context",
    "Interrupt": "tracedjobs.errors",
    "Job": "tracedjobs._core.job",
    "JobSnapshot": "tracedjobs._core.snapshot",
    "Loop": "tracedjobs._core.loop",
    "Outcome": "tracedjobs._core.outcome",
    "Runtime": "tracedjobs._core.runtime",
    "Status": "tracedjobs._core.records",
    "Step": "tracedjobs._core.step",
    "TracedJobsError": "tracedjobs.errors",
    "configure": "tracedjobs._core.runtime",
    "default_runtime": "tracedjobs._core.runtime",
    "job": "tracedjobs._core.job",
    "register_type": "tracedjobs._core.values",
}

if TYPE_CHECKING:
    __version__: str


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version  # noqa: PLC0415 - slow, and seldom asked for

        value: object = version("tracedjobs")
    elif name in _WHERE:
        value = getattr(import_module(_WHERE[name]), name)
    elif name in {"errors", "events", "sources", "stores", "telemetry", "testing"}:
        return import_module(f"tracedjobs.{name}")
    else:
        msg = f"module 'tracedjobs' has no attribute {name!r}"
        raise AttributeError(msg)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
