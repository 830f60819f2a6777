"""The exporters that `configure` makes, and the span processors it adds to a provider.

An exporter is made when it is first used and anew in a forked child, whose parent's connection is
not its own. What fails is said in one line, and again only after it worked in between.
"""

from __future__ import annotations

import logging
import os
import threading
from contextlib import contextmanager
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from opentelemetry import context as contexts
from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY
from opentelemetry.sdk._logs.export import LogRecordExporter, LogRecordExportResult
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import get_current_span

from tracedjobs._core.ending import type_name
from tracedjobs._core.masking import shown
from tracedjobs.telemetry.settings import SettingsError
from tracedjobs.telemetry.tracing import JobSpan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from opentelemetry.context import Context
    from opentelemetry.sdk._logs import ReadableLogRecord
    from opentelemetry.sdk.resources import Resource

    from tracedjobs.telemetry.tracing import JobTracing

__all__ = ["Logs", "OfJobs", "Provided", "Spans", "Trouble", "WholeTrees", "named"]

T = TypeVar("T")

MOST_HELD: Final = 2048
THEIR_LOGGERS: Final = (
    "opentelemetry.exporter.otlp.common.http",
    "opentelemetry.exporter.otlp.proto.grpc.exporter",
    "opentelemetry.exporter.otlp.proto.http._log_exporter",
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
)
WITH_CLIENT: Final = "opentelemetry.exporter.otlp.proto.http._log_exporter"
MOST_BYTES: Final = 1 << 25
"""Of a request that is written here: the exporter knows what to do with one that is too large."""
_log: Final = logging.getLogger("tracedjobs")


def named(group: str, name: str, setting: str) -> Callable[[], Any]:
    """The exporter of that name among those that packages offer; `SettingsError` if there is none.

    `group` is `traces` or `logs`, `setting` where the name was found.
    """
    offered = {each.name: each for each in entry_points(group=f"opentelemetry_{group}_exporter")}
    if name in offered:
        made: Callable[[], Any] = offered[name].load()
        return made
    if name.startswith("otlp"):
        msg = "OTLP needs a package that is not installed: pip install 'tracedjobs[otlp]'"
        raise ImportError(msg)
    known = ", ".join(sorted({*offered, "none"}))
    msg = f"{setting}={name} names an exporter that is not installed; there are {known}"
    raise SettingsError(msg)


class Trouble:
    """What cannot be sent to one place, by any of those who send there: it is said once."""

    def __init__(self, what: str) -> None:
        """Of those who send that."""
        self._what = what
        self._failing: set[object] = set()

    def note(self, who: object, why: str | None) -> None:
        """Say so when the first of them fails, and when the last of them works again.

        `why` begins with where it was to go, if that is known.
        """
        there = bool(self._failing)
        if why is not None:
            self._failing.add(who)
            if not there:
                _log.warning("%s cannot be sent%s. Jobs go on; it is tried again.", self._what, why)
        else:
            self._failing.discard(who)
            if there and not self._failing:
                _log.warning("%s are sent again.", self._what)


class _Lazy(Generic[T]):
    """An exporter of this process."""

    def __init__(self, make: Callable[[], T], trouble: Trouble) -> None:
        self._make = make
        self._trouble = trouble
        self._made: tuple[int, T] | None = None
        self._lock = threading.Lock()
        os.register_at_fork(after_in_child=self._after_fork_in_child)

    def get(self) -> T:
        with self._lock:
            if self._made is None or self._made[0] != os.getpid():
                self._made = (os.getpid(), self._make())
            return self._made[1]

    def tried(self, why: str | None) -> bool:
        """Note why it did not work, if it did not; whether it did."""
        self._trouble.note(self, why)
        return why is None

    def shutdown(self) -> None:
        made, self._made = self._made, None
        if made is not None and made[0] == os.getpid():
            made[1].shutdown()  # type: ignore[attr-defined]  # all exporters have it

    def _after_fork_in_child(self) -> None:
        self._lock = threading.Lock()


@contextmanager
def _quietly() -> Iterator[list[str]]:
    """What OpenTelemetry's exporters log in this thread meanwhile, instead of its being logged."""
    said: list[str] = []
    me = threading.get_ident()

    def keep(record: logging.LogRecord) -> bool:
        if record.thread != me:
            return True
        said.append(record.getMessage())
        return False

    loggers = [logging.getLogger(name) for name in THEIR_LOGGERS]
    for logger in loggers:
        logger.addFilter(keep)
    try:
        yield said
    finally:
        for logger in loggers:
            logger.removeFilter(keep)


@contextmanager
def _untraced() -> Iterator[None]:
    """Without spans of what sends, where the application traces its requests: they never end."""
    token = contexts.attach(contexts.set_value(_SUPPRESS_INSTRUMENTATION_KEY, value=True))
    try:
        yield
    finally:
        contexts.detach(token)


def _attempt(lazy: _Lazy[T], export: Callable[[T], bool]) -> bool:
    where = None
    with _untraced(), _quietly() as said:
        try:
            exporter: Any = lazy.get()
            where = getattr(exporter, "_endpoint", None)  # as OTLP's have it, and do not tell
            worked = export(exporter)
            why = None if worked else " ".join((said or ["it was refused"])[-1].split())
        except Exception as error:  # noqa: BLE001 - whatever it is, jobs go on
            why = f"{type(error).__name__}: {error}"
    to = f" to {where}" if isinstance(where, str) else ""
    return lazy.tried(None if why is None else shown(f"{to}: {why}").rstrip("."))


def _byte_sender(exporter: object) -> Callable[[bytes], bool] | None:
    """What sends a request that is written already, where OpenTelemetry's exporter has that inside.

    In 1.45 that is its own for logs over HTTP. All else is given objects, which takes longer: other
    versions, other exporters, and one that counts for figures of its own.
    """
    client = getattr(exporter, "_client", None)
    if (
        type(exporter).__module__ != WITH_CLIENT
        or type(client).__name__ != "_OTLPHTTPClient"
        or type(getattr(exporter, "_metrics", None)).__name__ != "NoOpExporterMetrics"
    ):
        return None
    return lambda request: client.export(request).success is True  # type: ignore[union-attr]  # it is one


class Spans(SpanExporter):
    """Sends spans by the exporter that `make` makes; `before` is called before each request.

    `trouble` is common to those that send to the same place.
    """

    def __init__(self, make: Callable[[], SpanExporter], trouble: Trouble) -> None:
        """Make nothing yet."""
        self._lazy = _Lazy(make, trouble)
        self.before: Callable[[], object] = lambda: None

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send them, and say whether they arrived."""
        self.before()
        sent = _attempt(
            self._lazy, lambda exporter: exporter.export(spans) is SpanExportResult.SUCCESS
        )
        return SpanExportResult.SUCCESS if sent else SpanExportResult.FAILURE

    def shutdown(self) -> None:
        """Let go of the connection."""
        self._lazy.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:  # noqa: ARG002 - theirs
        """Nothing is held back."""
        return True


class Logs(LogRecordExporter):
    """The same for log records."""

    def __init__(self, make: Callable[[], LogRecordExporter]) -> None:
        """Make nothing yet."""
        self._lazy = _Lazy(make, Trouble("Log records"))

    def export(self, batch: Sequence[ReadableLogRecord]) -> LogRecordExportResult:
        """Send them, and say whether they arrived."""
        sent = _attempt(
            self._lazy, lambda exporter: exporter.export(batch) is LogRecordExportResult.SUCCESS
        )
        return LogRecordExportResult.SUCCESS if sent else LogRecordExportResult.FAILURE

    def force_flush(self, timeout_millis: int = 30_000) -> bool:  # noqa: ARG002 - theirs
        """Nothing is held back."""
        return True

    def shutdown(self) -> None:
        """Let go of the connection."""
        self._lazy.shutdown()

    def byte_sender(self) -> Callable[[bytes], bool] | None:
        """What takes a request that is written already, unless it is too large, if one does."""
        try:
            send = _byte_sender(self._lazy.get())
        except Exception:  # noqa: BLE001 - which is said when it is given records
            return None
        if send is None:
            return None

        def taken(request: bytes) -> bool:
            if len(request) > MOST_BYTES:
                return False
            _attempt(self._lazy, lambda _: send(request))
            return True

        return taken


class Provided:
    """Sends the spans of jobs: by exporters of our own, or to what a provider was given."""

    def __init__(
        self,
        targets: Callable[[], Sequence[SpanExporter | SpanProcessor]],
        resource: Callable[[], Resource],
        longest: float,
    ) -> None:
        """Send to all `targets`: exporters, and processors that have none that can be asked.

        One exporter takes `longest` seconds for a request at most, with all its tries.
        """
        self._targets = targets
        self._resource = resource
        self._longest = longest
        self._works = True

    @property
    def longest(self) -> float:
        """See `SpanSink.longest`."""
        return self._longest * max(len(self._targets()), 1)

    def resource(self) -> Resource:
        """See `SpanSink.resource`."""
        return self._resource()

    def send(self, spans: Sequence[ReadableSpan]) -> bool:
        """See `SpanSink.send`: every exporter has to say so. A processor alone cannot."""
        arrived = [self._send_to(target, spans) for target in self._targets()]
        return all(arrived)

    def _send_to(self, target: SpanExporter | SpanProcessor, spans: Sequence[ReadableSpan]) -> bool:
        try:
            if isinstance(target, SpanExporter):
                with _untraced():
                    sent = target.export(spans) is SpanExportResult.SUCCESS
            else:
                for span in spans:
                    target.on_end(span)
                sent = True
        except Exception as error:  # noqa: BLE001 - an application's own exporter: jobs go on
            if self._works:
                what = type(target).__qualname__
                _log.warning("%s raised %s: spans of jobs wait.", what, type_name(error))
            sent = self._works = False
        else:
            self._works = True
        return sent


class OfJobs(SpanProcessor):
    """Ties a provider to jobs: what it is told of the user's spans in them, and its flush.

    `made_here` is whether the provider's exporters are ours, and ask for parents themselves.
    """

    def __init__(self, tracing: JobTracing, *, made_here: bool) -> None:
        """Tell that tracing."""
        self._tracing = tracing
        self._made_here = made_here

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:  # noqa: ARG002
        """See to it that the step it is within is in the store before it can leave the process."""
        around = get_current_span(parent_context)
        if not self._made_here and isinstance(around, JobSpan) and not around.known:
            self._tracing.make_parents_known(around)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:  # noqa: ARG002 - theirs
        """Send what is left."""
        self._tracing.sender.flush()
        return True


class WholeTrees(SpanProcessor):
    """Hands on what the user's spans in a job ended, a span not before those it is within.

    Of a process that is killed the spans that had not ended are gone. Were those within them sent
    before, they would be children of nothing.
    """

    def __init__(self, inner: SpanProcessor) -> None:
        """Hand on to that processor."""
        self._inner = inner
        self._lock = threading.Lock()
        self._open: set[int] = set()
        self._held: dict[int, list[ReadableSpan]] = {}
        os.register_at_fork(after_in_child=self._after_fork_in_child)

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Remember it, if it is within a job's span."""
        parent = get_current_span(parent_context)
        within = span.parent is not None and span.parent.span_id in self._open
        if span.context is not None and (within or isinstance(parent, JobSpan)):
            with self._lock:
                self._open.add(span.context.span_id)
        self._inner.on_start(span, parent_context)

    def on_end(self, span: ReadableSpan) -> None:
        """Hand it on with those within it, or hold it until the one around it ends."""
        if span.context is None or span.context.span_id not in self._open:
            self._inner.on_end(span)
            return
        with self._lock:
            own = span.context.span_id
            self._open.discard(own)
            ready = [*self._held.pop(own, ()), span]
            around = span.parent.span_id if span.parent is not None else 0
            if around in self._open:
                held = self._held.setdefault(around, [])
                held += ready
                ready = []
                if len(held) > MOST_HELD:
                    ready, self._held[around] = held, []
        for each in ready:
            self._inner.on_end(each)

    def shutdown(self) -> None:
        """Hand on what is held, and shut down."""
        self._release()
        self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Send what was handed on."""
        return self._inner.force_flush(timeout_millis)

    def _release(self) -> None:
        with self._lock:
            held = [span for spans in self._held.values() for span in spans]
            self._held = {}
            self._open = set()
        for span in held:
            self._inner.on_end(span)

    def _after_fork_in_child(self) -> None:
        self._lock = threading.Lock()
        self._open = set()
        self._held = {}
