"""`pause`, `resume`, `cancel`, `retry` and `rewind`: each says in a line what became of the job."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from tracedjobs._core import values
from tracedjobs.cli.hints import Hints
from tracedjobs.cli.options import USAGE, Refused, existing_store, full_id, store_option
from tracedjobs.cli.phrases import safe, status_word
from tracedjobs.cli.screen import console
from tracedjobs.errors import SerializationError, StoreError, TracedJobsError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tracedjobs._core.runtime import Runtime
    from tracedjobs._core.snapshot import JobSnapshot

__all__ = ["cancel", "pause", "resume", "retry", "rewind"]

_ids = click.argument("job_ids", metavar="JOB_ID...", nargs=-1, required=True)


@click.command(short_help="Pause jobs.")
@_ids
@store_option
@click.pass_context
def pause(ctx: click.Context, job_ids: tuple[str, ...], store: str) -> None:
    """Pause jobs: idle ones at once, running ones at their next checkpoint."""
    _each(ctx, store, job_ids, lambda runtime, job_id: runtime.pause(job_id))


@click.command(short_help="Let paused jobs run again.")
@_ids
@store_option
@click.pass_context
def resume(ctx: click.Context, job_ids: tuple[str, ...], store: str) -> None:
    """Let paused jobs run again.

    This runs nothing by itself: a worker takes the job up, or `tracedjobs run … --job-id ID`.
    """
    _each(ctx, store, job_ids, lambda runtime, job_id: runtime.resume(job_id))


@click.command(short_help="Cancel jobs for good.")
@_ids
@store_option
@click.pass_context
def cancel(ctx: click.Context, job_ids: tuple[str, ...], store: str) -> None:
    """Cancel jobs for good: idle ones at once, running ones at their next checkpoint."""
    _each(ctx, store, job_ids, lambda runtime, job_id: runtime.cancel(job_id))


@click.command(short_help="Let failed jobs run again.")
@_ids
@store_option
@click.pass_context
def retry(ctx: click.Context, job_ids: tuple[str, ...], store: str) -> None:
    """Let failed jobs run again, from where they failed.

    This runs nothing by itself: a worker takes the job up, or `tracedjobs run … --job-id ID`.
    """
    _each(ctx, store, job_ids, lambda runtime, job_id: runtime.retry(job_id))


@click.command(short_help="Send a job back to a step.")
@click.argument("job_id", metavar="JOB_ID")
@click.argument("step", metavar="STEP")
@click.option(
    "--cursor",
    metavar="JSON",
    help="Where in the step: 433, '\"abc\"', '[1, 2]'. Without it the step begins anew.",
)
@store_option
@click.pass_context
def rewind(ctx: click.Context, job_id: str, step: str, cursor: str | None, store: str) -> None:
    """Send an idle job back to a step; that step and later ones are done again."""

    def work(runtime: Runtime, job_id: str) -> JobSnapshot:
        if cursor is None:
            return runtime.rewind(job_id, step)
        return runtime.rewind(job_id, step, _cursor(cursor))

    _each(ctx, store, [job_id], work)


def _cursor(text: str) -> object:
    try:
        return values.decode(text)
    except SerializationError:
        msg = (
            f"--cursor {text} is no JSON. A text needs quotes of its own: "
            f"--cursor '\"{safe(text)}\"'."
        )
        raise Refused(msg) from None


def _each(
    ctx: click.Context,
    store: str,
    job_ids: Sequence[str],
    work: Callable[[Runtime, str], JobSnapshot],
) -> None:
    out, err = console(), console(stderr=True)
    hints = Hints.of(ctx)
    refused = False
    with existing_store(store) as runtime:
        for given in job_ids:
            try:
                job = work(runtime, full_id(runtime, given))
            except StoreError:
                raise
            except TracedJobsError as error:
                # The others are done all the same.
                refused = True
                err.print(f"Error: {safe(str(error))}", soft_wrap=True)
                continue
            out.print(f"{safe(job.id)}  {_became(job, hints)}", soft_wrap=True)
    if refused:
        ctx.exit(USAGE)


def _became(job: JobSnapshot, hints: Hints) -> str:
    word = status_word(job)
    if word in {"pausing", "cancelling"}:
        return f"{word}: it runs on {safe(job.worker or '?')} and stops at its next checkpoint"
    if word == "paused":
        return f"paused; to let it run again:  {hints.command('resume', job.id)}"
    if word in {"pending", "interrupted"}:
        step = job.current
        where = "" if step is None else f", in {safe(step.name)}"
        return f"{word}{where}; to run it here:  {hints.run_by_name(job.name, job.id)}"
    return word
