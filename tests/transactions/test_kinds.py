"""Loops, steps and plain calls, over every kind of connection."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

import pytest

from tracedjobs import Runtime, testing
from tracedjobs.errors import InvalidStepError, SerializationError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.both_ways import Lab
    from tests.transactions.databases import Database, Kind, Opened
    from tracedjobs._core.snapshot import StepSnapshot
    from tracedjobs._core.transaction import Ledger


class Died(BaseException):
    """As if the process were killed between the user's commit and the store's write."""


def letters(cursor: object) -> Iterator[tuple[int, str]]:
    """A source whose cursors are texts."""
    for number in range(ord(str(cursor)) - ord("a") if cursor else 0, 5):
        yield number, chr(ord("a") + number + 1)


def die_after_commit(patch: pytest.MonkeyPatch, when: int) -> None:
    """Let a run know nothing of its `when`th commit, as if it had been killed right after it."""
    from tracedjobs._core.transaction import Ledger  # noqa: PLC0415 - the one that is patched

    write, commits = Ledger.write, iter(range(1, 100))

    def killed(self: Ledger, cursor: str, items: int, result: str | None = None) -> Any:
        yield from write(self, cursor, items, result)
        if next(commits) == when:
            raise Died

    patch.setattr(Ledger, "write", killed)


@pytest.mark.parametrize("source", [range(5), letters], ids=["sequence", "callable"])
def test_a_loop_does_each_item_once_though_the_store_missed_a_commit(
    lab: Lab, kind: Kind, database: Database, monkeypatch: pytest.MonkeyPatch, source: Any
) -> None:
    async def body(ctx: Any) -> str:
        async with kind.open(database) as mine:
            async for item in ctx.each("items", source, transaction=mine.raw):
                await mine.insert(item)
        return "done"

    job_id = lab.submit(body)
    with monkeypatch.context() as patch:
        die_after_commit(patch, 3)
        with pytest.raises(Died):
            lab.perform(job_id)
    assert database.items == [0, 1, 2]
    assert current(lab, job_id).items == 2

    assert lab.perform(job_id).result == "done"
    assert database.items == [0, 1, 2, 3, 4]
    (step,) = lab.get(job_id).steps
    assert step.items == 5


def test_an_item_that_raises_is_rolled_back_and_only_it_is_done_again(
    lab: Lab, kind: Kind, database: Database
) -> None:
    tries: list[int] = []

    async def body(ctx: Any) -> None:
        async with kind.open(database) as mine:
            async for item in ctx.each("items", range(4), transaction=mine.raw):
                tries.append(item)
                await mine.insert(item)
                if tries == [0, 1, 2]:
                    raise OSError("in the middle of item 2")

    job_id = lab.submit(body)
    outcome = lab.perform(job_id)
    assert (outcome.status, outcome.reason) == ("interrupted", "error")
    assert database.items == [0, 1]
    assert lab.perform(job_id).ok
    assert database.items == [0, 1, 2, 3]
    assert tries == [0, 1, 2, 2, 3]


def test_an_item_that_raises_is_rolled_back_on_a_connection_that_stays_open(
    lab: Lab, kind: Kind, database: Database
) -> None:
    # The run ends, its outcome and so its frames are kept, and another run uses the connection.
    async def both(mine: Opened, job_id: str) -> None:
        first = await _perform(lab, job_id)
        assert (first.status, database.items) == ("interrupted", [0, 1])
        stopped.clear()
        second = await _perform(lab, job_id, lambda: drop(first))
        assert second.ok
        assert database.items == [0, 1, 2, 3]

    stopped = [2]
    held: list[Opened] = []
    callbacks: list[Any] = []

    def drop(first: Any) -> None:
        first.error.__traceback__ = None
        gc.collect()

    async def body(ctx: Any) -> None:
        (mine,) = held
        async for item in ctx.each("items", range(4), transaction=mine.raw):
            await mine.insert(item)
            for callback in callbacks:
                callback()
            if item in stopped:
                raise OSError

    async def _perform(lab: Lab, job_id: str, callback: Any = None) -> Any:
        callbacks[:] = [callback] if callback else []
        if lab.is_async:
            return await lab.runtime.perform_async(job_id)
        return lab.runtime.perform(job_id)

    async def everything() -> None:
        async with kind.open(database) as mine:
            held.append(mine)
            await both(mine, lab.submit(body))

    run(everything, lab)


def test_a_step_commits_with_each_advance(lab: Lab, kind: Kind, database: Database) -> None:
    async def body(ctx: Any) -> str:
        async with kind.open(database) as mine:

            async def pages(step: Any) -> str:
                for page in range(step.cursor, 4):
                    await mine.insert(page)
                    if (page, ctx.run) == (2, 1):
                        raise OSError
                    if page % 2:
                        await step.set(page + 1)
                    else:
                        await step.advance()
                await mine.insert(99)
                return "all pages"

            result: str = await ctx.step("pages", pages, start=0, transaction=mine.raw)
            return result

    job_id = lab.submit(body)
    assert lab.perform(job_id).reason == "error"
    assert database.items == [0, 1]
    assert current(lab, job_id).cursor == 2
    assert lab.perform(job_id).result == "all pages"
    assert database.items == [0, 1, 2, 3, 99]


@pytest.mark.parametrize("result", [None, {"rows": 7}])
def test_a_plain_call_that_the_store_missed_is_not_done_again_and_keeps_its_result(
    lab: Lab, kind: Kind, database: Database, monkeypatch: pytest.MonkeyPatch, result: object
) -> None:
    async def body(ctx: Any) -> object:
        async with kind.open(database) as mine:

            async def once() -> object:
                await mine.insert(1)
                ctx.state["once"] = ctx.run
                return result

            found = await ctx.step("once", once, transaction=mine.raw)
            return [found, ctx.state["once"]]

    job_id = lab.submit(body)
    with monkeypatch.context() as patch:
        die_after_commit(patch, 1)
        with pytest.raises(Died):
            lab.perform(job_id)
    assert [step.status for step in lab.get(job_id).steps] == ["interrupted"]
    assert lab.perform(job_id).result == [result, 1]
    assert database.items == [1]


def test_a_result_that_cannot_be_stored_is_rolled_back(
    lab: Lab, kind: Kind, database: Database
) -> None:
    async def body(ctx: Any) -> None:
        async with kind.open(database) as mine:

            async def once() -> object:
                await mine.insert(1)
                return object()

            await ctx.step("once", once, transaction=mine.raw)

    with pytest.raises(SerializationError):
        lab.run(body)
    assert database.items == []


def test_finish_is_committed_with_its_item(
    lab: Lab, kind: Kind, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(ctx: Any) -> str:
        async with kind.open(database) as mine:
            loop = ctx.each("items", range(9), transaction=mine.raw)
            async for item in loop:
                await mine.insert(item)
                if item == 2:
                    finished = loop.finish()
                    if kind.awaited:
                        await finished
                    break
        return "done"

    job_id = lab.submit(body)
    with monkeypatch.context() as patch:
        die_after_commit(patch, 3)
        with pytest.raises(Died):
            lab.perform(job_id)
    assert lab.perform(job_id).result == "done"
    assert database.items == [0, 1, 2]


def test_a_loop_left_without_finish_leaves_its_item_undone(
    lab: Lab, kind: Kind, database: Database
) -> None:
    async def body(ctx: Any) -> None:
        async with kind.open(database) as mine:
            async for item in ctx.each("items", range(4), transaction=mine.raw):
                await mine.insert(item)
                if item == 2:
                    break

    with pytest.raises(InvalidStepError, match="left at cursor"):
        lab.run(body)
    assert database.items == [0, 1]


def test_an_interruption_loses_and_repeats_nothing(
    lab: Lab, kind: Kind, database: Database
) -> None:
    async def body(ctx: Any) -> None:
        async with kind.open(database) as mine:
            async for item in ctx.each("items", range(4), transaction=mine.raw):
                await mine.insert(item)
                if (item, ctx.run) == (2, 2):
                    ctx.interrupt("in the middle of item 2")

    job_id = lab.submit(body)
    assert lab.perform(job_id, stopping=testing.interrupt_during("items", 1)).reason == "stopping"
    assert database.items == [0]
    assert lab.perform(job_id).reason == "in the middle of item 2"
    assert database.items == [0, 1]
    assert lab.perform(job_id).ok
    assert database.items == [0, 1, 2, 3]


@pytest.mark.parametrize("cursor", [None, 1])
def test_a_rewound_job_starts_where_it_was_told(
    lab: Lab, kind: Kind, database: Database, cursor: int | None
) -> None:
    async def body(ctx: Any) -> None:
        async with kind.open(database) as mine:

            async def before() -> None:
                await mine.insert(100)

            await ctx.step("before", before, transaction=mine.raw)
            async for item in ctx.each("items", range(3), transaction=mine.raw):
                await mine.insert(item)
            async for item in ctx.each("after", range(200, 202), transaction=mine.raw):
                await mine.insert(item)

    job_id = lab.submit(body)
    assert lab.perform(job_id).ok
    if cursor is None:
        lab.runtime.rewind(job_id, "items")
    else:
        lab.runtime.rewind(job_id, "items", cursor=cursor)
    assert lab.perform(job_id).ok
    again = list(range(cursor or 0, 3))
    assert database.items == sorted([100, 0, 1, 2, 200, 201, *again, 200, 201])


def test_the_table_s_cursor_wins_over_a_newer_one_of_the_store(
    lab: Lab, kind: Kind, database: Database
) -> None:
    # As after a restore of the user's database: what it lost is done again.
    async def body(ctx: Any) -> None:
        async with kind.open(database) as mine:
            async for item in ctx.each("items", range(5), transaction=mine.raw):
                await mine.insert(item)

    job_id = lab.submit(body)
    assert lab.perform(job_id, stopping=testing.interrupt_during("items", 4)).reason == "stopping"
    database.run("DELETE FROM done WHERE item > 1")
    database.run("UPDATE tracedjobs_cursors SET cursor = '2', items = 2")
    assert lab.perform(job_id).ok
    assert database.items == [0, 1, 2, 3, 4]


def test_state_is_that_of_the_last_commit(
    lab: Lab, kind: Kind, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(ctx: Any) -> int:
        ctx.state.setdefault("sum", 0)
        async with kind.open(database) as mine:
            async for item in ctx.each("items", range(5), transaction=mine.raw):
                await mine.insert(item)
                ctx.state["sum"] += item
        return int(ctx.state["sum"])

    job_id = lab.submit(body)
    with monkeypatch.context() as patch:
        die_after_commit(patch, 4)
        with pytest.raises(Died):
            lab.perform(job_id)
    assert lab.perform(job_id).result == 10


def test_what_was_pending_is_committed_before_the_first_item(
    lab: Lab, kind: Kind, database: Database
) -> None:
    async def body(ctx: Any) -> None:
        async with kind.open(database) as mine:
            await mine.insert(7)
            async for item in ctx.each("items", range(2), transaction=mine.raw):
                await mine.insert(item)
                raise OSError("in item 0")

    with pytest.raises(OSError, match="item 0"):
        lab.run(body)
    assert database.items == [7]


def test_an_error_of_the_database_in_an_item_is_the_job_s_and_moves_nothing(
    lab: Lab, kind: Kind, database: Database
) -> None:
    database.run("CREATE UNIQUE INDEX once ON done (item)")
    database.run("INSERT INTO done VALUES (2)")

    async def body(ctx: Any) -> None:
        async with kind.open(database) as mine:
            async for item in ctx.each("items", range(4), transaction=mine.raw):
                await mine.insert(item)

    job_id = lab.submit(body)
    outcome = lab.perform(job_id)
    assert (outcome.reason, type(outcome.error).__name__) in {
        ("error", "IntegrityError"),
        ("error", "UniqueViolation"),
    }
    assert current(lab, job_id).cursor == 2
    database.run("DELETE FROM done WHERE item = 2")
    assert lab.perform(job_id).ok
    assert database.items == [0, 1, 2, 3]


def test_a_job_submitted_again_after_its_purge_is_another_one(
    lab: Lab, kind: Kind, database: Database
) -> None:
    async def body(ctx: Any) -> None:
        async with kind.open(database) as mine:
            async for item in ctx.each("items", range(2), transaction=mine.raw):
                await mine.insert(item)

    job = lab.job(body)
    assert lab.perform(lab.runtime.submit(job, job_id="nightly")).ok
    with Runtime("memory://", handle_signals=False) as later:
        lab.runtime = later
        assert lab.perform(later.submit(job, job_id="nightly")).ok
    assert database.items == [0, 0, 1, 1]


def current(lab: Lab, job_id: str) -> StepSnapshot:
    """The open step."""
    found = lab.get(job_id).current
    assert found is not None
    return found


def run(work: Any, lab: Lab) -> None:
    """Do `work` with or without an event loop."""
    import asyncio  # noqa: PLC0415 - the one place that needs it

    from tests.both_ways import ended  # noqa: PLC0415 - the same

    if lab.is_async:
        asyncio.run(work())
    else:
        ended(work())
