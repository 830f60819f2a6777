"""Loops that are asked again after something was raised: what they do then, and what they say.

`test_loop_model` drives them at random; here are the cases that it cannot tell apart.
"""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from tests.both_ways import Lab
from tests.loop_jobs import Letters
from tracedjobs.errors import InvalidStepError

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Iterator
    from pathlib import Path

    from tracedjobs import AsyncContext, Loop, Runtime

AFTER_AN_ERROR = (
    r"^The loop of step 'items' was asked for an item after an error had ended it at cursor 2, or "
    r"while it was being asked for one\. Let the error out of the job, and the next run goes on "
    r"there; or handle it in the source\.$"
)


def breaks_at_three(cursor: object) -> Iterator[tuple[int, int]]:
    for item in range(cursor if isinstance(cursor, int) else 0, 5):
        if item == 2:
            raise OSError("the source is away")
        yield item, item + 1


async def async_breaks_at_three(cursor: object) -> AsyncIterator[tuple[int, int]]:
    for pair in breaks_at_three(cursor):
        yield pair


async def all_of(loop: AsyncIterable[object]) -> None:
    async for _ in loop:
        pass


async def all_of_the_rest(items: AsyncIterator[object] | Loop[Any]) -> None:
    """As `async for` does, but for what is iterated already."""
    with suppress(StopAsyncIteration):
        while True:
            await anext(items)


@pytest.mark.parametrize("source", [breaks_at_three, async_breaks_at_three], ids=["sync", "async"])
def test_a_loop_whose_source_raised_says_so_when_it_is_asked_again(
    runtime: Runtime, source: Any
) -> None:
    async def asks_again(ctx: AsyncContext) -> None:
        loop = ctx.each("items", source)
        with pytest.raises(OSError, match="the source is away"):
            await all_of(loop)
        for _ in range(2):
            with pytest.raises(InvalidStepError, match=AFTER_AN_ERROR):
                await all_of_the_rest(loop)
        raise LookupError

    lab = Lab(runtime, "async def")
    job_id = lab.submit(asks_again)
    outcome = lab.perform(job_id)
    assert isinstance(outcome.error, LookupError)
    step = lab.get(job_id).steps[0]
    assert (step.status, step.cursor, step.items) == ("interrupted", 2, 2)


def test_a_def_loop_whose_source_raised_ends_and_leaves_its_step_open(runtime: Runtime) -> None:
    async def asks_again(ctx: AsyncContext) -> None:
        items = aiter(ctx.each("items", breaks_at_three))
        with pytest.raises(OSError, match="the source is away"):
            await all_of_the_rest(items)
        await all_of_the_rest(items)

    lab = Lab(runtime, "def")
    job_id = lab.submit(asks_again)
    with pytest.raises(InvalidStepError, match="was left at cursor 2 before its source ended"):
        lab.perform(job_id)
    assert lab.get(job_id).steps[0].items == 2


def test_finish_after_the_source_raised_completes_the_step_where_it_stands(lab: Lab) -> None:
    async def finishes(ctx: AsyncContext) -> None:
        loop = ctx.each("items", breaks_at_three)
        with pytest.raises(OSError, match="the source is away"):
            await all_of(loop)
        await loop.finish()

    job_id = lab.submit(finishes)
    assert lab.perform(job_id).ok
    step = lab.get(job_id).steps[0]
    assert (step.status, step.cursor, step.items) == ("completed", 2, 2)


def test_finish_in_another_task_while_the_loop_waits_hands_out_nothing_more(
    runtime: Runtime,
) -> None:
    async def source(cursor: object) -> AsyncIterator[tuple[int, int]]:
        assert cursor is None
        yield 0, 1
        yield 1, 2
        waits.set()
        await goes_on.wait()
        yield 2, 3

    async def finished_elsewhere(ctx: AsyncContext) -> None:
        async def finish() -> None:
            await waits.wait()
            await loop.finish()
            goes_on.set()

        loop = ctx.each("items", source)
        other = asyncio.create_task(finish())
        seen.extend([item async for item in loop])
        await other

    seen: list[int] = []
    waits, goes_on = asyncio.Event(), asyncio.Event()
    lab = Lab(runtime, "async def")
    job_id = lab.submit(finished_elsewhere)
    assert lab.perform(job_id).ok
    step = lab.get(job_id).steps[0]
    assert (seen, step.status, step.cursor, step.items) == ([0, 1], "completed", 2, 2)


def test_a_source_is_closed_when_the_run_ends_while_the_loop_waits(lab: Lab) -> None:
    async def loop(ctx: AsyncContext) -> None:
        async for item in ctx.each("items", letters):
            if item == "B":
                ctx._run.request_stop("stopping")

    letters = Letters()
    job_id = lab.submit(loop)
    assert lab.perform(job_id).reason == "stopping"
    assert letters.closed == 1
    step = lab.get(job_id).steps[0]
    assert (step.cursor, step.items) == ("b", 2)


class Unreliable(sqlite3.Connection):
    """A connection that fails where it was told to."""

    broken = ""

    def commit(self) -> None:
        self._fail_at("COMMIT")
        super().commit()

    def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
        self._fail_at(sql)
        return super().execute(sql, *args)

    def _fail_at(self, sql: str) -> None:
        if self.broken and sql.startswith(self.broken):
            self.broken = ""
            raise sqlite3.OperationalError("disk I/O error")


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Unreliable]:
    connection = sqlite3.connect(
        tmp_path / "users.db", factory=Unreliable, isolation_level=None, check_same_thread=False
    )
    connection.execute("CREATE TABLE done (item)")
    yield connection
    connection.close()


@pytest.mark.parametrize(
    ("after", "broken"),
    [
        (0, "COMMIT"),
        (0, "UPDATE"),
        *((n, at) for n in (1, 2) for at in ("COMMIT", "BEGIN", "UPDATE")),
    ],
)
def test_no_item_of_a_transaction_that_failed_is_left_out(
    runtime: Runtime, database: Unreliable, broken: str, after: int
) -> None:
    async def inserts(ctx: AsyncContext) -> None:
        loop = ctx.each("items", range(4), transaction=database)

        async def insert_next() -> None:
            item = await anext(loop)
            database.execute("INSERT INTO done VALUES (?)", (item,))

        if not failed:
            for _ in range(after):
                await insert_next()
            database.broken = broken
            with pytest.raises(sqlite3.OperationalError, match="disk I/O error") as caught:
                await insert_next()
            failed.append(caught.value)
            with pytest.raises(InvalidStepError, match="was asked for an item after an error"):
                await insert_next()
            if after:
                with pytest.raises(InvalidStepError, match="rolled back already"):
                    await loop.finish()
            raise LookupError
        async for item in loop:
            database.execute("INSERT INTO done VALUES (?)", (item,))

    failed: list[Exception] = []
    lab = Lab(runtime, "async def")
    job_id = lab.submit(inserts)
    try:
        lab.perform(job_id)
    except LookupError:
        runtime.retry(job_id)
    assert lab.perform(job_id).ok
    assert [item for (item,) in database.execute("SELECT item FROM done")] == [0, 1, 2, 3]
