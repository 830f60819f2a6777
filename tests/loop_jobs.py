"""A sequence and a source of one's own, and the job of one loop over either.

For the tests of loops; nothing here is a test.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, overload

if TYPE_CHECKING:
    from tests.both_ways import Body
    from tracedjobs import AsyncContext
    from tracedjobs._core.context import BaseContext


class Squares(Sequence[int]):
    """A sequence of one's own, which counts what was read of it."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.read: list[int] = []

    def __len__(self) -> int:
        return self.length

    @overload
    def __getitem__(self, at: int) -> int: ...
    @overload
    def __getitem__(self, at: slice) -> list[int]: ...
    def __getitem__(self, at: int | slice) -> int | list[int]:
        if isinstance(at, slice):
            raise TypeError("it cannot be sliced")
        if at >= self.length:
            raise IndexError(at)
        self.read.append(at)
        return at * at


class Letters:
    """A source of pairs whose cursors are letters."""

    total = 5

    def __init__(self) -> None:
        self.asked: list[object] = []
        self.closed = 0

    def __call__(self, cursor: object) -> Iterator[tuple[str, str]]:
        self.asked.append(cursor)
        try:
            for letter in "abcde":
                if not isinstance(cursor, str) or letter > cursor:
                    yield letter.upper(), letter
        finally:
            self.closed += 1


def over(source: Any, seen: Any, **options: Any) -> Body:
    """A job of one loop and a step after it."""

    async def loop(ctx: AsyncContext) -> None:
        async for item in ctx.each("loop", source, **options):
            seen.append(item)
        await ctx.step("after", str)

    return loop


def at_item(number: int) -> Any:
    """A stopping callable that stops once the loop has done that many items."""

    def stopping(ctx: BaseContext) -> bool:
        return ctx.current is not None and ctx.current.items == number

    return stopping
