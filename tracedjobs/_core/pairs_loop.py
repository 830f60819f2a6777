"""A loop over a source of `(item, cursor_after_item)` pairs."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterable, Callable, Generator, Iterable
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar, cast

from tracedjobs._core import values
from tracedjobs._core.cell_layout import (
    AHEAD,
    BITS,
    CELL,
    COUNT,
    COUNTED,
    EMPTY,
    INTEGER,
    KIND,
    integers_of,
)
from tracedjobs._core.loop import END, NOTHING, Loop, Source
from tracedjobs._core.options import checked_total
from tracedjobs._core.waiting import drive, drive_async

if TYPE_CHECKING:
    from tracedjobs._core.records import Position
    from tracedjobs._core.run import Run

__all__ = ["PairsLoop"]

T = TypeVar("T")
PATIENCE: Final = 1000
"""After how many items a loop without slots asks for some again."""
ALL_EMPTY: Final = memoryview(EMPTY.to_bytes(8, sys.byteorder, signed=True) * (CELL // 8)).cast("q")


class PairsLoop(Loop[T]):
    """Over a source of `(item, cursor_after_item)` pairs."""

    __slots__ = ("_after", "_as_given", "_source")

    def __init__(
        self,
        run: Run,
        name: str,
        source: Source[T],
        *,
        start: object,
        position: Position | None,
        total: int | None,
        stall_after: float | None,
    ) -> None:
        """Stand at the cursor that the source is to go on from."""
        if total is None:
            total = checked_total(getattr(source, "total", None), name)
        super().__init__(
            run, name, start=start, position=position, total=total, stall_after=stall_after
        )
        self._source = source
        # An int as the source gave it is in the flight recorder's numbers, all else is here.
        self._as_given = False
        self._after, self._attended = cast("tuple[str, int]", self._at)
        self._numbers[AHEAD] = EMPTY
        self._numbers[COUNT] = self._attended
        unit = getattr(source, "total_unit", None)
        self._unit = None if unit == "items" else unit
        self._agree_on_fingerprint(begins=position is None)

    @property
    def cursor(self) -> Any:
        """What the source said after the last item that is done."""
        return values.decode(self._mark()[0])

    @property
    def items(self) -> int:
        """How many items are done, in all runs together."""
        return integers_of(self._numbers.tolist())[1]

    def _mark(self) -> tuple[str, int]:
        # Called from the saver's thread too, between any two bytecodes of the loop, but for those
        # that store: CPython looks whether another thread is to run only at calls and at jumps
        # back. So what a move stores, which is no call, is one step for this reader, and all that
        # is read here until the one call has returned is one for that writer. Without a GIL a
        # cursor could be one item off its count.
        as_given, after = self._as_given, self._after
        integer, count = integers_of(self._numbers.tolist())
        return (str(integer) if as_given else after), count

    def _go_to(self, place: Any) -> None:
        after, count = place
        self._move(self._stored_late(after), count)

    def _move(self, after: str | int, count: int) -> None:
        # In the order that `cell_layout` asks for, whether slots are in use or not.
        numbers = self._numbers
        if isinstance(after, int):
            numbers[count & 1] = after
            numbers[COUNT] = count
            self._as_given = True
            numbers[KIND] = INTEGER
        else:
            numbers[KIND] = COUNTED
            self._as_given = False
            self._after = after
            numbers[COUNT] = count

    def _stand(self, cursor: str, items: int) -> None:
        self._move(cursor, items)

    def _saved(self, place: object) -> tuple[str, int]:
        after, items = cast("tuple[str | int, int]", place)
        return str(after), items

    def _iterate(self, opened: Iterable[tuple[T, object]]) -> Generator[T]:
        run = self._run
        numbers = self._numbers
        pairs = iter(opened)
        pair: Any = NOTHING
        after: Any = None
        slots: tuple[memoryview, ...] = ()
        try:
            while True:
                if pair is NOTHING:
                    pair = next(pairs, END)
                if pair is END:
                    break
                if run.attention:
                    yield from self._until_attended()
                after = self._stored(pair)
                yield pair[0]
                count = numbers[COUNT]
                count = (count if count >= 0 else self.items) + 1
                given = self._as_given  # not for each int among others
                self._move(after, count)
                pair = NOTHING
                # As long as cursors are ints that fit the slots, and nothing else is wanted.
                if not given or not self._as_given or run.attention:
                    continue
                if not slots:
                    slots = run.cell.slots()
                    if not slots:
                        # Two stores for an item, until it is worth asking for slots again.
                        began = count
                        for pair in islice(pairs, PATIENCE):
                            try:
                                item, after = pair
                            except (TypeError, ValueError):
                                self._refuse_pair(pair)
                            if type(after) is not run.calm:  # as below
                                break
                            yield item
                            count += 1
                            try:
                                numbers[count & 1] = after
                            except ValueError:  # as below
                                run.check()
                                self._move(self._stored_late(after), count)
                                pair = NOTHING  # noqa: PLW2901 - it is done
                                break
                            numbers[COUNT] = count
                        else:
                            pair = NOTHING if count - began == PATIENCE else END
                        continue
                    room = slice(-len(slots), None)
                    empty = ALL_EMPTY[: len(slots)]
                while True:
                    numbers[room] = empty
                    numbers[COUNT] = ~count
                    slot = None
                    for slot, pair in zip(slots, pairs):  # noqa: B905 - `strict` costs
                        try:
                            item, after = pair
                        except (TypeError, ValueError):
                            self._refuse_pair(pair)
                        # Not `int`, for a slot takes a bool; and looked at between the source,
                        # which may have taken its time, and the item.
                        if type(after) is not run.calm:
                            break
                        yield item
                        try:  # around this alone: what a signal's handler raises is not ours
                            slot[()] = after
                        except ValueError:  # it is too large for a slot
                            run.check()  # or the run has ended
                            self._move(self._stored_late(after), self.items + 1)
                            pair = NOTHING  # noqa: PLW2901 - it is done
                            break
                    else:
                        if slot is slots[-1]:
                            count += len(slots)
                            numbers[count & 1] = after
                            numbers[COUNT] = count
                            continue
                        pair = END
                    break
        except GeneratorExit:
            if not self._waiting:
                self._in_hand = (after, self.items + 1)
            raise
        except ValueError:
            run.check()  # as above
            raise
        finally:
            close = getattr(pairs, "close", None)
            if close is not None:
                close()
        self._ended = True
        if not run.is_async:
            drive(self._complete())

    async def _next_awaited(self) -> T:
        # The short way of the method it overrides, which does what is not done at each item.
        ask = self._ask
        in_hand: tuple[str | int, int] | None = self._in_hand
        if ask is None or in_hand is None:
            return await super()._next_awaited()
        after, count = in_hand
        self._in_hand = None
        if self._as_given and type(after) is int:
            numbers = self._numbers
            numbers[count & 1] = after
            numbers[COUNT] = count
        else:
            self._move(after, count)
        try:
            pair = await ask()
        except StopAsyncIteration:
            self._ended = True
            return await self._end_async()
        if self._run.attention:
            self._fetched = pair
            await drive_async(self._attend())
            self._fetched = NOTHING
        if self._done:  # another task has called `finish` while this one waited
            raise StopAsyncIteration
        self._in_hand = (self._stored(pair), count + 1)
        item: T = pair[0]
        return item

    def _open(self) -> Iterable[object] | AsyncIterable[object]:
        pairs = self._source(self.cursor)
        if isinstance(pairs, AsyncIterable) and self._run.is_async:
            return pairs
        if isinstance(pairs, AsyncIterable):
            msg = (
                f"The source of step '{self.name}' is asynchronous; make the job an async def "
                f"function."
            )
            raise TypeError(msg)
        if not isinstance(pairs, Iterable):
            msg = (
                f"The source of step '{self.name}' returned {pairs!r}, which cannot be iterated; "
                f"it must return an iterable of (item, cursor_after_item) pairs."
            )
            raise TypeError(msg)
        return pairs

    def _marked(self, found: Any) -> tuple[T, object]:
        after = self._stored(found)
        return found[0], (after, self._numbers[COUNT] + 1)

    def _stored(self, pair: object) -> str | int:
        """The cursor of the pair as it is kept: an int as it is, all else as its text."""
        # By its type: a text of two characters or a dict of two keys could be unpacked as well.
        if not isinstance(pair, tuple) or len(pair) != 2:  # noqa: PLR2004 - a pair
            self._refuse_pair(pair)
        after = pair[1]
        if type(after) is int and after.bit_length() < BITS:
            return after
        return values.encode_cursor(after)

    def _stored_late(self, after: str | int) -> str | int:
        # An int too large for the numbers was not seen in the loop, which sees types only.
        return self._stored((None, after)) if type(after) is int else after

    def _refuse_pair(self, found: object) -> NoReturn:
        msg = (
            f"The source of step '{self.name}' yielded {_shortened(found)}, which is no pair: it "
            f"must yield tuples (item, cursor_after_item), so that the loop can be resumed."
        )
        raise TypeError(msg)

    def _agree_on_fingerprint(self, *, begins: bool) -> None:
        if begins or self._fingerprint is None:
            fingerprint: Callable[[], object] | None = getattr(self._source, "fingerprint", None)
            if fingerprint is not None:
                self._fingerprint = values.encode(fingerprint(), path="fingerprint")
        else:
            check = getattr(self._source, "check_fingerprint", None)
            if check is not None:
                check(values.decode(self._fingerprint))


def _shortened(value: object) -> str:
    text = repr(value)
    limit = 80
    return text if len(text) <= limit else f"{text[:limit]}…"
