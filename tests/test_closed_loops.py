"""Async jobs whose event loop, or whose interpreter, ends before they do."""

from __future__ import annotations

import asyncio
import math
import threading
from typing import TYPE_CHECKING, Any, Final

import pytest

import tracedjobs
from tracedjobs import AsyncContext, Runtime, job
from tracedjobs._core import state

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.processes import Children


def closed_when(runtime: Runtime, job_id: str, reached: Callable[[], bool]) -> None:
    """Perform the job until `reached`, close the event loop under it, and then the coroutine."""
    coroutine: Any = runtime.perform_async(job_id)
    loop = asyncio.new_event_loop()
    task = loop.create_task(coroutine)

    async def until_reached() -> None:
        async with asyncio.timeout(20):
            while not reached():
                assert not task.done(), task
                await asyncio.sleep(0.001)

    loop.run_until_complete(until_reached())
    loop.set_exception_handler(lambda *_: None)  # it would tell of the task, which is what we want
    loop.close()
    coroutine.close()  # as the interpreter does with what is left of a loop


@pytest.fixture(autouse=True)
def each_state_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """At each item: else one that takes long on a busy machine is passed over, as it should be."""
    monkeypatch.setattr(state, "CHEAP", math.inf)


@pytest.mark.parametrize("with_state", [False, True], ids=["plain", "with state"])
def test_a_job_whose_event_loop_is_closed_is_interrupted_where_it_stands(
    runtime: Runtime, *, with_state: bool
) -> None:
    @tracedjobs.job
    async def waits(ctx: AsyncContext) -> None:
        async for item in ctx.each("items", range(6)):
            if with_state:
                ctx.state["seen"] = [*ctx.state.get("seen", []), item]
            seen.append(item)
            if item == 3 and not ctx.resumed:
                await asyncio.sleep(600)

    seen: list[int] = []
    job_id = runtime.submit(waits)
    closed_when(runtime, job_id, lambda: 3 in seen)
    found = runtime.get(job_id)
    assert (found.status, found.reason, found.lost) == ("interrupted", "GeneratorExit", False)
    assert [(run.outcome, run.reason) for run in found.runs] == [("interrupted", "GeneratorExit")]
    assert [(step.status, step.cursor, step.items) for step in found.steps] == [
        ("interrupted", 3, 3)
    ]
    assert asyncio.run(runtime.perform_async(job_id)).ok
    assert seen == [0, 1, 2, 3, 3, 4, 5]
    if with_state:
        assert runtime.get(job_id).state == {"seen": [0, 1, 2, 3, 4, 5]}


def test_a_step_whose_event_loop_is_closed_keeps_its_cursor(runtime: Runtime) -> None:
    @tracedjobs.job
    async def waits(ctx: AsyncContext) -> None:
        async def count(step: tracedjobs.Step) -> None:
            for number in range(step.cursor, 5):
                seen.append(number)
                await step.advance()
                if number == 2 and not ctx.resumed:
                    await asyncio.sleep(600)

        await ctx.step("before", str)
        await ctx.step("count", count, start=0)

    seen: list[int] = []
    job_id = runtime.submit(waits)
    closed_when(runtime, job_id, lambda: 2 in seen)
    found = runtime.get(job_id)
    assert (found.status, found.reason) == ("interrupted", "GeneratorExit")
    assert [(step.name, step.status, step.cursor) for step in found.steps] == [
        ("before", "completed", None),
        ("count", "interrupted", 3),
    ]
    assert asyncio.run(runtime.perform_async(job_id)).ok
    assert seen == [0, 1, 2, 3, 4]


def test_a_step_that_was_being_recorded_when_the_loop_was_closed_is_done(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    @tracedjobs.job
    async def two(ctx: AsyncContext) -> None:
        await ctx.step("one", seen.append, "one")
        await ctx.step("two", seen.append, "two")

    def complete_step(_: object, *args: Any, **options: Any) -> bool:
        writing.set()
        assert go_on.wait(20)
        return complete(*args, **options)

    def is_writing() -> bool:
        if writing.is_set():
            threading.Timer(0.05, go_on.set).start()  # while the closed coroutine waits for it
        return writing.is_set()

    seen: list[str] = []
    writing, go_on = threading.Event(), threading.Event()
    complete = runtime.store.complete_step
    job_id = runtime.submit(two)
    with monkeypatch.context() as patch:
        patch.setattr(type(runtime.store), "complete_step", complete_step)
        closed_when(runtime, job_id, is_writing)
    found = runtime.get(job_id)
    assert (found.status, found.reason) == ("interrupted", "GeneratorExit")
    assert asyncio.run(runtime.perform_async(job_id)).ok
    assert seen == ["one", "two"]
    assert [step.name for step in runtime.get(job_id).steps] == ["one", "two"]


GOES_ON: Final = """
import asyncio

@job(name="goes-on")
async def goes_on(ctx) -> str:
    async for item in ctx.each("items", range(5)):
        say("item", item)
        # The main thread counts as ended when no thread can be started any more.
        while item == 1 and threading.main_thread().is_alive():
            await asyncio.sleep(0.01)
    await ctx.step("after", say, "after")
    return "done"

runtime = Runtime(URL)
threading.Thread(target=lambda: asyncio.run(runtime.perform_async(JOB_ID))).start()
"""


@job(name="goes-on")
async def goes_on(ctx: AsyncContext) -> str:
    """Stands for the job of the same name in the child."""
    return ""


def test_a_job_that_goes_on_in_a_thread_while_the_interpreter_ends_is_recorded(
    children: Children, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/jobs.db"
    with Runtime(url) as runtime:
        job_id = runtime.submit(goes_on)
        text = children.start(GOES_ON, url, job_id).ends()
        found = runtime.get(job_id)
        assert (found.status, found.result) == ("completed", "done"), text
    assert text.splitlines() == [*(f"item {item}" for item in range(5)), "after"]
    assert [(step.name, step.items) for step in found.steps] == [("items", 5), ("after", 0)]
