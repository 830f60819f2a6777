"""`tracedjobs exporter`: serve a store's metrics to Prometheus."""

from __future__ import annotations

import signal
import ssl
import threading
from typing import Final

import click

from tracedjobs._core.runtime import Runtime
from tracedjobs.cli.options import Refused, store_option
from tracedjobs.cli.phrases import safe
from tracedjobs.cli.screen import console
from tracedjobs.cli.telemetry import telemetry_if_asked
from tracedjobs.errors import TracedJobsError

__all__ = ["exporter"]

RECOVER_EVERY: Final = 15.0
"""Seconds between two looks for lost jobs."""


@click.command(short_help="Serve metrics to Prometheus.")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=9464,
    show_default=True,
    help="0 takes a free one.",
)
@click.option(
    "--jobs",
    type=click.IntRange(min=0),
    default=200,
    show_default=True,
    help="How many running jobs have series of their own.",
)
@click.option(
    "--tls-cert",
    type=click.Path(exists=True, dir_okay=False),
    help="Speak HTTPS, with this certificate (PEM).",
)
@click.option(
    "--tls-key",
    type=click.Path(exists=True, dir_okay=False),
    help="Its key, where that is in a file of its own.",
)
@click.option(
    "--tls-client-ca",
    type=click.Path(exists=True, dir_okay=False),
    help="Answer only clients with a certificate of this authority.",
)
@click.option(
    "--recover",
    is_flag=True,
    help=f"Look for lost jobs every {RECOVER_EVERY:g} s, and mark them as interrupted.",
)
@store_option
def exporter(
    *,
    host: str,
    port: int,
    jobs: int,
    tls_cert: str | None,
    tls_key: str | None,
    tls_client_ca: str | None,
    recover: bool,
    store: str,
) -> None:
    """Serve /metrics and /healthz, until Ctrl-C or SIGTERM.

    All workers' figures come from the store: one exporter is enough for all of them, and goes on
    when they die.

    Where OTEL_EXPORTER_OTLP_ENDPOINT is set, it also sends spans that killed workers left, of jobs
    that were found lost: by workers, or here with --recover. What is found is not seen as lost
    any more, nor by the alert JobLost: so --recover is for stores that no worker looks after.
    """
    from tracedjobs.telemetry.exporter import Exporter  # noqa: PLC0415 - slow, for this command

    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    for name, given in (("--tls-key", tls_key), ("--tls-client-ca", tls_client_ca)):
        if given is not None and tls_cert is None:
            msg = f"{name} is of no use without --tls-cert."
            raise click.UsageError(msg)
    with Runtime(store) as runtime:
        try:
            server = Exporter(
                runtime,
                host=host,
                port=port,
                most_jobs=jobs,
                certificate=tls_cert,
                key=tls_key,
                client_ca=tls_client_ca,
            )
        except ssl.SSLError as error:
            files = " and ".join(filter(None, (tls_cert, tls_client_ca)))
            msg = f"The certificate in {files} cannot be used: {error.reason or error}."
            raise Refused(msg) from error
        except OSError as error:
            msg = f"It cannot listen on {host}, port {port}: {error.strerror or error}."
            raise Refused(msg) from error
        telemetry_if_asked(runtime)
        with server:
            words = f"Metrics of {runtime.store.url}: {server.address}/metrics  (Ctrl-C ends it)"
            console().print(words, soft_wrap=True, markup=False, highlight=False)
            server.check()  # a store that cannot be read is told now, and not at the first scrape
            if recover:
                _recover(runtime, stop)
            stop.wait()


def _recover(runtime: Runtime, stop: threading.Event) -> None:
    away = False
    while not stop.is_set():
        try:
            for job_id in runtime.recover():
                words = f"The job {job_id} was lost; it is {runtime.get(job_id).status} now."
                console().print(safe(words), soft_wrap=True, markup=False, highlight=False)
            away = False
        except TracedJobsError as error:  # the store is away; or what was found is gone by now
            if not away:
                words = f"Lost jobs cannot be looked for just now: {error}"
                console(stderr=True).print(words, soft_wrap=True, markup=False, highlight=False)
            away = True
        stop.wait(RECOVER_EVERY)
