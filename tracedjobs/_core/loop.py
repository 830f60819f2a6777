"""The loop that is a step: `for item in ctx.each(...)`.

What all loops do; `sequence_loop` and `pairs_loop` have the kinds, and the hot loop of each: for
an item one store of the position and one look at `run.attention`. `benchmarks/` has what that
costs.
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
)
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Generic, NoReturn, Protocol, TypeVar, cast
from weakref import ref

from tracedjobs._core.step import Step
from tracedjobs._core.waiting import DONE, drive, drive_async
from tracedjobs.errors import InvalidStepError

if TYPE_CHECKING:
    from types import GeneratorType

    from tracedjobs._core.records import Position
    from tracedjobs._core.run import Run
    from tracedjobs._core.transaction import Ledger
    from tracedjobs._core.waiting import Flow

__all__ = ["END", "Finish", "Loop", "Source"]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
END: Final = object()


class Source(Protocol[T_co]):
    """What a loop can read from any position: called with a cursor, it goes on from there."""

    def __call__(
        self, cursor: Any, /
    ) -> Iterable[tuple[T_co, object]] | AsyncIterable[tuple[T_co, object]]:
        """Pairs of an item and the cursor after it; in `async def` jobs it may be async."""
        ...


class Finish(BaseException):
    pass


class Loop(Step, Generic[T]):
    """A step whose body is the loop's. Its cursor moves when the loop asks for the next item.

    Leave it early only after `finish()`.
    """

    __slots__ = (
        "_ask",
        "_attended",
        "_begun",
        "_done",
        "_in_hand",
        "_items",
        "_iterator",
        "_plain",
    )

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
        self._attended = 0
        self._done = False
        self._in_hand: Any = None
        self._begun = False
        # What a `for` runs is held by the `for` alone, so that it is closed when that is left.
        self._items: ref[GeneratorType[T, None, None]] | None = None
        self._iterator: Generator[T] | Iterator[object] | AsyncIterator[object] | None = None
        # The same once more, for the short ways of `async for` in the kinds of loops: one of them
        # is there while the loop is open and has no transactions.
        self._plain: Iterator[Any] | None = None
        self._ask: Callable[[], Awaitable[Any]] | None = None

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
            with suppress(StopIteration, Finish):
                items.throw(Finish)
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
                self._go_to(self._in_hand)
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
            found = next(iterator, END)
        else:
            found = await anext(iterator, END)
        if found is END:
            return await self._end_async()
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
        """The item in what the source gave, and the place after it."""
        raise NotImplementedError

    def _go_to(self, place: object) -> None:
        """Go to that place, which `_marked` gave."""
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
        except Finish:
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
        if self._ledger is None:
            if isinstance(iterator, Iterator):
                self._plain = iterator
            else:
                self._ask = iterator.__anext__
        return iterator

    async def _end_async(self) -> NoReturn:
        await drive_async(self._complete())
        raise StopAsyncIteration

    def _open_ledger(self, ledger: Ledger) -> Flow[None]:
        cursor, _ = self._mark()
        found, result = yield from ledger.open(self.position() if self.resumed else None, cursor)
        if found is not None:
            self.resumed = True
            self._stand(found.cursor, found.items)
            self._first, self._attended = self._mark()
        if result is not None:  # `finish` was called, and the run ended before the store knew
            yield from self._complete()

    def _move_on(self, *, result: str | None = None) -> Flow[None]:
        """Count the item in hand as done; with a result the ledger holds the step as done too."""
        if self._in_hand is not None:
            if self._ledger is not None:
                in_hand, self._in_hand = self._in_hand, None
                yield from self._ledger.write(*self._saved(in_hand), result)
                self._go_to(in_hand)
            else:
                self._go_to(self._in_hand)
                self._in_hand = None

    def _finish(self) -> Flow[None]:
        yield from self._move_on(result="null")
        yield from self._complete()

    def _saved(self, place: object) -> tuple[str, int]:
        """The cursor and the count of items at that place, as they are stored."""
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
        self._attended = self.items

    def _attend(self) -> Flow[None]:
        # Before its first item a loop stops for what is urgent, but does not ask whether it
        # should: each run gets at least one item done, as with Rails' `advance!`.
        done = self.items
        advanced = done != self._attended
        self._attended = done
        return self._run.attend(advanced=advanced, consult=advanced)

    def _complete(self) -> Flow[None]:
        run = self._run
        if run.attention and self.items != self._attended:
            run.note_stop()
        yield from run.complete_step(self.record("null"))
        self._done = True
        self._plain = self._ask = None
        run.step_event("job_step_completed", self)
