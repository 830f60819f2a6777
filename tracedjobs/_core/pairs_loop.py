"""A loop over a source of `(item, cursor_after_item)` pairs."""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Generator, Iterable
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

from tracedjobs._core import values
from tracedjobs._core.loop import END, Finish, Loop, Source
from tracedjobs._core.options import checked_total
from tracedjobs._core.waiting import drive, drive_async
from tracedjobs.errors import SerializationError

if TYPE_CHECKING:
    from tracedjobs._core.records import Position
    from tracedjobs._core.run import Run
    from tracedjobs._core.waiting import Flow

__all__ = ["PairsLoop"]

T = TypeVar("T")


class PairsLoop(Loop[T]):
    """Over a source of `(item, cursor_after_item)` pairs."""

    __slots__ = ("_after", "_as_given", "_count", "_source")

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
        self._as_given = False
        self._after: object
        self._after, self._count = cast("tuple[str, int]", self._at)
        self._attended = self._count
        unit = getattr(source, "total_unit", None)
        self._unit = None if unit == "items" else unit
        self._agree_on_fingerprint(begins=position is None)

    @property
    def cursor(self) -> Any:
        """What the source said after the last item that is done."""
        after = self._after
        return values.decode(after) if isinstance(after, str) and not self._as_given else after

    def _mark(self) -> tuple[str, int]:
        # Called from the saver's thread too, between any two bytecodes of `_iterate`, but for
        # these: CPython looks whether another thread is to run only at calls and at jumps back,
        # so that the two stores there are one step for this reader, and its two loads here are
        # one for that writer. Without a GIL the count could be one item off in a killed run.
        after, count = self._after, self._count
        mark = self._saved((after, count))
        self._at = mark
        return mark

    def abandon(self) -> Flow[None]:
        """See `Loop.abandon`; a cursor that cannot be stored is given up for one that could."""
        yield from super().abandon()
        try:
            self._mark()
        except SerializationError:
            self._stand(*cast("tuple[str, int]", self._at))

    def _go_to(self, place: object) -> None:
        self._after, self._count = cast("tuple[object, int]", place)

    def _stand(self, cursor: str, items: int) -> None:
        self._as_given = False
        self._after, self._count = cursor, items

    def _saved(self, place: object) -> tuple[str, int]:
        after, items = cast("tuple[object, int]", place)
        if isinstance(after, str) and not self._as_given:
            return after, items
        return values.encode_cursor(after), items

    async def __anext__(self) -> T:
        """The next item; the one before it is done."""
        # The short way of the method it overrides, which does what is not done at each item.
        ask, plain = self._ask, self._plain
        in_hand: tuple[object, int] | None = self._in_hand
        if in_hand is None or (ask is None and plain is None):
            return await super().__anext__()
        self._after, self._count = in_hand
        count = in_hand[1]
        self._in_hand = None
        pair: Any = END
        if plain is not None:
            pair = next(plain, END)
        elif ask is not None:
            try:
                pair = await ask()
            except StopAsyncIteration:
                pair = END
        if pair is END:
            return await self._end_async()
        if self._run.attention:
            await drive_async(self._attend())
        item: T
        if type(pair) is tuple and len(pair) == 2:  # noqa: PLR2004 - a pair
            item, after = pair
            if type(after) is int:
                self._in_hand = (after, count + 1)
                return item
        item, self._in_hand = self._marked(pair)
        return item

    def _iterate(self) -> Generator[T]:
        run = self._run
        count = self._count
        pairs = iter(cast("Iterable[tuple[T, object]]", self._open()))
        after: object = None
        try:
            for pair in pairs:
                if run.attention:
                    drive(self._attend())
                after = self._stored(pair)
                yield pair[0]
                count += 1
                self._after, self._count = after, count
                if type(after) is int:
                    break
            # A source whose first cursor is an int is taken to give ints: they are kept as they
            # come, and looked at when they are saved. Looking at each costs a third of the loop.
            self._as_given = type(after) is int
            for pair in pairs:
                if run.attention:
                    drive(self._attend())
                try:
                    item, after = pair
                except (TypeError, ValueError):
                    self._refuse_pair(pair)
                yield item
                count += 1
                self._after, self._count = after, count
        except Finish:
            self._after, self._count = after, count + 1
        except GeneratorExit:
            self._in_hand = (after, count + 1)  # for a `finish` after the `break`
            raise
        finally:
            close = getattr(pairs, "close", None)
            if close is not None:
                close()
        drive(self._complete())

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

    def _marked(self, found: object) -> tuple[T, object]:
        after = self._stored(found)
        return cast("tuple[T, object]", found)[0], (after, self._count + 1)

    def _stored(self, pair: object) -> str | int:
        """The cursor of the pair as it is kept: an int as it is, all else as its text."""
        # By its type: a text of two characters or a dict of two keys could be unpacked as well.
        if not isinstance(pair, tuple) or len(pair) != 2:  # noqa: PLR2004 - a pair
            self._refuse_pair(pair)
        after = pair[1]
        return after if type(after) is int else values.encode_cursor(after)

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
