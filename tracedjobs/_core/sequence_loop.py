"""A loop over a sequence, whose cursor is the offset of the next item."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar, cast

from tracedjobs._core import values
from tracedjobs._core.cell_layout import AHEAD, KIND, OFFSET, view_of
from tracedjobs._core.loop import PLACES, Loop
from tracedjobs._core.waiting import drive
from tracedjobs.errors import InvalidStepError, SourceChangedError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Sequence

    from tracedjobs._core.records import Position
    from tracedjobs._core.run import Run

__all__ = ["RangeLoop", "SequenceLoop"]

T = TypeVar("T")


class SequenceLoop(Loop[T]):
    """Over a sequence; the cursor is the offset of the next item."""

    __slots__ = ("_sequence",)
    _is_plain: ClassVar = False

    def __init__(
        self,
        run: Run,
        name: str,
        sequence: Sequence[T],
        *,
        start: object,
        position: Position | None,
        total: int | None,
        stall_after: float | None,
    ) -> None:
        """Stand at an offset that the sequence has."""
        offset = 0 if start is None else _checked_offset(start, name, "start")
        super().__init__(
            run,
            name,
            start=offset,
            position=position,
            total=total,
            stall_after=stall_after,
        )
        self._sequence = sequence
        self._numbers[KIND] = OFFSET
        if position is None:
            self._numbers[AHEAD] = self._numbers[0] = offset
        else:
            self._stand(position.cursor, position.items)
        self._attended = self.items
        if total is None:
            self._total = max(len(sequence) - self._numbers[AHEAD], 0)

    def _stand(self, cursor: str, items: int) -> None:
        at = _checked_offset(values.decode(cursor), self.name, "the saved cursor")
        if at > len(self._sequence):
            msg = (
                f"The sequence of step '{self.name}' has {len(self._sequence)} items, fewer than "
                f"the {at} that were done: it is no longer the one that the job began with. Give "
                f"the job the old one, or rewind the step."
            )
            raise SourceChangedError(msg)
        # How far the offset is ahead of the count of items: so one integer says both, and is
        # what the loop writes.
        self._numbers[AHEAD] = at - items
        self._numbers[0] = at

    @property
    def cursor(self) -> Any:
        """The offset of the item in hand: those before it are done."""
        return self._numbers[0]

    @property
    def items(self) -> int:
        """How many items are done, in all runs together."""
        return self._numbers[0] - self._numbers[AHEAD]

    def _mark(self) -> tuple[str, int]:
        return self._saved(self._numbers[0])

    def _go_to(self, place: object) -> None:
        self._numbers[0] = cast("int", place)

    def _saved(self, place: object) -> tuple[str, int]:
        offset = cast("int", place)
        return str(offset), offset - self._numbers[AHEAD]

    def _iterate(self, opened: Iterable[T]) -> Generator[T]:
        if type(self._sequence) in {list, tuple, range}:
            return self._iterate_quickly()
        return self._iterate_exactly(opened)

    def _iterate_quickly(self) -> Generator[T]:
        """Of sequences that give an item at once and raise nothing.

        So an item is noted as done when the next one is there, and what is stored then is where
        that one begins: no more is done at an item, for a store fails once attention is wanted.
        """
        run = self._run
        numbers = self._numbers
        sequence = self._sequence
        at = numbers[0]
        try:
            while at < len(sequence):
                item = sequence[at]
                numbers[0] = at
                if run.attention:
                    yield from self._until_attended()
                yield item
                at += 1
                if run.attention:
                    continue
                hot = run.heated(view_of(numbers, 0))
                if run.is_async:
                    self._hot = hot
                    self._offered = sequence
                    self._places = iter(range(at, len(sequence)))
                    yield PLACES
                elif self._is_plain:
                    for at in range(at, len(sequence)):  # noqa: B020 - where it stands
                        try:  # around this alone: what a signal's handler raises is not ours
                            hot[()] = at
                        except ValueError:
                            break
                        yield at  # type: ignore[misc]  # the items are ints
                else:
                    for item in self._rest(at):
                        try:
                            hot[()] = at
                        except ValueError:
                            break
                        yield item
                        at += 1
                at = numbers[0] + 1
            numbers[0] = at
        except GeneratorExit:
            if not self._waiting:
                self._in_hand = self._numbers[0] + 1
            raise
        except ValueError:
            run.check()  # the run has ended: its numbers were released
            raise
        self._ended = True
        if not run.is_async:
            drive(self._complete())

    def _iterate_exactly(self, items: Iterable[T]) -> Generator[T]:
        """Of sequences that may take their time for an item, or raise."""
        run = self._run
        numbers = self._numbers
        at = numbers[0]
        try:
            for item in items:
                if run.attention:
                    yield from self._until_attended()
                try:
                    yield item
                except GeneratorExit:
                    self._in_hand = at + 1
                    raise
                at += 1
                numbers[0] = at
        except ValueError:
            run.check()  # as above
            raise
        self._ended = True
        if not run.is_async:
            drive(self._complete())

    def _open(self) -> Iterable[T]:
        return self._rest(self._numbers[0])

    def _rest(self, at: int) -> Iterable[T]:
        sequence = self._sequence
        if at == 0:
            return sequence
        if isinstance(sequence, range):
            return cast("Sequence[T]", sequence[at:])
        if type(sequence) is list or type(sequence) is tuple:
            # No copy, and no way through the items that are done.
            items = iter(sequence)
            cast("_ListIterator", items).__setstate__(at)
            return items
        return map(sequence.__getitem__, range(at, len(sequence)))

    def _marked(self, found: object) -> tuple[T, object]:
        return cast("T", found), self._numbers[0] + 1


class RangeLoop(SequenceLoop[int]):
    """Over a range from 0 on: its items are the offsets, and need not be counted beside them."""

    __slots__ = ()
    _is_plain = True

    async def __anext__(self) -> int:
        """The next item; the one before it is done."""
        for at in self._places:
            try:
                self._hot[()] = at
            except ValueError:  # attention is wanted
                self._places = ()
                break
            return at
        return await super().__anext__()


class _ListIterator(Protocol):
    def __setstate__(self, offset: int, /) -> None: ...


def _checked_offset(value: object, name: str, what: str) -> int:
    if type(value) is not int or value < 0:
        msg = (
            f"Step '{name}' loops over a sequence, so that {what} is an offset of 0 or more; "
            f"found {value!r}."
        )
        raise InvalidStepError(msg)
    return value
