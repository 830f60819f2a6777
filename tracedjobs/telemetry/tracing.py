"""Tells OpenTelemetry of the jobs that this process submits and runs.

While a job runs, the span of its open step, or of its run, is the current one: what the user
begins there is its child. The spans themselves are made from the record, see `spans`.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeVar

from opentelemetry import context as contexts
from opentelemetry import trace as api
from opentelemetry.sdk.trace import Event
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import Decision

from tracedjobs._core.clock import boot_time
from tracedjobs._core.ending import type_name
from tracedjobs._core.masking import shown
from tracedjobs._core.stretch import LONGEST_TOLD
from tracedjobs._core.trace import Scope, Trace
from tracedjobs.errors import StoreError
from tracedjobs.telemetry.places import Place
from tracedjobs.telemetry.sender import Sender
from tracedjobs.telemetry.spans import Extras, messaging, segment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.sampling import Sampler
    from opentelemetry.util.types import Attributes, AttributeValue

    from tracedjobs._core.records import JobRecord, Position
    from tracedjobs._core.run import Run
    from tracedjobs._core.step import Step
    from tracedjobs.events import Event as JobEvent
    from tracedjobs.stores.base import Store
    from tracedjobs.telemetry.sender import SpanSink

__all__ = ["JobSpan", "JobTracing"]

T = TypeVar("T")

FIRST_SEGMENT: Final = 15.0
LONGEST_SEGMENT: Final = 600.0
EXTRAS_KEPT: Final = 100.0
"""Seconds from a run's end for which what users put on its spans is kept, until they are sent."""
MANY_SPANS: Final = 64
MOST_EXTRAS: Final = 128
"""Attributes, events and links each on a span of ours: OpenTelemetry's own limit."""


class JobSpan(api.NonRecordingSpan):
    """The current span in a job. Its end is the record's matter; the rest is kept as it is told."""

    def __init__(self, place: Place, keep: Callable[[], Extras] | None) -> None:
        """Stand for the span there; `keep` is called before the first thing is put on it.

        Without `keep` nothing is kept.
        """
        super().__init__(api.INVALID_SPAN_CONTEXT)
        self.place = place
        self._known_context: api.SpanContext | None = None
        self._keep = keep
        self._extras: Extras | None = None
        self.known = keep is None
        """Whether the store is sure to have it: if it has not been sent, others can tell of it."""

    def get_span_context(self) -> api.SpanContext:
        """Its ids, made when somebody asks: in most steps nobody does."""
        made = self._known_context
        if made is None:
            place = self.place
            flags = api.TraceFlags.SAMPLED if place.sampled else api.TraceFlags.DEFAULT
            made = self._known_context = api.SpanContext(
                int(place.trace_id, 16),
                int(place.span_id, 16),
                is_remote=True,
                trace_flags=api.TraceFlags(flags),
            )
        return made

    def is_recording(self) -> bool:
        """Whether what is put on it will be sent."""
        return self._keep is not None

    def close(self) -> None:
        """Keep nothing more: it has ended."""
        self._keep = None

    def set_attribute(self, key: str, value: AttributeValue) -> None:
        """Put an attribute on it; ours win over those of the same key."""
        extras = self._kept()
        if extras is not None and (
            len(extras.attributes) < MOST_EXTRAS or key in extras.attributes
        ):
            extras.attributes[_short(key)] = _short(value)

    def set_attributes(self, attributes: Mapping[str, AttributeValue]) -> None:
        """Put several on it."""
        for key, value in attributes.items():
            self.set_attribute(key, value)

    def add_event(
        self, name: str, attributes: Attributes = None, timestamp: int | None = None
    ) -> None:
        """Put an event on it."""
        extras = self._kept()
        if extras is not None and len(extras.events) < MOST_EXTRAS:
            told = {key: _short(value) for key, value in (attributes or {}).items()}
            extras.events.append(Event(name, told, timestamp=timestamp or time.time_ns()))

    def add_link(self, context: api.SpanContext, attributes: Attributes = None) -> None:
        """Link it to another span."""
        extras = self._kept()
        if extras is not None and len(extras.links) < MOST_EXTRAS:
            extras.links.append(api.Link(context, attributes))

    def record_exception(
        self,
        exception: BaseException,
        attributes: Attributes = None,
        timestamp: int | None = None,
        escaped: bool = False,  # noqa: FBT001, FBT002 - OpenTelemetry's signature
    ) -> None:
        """Put an event of that exception on it."""
        told = {
            "exception.type": type_name(exception),
            "exception.message": str(exception),
            "exception.escaped": str(escaped),
        }
        self.add_event("exception", {**told, **(attributes or {})}, timestamp)

    def _kept(self) -> Extras | None:
        keep = self._keep
        if keep is None:
            return None
        if self._extras is None:
            self._extras = keep()
        return self._extras


def _short(value: T) -> T:
    """A text that a collector takes: one that refuses a request refuses all that is in it."""
    if isinstance(value, str):
        return value[:LONGEST_TOLD]  # type: ignore[return-value]  # a text is one again
    if isinstance(value, (list, tuple)):
        return [_short(each) for each in value[:MOST_EXTRAS]]  # type: ignore[return-value]  # as above
    return value


@dataclass(slots=True)
class _Traced:
    """A run whose spans this process sends."""

    run: Run
    trace: Trace
    outside: Context
    before: Context | None = None
    """What was current where the open step was taken up, with what the job itself put there."""
    own: JobSpan | None = None
    span: JobSpan | None = None
    """The one that is current in it: its own, or its open step's."""
    spans: list[str] = field(default_factory=list)
    """Those on which something was put that is not sent yet, as far as was looked."""
    most_spans: int = MANY_SPANS
    """How many of them there are when it is looked again."""
    step: str | None = None
    segments: int = 0
    segment_from: tuple[float, Position] | None = None
    segment_at: float = 0.0
    segment_length: float = FIRST_SEGMENT


class JobTracing:
    """What `tracedjobs._core.trace.Tracing` asks for."""

    def __init__(
        self,
        sink: SpanSink,
        tracer: api.Tracer,
        sampler: Sampler,
        *,
        segments: bool = True,
    ) -> None:
        """Send to that sink; `tracer` makes the spans of submissions, and `sampler` decides."""
        self.extras: dict[str, Extras] = {}
        self.sender = Sender(sink, self.extras)
        self.sender.on_tick = self._tick
        self._sink = sink
        self._tracer = tracer
        self._sampler = sampler
        self._segments = segments
        self._ids = RandomIdGenerator()
        self._runs: dict[Run, _Traced] = {}
        self._ticked_at = 0.0
        self._ended: list[tuple[float, list[str]]] = []
        self._lock = threading.Lock()
        os.register_at_fork(after_in_child=self._after_fork_in_child)

    # -- what the core tells ---

    @contextmanager
    def submitting(self, job: JobRecord, scope: Scope) -> Iterator[str | None]:
        """See `Tracing.submitting`."""
        with self._tracer.start_as_current_span(
            f"send {job.queue or job.name}",
            kind=api.SpanKind.PRODUCER,
            attributes=messaging(job, "send"),
        ) as span:
            sent = span.get_span_context()
            if not sent.is_valid:
                yield None
                return
            there = Trace(
                f"{sent.trace_id:032x}", f"{sent.span_id:016x}", sampled=sent.trace_flags.sampled
            )
            made = self._new(sampled=there.sampled, sent=there.traceparent, scope=scope)
            yield made.text()

    def new_trace(self, job: JobRecord, scope: Scope) -> str:
        """See `Tracing.new_trace`."""
        made = self._new(sampled=True, sent=None, scope=scope)
        decision = self._sampler.should_sample(
            contexts.Context(),
            int(made.trace_id, 16),
            f"job {job.name}",
            api.SpanKind.INTERNAL,
            messaging(job, "process"),
        ).decision
        return made._replace(sampled=decision is not Decision.DROP).text()

    def began(self, run: Run) -> None:
        """See `Tracing.began`."""
        trace = Trace.read(run.record.trace)
        if trace is None:
            return
        traced = self._runs[run] = _Traced(run, trace, contexts.get_current())
        if trace.sampled:
            self.sender.watch(run.store)
            if run.number > 1:
                self.sender.tell(run.store, run.record.id, soon=True)  # of the runs before
        self._attach(traced, None)
        traced.own = traced.span

    def entered(self, run: Run, step: Step) -> None:
        """See `Tracing.entered`."""
        traced = self._runs.get(run)
        if traced is not None:
            traced.before = contexts.get_current()
            self._attach(traced, step.name)

    def left(self, run: Run) -> None:
        """See `Tracing.left`."""
        traced = self._runs.get(run)
        if traced is not None:
            if traced.before is not None:
                contexts.attach(traced.before)
                traced.before = None
            if traced.span is not None and traced.span is not traced.own:
                traced.span.close()
            if len(traced.spans) > traced.most_spans:
                traced.spans = [span for span in traced.spans if span in self.extras]
                traced.most_spans = max(2 * len(traced.spans), MANY_SPANS)
            if traced.trace.sampled:
                self.sender.tell(run.store, run.record.id, soon=False)

    def ended(self, run: Run) -> None:
        """See `Tracing.ended`."""
        traced = self._runs.pop(run, None)
        if traced is None:
            return
        contexts.attach(traced.outside)
        for span in (traced.span, traced.own):
            if span is not None:
                span.close()
        if traced.trace.sampled:
            with self._lock:
                self._ended.append((boot_time(), traced.spans))
            self.sender.tell(run.store, run.record.id, soon=True)

    def released(self, run: Run) -> None:
        """See `Tracing.released`."""
        traced = self._runs.get(run)
        if traced is not None and traced.trace.sampled:
            self.sender.tell(run.store, run.record.id, soon=True)

    def closing(self, store: Store) -> None:
        """See `Tracing.closing`."""
        self.sender.flush(store)

    # -- for those that send what the user made ---

    def make_parents_known(self, only: JobSpan | None = None) -> None:
        """See to it that each open step of this process, or that one, is in the store.

        Called before spans of the user leave the process: should it be killed right after, the one
        who finds the job can tell of the span that they are children of.
        """
        for traced in list(self._runs.values()):
            run, span = traced.run, traced.span
            if span is None or span.known or (only is not None and span is not only):
                continue
            position = run.live_position()
            if position is None or run.ended or run.lost is not None:
                continue  # a run that has no lease is not to renew it
            save = run.take_save()
            if save.position is not None and save.position.entered == position.entered:
                with suppress(StoreError):
                    run.store.save_one(save)
                    span.known = True

    def note_event(self, event: JobEvent) -> None:
        """Put an event of the user's own on the current span of his job."""
        span = api.get_current_span()
        if isinstance(span, JobSpan):
            told = {
                f"tracedjobs.event.{key}": value
                if isinstance(value, (bool, int, float))
                else shown(value)
                for key, value in event.payload.items()
                if key not in {"job", "job_id", "run", "step", "cursor"}
            }
            span.add_event(f"tracedjobs.{event.name}", told, event.timestamp)

    # -- its own ---

    def _new(self, *, sampled: bool, sent: str | None, scope: Scope) -> Trace:
        trace_id, root = self._ids.generate_trace_id(), self._ids.generate_span_id()
        return Trace(f"{trace_id:032x}", f"{root:016x}", sampled, sent, scope)

    def _attach(self, traced: _Traced, step: str | None) -> None:
        # Attached without a token: a run that begins in one context may be closed in another.
        # Around what the job made current itself: a span or baggage of its own stays.
        traced.span = self._span(traced, step)
        contexts.attach(api.set_span_in_context(traced.span, contexts.get_current()))

    def _span(self, traced: _Traced, step: str | None) -> JobSpan:
        trace, number = traced.trace, traced.run.number
        span_id = trace.span_of(number, step)

        def keep() -> Extras:
            traced.spans.append(span_id)
            return self.extras.setdefault(span_id, Extras())

        place = Place(trace.trace_of(number), span_id, trace.sampled, current=True)
        return JobSpan(place, keep if trace.sampled else None)

    def _after_fork_in_child(self) -> None:
        # The runs are the parent's: nothing of them is to be told, or saved, from here.
        self._lock = threading.Lock()
        self._runs.clear()
        self._ended.clear()
        self.extras.clear()

    def _tick(self) -> None:
        now = boot_time()
        if now - self._ticked_at < 1.0:
            return
        self._ticked_at = now
        with self._lock:
            old = [spans for at, spans in self._ended if now - at > EXTRAS_KEPT]
            self._ended = [each for each in self._ended if now - each[0] <= EXTRAS_KEPT]
        for spans in old:
            for span_id in spans:
                self.extras.pop(span_id, None)
        if self._segments:
            made: list[ReadableSpan] = []
            for traced in list(self._runs.values()):
                with suppress(StoreError):  # it is away, and does not know the time
                    made += self._segment(traced)
            if made:
                self._sink.send(made)

    def _segment(self, traced: _Traced) -> list[ReadableSpan]:
        run = traced.run
        if not traced.trace.sampled or run.ended or run.lost is not None:
            return []
        position = run.live_position()
        now = run.store.time()
        if run.current is None or position is None or position.step != traced.step:
            traced.step = None if run.current is None or position is None else position.step
            traced.segment_from = None if position is None else (now, position)
            traced.segment_length = FIRST_SEGMENT
            traced.segment_at = boot_time() + FIRST_SEGMENT
            return []
        if boot_time() < traced.segment_at or traced.segment_from is None:
            return []
        traced.segments += 1
        made = segment(
            run.record,
            run.number,
            traced.segments,
            self._sink.resource(),
            first=traced.segment_from,
            last=(now, position),
        )
        traced.segment_from = (now, position)
        traced.segment_length = min(traced.segment_length * 2, LONGEST_SEGMENT)
        traced.segment_at = boot_time() + traced.segment_length
        return [] if made is None else [made]
