"""The exporter: what it serves, to whom, and what it says where it cannot."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import TYPE_CHECKING

import pytest

from tests.monitoring import program, running_prometheus
from tests.processes import PERFORM, Children, until
from tracedjobs import Context, Runtime, job
from tracedjobs.errors import StoreUnavailableError
from tracedjobs.telemetry.exporter import Exporter

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
EXPORTER = """
from tracedjobs.cli import main
sys.argv = ["tracedjobs", "exporter", *sys.argv[3:]]
main()
"""


@job(name="exported")
def exported(ctx: Context) -> None:
    for _ in ctx.each("rows", range(3)):
        pass


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/jobs.db"


@pytest.fixture
def runtime(url: str) -> Iterator[Runtime]:
    with Runtime(url) as made:
        yield made


def got(address: str, *, accept: str = "*/*", context: ssl.SSLContext | None = None) -> str:
    request = urllib.request.Request(address, headers={"Accept": accept})
    with urllib.request.urlopen(request, context=context, timeout=10) as answer:
        return str(answer.read().decode())


def test_it_serves_both_formats_and_its_health(runtime: Runtime) -> None:
    runtime.perform(runtime.submit(exported))
    with Exporter(runtime, port=0) as exporter:
        assert exporter.address.startswith("http://127.0.0.1:")
        text = got(f"{exporter.address}/metrics")
        assert 'tracedjobs_items_processed_total{job_name="exported",queue="",step="rows"}' in text
        assert got(f"{exporter.address}/metrics", accept=OPENMETRICS).endswith("# EOF\n")
        assert got(f"{exporter.address}/healthz") == "ok\n"
        assert "/metrics" in got(exporter.address)
        with pytest.raises(urllib.error.HTTPError, match="404"):
            got(f"{exporter.address}/other")


def test_a_store_that_is_away_is_said_by_its_health(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    msg = "it is away"

    def away() -> None:
        raise StoreUnavailableError(msg)

    monkeypatch.setattr(runtime.store, "survey", away)
    with Exporter(runtime, port=0) as exporter:
        with pytest.raises(urllib.error.HTTPError, match="503") as caught:
            got(f"{exporter.address}/healthz")
        assert caught.value.read() == b"it is away\n"


def test_a_client_that_says_nothing_keeps_nobody_waiting(runtime: Runtime) -> None:
    with Exporter(runtime, port=0) as exporter:
        port = int(exporter.address.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)):
            assert got(f"{exporter.address}/healthz") == "ok\n"


def test_many_scrapes_at_once_read_the_store_once(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    survey, readings = runtime.store.survey, []

    def counted() -> object:
        readings.append(1)
        time.sleep(0.1)
        return survey()

    monkeypatch.setattr(runtime.store, "survey", counted)
    with Exporter(runtime, port=0) as exporter:
        answers: list[str] = []
        threads = [
            threading.Thread(target=lambda: answers.append(got(f"{exporter.address}/metrics")))
            for _ in range(5)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert (len(answers), len(readings)) == (5, 1)


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate, which is its own authority, and its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl makes the certificate")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    words = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"]
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-out", str(cert), "-keyout", str(key)]
    subprocess.run([openssl, *words, *names, *files], check=True, capture_output=True)
    return cert, key


def test_it_speaks_https_with_a_certificate(
    runtime: Runtime, certificate: tuple[Path, Path]
) -> None:
    cert, key = certificate
    with Exporter(runtime, port=0, certificate=cert, key=key) as exporter:
        context = ssl.create_default_context(cafile=str(cert))
        assert got(f"{exporter.address}/healthz", context=context) == "ok\n"


def test_it_can_ask_clients_for_a_certificate(
    runtime: Runtime, certificate: tuple[Path, Path]
) -> None:
    cert, key = certificate
    with Exporter(runtime, port=0, certificate=cert, key=key, client_ca=cert) as exporter:
        context = ssl.create_default_context(cafile=str(cert))
        with pytest.raises(OSError, match=r"(?i)alert|reset|closed|broken|EOF"):
            got(f"{exporter.address}/metrics", context=context)
        context.load_cert_chain(cert, key)
        assert got(f"{exporter.address}/healthz", context=context) == "ok\n"


def test_the_command_serves_until_it_is_told_to_stop(children: Children, url: str) -> None:
    child = children.start(EXPORTER, url, "-", "--store", url, "--port", "0")
    line = until(lambda: next((x for x in child.text().splitlines() if "/metrics" in x), ""), "it")
    address = next(word for word in line.split() if word.startswith("http"))
    assert "tracedjobs_jobs_lost" in got(address)
    child.process.terminate()
    child.ends(0)


LOST = """
@job(name="exporter:lost")
def lost(ctx: Context) -> None:
    for _ in ctx.each("rows", range(10)):
        os.kill(os.getpid(), signal.SIGKILL)
"""


@job(name="exporter:lost")
def lost(ctx: Context) -> None:
    """As in `LOST`, to be submitted here."""


def test_it_finds_lost_jobs_where_it_is_told_to(
    runtime: Runtime, children: Children, url: str
) -> None:
    job_id = runtime.submit(lost)
    children.start(LOST + PERFORM, url, job_id).process.wait(30)
    until(lambda: runtime.get(job_id).lost, "it is lost")
    only_looks = children.start(EXPORTER, url, "-", "--store", url, "--port", "0")
    until(lambda: "/metrics" in only_looks.text(), "it serves")
    time.sleep(0.5)
    assert runtime.get(job_id).lost
    finds = children.start(EXPORTER, url, "-", "--store", url, "--port", "0", "--recover")
    until(lambda: f"The job {job_id} was lost; it is interrupted now." in finds.text(), "it finds")
    found = runtime.get(job_id)
    assert (found.status, found.reason, found.lost) == ("interrupted", "lost", False)
    for child in (only_looks, finds):
        child.process.terminate()
        child.ends(0)


def test_a_port_that_is_taken_is_said_in_a_line(children: Children, url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        child = children.start(EXPORTER, url, "-", "--store", url, "--port", port)
        text = child.ends(2)
    assert text == f"Error: It cannot listen on 127.0.0.1, port {port}: Address already in use.\n"


def test_a_certificate_that_is_none_is_said_in_a_line(
    children: Children, url: str, tmp_path: Path
) -> None:
    (tmp_path / "cert.pem").write_text("no certificate")
    child = children.start(
        EXPORTER, url, "-", "--store", url, "--port", 0, "--tls-cert", "cert.pem"
    )
    text = child.ends(2)
    assert text.startswith("Error: The certificate in cert.pem cannot be used: ")
    assert text.count("\n") == 1


def test_promtool_finds_nothing_to_complain_of(runtime: Runtime) -> None:
    promtool = program("promtool")
    runtime.perform(runtime.submit(exported))
    with Exporter(runtime, port=0) as exporter:
        text = got(f"{exporter.address}/metrics")
    done = subprocess.run(
        [promtool, "check", "metrics"], input=text, text=True, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_a_real_prometheus_scrapes_it_and_answers_queries(runtime: Runtime, tmp_path: Path) -> None:
    for _ in range(3):
        runtime.perform(runtime.submit(exported))
    with Exporter(runtime, port=0) as exporter:
        target = exporter.address.removeprefix("http://")
        with running_prometheus(tmp_path, {"tracedjobs": target}) as prometheus:
            asked = prometheus.value
            until(lambda: asked("tracedjobs_items_processed_total"), "a scrape")
            assert asked("sum(tracedjobs_items_processed_total{step='rows'})") == 9
            assert asked("sum(tracedjobs_jobs{state='completed'})") == 3
            assert asked("max by (job_name, queue) (tracedjobs_jobs_lost)") == 0
            assert asked("count({job='tracedjobs', exported_job!=''})") is None
            quantile = "histogram_quantile(0.5, tracedjobs_run_duration_seconds_bucket)"
            assert 0 < (asked(quantile) or 0) < 60
