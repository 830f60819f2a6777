"""Spans of jobs: whole and once, whoever sends them, sent to real OTLP receivers."""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from contextlib import closing, nullcontext
from typing import TYPE_CHECKING, Final

import pytest

from tests.processes import until
from tests.telemetry.collectors import (
    Comings,
    check_story,
    check_whole,
    missing_spans,
    receiving,
)
from tracedjobs import Context, Runtime, job

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.processes import Children
    from tracedjobs import JobSnapshot
    from tracedjobs.demo.receiver import Received, Receiver

LONG: Final = os.environ.get("TRACEDJOBS_CHAOS") == "long"
AWAY: Final = 60.0
"""Seconds for which the receiver is away in the long form, while jobs are killed."""
TRACED: Final = """
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
    telemetry.watch(runtime)
    deadline = time.monotonic() + 300
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


@pytest.fixture
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of a store that processes share."""
    if request.param == "redis":
        return f"{request.getfixturevalue('redis_server').url}?prefix=tj{os.urandom(6).hex()}"
    return f"sqlite:///{tmp_path}/jobs.db"


@pytest.mark.parametrize(
    ("protocol", "kept"),
    [("http/protobuf", "sqlite"), ("grpc", "redis")],
    indirect=["kept"],
)
@pytest.mark.timeout(1800)
def test_no_span_is_lost_with_its_process_nor_sent_twice(
    kept: str, children: Children, protocol: str, capsys: pytest.CaptureFixture[str]
) -> None:
    url = kept
    kills = int(os.environ.get("TRACEDJOBS_SPAN_KILLS", "100" if LONG else "12"))
    seed = int(os.environ.get("TRACEDJOBS_CHAOS_SEED", random.randrange(10**9) if LONG else 7))
    chance = random.Random(seed)
    with closing(Comings(protocol)) as receiver, Runtime(url, lease_ttl=2.0) as runtime:
        env = {**receiver.environment, "OTEL_EXPORTER_OTLP_TIMEOUT": "2"}
        jobs: list[str] = []
        goes, back = 5 if LONG else None, 0.0
        for number in range(kills // 4):
            if number == goes:
                receiver.go()
                back = time.monotonic() + AWAY
            elif back and time.monotonic() > back:
                receiver.come()
                back = 0.0
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
        if back:
            time.sleep(max(back - time.monotonic(), 0.0))
            receiver.come()
        sweeper, other = (children.start(SWEEP, url, "none", env=env) for _ in range(2))
        _until_all_there(receiver, runtime, jobs)
        swept = sweeper.text().count("swept")
        until(lambda: sweeper.text().count("swept") > swept + 1, "nothing more comes")
        statuses = {runtime.get(each).status for each in jobs}
        assert statuses >= {"cancelled", "paused"}
        for job_id in jobs:
            check_story(receiver.spans, runtime.get(job_id))
            if runtime.get(job_id).status == "paused":
                runtime.cancel(job_id)  # its root comes when it ends
        _until_all_there(receiver, runtime, jobs)
        sweeper.kill()
        other.kill()
        check_whole(receiver.spans)
        for job_id in jobs:
            check_story(receiver.spans, runtime.get(job_id))
        told = _figures(receiver.spans, [runtime.get(each) for each in jobs])
    with capsys.disabled() if LONG else nullcontext():
        print(f"\n{protocol}, {url[:6]}, seed {seed}, {kills} kills: {told}")  # noqa: T201 - see above


def _figures(spans: Sequence[Received], jobs: Sequence[JobSnapshot]) -> str:
    kinds = Counter(span.name.split()[0] for span in spans)
    ends = Counter(str(run.outcome) for job in jobs for run in job.runs)
    by = Counter(str(span.resource["service.name"]) for span in spans)
    return (
        f"{len(spans)} spans of {len(jobs)} jobs ({dict(kinds)}), runs {dict(ends)}, "
        f"jobs {dict(Counter(str(job.status) for job in jobs))}, sent by {dict(by)}"
    )


def _until_all_there(receiver: Comings | Receiver, runtime: Runtime, jobs: list[str]) -> None:
    give_up = time.monotonic() + 70
    while missing := missing_spans(receiver.spans, [runtime.get(each) for each in jobs]):
        assert time.monotonic() < give_up, (
            missing,
            [runtime.store.load(each.split()[0]) for each in missing],
            runtime.store.time(),
        )
        time.sleep(0.05)


def test_a_receiver_that_is_away_has_everything_once_it_is_back(
    tmp_path: Path, children: Children
) -> None:
    url = f"sqlite:///{tmp_path}/jobs.db"
    with receiving("http/protobuf") as (gone, env):
        port = gone.port
    env["OTEL_EXPORTER_OTLP_TIMEOUT"] = "1"
    with Runtime(url, lease_ttl=2.0) as runtime:
        job_id = runtime.submit(traced, 3, 0.0, fails=False)
        said = children.start(WORK, url, job_id, env=env).ends()
        assert said.count("Spans cannot be sent to http://") == 1
        with receiving("http/protobuf", port) as (receiver, _):
            sweeper = children.start(SWEEP, url, "none", env=env)
            _until_all_there(receiver, runtime, [job_id])
            swept = sweeper.text().count("swept")
            until(lambda: sweeper.text().count("swept") > swept + 1, "nothing more comes")
            sweeper.kill()
            ours = [span for span in receiver.spans if span.resource["service.name"] == "sweep"]
            check_whole(ours)
            check_story(ours, runtime.get(job_id))


SAYS: Final = """
import logging
logging.basicConfig(format="%(message)s")
from tracedjobs import telemetry
telemetry.configure()
from tracedjobs._core import trace
say("installed", trace.installed is not None)
with Runtime("memory://") as runtime:
    job_id = runtime.submit(count, "out", 2, 0.0)
    say("outcome", runtime.perform(job_id).status)
"""


@pytest.mark.parametrize(
    ("setting", "line", "installed"),
    [
        ({"OTEL_SDK_DISABLED": "true"}, None, False),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none"}, None, False),
        (
            {"OTEL_TRACES_EXPORTER": "zipkin2", "OTEL_LOGS_EXPORTER": "none"},
            (
                "Telemetry is off: OTEL_TRACES_EXPORTER=zipkin2 names an exporter that is not "
                "installed; there are "
            ),
            False,
        ),
        (
            {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/xml", "OTEL_LOGS_EXPORTER": "none"},
            (
                "Telemetry is off: OTEL_EXPORTER_OTLP_PROTOCOL=http/xml is none of grpc and "
                "http/protobuf. Jobs go on."
            ),
            False,
        ),
        (
            {"OTEL_BSP_MAX_QUEUE_SIZE": "0", "OTEL_LOGS_EXPORTER": "none"},
            "Telemetry is off: OTEL_BSP_MAX_QUEUE_SIZE=0 is no whole number above 0. Jobs go on.",
            False,
        ),
        (
            {"OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "-3"},  # refused by an import of OpenTelemetry
            (
                "Telemetry is off: OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT must be a non-negative integer "
                "but got -3. Jobs go on."
            ),
            False,
        ),
        (
            {"OTEL_BLRP_SCHEDULE_DELAY": "soon", "OTEL_TRACES_EXPORTER": "none"},
            "Telemetry is off: OTEL_BLRP_SCHEDULE_DELAY=soon is no whole number above 0. Jobs go",
            False,
        ),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:99999"},
            "Telemetry is off: the OTLP endpoint http://127.0.0.1:99999 has no valid port. ",
            False,
        ),
        (
            {
                "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9",
                "OTEL_EXPORTER_OTLP_TIMEOUT": "1",
                "OTEL_LOGS_EXPORTER": "none",
            },
            "Spans cannot be sent to http://127.0.0.1:9/v1/traces: ",
            True,
        ),
        (
            {
                "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9",
                "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
                "OTEL_EXPORTER_OTLP_TIMEOUT": "1",
                "OTEL_LOGS_EXPORTER": "none",
            },
            "Spans cannot be sent to 127.0.0.1:9: ",
            True,
        ),
    ],
)
def test_a_wrong_setting_is_one_line_and_jobs_go_on(
    children: Children,
    tmp_path: Path,
    setting: dict[str, str],
    line: str | None,
    installed: bool,  # noqa: FBT001 - a parameter
) -> None:
    said = children.start(SAYS, "memory://", "none", env=setting).ends().splitlines()
    assert f"installed {installed}" in said
    assert "outcome completed" in said
    rest = [each for each in said if not each.startswith(("installed ", "outcome ", "run "))]
    assert len(rest) == (line is not None), said
    assert all(each.startswith(line or "") for each in rest), said
