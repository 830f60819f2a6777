"""Real OTLP receivers over HTTP and gRPC, and what must hold of all that they received."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from tracedjobs.demo.receiver import Received, Receiver

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from tracedjobs._core.snapshot import JobSnapshot

__all__ = ["Comings", "check_story", "check_whole", "missing_spans", "receiving"]


class _Service(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 - the protocol's name
        self._receiver.take(request)
        return trace_service_pb2.ExportTraceServiceResponse()


@contextmanager
def receiving(protocol: str, port: int = 0) -> Iterator[tuple[Receiver, dict[str, str]]]:
    """A receiver, and the environment that sends to it."""
    if protocol == "http/protobuf":
        with closing(Receiver(port)) as receiver:
            yield receiver, _environment(protocol, receiver.endpoint)
        return
    with closing(Receiver()) as receiver:
        server = grpc.server(ThreadPoolExecutor(4))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(  # type: ignore[no-untyped-call]
            _Service(receiver), server
        )
        bound = server.add_insecure_port(f"127.0.0.1:{port}")
        server.start()
        try:
            yield receiver, _environment(protocol, f"http://127.0.0.1:{bound}")
        finally:
            server.stop(None).wait()


class Comings:
    """A receiver that goes away and comes back at the same address, with all that it received."""

    def __init__(self, protocol: str) -> None:
        self._protocol = protocol
        self._before: list[Received] = []
        self._port = 0
        self._there = ExitStack()
        self._receiver: Receiver | None = None
        self.come()

    def come(self) -> None:
        """Be there."""
        self._receiver, self.environment = self._there.enter_context(
            receiving(self._protocol, self._port)
        )
        self._port = urlsplit(self.environment["OTEL_EXPORTER_OTLP_ENDPOINT"]).port or 0

    def go(self) -> None:
        """Be away. Nobody is to be sending just then: whether that arrived would be unknown."""
        self._there.close()
        assert self._receiver is not None
        self._before += self._receiver.spans
        self._receiver = None

    @property
    def spans(self) -> list[Received]:
        """All that has arrived."""
        return [*self._before, *(() if self._receiver is None else self._receiver.spans)]

    def close(self) -> None:
        """Be away for good."""
        self._there.close()


def _environment(protocol: str, endpoint: str) -> dict[str, str]:
    return {
        "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        "OTEL_BSP_SCHEDULE_DELAY": "200",
    }


def check_whole(spans: Sequence[Received]) -> None:
    """What holds of any spans: ids once, parents there, ends not before starts."""
    ids = Counter(span.span_id for span in spans)
    twice = [span for span in spans if ids[span.span_id] > 1]
    orphans = [span for span in spans if span.parent_id and span.parent_id not in ids]
    backwards = [span for span in spans if span.ended < span.started]
    assert not twice, twice
    assert not orphans, orphans
    assert not backwards, backwards


def check_story(spans: Sequence[Received], job: JobSnapshot) -> None:
    """The spans of that job say of each run and step what its record says."""
    mine = [span for span in spans if span.trace_id == job.trace_id]
    roots = [span for span in mine if span.name == f"job {job.name}"]
    assert len(roots) == (1 if job.ended_at is not None else 0)
    if roots:
        told = roots[0].attributes["tracedjobs.job.outcome"]
        failed_before = any(run.outcome == "failed" for run in job.runs[:-1])  # and was run again
        assert told == job.status or (told == "failed" and failed_before)
        assert roots[0].error is (told == "failed")
        assert roots[0].parent_id == ""
    runs = {
        span.attributes["tracedjobs.run.number"]: span
        for span in mine
        if span.name == f"process {job.name}"
    }
    assert len(runs) == sum(span.name.startswith("process ") for span in mine)
    ended = {run.number: run for run in job.runs if run.ended_at is not None}
    assert set(runs) == set(ended)
    for number, run in ended.items():
        span = runs[number]
        assert span.attributes["tracedjobs.run.outcome"] == run.outcome
        assert span.error is (run.outcome in {"failed", "lost"})
        assert span.attributes["tracedjobs.worker"] == run.worker
    done = [
        span.name.removeprefix("step ")
        for span in sorted(mine, key=lambda span: span.ended)
        if span.attributes.get("tracedjobs.step.outcome") == "completed"
    ]
    assert done == [step.name for step in job.steps if step.status == "completed"]


def missing_spans(spans: Sequence[Received], jobs: Iterable[JobSnapshot]) -> list[str]:
    """The jobs of which spans are still to come."""

    def count(start: str, job: JobSnapshot) -> int:
        mine = [span for span in spans if span.trace_id == job.trace_id]
        return len({span.span_id for span in mine if span.name.startswith(start)})

    return [
        f"{job.id} {job.status} lost={job.lost} of {[run.outcome for run in job.runs]}: "
        f"{count('process ', job)} runs, {count('job ', job)} root"
        for job in jobs
        if job.trace_id is not None
        and (
            count("process ", job) != sum(run.ended_at is not None for run in job.runs)
            or count("job ", job) != int(job.ended_at is not None)
        )
    ]
