"""Spans of jobs: whole and once, whoever sends them, sent to real OTLP receivers."""

from __future__ import annotations

import os
import random
import time
from typing import TYPE_CHECKING, Final

import pytest

from tests.processes import until
from tests.telemetry.collectors import check_story, check_whole, receiving
from tracedjobs import Context, Runtime, job

if TYPE_CHECKING:
    from pathlib import Path

    from tests.processes import Children
    from tracedjobs._core.snapshot import JobSnapshot
    from tracedjobs.demo.receiver import Received, Receiver

PROTOCOLS: Final = ("http/protobuf", "grpc")
TRACED: Final = """
import random
from opentelemetry import trace
from tracedjobs import telemetry

tracer = trace.get_tracer("the user's")

@job(name="traced", resume_delay=0)
def traced(ctx: Context, items: int, pace: float, *, fails: bool) -> None:
    def prepare(step):
        with tracer.start_as_current_span("outer"):
            for at in range(3):
                with tracer.start_as_current_span("inner"):
                    time.sleep(pace)
    ctx.step("prepare", prepare)
    for item in ctx.each("items", range(items)):
        with tracer.start_as_current_span("item"):
            time.sleep(pace)
    if fails:
        raise RuntimeError("as it was asked to")
    ctx.step("last", prepare)
"""
WORK: Final = (
    TRACED
    + """
telemetry.configure(service_name="work", logs=False)
with Runtime(URL, lease_ttl=2.0) as runtime:
    say("ready")
    while runtime.get(JOB_ID).status not in {"completed", "failed", "cancelled", "paused"}:
        try:
            runtime.perform(JOB_ID)
        except JobRunningError:
            time.sleep(0.05)
        except (RuntimeError, InvalidTransitionError):
            pass
    telemetry.flush()
"""
)
SWEEP: Final = (
    TRACED
    + """
telemetry.configure(service_name="sweep", logs=False)
with Runtime(URL) as runtime:
    from tracedjobs._core import trace as slot
    slot.installed.sender.watch(runtime.store)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        runtime.recover()
        telemetry.flush()
        say("swept")
        time.sleep(0.3)
"""
)


@job(name="traced", resume_delay=0)
def traced(ctx: Context, items: int, pace: float, *, fails: bool) -> None:
    """As in `TRACED`, to be submitted by the test's own process, which has no telemetry."""


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.timeout(240)
def test_no_span_is_lost_with_its_process_nor_sent_twice(
    tmp_path: Path, children: Children, protocol: str
) -> None:
    kills = int(os.environ.get("TRACEDJOBS_SPAN_KILLS", "12"))
    chance = random.Random(7)
    url = f"sqlite:///{tmp_path}/jobs.db"
    with receiving(protocol) as (receiver, env), Runtime(url, lease_ttl=2.0) as runtime:
        jobs: list[str] = []
        for number in range(kills // 4):
            job_id = runtime.submit(traced, 500, 0.01, fails=chance.random() < 0.3)
            jobs.append(job_id)
            for _ in range(4):
                child = children.start(WORK, url, job_id, env=env)
                child.says("ready")
                time.sleep(chance.uniform(0.0, 1.2))
                child.kill()
            if number % 3 == 0:
                children.start(WORK, url, job_id, env=env).ends()
            elif number % 3 == 1:
                runtime.cancel(job_id)
            else:
                runtime.pause(job_id)
        sweeper = children.start(SWEEP, url, "none", env=env)
        until(
            lambda: _all_there(receiver, [runtime.get(each) for each in jobs]),
            "all spans are there",
            within=70,
        )
        swept = sweeper.text().count("swept")
        until(lambda: sweeper.text().count("swept") > swept + 1, "nothing more comes")
        statuses = {runtime.get(each).status for each in jobs}
        assert statuses >= {"cancelled", "paused"}
        for job_id in jobs:
            check_story(receiver.spans, runtime.get(job_id))
            if runtime.get(job_id).status == "paused":
                runtime.cancel(job_id)  # its root comes when it ends
        until(
            lambda: _all_there(receiver, [runtime.get(each) for each in jobs]),
            "the roots of those that were paused are there",
        )
        sweeper.kill()
        check_whole(receiver.spans)
        for job_id in jobs:
            check_story(receiver.spans, runtime.get(job_id))


def _all_there(receiver: Receiver, jobs: list[JobSnapshot]) -> bool:
    def count(spans: tuple[Received, ...], job: JobSnapshot) -> tuple[int, int]:
        mine = [span for span in spans if span.trace_id == job.trace_id]
        return (
            sum(span.name.startswith("process ") for span in mine),
            sum(span.name.startswith("job ") for span in mine),
        )

    spans = receiver.spans
    return all(
        count(spans, job)
        == (sum(run.ended_at is not None for run in job.runs), int(job.ended_at is not None))
        for job in jobs
        if job.trace_id is not None
    )
