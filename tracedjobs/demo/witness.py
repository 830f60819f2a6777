"""The demo's story as telemetry alone tells it: spans that a receiver took, and `/metrics`.

Nothing here looks into the database or the record: that is what both are compared with.
"""

from __future__ import annotations

import time
from collections import Counter
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final
from urllib.request import urlopen

from tracedjobs.demo.check import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tracedjobs import Runtime
    from tracedjobs.demo.receiver import Received, Receiver

__all__ = ["Testimony", "agreement", "hear", "listening"]

PATIENCE: Final = 10.0
"""Seconds to wait for the last span: the process that sent it has ended by then."""
OUTCOMES: Final = ("interrupted", "lost", "completed")
PROCESSED: Final = "tracedjobs_items_processed_total"
REDONE: Final = "tracedjobs_items_redone_total"
RUNS: Final = "tracedjobs_runs_total"


@dataclass(frozen=True, slots=True)
class Testimony:
    """What telemetry says of the job.

    The spans of its trace, each before those within it, counters by their labels, and the span
    of its submission, which is in a trace of its own.
    """

    spans: Sequence[Received]
    counters: Mapping[str, float]
    sent: Received | None

    def counted(self, name: str, **labels: str) -> float:
        """The sum of the series of that counter that have these labels."""
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        return sum(
            value
            for series, value in self.counters.items()
            if series.startswith(f"{name}{{") and all(each in series for each in wanted)
        )


@contextmanager
def listening() -> Iterator[tuple[Receiver | None, Mapping[str, str]]]:
    """A receiver, and the environment of those who are to send to it; none without OTLP."""
    if find_spec("opentelemetry.proto") is None:
        yield None, {}
        return
    from tracedjobs.demo.receiver import Receiver  # noqa: PLC0415 - it needs the extra

    with closing(Receiver()) as receiver:
        yield (
            receiver,
            {
                "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint,
                "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
                "OTEL_SERVICE_NAME": "demo",
                "OTEL_SDK_DISABLED": "false",
                "OTEL_TRACES_EXPORTER": "otlp",
                "OTEL_LOGS_EXPORTER": "none",
                "OTEL_TRACES_SAMPLER": "always_on",
            },
        )


def hear(receiver: Receiver, runtime: Runtime, trace_id: str | None) -> Testimony:
    """What telemetry says of the job of that trace, when its root has arrived."""
    give_up = time.monotonic() + PATIENCE
    while time.monotonic() < give_up:
        if any(span.trace_id == trace_id and not span.parent_id for span in receiver.spans):
            break
        time.sleep(0.02)
    spans = sorted(receiver.spans, key=lambda span: span.started)
    mine = [span for span in spans if span.trace_id == trace_id]
    ordered = _in_order(mine)
    ordered += [span for span in mine if span not in ordered]
    links = {link for span in mine if not span.parent_id for link in span.links}
    sent = next((span for span in spans if span.span_id in links), None)
    return Testimony(ordered, _scraped(runtime), sent)


def _in_order(spans: Sequence[Received], parent: str = "") -> list[Received]:
    """Each span before those within it, without those whose parent is not there."""
    return [
        each
        for span in spans
        if span.parent_id == parent
        for each in (span, *_in_order(spans, span.span_id))
    ]


def agreement(told: Testimony, rows: int, redone: int) -> list[Finding]:
    """Whether both say what the database says."""
    ids = Counter(span.span_id for span in told.spans)
    runs = [span for span in told.spans if span.name.startswith("process ")]
    outcomes = tuple(str(run.attributes.get("tracedjobs.run.outcome")) for run in runs)
    roots = [span for span in told.spans if not span.parent_id]
    whole = (
        told.sent is not None
        and len(roots) == 1
        and max(ids.values(), default=0) == 1
        and all(span.parent_id in ids for span in told.spans if span.parent_id)
    )
    imported = sum(
        int(span.attributes["tracedjobs.items.processed"])
        for span in told.spans
        if span.name == "step import_rows"
    )
    again = told.counted(REDONE)
    processed = told.counted(PROCESSED) - again
    counted = tuple(int(told.counted(RUNS, outcome=each)) for each in OUTCOMES)
    return [
        Finding(
            whole and outcomes == OUTCOMES,
            f"one trace, {len(told.spans)} spans, none missing or twice, also those of the killed "
            f"run; runs {', '.join(outcomes)}",
        ),
        Finding(imported == rows, f"its steps imported {imported:,} rows"),
        Finding(
            processed == rows
            # The item that was in hand when the process was killed was not done for the job.
            and 0 <= redone - again <= 1
            and counted == tuple(outcomes.count(each) for each in OUTCOMES),
            f"/metrics counts {processed:,.0f} items, {again:,.0f} done again, {sum(counted)} runs",
        ),
    ]


def _scraped(runtime: Runtime) -> dict[str, float]:
    from tracedjobs.telemetry.exporter import Exporter  # noqa: PLC0415 - slow

    with Exporter(runtime, port=0) as exporter, _opened(f"{exporter.address}/metrics") as page:
        lines = page.read().decode().splitlines()
    pairs = [line.rpartition(" ") for line in lines if line.startswith((PROCESSED, REDONE, RUNS))]
    return {series: float(value) for series, _, value in pairs}


def _opened(address: str) -> Any:
    return urlopen(address, timeout=PATIENCE)  # noqa: S310 - our own page, on loopback
