"""`tracedjobs show`: one job as a page to read, and what to type next."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import click
from rich.table import Table
from rich.text import Text

from tracedjobs.cli.as_json import job_as_json, print_json
from tracedjobs.cli.hints import Hints
from tracedjobs.cli.options import existing_store, full_id, json_option, store_option
from tracedjobs.cli.phrases import (
    ago,
    duration,
    moment,
    plural,
    safe,
    shortened,
    spans,
    status_word,
    value_text,
    worked,
)
from tracedjobs.cli.screen import STYLES, console, marks
from tracedjobs.cli.steps import ahead, expected_names, fitted, line_of_snapshot, name_width

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from rich.console import Console

    from tracedjobs._core.snapshot import ControlSnapshot, ErrorSnapshot, JobSnapshot

__all__ = ["show"]

RUNS: Final = 10
"""The last runs and controls that are shown; --json has all."""
READABLE: Final = 100
SHORT_CURSOR: Final = 24


@click.command(short_help="Show one job, and what to type next.")
@click.argument("job_id", metavar="JOB_ID")
@click.option("--traceback", is_flag=True, help="Show the error's traceback too.")
@store_option
@json_option
@click.pass_context
def show(
    ctx: click.Context,
    *,
    job_id: str,
    traceback: bool,
    store: str,
    as_json: bool,
) -> None:
    """Show one job: its steps, its runs, and what to type next."""
    with existing_store(store) as runtime:
        job = runtime.get(full_id(runtime, job_id))
        names = expected_names(runtime, job)
    if as_json:
        print_json(job_as_json(job))
        return
    page = _Page(console(), job, names, Hints.of(ctx))
    page.show(traceback=traceback)


class _Page:
    """The page of one job, part by part."""

    def __init__(
        self, screen: Console, job: JobSnapshot, names: Sequence[str], hints: Hints
    ) -> None:
        self._screen = screen
        self._job = job
        self._names = names
        self._hints = hints
        self._marks = marks(screen)
        self._now = datetime.now(UTC)
        self._word = status_word(job)

    def show(self, *, traceback: bool) -> None:
        self._headline()
        self._steps()
        self._stall()
        self._error(self._job.error, traceback=traceback)
        self._values()
        self._runs()
        self._controls()
        self._times()
        self._next()

    # -- parts ----------------------------------------------------------------------------------

    def _headline(self) -> None:
        job = self._job
        self._print(Text.assemble((safe(job.name), "bold"), "  job ", safe(job.id)))
        words = [Text(self._word, f"bold {STYLES.get(self._word, '')}".strip())]
        if job.reason and job.reason != job.status:
            words[0].append(f" ({safe(job.reason).replace('_', ' ')})", "default")
        done = sum(step.status == "completed" for step in job.steps)
        expected = job.steps_expected or 0
        of = f" of {expected}" if expected >= len(job.steps) and expected else ""
        if job.steps or of:
            words.append(Text(f"{done}{of} steps done" if of else f"{plural(done, 'step')} done"))
        if job.items:
            again = f", {job.items_redone:,} done again" if job.items_redone else ""
            words.append(Text(plural(job.items, "item") + again))
        if job.run:
            words.append(Text(plural(job.run, "run")))
        if job.status == "running":
            words.append(Text(f"{'was ' if job.lost else ''}on {safe(job.worker or '?')}"))
        if job.queue is not None:
            words.append(Text(f"of the queue {safe(job.queue)}"))  # its message has the job's id
        if job.wish is not None:
            words.append(Text(f"asked to {job.wish}, at its next checkpoint"))
        self._print(Text(f" {self._marks.dot} ").join(words))

    def _steps(self) -> None:
        job = self._job
        over = job.status in {"completed", "cancelled"}
        begun = [safe(step.name) for step in job.steps]
        left = () if over else ahead(begun, self._names, job.steps_expected)
        if not begun and not left:
            return
        self._title("Steps")
        width = min(self._screen.width, READABLE)
        names = name_width([*begun, *left])
        seen = spans(job)
        for step in job.steps:
            line = line_of_snapshot(step, seen, self._now, job.time_left)
            if line.status == "completed":
                self._print(fitted(line, self._marks, names=names, width=width))
                continue
            at = "" if line.cursor is None else f"cursor {value_text(line.cursor)}"
            beside = at if len(at) <= SHORT_CURSOR else ""
            more = (line.time_left, beside, duration(line.seconds))
            self._print(fitted(line, self._marks, names=names, width=width, more=more))
            if at and not beside:
                room = max(width - names - 6, 20)
                self._print(Text(f"    {'':<{names}}  {shortened(at, room)}", "dim"))
        for name in left:
            self._print(Text(f"  {self._marks.ahead} {name}", "dim"))

    def _stall(self) -> None:
        stall = self._job.stall
        if stall is None:
            return
        at = datetime.fromtimestamp(stall.at, UTC)
        word = "It hangs" if self._job.stalled else "It hung"
        self._title("Stall")
        self._print(
            Text(f"  {word} in {safe(stall.step)}, seen {ago(at, self._now)}, innermost last:")
        )
        for line in stall.stack:
            self._print(Text(f"    {safe(line)}"))

    def _error(self, error: ErrorSnapshot | None, *, traceback: bool) -> None:
        if error is None or self._job.status == "completed":
            return
        self._title("Error" if self._job.status == "failed" else "Last error")
        self._print(Text(f"  {safe(' '.join(str(error).split()))}", "red"))
        if traceback:
            for line in error.traceback.rstrip().splitlines():
                self._print(Text(f"  {safe(line)}"))
        else:
            command = self._hints.command("show", self._job.id, "--traceback")
            self._print(Text(f"  its traceback:  {command}", "dim"))

    def _values(self) -> None:
        job = self._job
        self._mapping("Arguments", job.arguments)
        if isinstance(job.state, dict):
            self._mapping("State", {value_text(key): each for key, each in job.state.items()})
        elif job.state is not None:
            self._mapping("State", {"": job.state})
        results = {step.name: step.result for step in job.steps if step.result is not None}
        if job.result is not None:
            results["the job"] = job.result
        self._mapping("Results", results)

    def _mapping(self, title: str, values: Mapping[str, object]) -> None:
        if not values:
            return
        self._title(title)
        names = min(max(len(name) for name in values), 24)
        room = self._room(names + 4)
        for name, value in values.items():
            text = shortened(value_text(value), room)
            self._print(Text(f"  {safe(name):<{names}}  {text}"))

    def _runs(self) -> None:
        job = self._job
        if not job.runs:
            return
        self._title("Runs")
        shown = job.runs[-RUNS:]
        if len(shown) < len(job.runs):
            self._print(Text(f"  {len(job.runs) - len(shown)} earlier ones", "dim"))
        table = Table.grid(padding=(0, 2, 0, 0))
        for _ in range(5):
            table.add_column(no_wrap=True, overflow="ellipsis")
        first = len(job.runs) - len(shown)
        for run, (began, ended) in zip(shown, spans(job)[first:], strict=True):
            outcome = run.outcome or self._word
            reason = "" if run.reason in {None, outcome} else f" ({safe(run.reason or '')})"
            table.add_row(
                f"  {run.number}",
                moment(run.started_at),
                duration(worked(began, ended, [(began, ended)])),
                Text.assemble((outcome, STYLES.get(outcome, "")), reason.replace("_", " ")),
                Text(safe(run.worker), "dim"),
            )
        self._screen.print(table)

    def _controls(self) -> None:
        controls: Iterable[ControlSnapshot] = self._job.controls[-RUNS:]
        if not controls:
            return
        self._title("Controls")
        for each in controls:
            detail = f" {safe(each.detail)}" if each.detail else ""
            words = f"  {moment(each.at)}  {each.action}{detail}, by {safe(each.by)}"
            self._print(Text(words))

    def _times(self) -> None:
        job = self._job
        self._title("Times")
        times = {
            "submitted": job.submitted_at,
            "started": job.started_at,
            "last progress": None if job.ended_at else job.progressed_at,
            "sign of life": job.heartbeat_at,
            "ended": job.ended_at,
            "to be resumed": job.resume_at if job.resume_at and job.resume_at > self._now else None,
            "deadline": job.deadline_at,
            "kept until": job.expires_at,
        }
        for name, at in times.items():
            if at is not None:
                self._print(
                    Text.assemble(
                        f"  {name:<13}  {moment(at)}  ", (f"({ago(at, self._now)})", "dim")
                    )
                )

    def _next(self) -> None:
        lines = self._advice()
        if not lines:
            return
        self._title("Next")
        width = max(len(words) for words, _ in lines)
        for words, command in lines:
            self._print(Text.assemble(f"  {words:<{width}}  ", (command, "bold")))

    def _advice(self) -> list[tuple[str, str]]:
        job, hints = self._job, self._hints
        again = hints.run_by_name(job.name, job.id)
        cancel = ("give it up", hints.command("cancel", job.id))
        if job.lost:
            return [
                ("go on with it here", again),
                ("hand all lost jobs back", hints.command("recover")),
            ]
        if job.status == "running":
            word = "resume" if job.wish == "pause" else "pause"
            stop = ("let it go on" if word == "resume" else "pause it", hints.command(word, job.id))
            return [stop, cancel] if job.wish != "cancel" else []
        if job.status == "paused":
            return [("let it run again", hints.command("resume", job.id)), cancel]
        if job.status == "failed":
            begun = job.current or (job.steps[-1] if job.steps else None)
            lines = [
                ("try again from there", again),
                ("or leave that to a worker", hints.command("retry", job.id)),
            ]
            if begun is not None:
                lines.append(("do a step again", hints.command("rewind", job.id, begun.name)))
            return lines
        if job.status in {"pending", "interrupted"}:
            return [("run it here" if job.status == "pending" else "go on with it", again), cancel]
        return []

    # -- printing -------------------------------------------------------------------------------

    def _room(self, taken: int) -> int:
        return max(self._screen.width - taken, 20)

    def _title(self, text: str) -> None:
        self._print(Text(""))
        self._print(Text(text, "bold"))

    def _print(self, text: Text) -> None:
        self._screen.print(text, soft_wrap=True)
