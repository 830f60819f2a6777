"""What telemetry costs: a loop and a step with everything on, and a scrape of many live jobs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Final, cast
from urllib.request import urlopen

from benchmarks.harness import (
    Figure,
    Plan,
    cpu,
    interleaved,
    ratios,
    runtime,
    shown_each,
)
from benchmarks.redis_store import redis_runtime
from benchmarks.steps import steps_timed
from tracedjobs import Context, events, job, telemetry
from tracedjobs._core import trace
from tracedjobs._core.records import Change, JobRecord, Position, RunRecord, Status

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tracedjobs import Runtime

__all__ = ["measure_cost", "measure_scrape"]

RECEIVER: Final = """
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass

server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(f"http://127.0.0.1:{server.server_port}", flush=True)
os.nice(10)
server.serve_forever()
"""
"""A collector, as far as who sends to it can tell: it is elsewhere, and what it does with what it
gets is not measured here. So it reads that, keeps nothing, and gives way to what is measured."""


@job(steps=1)
def _loop(ctx: Context, n: int) -> float:
    began = cpu()
    for _ in ctx.each("items", range(n)):
        pass
    return cpu() - began


def measure_cost(plan: Plan) -> Iterator[Figure]:
    """With spans and logs over OTLP, and JSON lines of all events, over without any.

    Long enough for its threads to send while it is measured: what they take from a job counts. What
    is left at a run's end is sent before the next one begins, which may be one without telemetry.
    """
    n, steps = plan.size(3_000_000, 1_000), plan.size(2_000, 20)
    with runtime() as here, _everything() as switch:

        def loop(*, on: bool) -> float:
            with switch(on):
                return cast("float", here.perform(here.submit(_loop, n)).result)

        def step(*, on: bool) -> float:
            with switch(on):
                took = here.perform(here.submit(steps_timed, steps)).result
            return median(cast("list[float]", took))

        loops = interleaved(
            plan.rounds_or(9), {"off": partial(loop, on=False), "on": partial(loop, on=True)}
        )
        each = interleaved(
            plan.rounds_or(9), {"off": partial(step, on=False), "on": partial(step, on=True)}
        )
    yield Figure(
        what="a loop with all telemetry on, over off",
        goal=1.05,
        rounds=ratios(loops["on"], loops["off"]),
        measured=shown_each(loops, n, "an item"),
    )
    yield Figure(
        what="a step with all telemetry on, over off",
        goal=1.5,
        rounds=ratios(each["on"], each["off"]),
        measured=shown_each(each),
    )


Switch = Callable[[bool], AbstractContextManager[None]]


@contextmanager
def _everything() -> Iterator[Switch]:
    """All of it, on or off for a block; what it sends goes to a process of its own."""
    command = [sys.executable, "-c", RECEIVER]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as receiver,
        open(os.devnull, "w") as nowhere,  # noqa: PTH123 - no file
    ):
        assert receiver.stdout is not None
        os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = receiver.stdout.readline().strip()
        before = events._subscribers, trace.installed
        telemetry.configure(service_name="benchmarks")
        telemetry.log_events("json", nowhere)
        everything = events._subscribers, trace.installed
        events._subscribers, trace.installed = before

        @contextmanager
        def switch(on: bool) -> Iterator[None]:  # noqa: FBT001 - it is on or off
            events._subscribers, trace.installed = everything if on else before
            try:
                yield
            finally:
                events._subscribers, trace.installed = before
                telemetry.flush()

        try:
            yield switch
        finally:
            receiver.terminate()


def measure_scrape(plan: Plan) -> Iterator[Figure]:
    """The exporter's first answer and the next, and its memory, with many live jobs on Redis."""
    n = plan.size(10_000, 100)
    with redis_runtime() as (server, here):
        _fill(here, n)
        first, cached, memory = _scraped(server.url, plan.rounds_or(3))
    what = f"/metrics of {n:,} live jobs of 20 names on Redis"
    yield Figure(f"{what}, first", 1.0, first, "s", shown_each({"answer": first}))
    yield Figure(f"{what}, cached", 0.1, cached, "s", shown_each({"answer": cached}))
    resident = {"most resident": f"{median(memory):.0f} MiB"}
    yield Figure(f"{what}: memory of the exporter", 150.0, memory, "MiB", resident)


def _fill(here: Runtime, n: int) -> None:
    store = here.store
    now = store.time()
    for number in range(n):
        job_id = f"job-{number}"
        store.create(JobRecord(job_id, f"jobs:name_{number % 20}", "{}", now))
        position = Position("import_rows", str(number), number, 1_000_000, started_at=now)
        columns = {"status": Status.RUNNING, "run": 1, "token": "t", "worker": f"w{number % 50}"}
        columns |= {"lease_ttl": 3600.0, "started_at": now, "progressed_at": now}
        columns |= {"step": position.step, "items": position.items, "total": position.total}
        run = RunRecord(1, "w", now, resumed=False)
        store.change(Change(job_id, 0, columns, lease_ttl=3600.0, open_run=run))


def _scraped(url: str, rounds: int) -> tuple[list[float], list[float], list[float]]:
    first, cached, memory = [], [], []
    for _ in range(rounds):
        command = [sys.executable, "-m", "tracedjobs", "exporter", "--store", url, "--port", "0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as exporter:
            assert exporter.stdout is not None
            address = exporter.stdout.readline().split()[3]
            first.append(_asked(address))
            cached.append(_asked(address))
            memory.append(_resident(exporter.pid))
            exporter.terminate()
    return first, cached, memory


def _asked(address: str) -> float:
    began = time.perf_counter()
    with urlopen(address) as page:
        page.read()
    return time.perf_counter() - began


def _resident(pid: int) -> float:
    with open(f"/proc/{pid}/status") as status:  # noqa: PTH123 - no file of ours
        lines = dict(line.split(":", 1) for line in status)
    return int(lines["VmHWM"].split()[0]) / 1024
