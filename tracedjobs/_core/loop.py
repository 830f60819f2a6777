"""The loop that is a step: `for item in ctx.each(...)`.

The hot loop is here. What it does for an item is one store of the position and one look at
`run.attention`; `benchmarks/` has what that costs.
"""

from __future__ import annotations

from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    MappingView,
    Sequence,
)
from collections.abc import (
    Set as AbstractSet,
)
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Generic, NoReturn, Protocol, TypeVar, cast
from weakref import ref

from tracedjobs._core import values
from tracedjobs._core.options import checked_total
from tracedjobs._core.records import Position
from tracedjobs._core.step import Step
from tracedjobs._core.waiting import DONE, drive, drive_async
from tracedjobs.errors import InvalidStepError, SourceChangedError

if TYPE_CHECKING:
    from types import GeneratorType

    from tracedjobs._core.records import StepRecord
    from tracedjobs._core.run import Run
    from tracedjobs._core.transaction import Ledger
    from tracedjobs._core.waiting import Flow

__all__ = ["Loop", "Source", "loop_over"]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
_END: Final = object()


class Source(Protocol[T_co]):
    """What a loop can read from any position: called with a cursor, it goes on from there."""

    def __call__(
        self, cursor: Any, /
    ) -> Iterable[tuple[T_co, object]] | AsyncIterable[tuple[T_co, object]]:
        """Pairs of an item and the cursor after it; in `async def` jobs it may be async."""
        ...


class _Finish(BaseException):
    pass


class Loop(Step, Generic[T]):
    """A step whose body is the loop's. Its cursor moves when the loop asks for the next item.

    Leave it early only after `finish()`.
    """

    __slots__ = ("_attended", "_begun", "_done", "_in_hand", "_items", "_iterator")

    def __init__(
        self,
        run: Run,
        name: str,
        *,
        start: object,
        position: Position | None,
        total: int | None,
        stall_after: float | None,
    ) -> None:
        """Stand at `position`, or at `start` in a step that begins."""
        super().__init__(
            run, name, start=start, position=position, total=total, stall_after=stall_after
        )
        self._attended: object = None
        self._done = False
        self._in_hand: object = None
        self._begun = False
        # What a `for` runs is held by the `for` alone, so that it is closed when that is left.
        self._items: ref[GeneratorType[T, None, None]] | None = None
        self._iterator: Generator[T] | Iterator[object] | AsyncIterator[object] | None = None

    def set(self, cursor: object) -> NoReturn:
        """Not for loops: raises `InvalidStepError`."""
        msg = (
            f"The loop of step '{self.name}' moves its cursor itself; to set {cursor!r} yourself "
            f"write a step, ctx.step('{self.name}', …), and call step.set in it."
        )
        raise InvalidStepError(msg)

    def advance(self, from_: object = None) -> NoReturn:
        """Not for loops: raises `InvalidStepError`."""
        self.set(from_)

    def checkpoint(self) -> Awaitable[None]:
        """Let the job be interrupted in the middle of an item, which is then done again."""
        self._run.check()
        return self._run.wait(self._run.attend(advanced=False, between_items=False))

    def finish(self) -> Awaitable[None]:
        """Count the item in hand as done and complete the step where it stands.

        Call it before leaving the loop early; in `async def` jobs await it.
        """
        self._run.check()
        if self._done:
            return DONE
        items = None if self._items is None else self._items()
        if items is not None and items.gi_frame is not None:
            with suppress(StopIteration, _Finish):
                items.throw(_Finish)
            if self._done:
                return DONE
        elif self._ledger is not None and self._items is not None:
            msg = (
                f"finish() of the loop of step '{self.name}' came after it was left, when its item "
                f"at cursor {self.cursor!r} was rolled back already. Call it before the break."
            )
            raise InvalidStepError(msg)
        return self._run.wait(self._finish())

    @property
    def begun(self) -> bool:
        """Whether a `for` or `async for` has begun to run it."""
        return self._begun

    @property
    def left(self) -> bool | None:
        """Whether its body cannot be what runs now; `None` when nobody can tell."""
        if not self._begun:
            return True
        if self._items is None:
            return None  # an `async for` leaves no trace when it is left
        items = self._items()
        return bool(items is None or items.gi_frame is None)

    def __iter__(self) -> Iterator[T]:
        """The items that are not done yet."""
        self._begin(asynchronous=False)
        if self._done:
            return iter(())
        items = self._iterate() if self._ledger is None else self._iterate_in_transactions()
        self._items = ref(cast("GeneratorType[T, None, None]", items))
        return items

    def __aiter__(self) -> Loop[T]:
        """The items that are not done yet."""
        self._begin(asynchronous=True)
        return self

    async def __anext__(self) -> T:
        """The next item; the one before it is done."""
        # No generator: one that is left by `break` is closed after the line that follows it.
        if self._in_hand is not None:
            if self._ledger is None:
                self._at = self._in_hand
                self._in_hand = None
            else:
                await drive_async(self._move_on())
        if self._done:
            raise StopAsyncIteration
        iterator = self._iterator
        if iterator is None:
            iterator = await self._open_async()
            if self._done:
                raise StopAsyncIteration
        if isinstance(iterator, Iterator):
            found = next(iterator, _END)
        else:
            found = await anext(iterator, _END)
        if found is _END:
            await drive_async(self._complete())
            raise StopAsyncIteration
        if self._run.attention:
            await drive_async(self._attend())
        item, in_hand = self._marked(found)
        if self._ledger is not None:
            await drive_async(self._ledger.begin())
        self._in_hand = in_hand
        return item

    def abandon(self) -> Flow[None]:
        """Take back the transaction of the item in hand, which the run's end left open."""
        if self._ledger is not None:
            self._in_hand = None
            yield from self._ledger.rollback()

    # -- what a kind of loop knows ---

    def _iterate(self) -> Generator[T]:
        raise NotImplementedError

    def _open(self) -> Iterable[object] | AsyncIterable[object]:
        raise NotImplementedError

    def _marked(self, found: object) -> tuple[T, object]:
        """The item in what the source gave, and the position after it."""
        raise NotImplementedError

    def _stand(self, cursor: str, items: int) -> None:
        """Go to that position, which was read from a store."""
        raise NotImplementedError

    # -- what all loops do ---

    def _iterate_in_transactions(self) -> Generator[T]:
        run = self._run
        ledger = cast("Ledger", self._ledger)
        drive(self._open_ledger(ledger))
        if self._done:
            return
        try:
            for found in cast("Iterable[object]", self._open()):
                if run.attention:
                    drive(self._attend())
                item, in_hand = self._marked(found)
                drive(ledger.begin())
                self._in_hand = in_hand
                yield item
                drive(self._move_on())
        except _Finish:
            drive(self._move_on(result="null"))
        except GeneratorExit:
            drive(self.abandon())
            raise
        drive(self._complete())

    async def _open_async(self) -> Iterator[object] | AsyncIterator[object]:
        if self._ledger is not None:
            await drive_async(self._open_ledger(self._ledger))
            if self._done:
                return iter(())
        opened = self._open()
        iterator = aiter(opened) if isinstance(opened, AsyncIterable) else iter(opened)
        self._iterator = iterator
        return iterator

    def _open_ledger(self, ledger: Ledger) -> Flow[None]:
        cursor, _ = self._mark()
        found, result = yield from ledger.open(self.position() if self.resumed else None, cursor)
        if found is not None:
            self.resumed = True
            self._stand(found.cursor, found.items)
            self._attended, self._first = self._at, self._mark()[0]
        if result is not None:  # `finish` was called, and the run ended before the store knew
            yield from self._complete()

    def _move_on(self, *, result: str | None = None) -> Flow[None]:
        """Count the item in hand as done; with a result the ledger holds the step as done too."""
        if self._in_hand is not None:
            if self._ledger is not None:
                in_hand, self._in_hand = self._in_hand, None
                yield from self._ledger.write(*self._saved(in_hand), result)
                self._at = in_hand
            else:
                self._at, self._in_hand = self._in_hand, None

    def _finish(self) -> Flow[None]:
        yield from self._move_on(result="null")
        yield from self._complete()

    def _mark(self) -> tuple[str, int]:
        return self._saved(self._at)

    def _saved(self, at: object) -> tuple[str, int]:
        """The cursor and the count of items of a position, as they are stored."""
        raise NotImplementedError

    def _begin(self, *, asynchronous: bool) -> None:
        run = self._run
        if run.is_async is not asynchronous:
            right = "async for" if run.is_async else "for"
            kind = "an async def" if run.is_async else "a def"
            msg = f"The job is {kind} function: write `{right} … in ctx.each('{self.name}', …)`."
            raise TypeError(msg)
        if self._done:
            return
        run.check()
        if self._begun:
            msg = f"The loop of step '{self.name}' was begun already; it can be run once."
            raise InvalidStepError(msg)
        self._begun = True
        self._attended = self._at

    def _attend(self) -> Flow[None]:
        # Before its first item a loop stops for what is urgent, but does not ask whether it
        # should: each run gets at least one item done, as with Rails' `advance!`.
        advanced = self._at != self._attended
        self._attended = self._at
        return self._run.attend(advanced=advanced, consult=advanced)

    def _complete(self) -> Flow[None]:
        run = self._run
        if run.attention and self._at != self._attended:
            run.note_stop()
        yield from run.complete_step(self.record("null"))
        self._done = True
        run.step_event("job_step_completed", self)


class SequenceLoop(Loop[T]):
    """Over a sequence; the cursor is the offset of the next item."""

    __slots__ = ("_behind", "_sequence")

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
        if position is None:
            self._behind = self._at = offset
        else:
            self._stand(position.cursor, position.items)
        self._attended = self._at
        if total is None:
            self._total = max(len(sequence) - self._behind, 0)

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
        self._behind = at - items
        self._at = at

    @property
    def cursor(self) -> Any:
        """The offset of the item in hand: those before it are done."""
        return self._at

    def _saved(self, at: object) -> tuple[str, int]:
        offset = cast("int", at)
        return str(offset), offset - self._behind

    def _iterate(self) -> Generator[T]:
        run = self._run
        at = cast("int", self._at)
        try:
            for item in self._open():
                if run.attention:
                    drive(self._attend())
                yield item
                at += 1
                self._at = at
        except _Finish:
            self._at = at + 1
        except GeneratorExit:
            self._in_hand = at + 1  # for a `finish` after the `break`
            raise
        drive(self._complete())

    def _open(self) -> Iterable[T]:
        at = cast("int", self._at)
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
        return cast("T", found), cast("int", self._at) + 1


class PairsLoop(Loop[T]):
    """Over a source of `(item, cursor_after_item)` pairs."""

    __slots__ = ("_source",)

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
        unit = getattr(source, "total_unit", None)
        self._unit = None if unit == "items" else unit
        self._agree_on_fingerprint(begins=position is None)

    @property
    def cursor(self) -> Any:
        """What the source said after the last item that is done."""
        after = cast("tuple[object, int]", self._at)[0]
        return values.decode(after) if isinstance(after, str) else after

    def _stand(self, cursor: str, items: int) -> None:
        self._at = (cursor, items)

    def _saved(self, at: object) -> tuple[str, int]:
        after, items = cast("tuple[object, int]", at)
        return after if isinstance(after, str) else values.encode_cursor(after), items

    def _iterate(self) -> Generator[T]:
        run = self._run
        items = cast("tuple[object, int]", self._at)[1]
        pairs = iter(cast("Iterable[object]", self._open()))
        try:
            for pair in pairs:
                if run.attention:
                    drive(self._attend())
                if type(pair) is not tuple or len(pair) != 2:  # noqa: PLR2004 - a pair
                    self._refuse_pair(pair)
                item, after = pair
                if type(after) is not int:
                    after = values.encode_cursor(after)
                yield item
                items += 1
                self._at = (after, items)
        except _Finish:
            self._at = (after, items + 1)
        except GeneratorExit:
            self._in_hand = (after, items + 1)  # for a `finish` after the `break`
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
        if type(found) is not tuple or len(found) != 2:  # noqa: PLR2004 - a pair
            self._refuse_pair(found)
        item, after = found
        if type(after) is not int:
            after = values.encode_cursor(after)
        return item, (after, cast("tuple[object, int]", self._at)[1] + 1)

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


class _ListIterator(Protocol):
    def __setstate__(self, offset: int, /) -> None: ...


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
        return SequenceLoop(
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


def _checked_offset(value: object, name: str, what: str) -> int:
    if type(value) is not int or value < 0:
        msg = (
            f"Step '{name}' loops over a sequence, so that {what} is an offset of 0 or more; "
            f"found {value!r}."
        )
        raise InvalidStepError(msg)
    return value


def _shortened(value: object) -> str:
    text = repr(value)
    limit = 80
    return text if len(text) <= limit else f"{text[:limit]}…"
