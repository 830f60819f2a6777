"""From a worker that hangs to the message that wakes somebody, through real servers all the way.

The shipped rules, with a `for` of seconds. Jobs hang, are killed, are stopped by SIGSTOP, are
paused, wait, and are slow within their threshold; Prometheus and Alertmanager do their part, and a
webhook must be told of the first three in time, and of nothing else.
"""

from __future__ import annotations

import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from grafana.written import FOLDER
from tests.monitoring import free_port, program, running_prometheus, serving
from tests.processes import until
from tracedjobs import Context, Runtime, job
from tracedjobs.telemetry.exporter import Exporter
from tracedjobs.testing import interrupt_during

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.processes import Children

SCRAPE = 4.0
THRESHOLD = 4.0
"""Both of a stall and of a lease."""
FOR = 4.0
BUSY = 6.0
"""What a busy machine may take longer, and Alertmanager to group."""

WORKER = """
import threading
LEASE = float(sys.argv[3])

@job(name="hangs", stall_after=LEASE)
def hangs(ctx):
    for row in ctx.each("rows", range(9), total=9):
        if row == 3:
            say("hangs")
            time.sleep(600)

@job(name="is slow", stall_after=3 * LEASE)
def is_slow(ctx):
    for row in ctx.each("rows", range(1000), total=1000):
        time.sleep(1.5 * LEASE)

@job(name="goes on")
def goes_on(ctx):
    for row in ctx.each("rows", range(100_000), total=100_000):
        time.sleep(0.02)

for name in ("is killed", "is stopped", "is paused"):
    job(name=name)(goes_on.fn)

with Runtime(URL, lease_ttl=LEASE) as runtime:
    threads = [
        threading.Thread(target=runtime.perform, args=(job_id,), daemon=True)
        for job_id in JOB_ID.split(",")
    ]
    for thread in threads:
        thread.start()
    say("at work")
    for thread in threads:
        thread.join()
"""


def nothing(ctx: Context) -> None:
    for _ in ctx.each("rows", range(9)):
        pass


JOBS = {
    name: job(name=name, resume_delay=600)(nothing)
    for name in ("hangs", "is slow", "is killed", "is stopped", "is paused", "waits")
}
"""In this process they are only submitted, but for the one that waits."""


class Webhook:
    """Is told by Alertmanager, and remembers what and when."""

    def __init__(self) -> None:
        told = self.told = list[tuple[float, dict[str, Any]]]()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                told.extend((time.monotonic(), each) for each in json.loads(body)["alerts"])
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - theirs
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}/"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def firing(self) -> dict[tuple[str, str], tuple[float, dict[str, Any]]]:
        """When each alert was first told, by its name and the name of the job."""
        found: dict[tuple[str, str], tuple[float, dict[str, Any]]] = {}
        for at, alert in self.told:
            key = (alert["labels"]["alertname"], alert["labels"].get("job_name", ""))
            found.setdefault(key, (at, alert))
        return found

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    made = Webhook()
    yield made
    made.close()


@pytest.fixture
def alertmanager(tmp_path: Path, webhook: Webhook) -> Iterator[str]:
    """The address of one that tells the webhook at once."""
    (tmp_path / "alertmanager.yml").write_text(
        "route: {receiver: webhook, group_by: ['...'], group_wait: 0s, group_interval: 1s}\n"
        f"receivers: [{{name: webhook, webhook_configs: [{{url: '{webhook.address}'}}]}}]\n"
    )
    port = free_port()
    words = [
        program("alertmanager"),
        "--config.file=alertmanager.yml",
        "--storage.path=alertmanager",
        f"--web.listen-address=127.0.0.1:{port}",
        "--cluster.listen-address=",
    ]
    with serving(words, tmp_path, "alertmanager.log"):
        yield f"127.0.0.1:{port}"


@pytest.mark.timeout(180)
def test_what_hangs_is_killed_or_stopped_wakes_somebody_and_nothing_else_does(
    tmp_path: Path, children: Children, webhook: Webhook, alertmanager: str
) -> None:
    rules = (FOLDER / "alerts" / "tracedjobs.rules.yml").read_text("utf-8")
    rules = re.sub(r"\bfor: \w+", f"for: {FOR:.0f}s", rules)
    (tmp_path / "rules.yml").write_text(re.sub(r"\binterval: \w+", "interval: 1s", rules))
    more = (
        "rule_files: [rules.yml]\n"
        f"alerting: {{alertmanagers: [{{static_configs: [{{targets: ['{alertmanager}']}}]}}]}}\n"
    )
    url = f"sqlite:///{tmp_path}/jobs.db"
    with (
        Runtime(url, lease_ttl=THRESHOLD) as runtime,
        Exporter(runtime, port=0) as exporter,
        running_prometheus(
            tmp_path,
            {"tracedjobs": exporter.address.removeprefix("http://")},
            more=more,
            every=f"{SCRAPE:.0f}s",
        ),
    ):
        ids = {name: runtime.submit(each) for name, each in JOBS.items()}
        runtime.perform(ids["waits"], stopping=interrupt_during("rows", 3))

        def at_work(*names: str) -> Any:
            given = ",".join(ids[name] for name in names)
            child = children.start(WORKER, url, given, THRESHOLD)
            child.says("at work")
            return child

        at_work("hangs", "is slow", "is paused").says("hangs")
        killed, stopped = at_work("is killed"), at_work("is stopped")
        until(
            lambda: all(runtime.get(ids[name]).items > 3 for name in ("is killed", "is stopped")),
            "items",
        )
        runtime.pause(ids["is paused"])
        killed.kill()
        stopped.stop()
        began = time.monotonic()
        expected = {
            ("CursorStalled", "hangs"),
            ("JobStalled", "hangs"),
            ("JobLost", "is killed"),
            ("JobLost", "is stopped"),
        }
        bound = THRESHOLD + 2 * SCRAPE + FOR
        until(lambda: webhook.firing().keys() >= expected, "the alerts", within=bound + 2 * BUSY)
        time.sleep(FOR)  # for what should not come, and would come now
        told = webhook.firing()
        assert told.keys() == expected
        for key, (at, alert) in told.items():
            assert at - began < bound + BUSY, key
            assert alert["annotations"]["runbook_url"] == f"docs/runbooks/{key[0]}.md"
        stalled = told["JobStalled", "hangs"][1]
        assert stalled["labels"]["job_id"] == ids["hangs"]
        assert runtime.get(ids["is slow"]).status == "running"
        assert runtime.get(ids["is paused"]).status == "paused"
        stopped.cont()
