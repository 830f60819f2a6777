"""Loops that are asked again after something was raised: what they do then, and what they say.

`test_loop_model` drives them at random; here are the cases that it cannot tell apart.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import sqlite3
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

import tracedjobs
from tests.both_ways import Lab
from tests.loop_jobs import Letters
from tracedjobs import AsyncContext, Context, job
from tracedjobs.errors import InvalidStepError, TracedJobsError

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator
    from pathlib import Path

    from tracedjobs import Loop, Runtime

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


def test_finish_called_by_the_source_says_so(runtime: Runtime) -> None:
    def source(_: object) -> Iterator[tuple[int, int]]:
        yield 1, 1
        loops[0].finish()

    @job(name="finished by its source", resume_errors_after_advancing=False)
    def finished(ctx: Context) -> None:
        loops.append(ctx.each("items", source))
        for _ in loops[0]:
            pass

    loops: list[Any] = []
    with pytest.raises(InvalidStepError, match="while it is being asked for"):
        runtime.perform(runtime.submit(finished))


def test_a_source_that_finishes_its_loop_before_it_gives_anything_gives_nothing(
    runtime: Runtime,
) -> None:
    def source(_: object) -> list[tuple[int, int]]:
        loops[0].finish()
        return [(1, 1), (2, 2)]

    @job(name="finished before it began")
    def finished(ctx: Context) -> list[int]:
        loops.append(ctx.each("items", source))
        return list(loops[0])

    loops: list[Any] = []
    outcome = runtime.perform(runtime.submit(finished))
    assert outcome.result == []
    assert [step.status for step in runtime.get(outcome.job_id).steps] == ["completed"]


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


@pytest.mark.parametrize("items", [range(10), [*range(10)], tuple(range(10))], ids=repr)
def test_an_async_loop_hands_out_nothing_after_it_was_finished(
    runtime: Runtime, items: Any
) -> None:
    given: list[int] = []
    after: list[int] = []

    @job(name=f"finished, of a {type(items).__name__}")
    async def finished(ctx: AsyncContext) -> None:
        loop = ctx.each("one", items)
        async for item in loop:
            given.append(item)
            if item == 3:
                await loop.finish()
        async for item in ctx.each("two", items):
            after.append(item)
            with suppress(StopAsyncIteration):
                await loop.__anext__()

    outcome = asyncio.run(runtime.perform_async(runtime.submit(finished)))
    assert outcome.ok
    assert (given, after) == ([0, 1, 2, 3], [*range(10)])
    assert [step.items for step in runtime.get(outcome.job_id).steps] == [4, 10]


def test_an_async_loop_hands_out_nothing_while_the_end_of_its_run_is_recorded(
    runtime: Runtime,
) -> None:
    given: list[int] = []

    @job(name="asked by two tasks")
    async def asked(ctx: AsyncContext) -> None:
        loop = ctx.each("one", [*range(1000)])

        async def work() -> None:
            with suppress(BaseException):
                async for item in loop:
                    given.append(item)
                    await asyncio.sleep(0)

        working = asyncio.create_task(work())
        async for item in loop:
            given.append(item)
            await asyncio.sleep(0)
            if item > 8:
                tasks.append(working)
                raise OSError

    tasks: list[asyncio.Task[None]] = []
    outcome = asyncio.run(runtime.perform_async(runtime.submit(asked)))
    (step,) = runtime.get(outcome.job_id).steps
    assert step.cursor is not None
    assert len(given) - 2 <= step.items <= len(given)


@pytest.mark.parametrize("count", [0, 1, 31, 32, 33, 34, 65, 70])
def test_a_source_is_asked_once_when_it_is_at_its_end(runtime: Runtime, count: int) -> None:
    asked: list[int] = []

    class Rows:
        def __iter__(self) -> Iterator[tuple[int, int]]:
            return self

        def __next__(self) -> tuple[int, int]:
            asked.append(len(asked))
            if len(asked) > count:
                raise StopIteration
            return len(asked), len(asked)

    @job(name=f"reads {count} rows")
    def reads(ctx: Context) -> int:
        return sum(1 for _ in ctx.each("rows", lambda _: Rows()))

    assert runtime.perform(runtime.submit(reads)).result == count
    assert len(asked) == count + 1


def pairs_to(size: int) -> Callable[[object], Iterator[tuple[int, int]]]:
    def source(cursor: object) -> Iterator[tuple[int, int]]:
        for at in range(cursor if isinstance(cursor, int) else 0, size):
            yield at, at + 1

    return source


@pytest.mark.parametrize(
    "source",
    [range(10**9), range(5, 10**9), pairs_to(10**9)],
    ids=["range", "part", "pairs"],
)
def test_what_a_signals_handler_raises_is_never_taken_for_the_loops_own(
    runtime: Runtime, source: Any
) -> None:
    class TooSlowError(ValueError):
        """As a user's time limit may be."""

    fired = 0

    def handler(_number: int, _frame: object) -> None:
        nonlocal fired
        fired += 1
        raise TooSlowError

    @job(name=f"too slow over {source!r}", max_resumptions=100, resume_errors_after_advancing=True)
    def slow(ctx: Context) -> None:
        items = iter(ctx.each("items", source))
        next(items)
        next(items)  # so the run got on, however late it comes to the next line
        signal.setitimer(signal.ITIMER_REAL, 0.002)
        for _ in items:
            pass

    job_id = runtime.submit(slow)
    before = signal.signal(signal.SIGALRM, handler)
    gc.disable()  # what is raised in a callback of its, as hypothesis has one, goes nowhere
    try:
        reasons = [runtime.perform(job_id) for _ in range(15)]
    finally:
        gc.enable()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert [type(outcome.error) for outcome in reasons] == [TooSlowError] * 15
    assert fired == 15


async def two_pairs(cursor: object) -> AsyncIterator[tuple[int, int]]:
    for item in range(cursor if isinstance(cursor, int) else 0, 2):
        yield item, item + 1


def test_who_is_to_say_whether_to_stop_is_not_asked_by_a_loop_that_outlives_its_run() -> None:
    kept: list[AsyncIterator[object]] = []
    asked: list[object] = []

    def stopping(ctx: AsyncContext) -> bool:
        asked.append(ctx)
        return False

    @job(name="misuse:outlives")
    async def outlives(ctx: AsyncContext) -> None:
        kept.append(aiter(ctx.each("items", two_pairs)))
        await anext(kept[0])
        await anext(kept[0])
        raise ValueError(kept)

    async def main(runtime: Runtime) -> None:
        outcome = await runtime.perform_async(runtime.submit(outlives))
        assert outcome.reason == "error"
        before = len(asked)
        with pytest.raises(TracedJobsError, match="has ended; neither its ctx nor its"):
            await anext(kept[0])
        assert len(asked) == before

    with tracedjobs.Runtime("memory://", stopping=stopping) as runtime:
        asyncio.run(main(runtime))
    assert None not in asked
