"""The trace a job belongs to: what is stored of it, and the ids of its spans, which follow from it.

Nothing here knows OpenTelemetry: `tracedjobs.telemetry` puts itself into `installed`, and the core
tells it what happens in a run's own thread or task. Without it nothing is told.

The id of a span is a hash of the trace, the run and the step. So the process that ran a step, and
whoever finds its job after it was killed, give the span the same id without having met.
"""

from __future__ import annotations

import hashlib
import logging
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from tracedjobs._core.records import JobRecord
    from tracedjobs._core.run import Run
    from tracedjobs._core.step import Step
    from tracedjobs.stores.base import Store

__all__ = ["FLAGS_AT", "Scope", "Trace", "Tracing", "installed", "submitting", "tell"]

T = TypeVar("T")

FLAGS_AT: Final = 54
"""Where in the text of a `Trace` the flags of its traceparent begin, counted from 1."""
_TRACEPARENT: Final = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")

Scope = Literal["shared", "per_run"]
"""Whether all runs of a job are in one trace, or each in one of its own."""


class Trace(NamedTuple):
    """The trace of a job: its id, its root span's, and whether it is sampled.

    `sent`, the traceparent of the span in which the job was submitted, is in the caller's trace.
    """

    trace_id: str
    root_id: str
    sampled: bool
    sent: str | None = None
    scope: Scope = "shared"

    @property
    def traceparent(self) -> str:
        """Its root, as the W3C writes the place of a span."""
        return f"00-{self.trace_id}-{self.root_id}-{'01' if self.sampled else '00'}"

    def text(self) -> str:
        """As it is stored: the traceparent, then the other two."""
        return f"{self.traceparent} {self.sent or '-'} {self.scope}"

    @classmethod
    def read(cls, text: str | None) -> Trace | None:
        """What `text` made of it; `None` where there is none, or it does not hold together."""
        parent, _, rest = (text or "").partition(" ")
        sent, _, scope = rest.partition(" ")
        found = _TRACEPARENT.fullmatch(parent)
        if found is None:
            return None
        return cls(
            found[1],
            found[2],
            int(found[3], 16) & 1 == 1,
            sent if _TRACEPARENT.fullmatch(sent) else None,
            "per_run" if scope == "per_run" else "shared",
        )

    def trace_of(self, run: int | None) -> str:
        """The id of the trace that the spans of a run, or the root, are in: 32 digits."""
        if run is None or self.scope == "shared":
            return self.trace_id
        return _digest(16, self.trace_id, self.root_id, run)

    def span_of(self, run: int | None, step: str | None = None, segment: int | None = None) -> str:
        """The id of the root's span, of a run's, a step's in it, or a part's of that: 16 digits."""
        if run is None:
            return self.root_id
        return _digest(8, self.trace_id, self.root_id, run, step, segment)


def _digest(size: int, *parts: object) -> str:
    return hashlib.blake2b(
        repr(parts).encode("utf-8", "backslashreplace"), digest_size=size
    ).hexdigest()


class Tracing(Protocol):
    """What is told of a process's jobs. Nothing it does may wait for a server."""

    def submitting(self, job: JobRecord, scope: Scope) -> AbstractContextManager[str | None]:
        """Around the recording of a new job; the text of the trace that it is to have."""
        ...

    def new_trace(self, job: JobRecord, scope: Scope) -> str:
        """The trace of a job that was submitted without one, and is about to run."""
        ...

    def began(self, run: Run) -> None:
        """A run has its lease. Told in its own thread or task, as is what follows."""
        ...

    def entered(self, run: Run, step: Step) -> None:
        """The run took a step up."""
        ...

    def left(self, run: Run) -> None:
        """No step is open any more."""
        ...

    def ended(self, run: Run) -> None:
        """The run is over, in the store too, if that could be told."""
        ...

    def released(self, run: Run) -> None:
        """The run was recorded as over while its own thread goes on; told in another one."""
        ...

    def closing(self, store: Store) -> None:
        """The store is about to be closed."""
        ...


installed: Tracing | None = None
_log: Final = logging.getLogger("tracedjobs")


def tell(told: Callable[[Tracing], T]) -> T | None:
    """Tell what is installed. Should it raise, that is logged, and the job goes on."""
    if installed is None:
        return None
    try:
        return told(installed)
    except Exception:
        _log.exception("Telemetry failed here; the job goes on.")
        return None


@contextmanager
def submitting(job: JobRecord, scope: Scope) -> Iterator[str | None]:
    """See `Tracing.submitting`; `None` where nothing is installed, or it failed."""
    around = tell(lambda tracing: tracing.submitting(job, scope))
    text = None if around is None else tell(lambda _: around.__enter__())
    try:
        yield text
    except BaseException as error:
        if around is not None:
            failed = error
            tell(lambda _: around.__exit__(type(failed), failed, failed.__traceback__))
        raise
    else:
        if around is not None:
            tell(lambda _: around.__exit__(None, None, None))
