"""`ctx.state`: cursor and state are one pair, whatever ends the run."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from tests.both_ways import Lab
from tracedjobs import AsyncContext, Runtime, Step
from tracedjobs._core import state as pairs
from tracedjobs.errors import SerializationError, StoreUnavailableError
from tracedjobs.testing import interrupt_after, interrupt_during

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.both_ways import Body


@pytest.fixture(autouse=True)
def every_state_is_cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take a pair after every item, however slow this machine is just now."""
    monkeypatch.setattr(pairs, "CHEAP", 3600.0)


def summing(fail: Callable[[AsyncContext, int], object] = lambda ctx, item: None) -> Body:
    """Sums a loop's items in the state; `fail` may raise after the sum was touched."""

    async def add_up(ctx: AsyncContext) -> tuple[int, list[int]]:
        async for item in ctx.each("loop", range(10)):
            ctx.state["sum"] = ctx.state.get("sum", 0) + item
            ctx.state.setdefault("seen", []).append(item)
            fail(ctx, item)
        await ctx.step("after", str)
        return ctx.state["sum"], ctx.state["seen"]

    return add_up


WHOLE = (45, list(range(10)))


def position_and_state(lab: Lab, job_id: str) -> tuple[object, object]:
    stored = lab.get(job_id)
    return stored.steps[0].cursor, stored.state


def test_state_is_restored_in_later_runs_with_its_types(lab: Lab) -> None:
    async def remember(ctx: AsyncContext) -> None:
        if not ctx.resumed:
            assert dict(ctx.state) == {}
            ctx.state["a"] = (1, {2}, Decimal("1.50"))
            ctx.state[7] = b"seven"
            ctx.state["gone"] = 1
            del ctx.state["gone"]
        seen.append(dict(ctx.state))
        await ctx.step("one", str)
        await ctx.step("two", str)

    seen: list[dict[object, object]] = []
    job_id = lab.submit(remember)
    lab.perform(job_id, stopping=interrupt_after("one"))
    assert lab.perform(job_id).ok
    expected = {"a": (1, {2}, Decimal("1.50")), 7: b"seven"}
    assert seen == [expected, expected]
    assert lab.get(job_id).state == expected


def test_an_interruption_between_items_saves_cursor_and_state_of_the_same_item(lab: Lab) -> None:
    job_id = lab.submit(summing())
    lab.perform(job_id, stopping=interrupt_during("loop", 4))
    assert position_and_state(lab, job_id) == (4, {"sum": 6, "seen": [0, 1, 2, 3]})
    assert lab.perform(job_id).result == WHOLE


def test_an_error_within_an_item_takes_back_what_it_did_to_the_state(lab: Lab) -> None:
    def fail(ctx: AsyncContext, item: int) -> None:
        if item == 5 and not ctx.resumed:
            raise ValueError(item)

    job_id = lab.submit(summing(fail))
    assert lab.perform(job_id).reason == "error"
    assert position_and_state(lab, job_id) == (5, {"sum": 10, "seen": [0, 1, 2, 3, 4]})
    assert lab.perform(job_id).result == WHOLE


def test_an_interruption_within_an_item_takes_back_what_it_did_to_the_state(lab: Lab) -> None:
    def fail(ctx: AsyncContext, item: int) -> None:
        if item == 5 and not ctx.resumed:
            ctx.interrupt("mine")

    job_id = lab.submit(summing(fail))
    assert lab.perform(job_id).reason == "mine"
    assert position_and_state(lab, job_id) == (5, {"sum": 10, "seen": [0, 1, 2, 3, 4]})
    assert lab.perform(job_id).result == WHOLE


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_ctrl_c_within_an_item_keeps_the_pair(lab: Lab, error: type[BaseException]) -> None:
    def fail(ctx: AsyncContext, item: int) -> None:
        if item == 5 and not ctx.resumed:
            raise error

    job_id = lab.submit(summing(fail))
    with pytest.raises(error):
        lab.perform(job_id)
    assert position_and_state(lab, job_id) == (5, {"sum": 10, "seen": [0, 1, 2, 3, 4]})
    assert lab.perform(job_id).result == WHOLE


def test_a_dear_state_is_taken_less_often_and_is_still_one_pair_with_the_cursor(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(ctx: AsyncContext, item: int) -> None:
        if item == 5 and not ctx.resumed:
            raise KeyboardInterrupt

    monkeypatch.setattr(pairs, "CHEAP", 0.0)
    monkeypatch.setattr(pairs, "SHARE", 10**9)
    job_id = lab.submit(summing(fail), checkpoint_every=3600)
    with pytest.raises(KeyboardInterrupt):
        lab.perform(job_id)
    cursor, state = position_and_state(lab, job_id)
    assert isinstance(cursor, int)
    assert cursor < 5
    seen = list(range(cursor))
    assert state == ({"sum": sum(seen), "seen": seen} if seen else {})
    assert lab.perform(job_id).result == WHOLE


def test_state_first_touched_in_the_middle_of_a_loop_is_a_pair_from_there_on(lab: Lab) -> None:
    async def late(ctx: AsyncContext) -> object:
        async for item in ctx.each("loop", range(6)):
            if item >= 3:
                ctx.state[item] = item
            if item == 4 and not ctx.resumed:
                raise ValueError(item)
        return dict(ctx.state)

    job_id = lab.submit(late)
    assert lab.perform(job_id).reason == "error"
    assert position_and_state(lab, job_id) == (4, {3: 3})
    assert lab.perform(job_id).result == {3: 3, 4: 4, 5: 5}


def test_an_error_right_after_the_first_touch_saves_the_cursor_and_no_state(lab: Lab) -> None:
    async def early(ctx: AsyncContext) -> object:
        async for item in ctx.each("loop", range(6)):
            if item == 3:
                ctx.state["touched"] = ctx.run
                if not ctx.resumed:
                    raise ValueError(item)
        return dict(ctx.state)

    job_id = lab.submit(early)
    assert lab.perform(job_id).reason == "error"
    assert lab.get(job_id).steps[0].cursor == 3
    assert not lab.get(job_id).state
    assert lab.perform(job_id).result == {"touched": 2}


def test_set_and_advance_take_the_state_with_the_cursor(lab: Lab) -> None:
    async def by_hand(ctx: AsyncContext) -> object:
        async def work(step: Step) -> None:
            assert isinstance(step.cursor, int)
            for number in range(step.cursor, 5):
                ctx.state["sum"] = ctx.state.get("sum", 0) + number
                if number == 3 and not ctx.resumed:
                    raise ValueError(number)
                await step.advance()

        await ctx.step("work", work, start=0)
        return ctx.state["sum"]

    job_id = lab.submit(by_hand)
    assert lab.perform(job_id).reason == "error"
    assert position_and_state(lab, job_id) == (3, {"sum": 3})
    assert lab.perform(job_id).result == 10


def test_a_completed_step_and_the_state_it_left_are_stored_together(lab: Lab) -> None:
    async def two(ctx: AsyncContext) -> object:
        def first() -> None:
            ctx.state["first"] = "done"

        await ctx.step("first", first)
        if not ctx.resumed:
            ctx.state["between"] = "taken back"
            raise ValueError
        return dict(ctx.state)

    job_id = lab.submit(two)
    assert lab.perform(job_id).reason == "error"
    assert lab.get(job_id).state == {"first": "done"}
    assert lab.perform(job_id).result == {"first": "done"}


def test_state_that_is_only_read_stays_as_it_is(lab: Lab) -> None:
    async def reading(ctx: AsyncContext) -> object:
        if ctx.run == 1:
            ctx.state["k"] = [1]
        async for _ in ctx.each("loop", range(4)):
            ctx.state.get("k")
        return ctx.state["k"]

    job_id = lab.submit(reading)
    for cursor in (1, 2, 3):
        lab.perform(job_id, stopping=interrupt_during("loop", cursor))
        assert position_and_state(lab, job_id) == (cursor, {"k": [1]})
    assert lab.perform(job_id).result == [1]


def test_state_touched_in_an_earlier_run_alone_survives_runs_that_do_not_touch_it(
    lab: Lab,
) -> None:
    async def once(ctx: AsyncContext) -> None:
        if ctx.run == 1:
            ctx.state["k"] = 1
        async for _ in ctx.each("loop", range(4)):
            pass

    job_id = lab.submit(once)
    lab.perform(job_id, stopping=interrupt_during("loop", 1))
    lab.perform(job_id, stopping=interrupt_during("loop", 2))
    assert position_and_state(lab, job_id) == (2, {"k": 1})
    assert lab.perform(job_id).ok
    assert lab.get(job_id).state == {"k": 1}


def test_a_large_state_is_as_exact_at_an_interruption_as_a_small_one(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pairs, "CHEAP", 0.0)

    async def collect(ctx: AsyncContext) -> int:
        async for item in ctx.each("loop", range(2000)):
            ctx.state.setdefault("seen", list(range(5000))).append(item)
        return len(ctx.state["seen"])

    job_id = lab.submit(collect)
    lab.perform(job_id, stopping=interrupt_during("loop", 777))
    cursor, state = position_and_state(lab, job_id)
    assert isinstance(state, dict)
    assert (cursor, len(state["seen"])) == (777, 5777)
    assert lab.perform(job_id).result == 7000


@pytest.mark.parametrize("where", ["set", "loop", "checkpoint", "between", "end"])
def test_state_that_cannot_be_stored_raises_at_the_next_checkpoint(lab: Lab, where: str) -> None:
    async def spoil(ctx: AsyncContext) -> None:
        async def in_step(step: Step) -> None:
            await step.set(1)
            ctx.state["a"] = {"b": [object()]}
            reached.append("spoilt")
            if where == "set":
                await step.set(2)
            if where == "checkpoint":
                await step.checkpoint()
            reached.append("beyond")

        ctx.state["fine"] = True
        if where == "loop":
            async for _ in ctx.each("work", range(3)):
                reached.append("spoilt" if not reached else "beyond")
                ctx.state["a"] = {"b": [object()]}
        elif where in {"set", "checkpoint"}:
            await ctx.step("work", in_step)
        else:
            await ctx.step("work", str)
            ctx.state["a"] = {"b": [object()]}
            reached.append("spoilt")
            if where == "between":
                await ctx.step("more", reached.append, "beyond")

    reached: list[str] = []
    job_id = lab.submit(spoil)
    with pytest.raises(SerializationError) as caught:
        lab.perform(job_id)
    assert str(caught.value).startswith("state['a']['b'][0] cannot be stored: ")
    assert reached == ["spoilt"]
    stored = lab.get(job_id)
    assert stored.status == "failed"
    assert stored.state in ({"fine": True}, {}, None)


def test_with_checkpoint_every_0_the_pair_is_saved_before_the_next_item(tmp_path: Path) -> None:
    async def watched(ctx: AsyncContext) -> None:
        async for item in ctx.each("loop", range(4)):
            if item:
                stored = other.get(ctx.id)
                pairs.append((stored.steps[0].cursor, stored.state))
            ctx.state["last"] = item

    pairs: list[Any] = []
    url = f"sqlite:///{tmp_path}/jobs.db"
    with Runtime(url) as runtime, Runtime(url) as other:
        assert Lab(runtime, "def").run(watched, checkpoint_every=0).ok
    assert pairs == [(item, {"last": item - 1}) for item in (1, 2, 3)]


def test_a_cancelled_task_keeps_the_pair(runtime: Runtime) -> None:
    async def endless(ctx: AsyncContext) -> None:
        async for item in ctx.each("loop", range(10)):
            ctx.state["last"] = item
            if item == 3:
                started.set()
                await asyncio.Event().wait()

    async def cancel() -> None:
        task = asyncio.create_task(runtime.perform_async(job_id))
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    started = asyncio.Event()
    lab = Lab(runtime, "async def")
    job_id = lab.submit(endless)
    asyncio.run(cancel())
    stored = lab.get(job_id)
    assert (stored.status, stored.reason) == ("interrupted", "CancelledError")
    assert position_and_state(lab, job_id) == (3, {"last": 2})


@pytest.mark.parametrize("written", [True, False])
@pytest.mark.parametrize("step", ["loop", "after"])
def test_a_completion_whose_answer_did_not_arrive_leaves_the_state_that_belongs_to_it(
    store_url: str, step: str, *, written: bool
) -> None:
    async def body(ctx: AsyncContext) -> dict[object, object]:
        async for _ in ctx.each("loop", range(5)):
            ctx.state["loop"] = ctx.state.get("loop", 0) + 1

        def touch() -> None:
            ctx.state["after"] = ctx.state.get("after", 0) + 1

        await ctx.step("after", touch)
        return dict(ctx.state)

    def unanswered(job_id: str, token: str, record: Any, **options: Any) -> bool:
        if record.name != step:
            return complete(job_id, token, record, **options)
        if written:
            complete(job_id, token, record, **options)
        msg = "its answer did not arrive"
        raise StoreUnavailableError(msg)

    with Runtime(store_url, lease_ttl=0.5) as runtime, pytest.MonkeyPatch.context() as patch:
        lab = Lab(runtime, "def")
        complete = runtime.store.complete_step
        job_id = lab.submit(body)
        patch.setattr(runtime.store, "complete_step", unanswered)
        assert lab.perform(job_id).reason == "store_unavailable"
        patch.undo()
        assert lab.perform(job_id).result == {"loop": 5, "after": 1}
