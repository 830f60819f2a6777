"""Jobs that hang: seen from outside, told with their stack, and never taken for slow or lost."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from tests.processes import PERFORM, PRELUDE, Children, count, state_of, until
from tracedjobs import AsyncContext, Context, Runtime, Step, job

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tracedjobs.events import Event

SOON = 0.4
"""Seconds: the threshold of the jobs here."""


def named(told: list[Event], name: str) -> list[Event]:
    return [event for event in told if event.name == name]


def hang(opened: threading.Event) -> None:
    assert opened.wait(30)


@pytest.fixture
def opened() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def seen_stalled(runtime: Runtime, job_id: str, told: list[Event]) -> None:
    """Wait until the job is seen to hang, by events and by whoever looks at it."""
    until(lambda: named(told, "job_stalled"), "the event")
    until(lambda: runtime.get(job_id).stalled, "the snapshot")
    until(lambda: runtime.get(job_id).stall, "the stack")


def test_a_loop_whose_item_hangs_is_told_with_its_stack_until_it_moves_again(
    runtime: Runtime, told: list[Event], opened: threading.Event
) -> None:
    @job(name="stalled:hangs", stall_after=SOON)
    def hangs(ctx: Context) -> None:
        for item in ctx.each("rows", range(10)):
            if item == 3:
                hang(opened)

    job_id = runtime.submit(hangs)
    thread = threading.Thread(target=runtime.perform, args=(job_id,))
    thread.start()
    seen_stalled(runtime, job_id, told)
    snapshot = runtime.get(job_id)
    assert [each.id for each in runtime.list(status="stalled")] == [job_id]
    assert runtime.list(status="lost") == []
    (event,) = named(told, "job_stalled")
    assert event.payload["step"] == "rows"
    assert event.payload["cursor"] == "3"
    assert snapshot.stall is not None
    assert snapshot.stall.step == "rows"
    stack = "\n".join(snapshot.stall.stack)
    assert "hangs (" in stack
    assert "test_stalled_jobs.py" in stack
    assert snapshot.stall.stack[-1].startswith("Condition.wait (")
    assert snapshot.time_left is None
    assert not snapshot.lost
    opened.set()
    thread.join()
    assert len(named(told, "job_stalled")) == 1
    assert len(named(told, "job_stall_ended")) == 1
    snapshot = runtime.get(job_id)
    assert (snapshot.stalled, snapshot.status, snapshot.stall) == (False, "completed", None)
    assert runtime.list(status="stalled") == []


def test_a_stall_that_ends_is_told(runtime: Runtime, told: list[Event]) -> None:
    @job(name="stalled:hangs briefly", stall_after=SOON)
    def hangs(ctx: Context) -> None:
        for item in ctx.each("rows", range(40)):
            if item == 3:
                until(lambda: named(told, "job_stalled"), "the stall")
            if item > 3 and not named(told, "job_stall_ended"):
                time.sleep(0.1)
            if item == 39:
                until(lambda: runtime.get(ctx.id).stall is None, "it is forgotten")

    runtime.perform(runtime.submit(hangs))
    (event,) = named(told, "job_stall_ended")
    assert event.payload["step"] == "rows"
    assert int(event.payload["cursor"]) > 3
    assert event.payload["items"] == int(event.payload["cursor"])
    assert event.payload["total"] == 40
    assert event.payload["duration_s"] >= SOON
    assert event.payload["stack"]


@pytest.mark.parametrize("how", ["completes", "fails", "is interrupted"])
def test_a_stall_that_ends_with_its_step_or_run_is_told_once(
    runtime: Runtime, told: list[Event], how: str
) -> None:
    @job(name="stalled:ends", stall_after=SOON, resume_errors_after_advancing=False)
    def ends(ctx: Context) -> None:
        def slow() -> None:
            until(lambda: named(told, "job_stalled"), "the stall")
            if how == "fails":
                raise LookupError

        if how == "is interrupted":
            for _ in ctx.each("slow", range(2)):
                until(lambda: named(told, "job_stalled"), "the stall")
                ctx.interrupt("enough")
        ctx.step("slow", slow, stall_after=SOON)

    job_id = runtime.submit(ends)
    with suppress(LookupError):
        runtime.perform(job_id)
    (event,) = named(told, "job_stall_ended")
    assert event.payload["step"] == "slow"
    assert event.payload["items"] == 0
    names = [event.name for event in told]
    ended = {"completes": "completed", "fails": "failed", "is interrupted": "interrupted"}[how]
    assert names.index("job_stall_ended") < names.index(f"job_step_{ended}")
    assert runtime.get(job_id).stall is None


def test_an_async_job_that_hangs_is_told_where_it_waits(
    runtime: Runtime, told: list[Event]
) -> None:
    @job(name="stalled:hangs async", stall_after=SOON)
    async def hangs(ctx: AsyncContext) -> None:
        async for item in ctx.each("rows", range(10)):
            while item == 3 and not named(told, "job_stalled"):  # noqa: ASYNC110 - it hangs
                await asyncio.sleep(0.01)

    job_id = runtime.submit(hangs)
    asyncio.run(runtime.perform_async(job_id))
    (event,) = named(told, "job_stalled")
    assert any("hangs (" in line for line in event.payload["stack"])


def test_a_plain_call_is_watched_only_where_it_was_given_a_time(
    runtime: Runtime, told: list[Event], opened: threading.Event
) -> None:
    @job(name="stalled:calls", stall_after=SOON)
    def calls(ctx: Context) -> None:
        ctx.step("not watched", lambda: time.sleep(3 * SOON))
        assert not named(told, "job_stalled")
        ctx.step("watched", hang, opened, stall_after=SOON)

    job_id = runtime.submit(calls)
    thread = threading.Thread(target=runtime.perform, args=(job_id,))
    thread.start()
    seen_stalled(runtime, job_id, told)
    opened.set()
    thread.join()
    assert [event.payload["step"] for event in named(told, "job_stalled")] == ["watched"]


def test_a_slow_job_within_its_own_threshold_is_not_stalled(
    runtime: Runtime, told: list[Event]
) -> None:
    @job(name="stalled:slow", stall_after=0.05)
    def slow(ctx: Context) -> None:
        for _ in ctx.each("rows", range(2), stall_after=30):
            time.sleep(2 * SOON)
            assert not runtime.get(ctx.id).stalled

    runtime.perform(runtime.submit(slow))
    assert not named(told, "job_stalled")


def test_a_step_that_moves_its_cursor_is_watched_as_a_loop_is(
    runtime: Runtime, told: list[Event]
) -> None:
    @job(name="stalled:moves", stall_after=SOON)
    def moves(ctx: Context) -> None:
        @ctx.step("pages", start=0)
        def pages(step: Step) -> None:
            for _ in range(4):
                time.sleep(SOON / 2)
                step.advance()
            until(lambda: named(told, "job_stalled"), "the stall")

    runtime.perform(runtime.submit(moves))
    (event,) = named(told, "job_stalled")
    assert event.payload["cursor"] == "4"


def test_a_job_that_waits_is_not_stalled(runtime: Runtime) -> None:
    @job(name="stalled:waits", stall_after=0.01)
    def waits(ctx: Context) -> None:
        for _ in ctx.each("rows", range(5)):
            ctx.interrupt("enough")

    job_id = runtime.submit(waits)
    assert not runtime.get(job_id).stalled
    runtime.perform(job_id)
    time.sleep(0.1)
    assert not runtime.get(job_id).stalled
    runtime.pause(job_id)
    assert not runtime.get(job_id).stalled


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_a_process_that_is_stopped_or_killed_is_lost_and_not_stalled(
    store_url: str, children: Children, tmp_path: Path, number: signal.Signals
) -> None:
    if store_url == "memory://":
        pytest.skip("it is private to its process")
    with Runtime(store_url) as runtime:
        job_id = runtime.submit(count, str(tmp_path / "done.txt"), 10_000, 0.01)
        child = children.start(PRELUDE + PERFORM, store_url, job_id, 1.0)
        child.says("run 1")
        until(lambda: runtime.get(job_id).items, "the first items")
        child.send(number)
        until(lambda: runtime.get(job_id).lost, "the lease's end")
        assert not runtime.get(job_id).stalled
        child.send(signal.SIGKILL)


HOLDS = """
import re

@job(name="stalled:holds", stall_after=0.2)
def holds(ctx: Context) -> None:
    for item in ctx.each("rows", range(10)):
        if item == 3:
            say("holding")
            re.match("(a+)+b", "a" * 40)  # for hours, and nobody else gets the interpreter
"""


def test_a_process_that_holds_the_interpreters_lock_is_lost_and_not_stalled(
    store_url: str, children: Children
) -> None:
    if store_url == "memory://":
        pytest.skip("it is private to its process")

    @job(name="stalled:holds")
    def holds(ctx: Context) -> None:
        """As the child has it."""

    with Runtime(store_url) as runtime:
        job_id = runtime.submit(holds)
        child = children.start(HOLDS + PERFORM, store_url, job_id, 1.0)
        child.says("holding")
        until(lambda: runtime.get(job_id).lost, "the lease's end")
        assert not runtime.get(job_id).stalled
        child.send(signal.SIGKILL)


def test_a_running_step_tells_how_long_it_has_left_and_a_later_run_goes_on_from_that(
    runtime: Runtime,
) -> None:
    told: list[float] = []

    @job(name="stalled:estimated")
    def estimated(ctx: Context) -> None:
        for _ in ctx.each("rows", range(1000), total=1000):
            time.sleep(0.02)
            left = runtime.get(ctx.id).time_left
            if left is not None:
                told.append(left.total_seconds())
                ctx.interrupt("enough")

    job_id = runtime.submit(estimated)
    assert runtime.perform(job_id).reason == "enough"
    assert 5 < told[0] < 60
    assert runtime.get(job_id).time_left is None  # of what does not run nothing can be told
    runtime.perform(job_id)
    assert 5 < told[1] < 60
    assert runtime.get(job_id).items < 400  # it did not begin to measure anew


SUSPENDED = """
from tracedjobs import events
events.subscribe(lambda event: say(event.name, event.payload.get("step")))

def stop_in_next_save(store):
    save = store.save
    def stopped(saves):
        store.save = save
        os.kill(os.getpid(), signal.SIGSTOP)
        return save(saves)
    store.save = stopped

@job(name="stalled:suspended", stall_after=1.0, checkpoint_every=0.1)
def suspended(ctx: Context) -> None:
    for item in ctx.each("rows", range(60)):
        if item == 50 and IN_SAVE:
            time.sleep(0.2)  # it is known that this one is in hand
            stop_in_next_save(ctx._run.store)
        for _ in range(25 if item == 50 else 1):  # slow, within its threshold
            time.sleep(0.02)
        say("item", item)
"""


@job(name="stalled:suspended")
def suspended(ctx: Context) -> None:
    """As in `SUSPENDED`, to be submitted here."""


@pytest.mark.parametrize(
    ("lease_ttl", "in_save"),
    [(0.6, False), (0.6, True), (3.0, True)],
    ids=["longer than its lease", "in a save", "in a save, for less than its lease"],
)
def test_a_process_that_was_stopped_did_not_hang(
    runtime: Runtime, store_url: str, children: Children, lease_ttl: float, *, in_save: bool
) -> None:
    if store_url == "memory://":
        pytest.skip("it is private to its process")
    job_id = runtime.submit(suspended)
    script = f"IN_SAVE = {in_save}\n{SUSPENDED}{PERFORM}"
    child = children.start(script, store_url, job_id, lease_ttl)
    until(lambda: runtime.get(job_id).items == 50, "the slow one is in hand, and that is known")
    if in_save:
        until(lambda: state_of(child.process.pid) == "T", "it has stopped itself")
    else:
        child.stop()
    if lease_ttl < 1:
        until(lambda: runtime.get(job_id).lost, "its lease ends")
    assert not runtime.get(job_id).stalled
    time.sleep(max(1.2, 0.6 * lease_ttl))  # longer than its threshold: that is what is tried
    child.cont()
    looks = 0
    while child.process.poll() is None:
        assert not runtime.get(job_id).stalled
        looks += 1
    assert looks
    said = child.ends()
    assert "outcome completed None" in said.splitlines()
    assert "job_stalled" not in said
