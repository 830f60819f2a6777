"""How `run` shows a run: drawn again in place on a terminal, else a line every few seconds.

Both are drawn by a thread of their own, from what the `Follower` reads; neither makes the job wait.
"""

from __future__ import annotations

import signal
import threading
import time
from typing import TYPE_CHECKING, Final, Self

from rich.console import Group
from rich.live import Live
from rich.text import Text

from tracedjobs._core.signals import StopSignals
from tracedjobs.cli.following import Pace
from tracedjobs.cli.phrases import duration, rough, shortened
from tracedjobs.cli.screen import marks, shows_live
from tracedjobs.cli.steps import fitted, name_width

if TYPE_CHECKING:
    from types import TracebackType

    from rich.console import Console, RenderableType

    from tracedjobs.cli.following import Follower, View
    from tracedjobs.cli.steps import StepLine

__all__ = ["Drawing", "Lines", "shown"]

A_SECOND: Final = 4
"""Drawings a second: each costs the job a few milliseconds of the interpreter."""
GLANCE: Final = 0.2
"""Seconds between two looks of the plain lines, so that a step's end is told soon."""


def shown(screen: Console, follower: Follower, *, every: float) -> Drawing | Lines:
    """A context manager that shows the run while it is open."""
    return Drawing(screen, follower) if shows_live(screen) else Lines(screen, follower, every)


class Drawing:
    """One line a step, drawn again in place."""

    def __init__(self, screen: Console, follower: Follower) -> None:
        """Draw on `screen`."""
        self._screen = screen
        self._follower = follower
        self._marks = marks(screen)
        self._pace = Pace()
        self._began = time.monotonic()
        self._over = False
        self._live = Live(
            console=screen,
            get_renderable=self._draw,
            refresh_per_second=A_SECOND,
            vertical_overflow="crop",
        )

    def __enter__(self) -> Self:
        """Begin to draw."""
        self._live.start()
        # A second signal kills the process: a hidden cursor would then stay hidden.
        self._screen.show_cursor(True)  # noqa: FBT003 - rich's
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Draw a last time; the lines stay."""
        self._over = True
        self._live.stop()

    def _draw(self) -> RenderableType:
        view = self._follower.look()
        if view is None:
            return Text("")
        width, height = self._screen.size
        names = name_width([*(line.name for line in view.steps), *view.ahead])
        lines = [self._line(line, names, width) for line in _last(view, max(height - 8, 3))]
        hidden = len(view.steps) - len(lines)
        if hidden > 0:
            lines.insert(0, Text(f"  {self._marks.done} {hidden} earlier steps", "dim"))
        few = view.ahead[:3]
        lines += [
            Text(f"  {self._marks.ahead} {shortened(each, width - 4)}", "dim") for each in few
        ]
        if len(view.ahead) > len(few):
            lines.append(Text(f"  {self._marks.ahead} {len(view.ahead) - len(few)} more", "dim"))
        if not self._over:
            lines.append(Text(self._footer(), "dim", no_wrap=True, overflow="crop"))
        return Group(*lines)

    def _line(self, line: StepLine, names: int, width: int) -> Text:
        if line.status == "completed":
            return fitted(line, self._marks, names=names, width=width)
        pace = self._pace.note(line)
        more: tuple[str, ...] = (line.time_left, pace, "" if line.unit == "bytes" else line.where())
        if self._over:
            more = (duration(line.seconds), *more[2:])
        elif not line.items:
            more = (duration(line.seconds),)
        return fitted(line, self._marks, names=names, width=width, more=more)

    def _footer(self) -> str:
        passed = rough(time.monotonic() - self._began)
        if StopSignals.seen is not None:
            name = signal.Signals(StopSignals.seen).name
            return f"  {passed}  {name}: stopping at the next checkpoint; a second one kills it"
        return f"  {passed}  Ctrl-C saves and stops"


class Lines:
    """A line when a step is done, and one every few seconds; nothing that only a terminal knows."""

    def __init__(self, screen: Console, follower: Follower, every: float) -> None:
        """Print to `screen`, on an open step each `every` seconds."""
        self._screen = screen
        self._follower = follower
        self._every = every
        self._marks = marks(screen)
        self._pace = Pace()
        self._told: set[str] | None = None
        self._closed = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="tracedjobs-lines", daemon=True)

    def __enter__(self) -> Self:
        """Begin to print."""
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Tell the rest, and where the open step was left."""
        self._stop.set()
        self._thread.join()
        view = self._follower.look()
        if view is not None:
            self._tell_done(view)
            self._tell_open(view)

    def _loop(self) -> None:
        due = time.monotonic() + self._every
        while not self._stop.wait(min(GLANCE, self._every)):
            view = self._follower.look()
            if view is None:
                continue
            self._tell_done(view)
            if time.monotonic() >= due:
                due = time.monotonic() + self._every
                self._tell_open(view)
            elif view.open is not None:
                self._pace.note(view.open)

    def _tell_done(self, view: View) -> None:
        done = [line for line in view.steps if line.status == "completed"]
        if self._told is None:
            self._told = set()
        for line in done:
            if line.name not in self._told:
                self._told.add(line.name)
                words = [f"done, {duration(line.seconds)}", line.how_far()]
                self._print(f"{self._marks.done} {line.name}: {', '.join(filter(None, words))}")

    def _tell_open(self, view: View) -> None:
        line = view.open
        if line is None:
            return
        pace = self._pace.note(line)
        words = [line.percent, line.how_far() or duration(line.seconds), pace, line.time_left]
        if line.unit != "bytes":
            words.append(shortened(line.where(), 60))
        self._print(f"{self._marks.open} {line.name}: {', '.join(filter(None, words))}")

    def _print(self, text: str) -> None:
        if self._closed:
            return
        try:
            self._screen.print(text, soft_wrap=True)
            self._screen.file.flush()
        except OSError:
            self._closed = True  # whoever read it has gone: the job goes on


def _last(view: View, number: int) -> tuple[StepLine, ...]:
    return view.steps[-number:]
