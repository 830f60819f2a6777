"""Numbers, times and values as people read them: pure, no colours and no widths."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, TypeAlias

from tracedjobs._core.snapshot import Unreadable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tracedjobs._core.snapshot import JobSnapshot

__all__ = [
    "Span",
    "age",
    "ago",
    "count",
    "duration",
    "moment",
    "plural",
    "rate",
    "rough",
    "safe",
    "shortened",
    "size",
    "spans",
    "status_word",
    "value_text",
    "worked",
]

Span: TypeAlias = tuple[datetime, datetime]

_MINUTE: Final = 60
_HOUR: Final = 3600
_DAY: Final = 86400
_WISHES: Final = {"pause": "pausing", "cancel": "cancelling"}


def duration(seconds: float) -> str:
    """`0.31 s`, `8.2 s`, `41 s`, `3 min 20 s`, `2 h 5 min`, `3 d 4 h`."""
    seconds = max(seconds, 0.0)
    if seconds < 1:
        return f"{seconds:.2f} s"
    if seconds < 10:  # noqa: PLR2004 - two digits are enough
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        return f"{whole // _MINUTE} min {whole % _MINUTE} s"
    if whole < _DAY:
        return f"{whole // _HOUR} h {whole % _HOUR // _MINUTE} min"
    return f"{whole // _DAY} d {whole % _DAY // _HOUR} h"


def rough(seconds: float) -> str:
    """The same without fractions: `1 s`, `41 s`, `3 min 20 s`."""
    return duration(whole) if (whole := round(seconds)) >= _MINUTE else f"{whole} s"


def ago(at: datetime, now: datetime | None = None) -> str:
    """`just now`, `41 s ago`, `3 min ago`, `2 h ago`, `in 7 d`."""
    apart = ((now or datetime.now(UTC)) - at).total_seconds()
    if abs(apart) < 1:
        return "just now"
    # Of a week to come the first minute is gone at once, and it is still a week.
    return f"{age(apart)} ago" if apart > 0 else f"in {age(-apart * 1.01)}"


def age(seconds: float) -> str:
    """One unit: `41 s`, `3 min`, `2 h`, `7 d`."""
    for unit, name in ((_DAY, "d"), (_HOUR, "h"), (_MINUTE, "min")):
        if seconds >= unit:
            return f"{int(seconds // unit)} {name}"
    return f"{int(seconds)} s"


def moment(at: datetime) -> str:
    """`2026-03-01 14:05:09`, in the local zone."""
    return at.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def count(number: int) -> str:
    """`336,776`."""
    return f"{number:,}"


def plural(number: int, word: str) -> str:
    """`1 item`, `2 items`."""
    return f"{count(number)} {word}{'' if number == 1 else 's'}"


def size(number: int) -> str:
    """`31.1 MB`."""
    amount, unit = float(number), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if amount < 1000 or unit == "TB":  # noqa: PLR2004 - SI
            break
        amount /= 1000
    return f"{number} B" if unit == "B" else f"{amount:.1f} {unit}"


def rate(a_second: float) -> str:
    """`24,031/s`, `3.2/s`, `12/min`."""
    if a_second >= 10:  # noqa: PLR2004 - two digits are enough
        return f"{a_second:,.0f}/s"
    if a_second >= 1:
        return f"{a_second:.1f}/s"
    return f"{a_second * 60:.1f}/min"


def safe(text: str) -> str:
    """`text` without what would move a terminal's cursor or change its colours."""
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in text
    )


def shortened(text: str, width: int) -> str:
    """At most `width` characters, the end cut off."""
    return text if len(text) <= width else text[: max(width - 1, 0)] + "…"


def value_text(value: object) -> str:
    """A stored value in one line."""
    if isinstance(value, Unreadable):
        return safe(f"{value.text} (unreadable here: {value.why})")
    try:
        return safe(repr(value))
    except ValueError:  # an int of thousands of digits
        return f"<{type(value).__name__}, too long to show>"


def status_word(job: JobSnapshot) -> str:
    """The status, with what is read from time and wishes: `lost`, `stalled`, `pausing` and such."""
    if job.lost:
        return "lost"
    if job.stalled:
        return "stalled"
    if job.status == "running" and job.wish is not None:
        return _WISHES.get(job.wish, job.wish)
    return str(job.status)


def spans(job: JobSnapshot) -> list[Span]:
    """From when to when its runs went on; a lost one for as long as it was seen to."""
    now = datetime.now(UTC)
    found: list[Span] = []
    for run in job.runs:
        end = run.ended_at or (job.progressed_at or run.started_at if job.lost else now)
        found.append((run.started_at, end))
    return found


def worked(began: datetime, ended: datetime, spans: Iterable[Span]) -> float:
    """Seconds of that time in which a run went on: idle nights between runs do not count."""
    return sum(
        max((min(end, ended) - max(start, began)).total_seconds(), 0.0) for start, end in spans
    )
