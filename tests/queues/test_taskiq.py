"""What is Taskiq's own: async functions, what it resolves, its pool, its waits, its streams."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from redis import Redis
from taskiq import InMemoryBroker, TaskiqDepends, async_shared_broker

from tests.processes import until
from tests.queues.on_taskiq import OnTaskiq, wait
from tracedjobs import AsyncContext, Runtime, job
from tracedjobs.queues.taskiq import continuable, queue

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.queues.harness import Kind, Place

MORE = """
import asyncio
from typing import Annotated
from pydantic import BaseModel
from taskiq import Context as Delivered, TaskiqDepends

class Order(BaseModel):
    items: int

async def prefix():
    yield "resolved"  # an interruption is not raised here

@continuable(app, **SOON, max_resumptions=1, label="kept")
async def stroll(
    ctx,
    path: str,
    order: Order,
    word: Annotated[str, TaskiqDepends(prefix)],
    delivered: Delivered = TaskiqDepends(),
) -> str:
    labels = delivered.message.labels
    note(path, f"{word} {delivered.message.task_id == ctx.id} {labels['label']} {labels['more']}")
    async for item in ctx.each("items", range(order.items)):
        await asyncio.sleep(0.01)
    return f"walked {order.items}"

@continuable(app, runtime=runtime, resume_delay=3600)
def patient(ctx, path):
    note(path, str(ctx.run))
    if ctx.run == 1:
        ctx.step("one", str)
        ctx.interrupt("enough")
    return "went on"
"""


@pytest.fixture
def taskiq_on(taskiq_on_redis: OnTaskiq) -> Callable[..., OnTaskiq]:
    def made(workers: str, **changes: object) -> OnTaskiq:
        return replace(taskiq_on_redis, workers=workers, more=MORE, **changes)  # type: ignore[arg-type]  # of its fields

    return made


def process_of(place: Place, job_id: str) -> int:
    return int(place.job(job_id).runs[-1].worker.rpartition(":")[2])


def test_a_stop_saves_an_async_function_and_waits_for_no_delay(
    taskiq_on: Callable[..., OnTaskiq], place_of: Callable[[Kind], Place], tmp_path: Path
) -> None:
    kind = taskiq_on("list")
    place = place_of(kind)
    path = tmp_path / "notes"
    task = place.app.stroll
    worker = place.start()
    waiting = kind.send(place.app.patient, str(tmp_path / "runs"))
    place.until_status(kind.id_of(waiting), "interrupted")
    kicker = task.kicker().with_task_id("the-walk").with_labels(more=5)
    handle = wait(kicker.kiq(str(path), place.app.Order(items=120)))
    until(path.exists, "it runs")
    worker.stop()
    place.until_status("the-walk", "interrupted", within=2.0)
    worker.ends()
    other = place.start()
    assert kind.result(handle) == "walked 120"
    # Resolved and parsed in both runs, with the labels of the first message.
    assert path.read_text() == "resolved True kept 5\n" * 2
    assert place.job("the-walk").items_redone == 0
    assert kind.result(waiting) == "went on"
    other.stop()
    other.ends(5.0)  # which waits for a message that never comes


@pytest.mark.parametrize("workers", ["list", "pool"])
def test_a_killed_process_of_the_worker_leaves_its_job_to_others(
    taskiq_on: Callable[..., OnTaskiq],
    place_of: Callable[[Kind], Place],
    tmp_path: Path,
    workers: str,
) -> None:
    place = place_of(taskiq_on(workers))
    path = tmp_path / "items"
    place.start().says_ready()
    handle = place.kind.send(place.app.count, str(path), 200)
    job_id = place.kind.id_of(handle)
    until(lambda: len(place.lines(path)) > 20, "it runs")
    os.kill(process_of(place, job_id), signal.SIGKILL)
    until(lambda: place.job(job_id).status == "completed", place.told())
    items = [item for _, item in place.lines(path)]
    assert sorted(set(items)) == list(range(200))
    assert len(items) - 200 <= 1


def test_copies_that_a_stream_makes_of_a_long_job_are_refused(
    taskiq_on: Callable[..., OnTaskiq], place_of: Callable[[Kind], Place], tmp_path: Path
) -> None:
    place = place_of(taskiq_on("stream", idle=300))
    path = tmp_path / "items"
    place.start().says_ready()
    handle = place.kind.send(place.app.count, str(path), 200)
    until(lambda: len(place.lines(path)) > 50, "it runs")

    def refused() -> bool:
        place.kind.result(place.kind.send(place.app.simple, 1))  # a stream looks after a message
        totals = place.runtime.store.survey().totals
        return sum(n for key, n in totals.items() if key[0] == "duplicates_refused") >= 1

    until(refused, "a copy is refused")
    assert place.kind.result(handle) == "counted 200"
    assert [item for _, item in place.lines(path)] == list(range(200))


PIPELINE = """
from taskiq_pipelines import Pipeline, PipelineMiddleware
app.with_middlewares(PipelineMiddleware())

@app.task
async def shout(text: str, path: str) -> str:
    note(path, text.upper())
    return text.upper()
"""


def test_a_pipeline_goes_on_once_though_copies_of_the_message_come(
    taskiq_on_redis: OnTaskiq, place_of: Callable[[Kind], Place], tmp_path: Path
) -> None:
    kind = replace(taskiq_on_redis, workers="list", more=PIPELINE)
    place = place_of(kind)
    path, after = tmp_path / "items", tmp_path / "after"
    kind.start(place.app.app)
    pipeline = place.app.Pipeline(place.app.app, place.app.count)
    handle = wait(pipeline.call_next(place.app.shout, path=str(after)).kiq(str(path), 120))
    with Redis.from_url(kind.redis) as client:
        sent = client.lrange("imports", 0, -1)
        worker = place.start()
        until(lambda: len(place.lines(path)) > 20, "it runs")
        worker.stop()
        worker.ends()
        place.start()
        assert kind.result(handle) == "COUNTED 120"
        client.lpush("imports", *(sent * 3))
        until(lambda: not client.llen("imports"), "the copies are taken")
    assert kind.result(kind.send(place.app.simple, 1)) == 2
    until(lambda: place.told().count("was answered already") == 3, "they came to nothing")
    assert after.read_text() == "COUNTED 120\n"
    assert [item for _, item in place.lines(path)] == list(range(120))


def test_a_broker_in_memory_runs_jobs_and_a_call_runs_one_at_once(tmp_path: Path) -> None:
    app = InMemoryBroker()
    with Runtime(f"sqlite:///{tmp_path}/jobs.db") as runtime:

        async def walk_(
            ctx: AsyncContext, items: int, word: str = TaskiqDepends(lambda: "so")
        ) -> str:
            async for _ in ctx.each("items", range(items)):
                await asyncio.sleep(0.01)
            return f"{word} {items}"

        walk = continuable(app, runtime=runtime, resume_delay=0.01, max_runtime=0.05)(walk_)

        async def walks() -> None:
            await app.startup()
            sent = await walk.kiq("20")
            found = await sent.wait_result(timeout=10)
            assert (found.error, found.return_value) == (None, "so 20")
            assert runtime.get(sent.task_id).run > 1
            assert await walk(2, word="then") == "then 2"
            with pytest.raises(TypeError, match="wants word of Taskiq"):
                await walk(2)

        asyncio.run(walks())
        asyncio.run(walks())  # as each test of an application does


def test_a_job_is_sent_from_a_thread_and_not_from_inside_a_loop(tmp_path: Path) -> None:
    app = InMemoryBroker()
    done = job(name="via memory")(lambda ctx: "done")
    with Runtime(f"sqlite:///{tmp_path}/jobs.db") as runtime:
        via = queue(app, runtime=runtime)
        assert runtime.get(runtime.submit(done, via=via)).status == "completed"

        async def blocking() -> None:
            runtime.submit(done, via=via)

        with pytest.raises(TypeError, match="to_thread"):
            asyncio.run(blocking())


def test_what_taskiq_cannot_have_is_refused() -> None:
    with pytest.raises(TypeError, match="A shared broker sends nothing"):
        continuable(async_shared_broker)
    with pytest.raises(TypeError, match="cannot have a parameter tracedjobs_message"):
        continuable(InMemoryBroker(), name="refused")(lambda ctx, tracedjobs_message: None)


async def test_a_timeout_interrupts_an_async_function_and_the_job_goes_on(tmp_path: Path) -> None:
    app = InMemoryBroker()
    with Runtime(f"sqlite:///{tmp_path}/jobs.db") as runtime:

        async def timed_(ctx: AsyncContext, items: int) -> str:
            async for _ in ctx.each("items", range(items)):
                await asyncio.sleep(0.01)
            return "in time"

        timed = continuable(app, runtime=runtime, resume_delay=0.0, timeout=0.2)(timed_)
        await app.startup()
        sent = await timed.kicker().with_labels(more=5).kiq(30)
        found = await sent.wait_result(timeout=10)
        assert isinstance(found.error, TimeoutError)
        assert runtime.get(sent.task_id).reason == "CancelledError"
        for _ in range(10):  # each run is given as much
            await asyncio.to_thread(runtime.recover)
            await app.wait_all()
        found = await sent.get_result()
        assert (found.return_value, found.labels["more"]) == ("in time", 5)
        assert runtime.get(sent.task_id).run > 1
        await app.shutdown()
