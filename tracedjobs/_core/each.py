"""Which loop fits a source, and which sources no loop could resume."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, MappingView, Sequence
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, TypeVar, cast

from tracedjobs._core.pairs_loop import PairsLoop
from tracedjobs._core.records import Position, StepRecord
from tracedjobs._core.sequence_loop import RangeLoop, SequenceLoop

if TYPE_CHECKING:
    from tracedjobs._core.loop import Loop, Source
    from tracedjobs._core.run import Run

__all__ = ["check_source", "loop_over", "skipped_loop"]

T = TypeVar("T")


def loop_over(
    run: Run,
    name: str,
    source: Sequence[T] | Source[T],
    *,
    start: object,
    position: Position | None,
    total: int | None,
    stall_after: float | None,
) -> Loop[T]:
    """The loop that fits the kind of `source`, see `check_source`."""
    if isinstance(source, Sequence):
        kind: type[SequenceLoop[T]] = SequenceLoop
        if type(source) is range and source.start == 0 and source.step == 1:
            kind = cast("type[SequenceLoop[T]]", RangeLoop)
        return kind(
            run,
            name,
            source,
            start=start,
            position=position,
            total=total,
            stall_after=stall_after,
        )
    return PairsLoop(
        run, name, source, start=start, position=position, total=total, stall_after=stall_after
    )


def skipped_loop(run: Run, done: StepRecord) -> Loop[T]:
    """The loop of a step that is done already: it has no items, and stands at its end."""
    loop: Loop[T] = PairsLoop(
        run,
        done.name,
        _no_pairs,
        start=None,
        position=Position(done.name, done.cursor, done.items, done.total, done.unit),
        total=None,
        stall_after=None,
    )
    loop._done = True
    return loop


def _no_pairs(_cursor: object) -> tuple[()]:
    return ()


def check_source(source: object, name: str) -> None:
    """Raise `TypeError`, with the way out, for what a loop could not resume."""
    if isinstance(source, (str, bytes, bytearray)):
        problem = f"a {type(source).__name__}, whose items are single characters or bytes"
        way_out = "pass a list of what is meant, or tracedjobs.sources for a file"
    elif isinstance(source, Sequence) or callable(source):
        return
    elif isinstance(source, (Iterator, AsyncIterator)):
        problem = f"a {type(source).__name__}, which cannot be begun again in the middle"
        way_out = (
            "pass a list, or a function source(cursor) that yields (item, cursor_after_item) "
            "pairs from that cursor on"
        )
    elif isinstance(source, (AbstractSet, Mapping, MappingView)):
        problem = f"a {type(source).__name__}, whose order another process need not share"
        way_out = "pass sorted(…) of it"
    else:
        problem = f"a {type(source).__name__}"
        way_out = (
            "pass a sequence, or a function source(cursor) that yields "
            "(item, cursor_after_item) pairs"
        )
    msg = f"The source of step '{name}' is {problem}; it could not be resumed: {way_out}."
    raise TypeError(msg)
