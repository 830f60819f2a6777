"""The spans of a job, made from its record: by the process that ran it, or by whoever finds it.

Pure. A span that is told live differs from one that is told after a kill only in what the user
himself put on it, which the dead process has taken along.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from tracedjobs._core.masking import mask_text
from tracedjobs._core.records import FINISHED, JobRecord, RunRecord, StepRecord
from tracedjobs._core.records import Status as JobStatus
from tracedjobs._core.stretch import Entered, Left
from tracedjobs._core.trace import Trace

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from opentelemetry.sdk.resources import Resource
    from opentelemetry.util.types import Attributes

    from tracedjobs._core.records import Position, Stored

__all__ = ["Extras", "Owed", "context_of", "messaging", "owed_by", "segment"]

SCOPE: Final = InstrumentationScope("tracedjobs")
SYSTEM: Final = "tracedjobs"
UNKNOWN_ERROR: Final = "_OTHER"
"""OpenTelemetry's word for an error whose type is not known."""


@dataclass(slots=True)
class Extras:
    """What the user put on the span of a run or a step while it was the current one."""

    attributes: dict[str, object] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Owed:
    """The spans of a job that were not sent yet, and what is sent when they are.

    `steps` and `runs` count completed steps and ended runs from the first on; `all` is whether
    nothing was left for another time.
    """

    spans: Sequence[ReadableSpan]
    steps: int
    runs: int
    root: bool
    all: bool = True


def owed_by(
    stored: Stored, resource: Resource, extras: Mapping[str, Extras], *, most: int | None = None
) -> Owed:
    """What the job owes, of its steps `most` at a time; `extras` by the ids of spans."""
    head = stored.job
    trace = Trace.read(head.trace)
    if trace is None or not trace.sampled:
        return Owed((), 0, 0, root=False)
    make = _Maker(head, trace, resource, extras)
    ended = [run for run in stored.runs if run.ended_at is not None]
    unsent = stored.steps[head.steps_sent :]
    if most is not None and len(unsent) > most:
        some = [make.completed(step) for step in unsent[:most]]
        return Owed(some, head.steps_sent + most, 0, root=False, all=False)
    spans = [make.completed(step) for step in unsent]
    done = {(step.name, step.run) for step in stored.steps}
    for run in ended[head.runs_sent :]:
        left = Left.read(run.left)
        # A run that ends while a step's completion is unanswered does not know that it is done.
        if left is not None and (left.step, run.number) not in done:
            spans.append(make.left(left, run))
        spans.append(make.process(run))
    root = head.status in FINISHED and not head.root_sent
    if root:
        spans.append(make.root(stored))
    return Owed(spans, len(stored.steps), len(ended), root or bool(head.root_sent))


def segment(
    head: JobRecord,
    run: int,
    number: int,
    resource: Resource,
    *,
    first: tuple[float, Position],
    last: tuple[float, Position],
) -> ReadableSpan | None:
    """A finished part of a step that is open, from one moment and position to another."""
    trace = Trace.read(head.trace)
    if trace is None or not trace.sampled:
        return None
    (started, at), (ended, position) = first, last
    return _Maker(head, trace, resource, {}).span(
        f"segment {position.step}",
        trace.span_of(run, position.step, number),
        run,
        started,
        ended,
        parent=context_of(trace, run, position.step),
        attributes={
            "tracedjobs.step.name": position.step,
            "tracedjobs.cursor.start": mask_text(at.cursor),
            "tracedjobs.cursor.end": mask_text(position.cursor),
            "tracedjobs.items.processed": max(position.items - at.items, 0),
        },
    )


def context_of(trace: Trace, run: int | None = None, step: str | None = None) -> SpanContext:
    """Where the span of that run, or of a step in it, is; without a run that of the root."""
    return SpanContext(
        int(trace.trace_of(run), 16),
        int(trace.span_of(run, step), 16),
        is_remote=True,
        trace_flags=TraceFlags(TraceFlags.SAMPLED if trace.sampled else TraceFlags.DEFAULT),
    )


def messaging(head: JobRecord, operation: str) -> dict[str, str]:
    """The attributes of OpenTelemetry's conventions for messages, and the job's own."""
    return {
        "messaging.operation.name": operation,
        "messaging.operation.type": operation,
        **_of_job(head),
    }


def _of_job(head: JobRecord) -> dict[str, str]:
    return {
        "messaging.system": SYSTEM,
        "messaging.destination.name": head.queue or head.name,
        "messaging.message.id": head.id,
        "tracedjobs.job.id": head.id,
        "tracedjobs.job.name": head.name,
    }


@dataclass(frozen=True, slots=True)
class _Maker:
    head: JobRecord
    trace: Trace
    resource: Resource
    extras: Mapping[str, Extras]

    def root(self, stored: Stored) -> ReadableSpan:
        head = self.head
        ended = head.ended_at if head.ended_at is not None else head.submitted_at
        sent = Trace.read(self.trace.sent)
        links = []
        if sent is not None:
            links.append(Link(context_of(sent), {"tracedjobs.link": "submitted_by"}))
        if self.trace.scope == "per_run":
            links += [
                Link(context_of(self.trace, run.number), {"tracedjobs.link": "run"})
                for run in stored.runs
            ]
        events = [
            Event(
                f"tracedjobs.{control.action}",
                {"tracedjobs.by": control.by},
                timestamp=_nanoseconds(control.at),
            )
            for control in stored.controls
        ]
        return self.span(
            f"job {head.name}",
            self.trace.root_id,
            None,
            head.submitted_at,
            ended,
            parent=None,
            links=links,
            events=events,
            error=_error_type(head) if head.status is JobStatus.FAILED else None,
            attributes={
                **_of_job(head),
                "tracedjobs.job.outcome": str(head.status),
                "tracedjobs.job.runs": head.run,
                "tracedjobs.job.resumptions": head.resumptions,
                "tracedjobs.items.processed": sum(step.items for step in stored.steps)
                + (head.items if stored.open_position is not None else 0),
                "tracedjobs.items.redone": head.items_redone,
            },
        )

    def process(self, run: RunRecord) -> ReadableSpan:
        head, trace = self.head, self.trace
        ended = run.started_at if run.ended_at is None else run.ended_at
        outcome = run.outcome or "lost"
        attributes: dict[str, object] = {
            **messaging(head, "process"),
            "code.function.name": head.name.replace(":", "."),
            "tracedjobs.run.number": run.number,
            "tracedjobs.run.outcome": outcome,
            "tracedjobs.worker": run.worker,
        }
        if run.reason is not None:
            attributes["tracedjobs.run.reason"] = mask_text(run.reason)  # any text of the job's
        links = []
        if trace.scope == "per_run":
            links.append(Link(context_of(trace), {"tracedjobs.link": "job"}))
        if run.number > 1:
            before = context_of(trace, run.number - 1)
            links.append(Link(before, {"tracedjobs.link": "resumed_from"}))
        event = Event(f"tracedjobs.job_{outcome}", timestamp=_nanoseconds(ended))
        return self.span(
            f"process {head.name}",
            trace.span_of(run.number),
            run.number,
            run.started_at,
            ended,
            kind=SpanKind.CONSUMER,
            parent=None if trace.scope == "per_run" else context_of(trace),
            links=links,
            events=[event],
            error=self._error(outcome, run.number),
            attributes=attributes,
        )

    def completed(self, step: StepRecord) -> ReadableSpan:
        entered = Entered.read(step.entered) or Entered(step.started_at)
        return self._step(
            step.name,
            step.run,
            entered,
            step.ended_at,
            resumed=step.started_at < entered.at,
            cursor=step.cursor,
            items=step.items,
            total=step.total if step.unit is None else None,
            outcome="completed",
        )

    def left(self, left: Left, run: RunRecord) -> ReadableSpan:
        entered = Entered.read(left.entered) or Entered(run.started_at)
        outcome = run.outcome if run.outcome in {"failed", "lost"} else "interrupted"
        return self._step(
            left.step,
            run.number,
            entered,
            run.started_at if run.ended_at is None else run.ended_at,
            resumed=entered.items > 0,
            cursor=left.cursor,
            items=left.items,
            total=None,
            outcome=outcome or "interrupted",
        )

    def _step(
        self,
        name: str,
        run: int,
        entered: Entered,
        ended: float,
        *,
        resumed: bool,
        cursor: str,
        items: int,
        total: int | None,
        outcome: str,
    ) -> ReadableSpan:
        attributes: dict[str, object] = {
            "tracedjobs.job.id": self.head.id,
            "tracedjobs.job.name": self.head.name,
            "tracedjobs.run.number": run,
            "tracedjobs.step.name": name,
            "tracedjobs.step.outcome": outcome,
            "tracedjobs.step.resumed": resumed,
            "tracedjobs.cursor.start": mask_text(entered.cursor),
            "tracedjobs.cursor.end": mask_text(cursor),
            "tracedjobs.items.processed": max(items - entered.items, 0),
        }
        if total is not None:
            attributes["tracedjobs.items.expected"] = total
        return self.span(
            f"step {name}",
            self.trace.span_of(run, name),
            run,
            entered.at,
            ended,
            parent=context_of(self.trace, run),
            error=self._error(outcome, run),
            attributes=attributes,
        )

    def _error(self, outcome: str, run: int) -> str | None:
        """The type of the error that is the outcome of that run; the last one's alone is kept."""
        if outcome == "failed":
            return _error_type(self.head) if run == self.head.run else UNKNOWN_ERROR
        return "lost" if outcome == "lost" else None

    def span(
        self,
        name: str,
        span_id: str,
        run: int | None,
        started: float,
        ended: float,
        *,
        parent: SpanContext | None,
        attributes: Mapping[str, object],
        kind: SpanKind = SpanKind.INTERNAL,
        links: Sequence[Link] = (),
        events: Sequence[Event] = (),
        error: str | None = None,
    ) -> ReadableSpan:
        extra = self.extras.get(span_id) or Extras()
        start = _nanoseconds(started)
        common: dict[str, object] = {**extra.attributes, **attributes}
        if error is not None:
            common["error.type"] = error
        given: Attributes = common  # type: ignore[assignment]  # values are texts, numbers and truths
        return ReadableSpan(
            name=name,
            context=SpanContext(
                int(self.trace.trace_of(run), 16),
                int(span_id, 16),
                is_remote=False,
                trace_flags=TraceFlags(TraceFlags.SAMPLED),
            ),
            parent=parent,
            resource=self.resource,
            attributes=given,
            events=[*events, *extra.events],
            links=[*links, *extra.links],
            kind=kind,
            status=Status(StatusCode.UNSET) if error is None else Status(StatusCode.ERROR, error),
            start_time=start,
            # A clock that was set back makes no span that ends before it starts.
            end_time=max(_nanoseconds(ended), start),
            instrumentation_scope=SCOPE,
        )


def _error_type(head: JobRecord) -> str:
    try:
        return str(json.loads(head.error or "")["type"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return UNKNOWN_ERROR


def _nanoseconds(moment: float) -> int:
    return max(round(moment * 1e6), 0) * 1000
