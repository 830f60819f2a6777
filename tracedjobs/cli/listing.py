"""`tracedjobs list`: a table of jobs, newest first."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final
from uuid import UUID

import click
from rich.table import Table
from rich.text import Text

from tracedjobs._core.records import READ_FROM_TIME, Status
from tracedjobs.cli.as_json import job_as_json, print_json
from tracedjobs.cli.hints import Hints
from tracedjobs.cli.options import existing_store, full_id, json_option, store_option
from tracedjobs.cli.phrases import age, count, plural, safe, shortened, spans, status_word
from tracedjobs.cli.screen import STYLES, Marks, bar, console, marks
from tracedjobs.cli.steps import StepLine, line_of_snapshot

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracedjobs._core.snapshot import JobSnapshot

__all__ = ["list_"]

WIDE: Final = 110
BAR: Final = 8
SHORT_ID: Final = 8
LONGEST: Final = 32


@click.command("list")
@click.option(
    "--status",
    type=click.Choice([*(each.value for each in Status), *READ_FROM_TIME]),
    help="Only jobs of that status.",
)
@click.option("--name", metavar="JOB", help="Only jobs of that name, such as jobs:import_users.")
@click.option(
    "--limit", type=click.IntRange(min=1), default=20, show_default=True, help="At most so many."
)
@click.option("--before", metavar="ID", help="Only jobs that are older than that one: a next page.")
@store_option
@json_option
@click.pass_context
def list_(
    ctx: click.Context,
    *,
    status: str | None,
    name: str | None,
    limit: int,
    before: str | None,
    store: str,
    as_json: bool,
) -> None:
    """List jobs, newest first.

    On a terminal ids are shortened; other commands take them so. Where the output is no terminal
    they are whole.
    """
    hints = Hints.of(ctx)
    with existing_store(store) as runtime:
        if before is not None:
            before = full_id(runtime, before)
        # One more than asked for, to see whether there is a next page.
        found = runtime.list(status=status, name=name, limit=limit + 1, before=before)
        page, more = found[:limit], len(found) > limit
        url = runtime.store.url
    if as_json:
        print_json([job_as_json(job) for job in page])
        return
    screen = console()
    if not page:
        filtered = status is not None or name is not None or before is not None
        words = "No such jobs" if filtered else "No jobs yet"
        if name is not None and ":" not in name:
            words = f"No jobs of the name {safe(name)} (most are MODULE:JOB)"
        screen.print(f"{words} in {url}.", soft_wrap=True)
        what = hints.command("list") if filtered else hints.command("run", "MODULE:JOB")
        screen.print(f"  {'To see all' if filtered else 'To run one'}:  {what}", soft_wrap=True)
        return
    piped = not screen.is_terminal
    screen.print(_table(page, screen.width, marks(screen), whole=piped))
    if more:
        screen.print(
            Text(f"  Older ones:  {hints.command('list', '--before', page[-1].id)}", "dim"),
            soft_wrap=True,
        )


def _table(page: Sequence[JobSnapshot], width: int, shapes: Marks, *, whole: bool) -> Table:
    wide = whole or width >= WIDE
    table = Table(box=None, header_style="bold dim", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("ID", no_wrap=True)
    table.add_column("JOB", no_wrap=True, overflow="ellipsis")
    table.add_column("STATUS", no_wrap=True)
    table.add_column("STEP", no_wrap=True, overflow="ellipsis")
    table.add_column("PROGRESS", no_wrap=True)
    table.add_column("RUNS", justify="right", no_wrap=True)
    table.add_column("AGE", justify="right", no_wrap=True)
    queues = wide and any(job.queue for job in page)
    if queues:
        table.add_column("QUEUE", no_wrap=True, overflow="ellipsis")
    if wide:
        table.add_column("WORKER", no_wrap=True, overflow="ellipsis")
    ids = [job.id if whole else _short_id(job.id) for job in page]
    now = datetime.now(UTC)
    for job, shown in zip(page, ids, strict=True):
        short = ids.count(shown) == 1
        name = safe(job.name)
        word = status_word(job)
        row: list[str | Text] = [
            safe(shown if short else job.id),
            name if wide else shortened(name.rpartition(":")[2], 20),
            Text(word, STYLES.get(word, "")),
            _step(job) if whole else shortened(_step(job), LONGEST if wide else 18),
            _progress(job, shapes, wide=wide, drawn=not whole),
            str(job.run),
            age((now - job.submitted_at).total_seconds()),
        ]
        if queues:
            row.append(safe(job.queue or ""))
        if wide:
            row.append(safe(job.worker or ""))
        table.add_row(*row)
    return table


def _short_id(job_id: str) -> str:
    try:
        return job_id[:SHORT_ID] if str(UUID(job_id)) == job_id else job_id
    except ValueError:
        return job_id


def _step(job: JobSnapshot) -> str:
    """`2 of 5 import_rows`: the open step, else how many are done."""
    number = len(job.steps)
    known = job.steps_expected is not None and job.steps_expected >= number
    total = f" of {job.steps_expected}" if known else ""
    if job.current is not None:
        name = safe(job.current.name)
        return f"{number}{total} {name}" if total else name
    if job.status == "completed" or not total:
        return plural(number, "step") if number else ""
    return f"{number}{total}"


def _progress(job: JobSnapshot, shapes: Marks, *, wide: bool, drawn: bool) -> Text:
    line = _line(job)
    if line is None:
        return Text(plural(job.items, "item") if job.items else "", "dim")
    if line.fraction is None:
        return Text(line.how_far())
    text = Text()
    if drawn:
        style = STYLES.get(status_word(job)) or "default"
        text = bar(line.fraction, BAR, shapes, style).append("  ")
    text.append(f"{line.percent:>3}")
    if wide:
        of = line.how_far() if line.unit else f"{count(line.items)} of {count(line.total or 0)}"
        text.append(f"  {of}", "dim")
        if line.time_left:
            text.append(f"  {line.time_left}", "dim")
    return text


def _line(job: JobSnapshot) -> StepLine | None:
    if job.current is None:
        return None
    return line_of_snapshot(job.current, spans(job), datetime.now(UTC), job.time_left)
