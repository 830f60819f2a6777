"""Two workers in one process, as in an application's own threads: one stops, the other works on."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import dramatiq
import pytest
from dramatiq.brokers.redis import RedisBroker
from huey import MemoryHuey
from procrastinate import App, PsycopgConnector

from tests.processes import until
from tracedjobs import AsyncContext, Context, Runtime
from tracedjobs.queues import dramatiq as dramatiq_queue
from tracedjobs.queues import huey, procrastinate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.queues.on_procrastinate import OnProcrastinate
    from tests.stores.redis_servers import RedisServer

ITEMS = 100


def walk(ctx: Context, number: int) -> int:
    for _ in ctx.each("items", range(ITEMS)):
        time.sleep(0.01)
    return number


async def walk_async(ctx: AsyncContext, number: int) -> int:
    async for _ in ctx.each("items", range(ITEMS)):
        await asyncio.sleep(0.01)
    return number


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    with Runtime("memory://") as made:
        yield made


def run(runtime: Runtime, ids: list[str]) -> None:
    until(lambda: sum(runtime.get(each).status == "running" for each in ids) == 2, "two jobs run")
    until(is_recovering, "somebody looks for lost jobs")


def until_done(runtime: Runtime, ids: list[str]) -> None:
    until(lambda: all(runtime.get(each).status == "completed" for each in ids), "all are done")


def check(runtime: Runtime, ids: list[str]) -> None:
    """One was stopped, and goes on in the other worker, which is told nothing."""
    jobs = [runtime.get(each) for each in ids]
    assert [job.result for job in jobs] == list(range(len(ids)))
    stopped = [job for job in jobs if job.run > 1]
    assert [[run.reason for run in job.runs] for job in stopped] == [["stopping", None]]


def is_recovering() -> bool:
    return any(each.name == "tracedjobs-recovery" for each in threading.enumerate())


def test_dramatiq(runtime: Runtime, redis_server: RedisServer) -> None:
    # Not a StubBroker: it forgets what a worker that stops has taken.
    make: Any = RedisBroker
    broker = make(url=redis_server.url, namespace="two")
    actor = dramatiq_queue.continuable(
        broker, runtime=runtime, resume_delay=0.1, max_retries=0, name="one of two actors"
    )(walk)
    workers = [dramatiq.Worker(broker, worker_timeout=50, worker_threads=1) for _ in range(2)]
    for worker in workers:
        worker.start()
    try:
        # Each takes two messages, and begins with one.
        ids = [actor.send(number).message_id for number in range(4)]
        run(runtime, ids)
        workers[0].stop()
        ids.append(actor.send(4).message_id)
        until_done(runtime, ids)
        check(runtime, ids)
        assert is_recovering()
    finally:
        for worker in workers:
            worker.stop()
    until(lambda: not is_recovering(), "nobody wants it any more")


def test_huey(runtime: Runtime) -> None:
    app = MemoryHuey("two consumers", utc=True)
    task: Any = huey.continuable(app, runtime=runtime, resume_delay=0.1, name="one of two")(walk)
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(each) for each in signals]
    consumers = [app.create_consumer(workers=1, initial_delay=0.05, max_delay=0.1) for _ in "12"]
    for each in consumers:
        each.start()
    for number, handler in zip(signals, before, strict=True):
        signal.signal(number, handler)
    try:
        ids = [task(number).id for number in range(2)]
        run(runtime, ids)
        consumers[0].stop(graceful=True)
        ids.append(task(2).id)
        until_done(runtime, ids)
        check(runtime, ids)
        assert is_recovering()
    finally:
        consumers[1].stop(graceful=True)
    until(lambda: not is_recovering(), "nobody wants it any more")


@pytest.mark.parametrize("fn", [walk, walk_async])
def test_procrastinate(procrastinate_address: str, runtime: Runtime, fn: Any) -> None:
    app = App(connector=PsycopgConnector(conninfo=procrastinate_address))
    task = procrastinate.continuable(
        app, runtime=runtime, resume_delay=0.1, name=f"one of two {fn.__name__}"
    )(fn)

    options: dict[str, Any] = {"concurrency": 1, "install_signal_handlers": False}

    async def work() -> list[str]:
        async with app.open_async():
            workers = [
                asyncio.create_task(app.run_worker_async(fetch_job_polling_interval=0.2, **options))
                for _ in range(2)
            ]
            ids = [str(await task.defer_async(number=number)) for number in range(2)]
            await asyncio.to_thread(run, runtime, ids)
            workers[0].cancel()
            await asyncio.wait([workers[0]])
            ids.append(str(await task.defer_async(number=2)))
            await asyncio.to_thread(until_done, runtime, ids)
            workers[1].cancel()
            await asyncio.wait([workers[1]])
            return ids

    check(runtime, asyncio.run(work()))


@pytest.fixture
def procrastinate_address(procrastinate: OnProcrastinate) -> str:
    return procrastinate.address
