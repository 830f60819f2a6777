"""`tracedjobs recover`: find the jobs whose process has died, once or again and again."""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING

import click

from tracedjobs.cli.as_json import job_as_json, print_json
from tracedjobs.cli.hints import Hints
from tracedjobs.cli.options import existing_store, json_option, store_option
from tracedjobs.cli.phrases import safe
from tracedjobs.cli.screen import console
from tracedjobs.cli.telemetry import telemetry_if_asked
from tracedjobs.errors import StoreUnavailableError

if TYPE_CHECKING:
    from tracedjobs._core.runtime import Runtime

__all__ = ["recover"]


@click.command(short_help="Find jobs whose process has died.")
@click.option("--watch", is_flag=True, help="Go on looking, until Ctrl-C or SIGTERM.")
@click.option(
    "--every",
    metavar="SECONDS",
    type=click.FloatRange(min=0.1),
    default=5.0,
    show_default=True,
    help="With --watch: how long between two looks.",
)
@store_option
@json_option
@click.pass_context
def recover(
    ctx: click.Context,
    *,
    watch: bool,
    every: float,
    store: str,
    as_json: bool,
) -> None:
    """Mark lost jobs, whose process has died, as interrupted, so that they go on.

    With --watch and --json each job found is one line of JSON.
    """
    hints = Hints.of(ctx)
    with existing_store(store) as runtime:
        telemetry_if_asked(runtime)
        if watch:
            _watch(runtime, hints, every, as_json=as_json)
            return
        found = runtime.recover()
        if as_json:
            print_json([job_as_json(runtime.get(job_id)) for job_id in found])
            return
        for job_id in found:
            _tell(runtime, hints, job_id)
        if not found:
            console().print(f"No lost jobs in {runtime.store.url}.", soft_wrap=True)


def _watch(runtime: Runtime, hints: Hints, every: float, *, as_json: bool) -> None:
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    if not as_json:
        words = f"Looking for lost jobs in {runtime.store.url} every {every:g} s; Ctrl-C ends it."
        console().print(words, soft_wrap=True)
    while not stop.is_set():
        try:
            for job_id in runtime.recover():
                if as_json:
                    print_json(job_as_json(runtime.get(job_id)), indent=None)
                else:
                    _tell(runtime, hints, job_id)
        except StoreUnavailableError as error:
            console(stderr=True).print(f"{error} It is tried again.", soft_wrap=True)
        stop.wait(every)


def _tell(runtime: Runtime, hints: Hints, job_id: str) -> None:
    job = runtime.get(job_id)
    lost = [run for run in job.runs if run.outcome == "lost"]
    by = f"run {lost[-1].number} on {safe(lost[-1].worker)}" if lost else "its run"
    words = f"{safe(job.id)}  {safe(job.name)}: {by} was lost; it is {job.status} now"
    console().print(words, soft_wrap=True)
    if job.status == "interrupted":
        again = hints.run_by_name(job.name, job.id)
        console().print(f"  To go on here:  {again}", soft_wrap=True)
