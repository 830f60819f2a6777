"""The loop that is a step: `for item in ctx.each(...)`.

What all loops do; `sequence_loop` and `pairs_loop` have the kinds, and the hot loop of each: for
an item one integer is stored, in the run's cell of the flight recorder and nowhere else, and
whether the run wants attention is seen by what is done anyhow. `benchmarks/` has what that costs.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Awaitable, Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Generic, NoReturn, Protocol, TypeVar, cast
from weakref import ref

from tracedjobs._core.cell_layout import private_numbers
from tracedjobs._core.step import Step
from tracedjobs._core.telling import tell_step
from tracedjobs._core.waiting import DONE, drive, drive_async
from tracedjobs.errors import InvalidStepError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence
    from types import GeneratorType

    from tracedjobs._core.flight_recorder import Cell
    from tracedjobs._core.records import Position
    from tracedjobs._core.run import Run
    from tracedjobs._core.transaction import Ledger
    from tracedjobs._core.waiting import Flow

__all__ = ["END", "NOTHING", "PLACES", "Finish", "Loop", "Source"]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
END: Final = object()
NOTHING: Final = object()
ATTEND: Final[Any] = object()
"""What the generator of a loop in an async job gives where it must wait for `Loop._attend`."""
PLACES: Final[Any] = object()
"""What it gives where it leaves it to `Loop._places` to give the items."""

NO_NUMBERS: Final = memoryview(b"")


class Source(Protocol[T_co]):
    """What a loop can read from any position: called with a cursor, it goes on from there."""

    def __call__(
        self, cursor: Any, /
    ) -> Iterable[tuple[T_co, object]] | AsyncIterable[tuple[T_co, object]]:
        """Pairs of an item and the cursor after it; in `async def` jobs it may be async."""
        ...


class Finish(GeneratorExit):
    """Closes the generator of a loop, but not the transaction of the item in hand."""


class Loop(Step, Generic[T]):
    """A step whose body is the loop's. Its cursor moves when the loop asks for the next item.

    Leave it early only after `finish()`.
    """

    __slots__ = (
        "_ask",
        "_attended",
        "_begun",
        "_done",
        "_ended",
        "_fetched",
        "_here",
        "_hot",
        "_in_hand",
        "_items",
        "_iterator",
        "_numbers",
        "_offered",
        "_places",
        "_waiting",
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
        # Whether there is nothing left to do but to record that: no error is taken for an end.
        self._ended = False
        # The place after the item that was handed out, where the loop is not yet asked for more.
        self._in_hand: Any = None
        # What the source gave and was not handed out, since waiting before that failed.
        self._fetched: object = NOTHING
        self._waiting = False
        self._begun = False
        # What a `for` runs is held by the `for` alone, so that it is closed when that is left.
        self._items: ref[GeneratorType[T, None, None]] | None = None
        # What an `async for` asks is held here: the same generator where the source needs no
        # waiting for, so that an item costs one coroutine and no more; else the source's iterator.
        self._here: GeneratorType[T, None, None] | tuple[()] = ()
        # Some kinds leave the most of it to what needs no generator: offsets of items that are
        # offered, as `_hot` takes them until attention is wanted.
        self._places: Iterable[int] = ()
        self._offered: Sequence[T] = ()
        self._hot = NO_NUMBERS
        self._iterator: Any = None
        # Its way to the next one, where it is to be awaited and there are no transactions.
        self._ask: Callable[[], Awaitable[Any]] | None = None
        # Laid out as in the flight recorder. They are the cell's own while the step is open, so
        # that the loop's one write is what the saver reads, and what outlives the process.
        self._numbers = private_numbers()

    def keep_in(self, cell: Cell) -> None:
        """Have the position in the flight recorder, unless the user's database keeps it."""
        if self._ledger is None:
            self._open_in(cell, self._numbers)
            self._numbers = cell.numbers

    def let_go(self) -> None:
        """Have the position in the loop itself again, as it is now; nothing else is written."""
        self._places = ()
        self._run.cool()
        with suppress(ValueError):  # it was done already
            self._numbers = memoryview(bytearray(self._numbers.tobytes())).cast("q")

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
        self._places = ()
        items = (self._here or None) if self._items is None else self._items()
        if items is not None and items.gi_running:
            msg = (
                f"finish() of the loop of step '{self.name}' was called while it is being asked "
                f"for an item, such as by its own source. Call it in the loop's body; a source "
                f"that returns ends the loop too."
            )
            raise InvalidStepError(msg)
        if items is not None and items.gi_frame is not None:
            with suppress(Finish):
                items.throw(Finish)
        elif self._ledger is not None and (
            self._broken if self._items is None else not self._ended
        ):
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
        if self._ledger is None:
            opened = self._open()
            if self._done:  # its source has called `finish`
                return iter(())
            items = self._iterate(cast("Iterable[Any]", opened))
        else:
            items = self._iterate_in_transactions()
        self._items = ref(cast("GeneratorType[T, None, None]", items))
        return items

    def __aiter__(self) -> Loop[T]:
        """The items that are not done yet."""
        self._begin(asynchronous=True)
        return self

    async def __anext__(self) -> T:
        """The next item; the one before it is done."""
        # No async generator: one that is left by `break` is closed after the line that follows it.
        for at in self._places:
            try:
                item = self._offered[at]
                self._hot[()] = at
            except (IndexError, ValueError):  # it has become shorter, or attention is wanted
                self._places = ()
                break
            return item
        for item in self._here:
            if item is PLACES:
                return await self.__anext__()
            if item is not ATTEND:
                return item
            # Should that raise, the generator stays where it is, its item in hand, and whoever
            # asks again waits again.
            await drive_async(self._attend())
            self._waiting = False
        return await (self._end_async() if self._here else self._next_awaited())

    def abandon(self) -> Flow[None]:
        """Close what the run's end left open: the source, the transaction of the item in hand."""
        self._places = ()
        if self._here:
            with suppress(Exception):
                self._here.close()
        if self._ledger is not None:
            self._in_hand = None
            yield from self._ledger.rollback()

    # -- what a kind of loop knows ---

    def _iterate(self, opened: Iterable[Any]) -> Generator[T]:
        """The items of what `_open` gave; in an async job `ATTEND` too, and it ends uncompleted.

        Closed at an item it leaves the place after that in `_in_hand`, and closed while it waits
        nothing: `finish` goes there, and nobody else. `_ended` says that it came to its end.
        """
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
            raise
        except GeneratorExit:
            drive(self.abandon())
            raise
        self._ended = True
        drive(self._complete())

    def _until_attended(self) -> Generator[Any]:
        """Do what attention is wanted for, before the next item.

        The generator of an async job waits there for as long as that fails.
        """
        if not self._run.is_async:
            self._run.wait(self._attend())
            return
        self._waiting = True
        while self._waiting:
            yield ATTEND

    async def _next_awaited(self) -> T:
        """The next item where there are transactions, or the source is one to be awaited."""
        if self._done or self._ended or self._broken:
            return await self._end_async()
        found = self._fetched
        if found is NOTHING:
            await drive_async(self._move_on())
            iterator = self._iterator
            if iterator is None:
                iterator = await self._open_async()
                if self._done or self._here:
                    return await self.__anext__()
            if isinstance(iterator, Iterator):
                found = next(iterator, END)
            else:
                found = await anext(iterator, END)
            if found is END:
                self._ended = True
                return await self._end_async()
        if self._run.attention:
            self._fetched = found
            await drive_async(self._attend())
            self._fetched = NOTHING
        if self._done:  # another task has called `finish` while this one waited
            raise StopAsyncIteration
        item, in_hand = self._marked(found)
        if self._ledger is not None:
            await drive_async(self._ledger.begin())
        self._in_hand = in_hand
        return item

    @property
    def _broken(self) -> bool:
        """Whether an ask for an item raised, so that nobody knows what the source gives next.

        Or it has not returned yet. Between two asks there is always an item in hand, or one that
        was fetched; of loops that have a generator, that one's end tells.
        """
        return (
            self._iterator is not None
            and self._in_hand is None
            and self._fetched is NOTHING
            and not self._ended
        )

    async def _open_async(self) -> Any:
        if self._ledger is not None:
            self._iterator = iter(())  # `_broken`, should what follows raise
            await drive_async(self._open_ledger(self._ledger))
            if self._done:
                return self._iterator
        opened = self._open()
        if isinstance(opened, AsyncIterable):
            self._iterator = aiter(opened)
            if self._ledger is None:
                self._ask = self._iterator.__anext__
        elif self._ledger is not None:
            self._iterator = iter(opened)
        else:
            self._here = cast("GeneratorType[T, None, None]", self._iterate(opened))
            return self._here
        return self._iterator

    async def _end_async(self) -> NoReturn:
        if not self._done:
            if not self._ended:
                self._refuse_to_go_on()
            await drive_async(self._complete())
        raise StopAsyncIteration

    def _refuse_to_go_on(self) -> NoReturn:
        self._run.check()
        msg = (
            f"The loop of step '{self.name}' was asked for an item after an error had ended it at "
            f"cursor {self.cursor!r}, or while it was being asked for one. Let the error out of "
            f"the job, and the next run goes on there; or handle it in the source."
        )
        raise InvalidStepError(msg)

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
        self._ended = True
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
        yield from self._run.attend(advanced=advanced, consult=advanced)
        self._attended = done

    def _complete(self) -> Flow[None]:
        run = self._run
        if run.attention and self.items != self._attended:
            run.note_stop()
        yield from run.complete_step(self.record("null"))
        self._done = True
        tell_step(run, "job_step_completed", self)
