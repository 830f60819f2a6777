"""The job bodies of Rails' `continuation_test.rb`, and a `stopping` that raises.

https://github.com/rails/rails/blob/main/activejob/test/cases/continuation_test.rb
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tracedjobs.testing import interrupt_during

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.both_ways import Body
    from tracedjobs import AsyncContext, Step
    from tracedjobs._core.context import BaseContext

IDS = [123, 432, 6565, 3243, 234, 13, 22]
SORTED = [13, 22, 123, 234, 432, 3243, 6565]


class BoomError(Exception):
    pass


def renaming(renamed: list[int], fail_at: int | None = None) -> Body:
    """Goes through records by their ids, and leaves the cursor behind the last one renamed."""

    async def rename_all(ctx: AsyncContext) -> None:
        async def rename(step: Step) -> None:
            for number in sorted(IDS):
                start = step.cursor
                if isinstance(start, int) and number < start:
                    continue
                if fail_at is not None and start == fail_at:
                    raise BoomError("cursor error")
                renamed.append(number)
                await step.advance(number)

        await ctx.step("rename", rename)

    return rename_all


def linear(items: list[str]) -> Body:
    """Four steps one after the other."""

    async def four_steps(ctx: AsyncContext) -> None:
        for number in ("one", "two", "three", "four"):
            await ctx.step(f"step_{number}", items.append, number)

    return four_steps


def deleting(items: list[int]) -> Body:
    """Consumes its items: there is no cursor, only checkpoints."""

    async def delete_all(ctx: AsyncContext) -> None:
        async def delete(step: Step) -> None:
            while items:
                items.pop(0)
                await step.checkpoint()

        await ctx.step("delete", delete)

    return delete_all


def counting(limit: int) -> Body:
    """Advances an integer up to a limit."""

    async def count(ctx: AsyncContext) -> None:
        async def iterate(step: Step) -> None:
            assert isinstance(step.cursor, int)
            for _ in range(step.cursor, limit):
                await step.advance()

        await ctx.step("iterate", iterate, start=0)

    return count


def raising_during(step: str, cursor: object = ...) -> Callable[[BaseContext], bool]:
    """A stopping callable that raises, which counts as raised by the job."""
    during = interrupt_during(step) if cursor is ... else interrupt_during(step, cursor)

    def stopping(ctx: BaseContext) -> bool:
        if during(ctx):
            raise BoomError("boom")
        return False

    return stopping
