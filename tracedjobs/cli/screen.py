"""What is drawn on: a console that fits the output, and the marks and colours that it can show."""

from __future__ import annotations

import os
import sys
from dataclasses import astuple, dataclass
from typing import Final

from rich.console import Console
from rich.text import Text

__all__ = ["STYLES", "Marks", "bar", "console", "marks", "shows_live"]

PIPED_WIDTH: Final = 100_000

STYLES: Final = {
    "pending": "",
    "running": "cyan",
    "pausing": "magenta",
    "cancelling": "magenta",
    "interrupted": "yellow",
    "paused": "magenta",
    "completed": "green",
    "failed": "red",
    "cancelled": "dim",
    "lost": "bold red",
    "stalled": "bold red",
}


@dataclass(frozen=True, slots=True)
class Marks:
    """The characters of the drawings."""

    done: str = "✓"
    open: str = "▸"
    ahead: str = "·"
    failed: str = "✗"
    full: str = "━"
    rest: str = "─"
    dot: str = "·"
    ellipsis: str = "…"


_ASCII: Final = Marks("+", ">", ".", "x", "#", "-", "|", "...")


def console(*, stderr: bool = False) -> Console:
    """A console on the standard output, as wide as the terminal; piped, lines are never cut."""
    file = sys.stderr if stderr else sys.stdout
    piped = not file.isatty() and "COLUMNS" not in os.environ
    return Console(
        file=file, highlight=False, markup=False, emoji=False, width=PIPED_WIDTH if piped else None
    )


def shows_live(screen: Console) -> bool:
    """Whether lines can be drawn again in place."""
    return screen.file.isatty() and screen.is_terminal and not screen.is_dumb_terminal


def marks(screen: Console) -> Marks:
    """The marks that the console's encoding has."""
    nice = Marks()
    try:
        "".join(astuple(nice)).encode(screen.encoding)
    except (UnicodeEncodeError, LookupError):
        return _ASCII
    return nice


def bar(fraction: float, width: int, shapes: Marks, style: str = "green") -> Text:
    """How much is done, `width` characters wide."""
    done = int(min(max(fraction, 0.0), 1.0) * width)
    return Text.assemble((shapes.full * done, style), (shapes.rest * (width - done), "dim"))
