"""`tracedjobs run`: submit a job, perform it here, and say in a sentence how it ended."""

from __future__ import annotations

import asyncio
import re
import signal
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Final

import click

from tracedjobs._core.records import position_columns
from tracedjobs._core.runtime import Runtime
from tracedjobs._core.signals import StopSignals
from tracedjobs._core.snapshot import snapshot_of
from tracedjobs._core.takeover import takeover
from tracedjobs.cli.arguments import converted
from tracedjobs.cli.following import Follower
from tracedjobs.cli.hints import Hints
from tracedjobs.cli.live import shown
from tracedjobs.cli.options import FAILED, INTERRUPTED, Refused, store_option
from tracedjobs.cli.phrases import duration, plural, safe, shortened, spans, value_text
from tracedjobs.cli.screen import console
from tracedjobs.cli.steps import expected_names
from tracedjobs.cli.target import find_target
from tracedjobs.cli.telemetry import telemetry_if_asked
from tracedjobs.errors import LeaseLostError

if TYPE_CHECKING:
    from rich.console import Console

    from tracedjobs._core.job import Job
    from tracedjobs._core.outcome import Outcome
    from tracedjobs._core.snapshot import JobSnapshot

__all__ = ["run"]

_REASONS: Final = {
    "isolating": "isolating: a step wants a run of its own",
    "max_runtime": "its max_runtime is over",
    "store_unavailable": "the store cannot be reached",
}
_NUMBER: Final = re.compile(r"-[0-9.]")


class _RunCommand(click.Command):
    """Lets negative numbers through as ARGS, and still refuses options that there are not."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.ignore_unknown_options = True
        known = [name for each in self.get_params(ctx) for name in each.opts]
        for word in args:
            if word == "--":
                break
            name = word.partition("=")[0]
            if word.startswith("-") and not _NUMBER.match(word) and name not in known:
                raise click.NoSuchOption(
                    name, possibilities=get_close_matches(name, known), ctx=ctx
                )
        return super().parse_args(ctx, args)


@click.command(cls=_RunCommand)
@click.argument("target", metavar="MODULE:JOB")
@click.argument("args", nargs=-1)
@click.option("--job-id", metavar="ID", help="The job's id; the job that has it goes on.")
@store_option
@click.option(
    "--every",
    metavar="SECONDS",
    type=click.FloatRange(min=0.1),
    default=5.0,
    show_default=True,
    help="How often to print a line when the output is no terminal.",
)
@click.pass_context
def run(
    ctx: click.Context,
    *,
    target: str,
    args: tuple[str, ...],
    job_id: str | None,
    store: str,
    every: float,
) -> None:
    """Run a job here, and show how far it is.

    \b
      tracedjobs run jobs.py:import_users users.csv limit=10
      tracedjobs run myapp.jobs:import_users users.csv --job-id monday

    MODULE is a module that Python can import from here, or the path of a .py file. ARGS are
    converted by the function's annotations; name=value sets that parameter. Write -- before an
    argument that begins with a dash and is no number.

    The first Ctrl-C or SIGTERM saves and stops at the next checkpoint; a second one kills at once.
    The same command line with --job-id goes on from there; ARGS may then be left out.

    Exit codes: 0 completed, 1 failed or cancelled, 2 usage, 75 interrupted and resumable.
    """  # noqa: D301 - the character is click's: it keeps lines as they are
    job = find_target(target)
    with Runtime(store) as runtime, StopSignals():
        telemetry_if_asked(runtime)
        resolved = _submitted(runtime, job, args, job_id)
        ctx.exit(_Performance(runtime, job, resolved, target, Hints.of(ctx)).perform(every))


def _submitted(
    runtime: Runtime, job: Job[..., Any], args: tuple[str, ...], job_id: str | None
) -> str:
    stored = None if job_id is None else runtime.store.load(job_id)
    if stored is not None and stored.job.name != job.name:
        raise Refused(f"The job {job_id} is one of {stored.job.name}, not of {job.name}.")
    if stored is not None and not args:
        return stored.job.id
    positional, named = converted(job, args)
    try:
        return runtime.submitted(job, tuple(positional), dict(named), job_id, None)
    except TypeError as error:
        raise Refused(str(error)) from error


class _Performance:
    """One run, from its first line to its closing sentence and exit code."""

    def __init__(
        self, runtime: Runtime, job: Job[..., Any], job_id: str, target: str, hints: Hints
    ) -> None:
        self._runtime = runtime
        self._job = job
        self._id = job_id
        self._hints = hints
        # Its arguments are in the store: the target and the id are enough to go on.
        self._again = hints.run(target, job_id)
        self._lasts = not runtime.store.url.startswith("memory:")
        self._out = console()
        self._err = console(stderr=True)

    def perform(self, every: float) -> int:
        runtime = self._runtime
        before = runtime.get(self._id)
        if before.status == "completed":
            return self._completed(before, already=True)
        follower = Follower(runtime.store, before, expected_names(runtime, before))
        if before.lost or before.status in {"pending", "interrupted", "failed"}:
            self._announce(before)  # all others are about to be refused
        try:
            with follower, shown(self._out, follower, every=every):
                outcome = self._outcome()
        except BaseException as error:
            after = runtime.get(self._id)
            if after.run == before.run and (after.status, after.lost) == (
                before.status,
                before.lost,
            ):
                raise  # refused before it began
            return self._raised(after, error)
        after = runtime.get(self._id)
        if outcome.ok:
            return self._completed(after)
        return self._stopped(after, outcome)

    def _outcome(self) -> Outcome:
        if self._job.is_async:
            return asyncio.run(self._runtime.perform_async(self._id))
        return self._runtime.perform(self._id)

    def _announce(self, job: JobSnapshot) -> None:
        words = f"{safe(job.name)}  job {safe(job.id)}"
        if job.run:
            words += f"  run {job.run + 1}"
            where = _where(self._taken_over(job))
            words += f", resumes {where}" if where else ""
        _say(self._out, words)

    def _taken_over(self, job: JobSnapshot) -> JobSnapshot:
        """The job where its next run takes it up: a killed one further on than was saved."""
        stored = self._runtime.store.load(job.id) if job.lost else None
        if stored is None:
            return job
        head = stored.job.changed(position_columns(takeover(stored).position))
        return snapshot_of(stored._replace(job=head), lost=True, heartbeat=None)

    def _completed(self, job: JobSnapshot, *, already: bool = False) -> int:
        took = sum((end - start).total_seconds() for start, end in spans(job))
        parts = [
            f"{'Completed already' if already else 'Completed'}: {plural(len(job.steps), 'step')}"
        ]
        if job.items:
            parts.append(plural(job.items, "item"))
        parts.append(f"{duration(took)} in {plural(len(job.runs), 'run')}")
        text = ", ".join(parts) + "."
        if job.result is not None:
            text += f" Result: {shortened(value_text(job.result), 200)}"
        _say(self._out, text, "green")
        return 0

    def _stopped(self, job: JobSnapshot, outcome: Outcome) -> int:
        where = _where(job)
        place = f" {where}" if where else ""
        if outcome.status == "cancelled":
            _say(self._err, f"Cancelled{place}{_by(job, 'cancel')}. It cannot be resumed.", "red")
            return FAILED
        if outcome.status == "paused":
            _say(
                self._out, f"Paused{place}{_by(job, 'pause')}. Everything done is saved.", "magenta"
            )
            self._advise(self._hints.command("resume", self._id), "To let it run again")
            self._advise(self._again, "Then")
            return INTERRUPTED
        why = _why(outcome.reason, outcome.error)
        _say(self._out, f"Interrupted{place} ({why}). Everything done is saved.", "yellow")
        self._advise(self._again, "To go on")
        return INTERRUPTED

    def _raised(self, job: JobSnapshot, error: BaseException) -> int:
        where = _where(job)
        place = f" {where}" if where else ""
        if isinstance(error, LeaseLostError):
            _say(self._err, f"Stopped{place}: {_one_line(error)}", "yellow")
            return INTERRUPTED
        what = f"{type(error).__name__}: {_one_line(error)}" if str(error) else type(error).__name__
        if job.status != "failed":
            _say(self._out, f"Interrupted{place} ({what}). Everything done is saved.", "yellow")
            self._advise(self._again, "To go on")
            return INTERRUPTED
        _say(self._err, f"Failed{place}: {what}", "red")
        if self._lasts:
            _say(
                self._err,
                f"  Its traceback:  {self._hints.command('show', self._id, '--traceback')}",
            )
            _say(self._err, f"  To try again from there:  {self._again}")
        return FAILED

    def _advise(self, command: str, words: str) -> None:
        if self._lasts:
            _say(self._out, f"  {words}:  {command}")
        else:
            _say(self._out, "  It was kept in memory:// and ends with this process.")


def _why(reason: str | None, error: BaseException | None) -> str:
    if error is not None:
        text = _one_line(error)
        return f"{type(error).__name__}: {text}" if text else type(error).__name__
    if reason == "stopping" and StopSignals.seen is not None:
        name = signal.Signals(StopSignals.seen).name
        return f"{name}, Ctrl-C" if name == "SIGINT" else name
    return _REASONS.get(reason or "", (reason or "no reason given").replace("_", " "))


def _where(job: JobSnapshot) -> str:
    step = job.current
    if step is None:
        return f"after {safe(job.steps[-1].name)}" if job.steps else ""
    said = step.cursor is None or (type(step.cursor) is int and step.cursor == step.items)
    cursor = "" if said else f", cursor {shortened(value_text(step.cursor), 60)}"
    items = f" after {plural(step.items, 'item')}" if step.items else ""
    return f"in {safe(step.name)}{items}{cursor}"


def _by(job: JobSnapshot, action: str) -> str:
    found = [each.by for each in job.controls if each.action == action]
    return f" by {safe(found[-1])}" if found else ""


def _one_line(error: BaseException) -> str:
    return safe(" ".join(str(error).split()))


def _say(screen: Console, text: str, style: str = "") -> None:
    # Sentences are wrapped between words; a command is left to the terminal, so as to be copied.
    try:
        screen.print(text, style=style or None, soft_wrap=text.startswith("  "))
    except OSError:
        return  # whoever read it has gone; the exit code still tells
