"""Queues in the modes that applications' own tests use: a task runs at once, without a worker."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any

import dramatiq
import pytest
from celery import Celery, chain
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import AsyncIO
from huey import MemoryHuey
from procrastinate import App
from procrastinate.testing import InMemoryConnector
from redis import Redis
from rq import Queue
from taskiq import InMemoryBroker

from tests.queues.on_rq import empty_database
from tracedjobs import AsyncContext, Context, Runtime
from tracedjobs.errors import StoreUnavailableError, TracedJobsError
from tracedjobs.queues import celery, huey, procrastinate, rq, taskiq
from tracedjobs.queues import dramatiq as dramatiq_queue

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.stores.redis_servers import RedisServer

RUNS = 4


def walk(ctx: Context, items: int) -> int:
    """Is interrupted at an item of each run but the last, twice by an error."""
    for item in ctx.each("items", range(items)):
        if item == ctx.run * 2 and ctx.run < RUNS:
            if ctx.run == 1:
                ctx.interrupt("enough")
            raise OSError("in the middle")
    return ctx.run


async def walk_async(ctx: AsyncContext, items: int) -> int:
    """The same."""
    async for item in ctx.each("items", range(items)):
        if item == ctx.run * 2 and ctx.run < RUNS:
            raise OSError("in the middle")
    return ctx.run


def a_hundred_times(runs: int) -> int:
    return runs * 100


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    """Where jobs wait for 5 s before they go on, unless they say otherwise."""
    with Runtime("memory://") as made:
        yield made


def test_celery_with_eager_tasks(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    app = Celery("at once", broker="memory://", backend="cache+memory://")
    app.conf.task_always_eager = True
    task = celery.continuable(app, runtime=runtime, name="celery at once")(walk)
    next_ = app.task(a_hundred_times)
    sent = task.delay(9)
    assert (sent.get(), runtime.get(sent.id).run) == (RUNS, RUNS)
    assert chain(task.s(9), next_.s())().get() == RUNS * 100

    def away(*_: object) -> None:
        raise StoreUnavailableError("it is away")

    monkeypatch.setattr(runtime.store, "load", away)
    with pytest.raises(TracedJobsError, match=r"cannot go on just now \(store_unavailable\)"):
        task.delay(9).get()


def test_huey_in_immediate_mode(runtime: Runtime) -> None:
    app = MemoryHuey("at once", immediate=True)
    task: Any = huey.continuable(app, runtime=runtime, name="huey at once")(walk)
    next_: Any = app.task()(a_hundred_times)
    sent = task(9)
    assert (sent.get(), runtime.get(sent.id).run) == (RUNS, RUNS)
    assert [each.get() for each in app.enqueue(task.s(9).then(next_))] == [RUNS, RUNS * 100]


def test_rq_without_workers(
    runtime: Runtime, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = Redis.from_url(empty_database(redis_server.url))
    app = Queue("imports", connection=connection, is_async=False)
    for fn in (walk, walk_async):
        task: Any = rq.continuable(app, runtime=runtime)(fn)
        monkeypatch.setattr(sys.modules[__name__], fn.__name__, task)  # where RQ looks for it
        sent = app.enqueue(task, 9)
        assert (sent.return_value(), runtime.get(sent.id).run) == (RUNS, RUNS)


def test_dramatiq_with_a_stub_broker(runtime: Runtime) -> None:
    broker = StubBroker()
    broker.add_middleware(AsyncIO())
    options: dict[str, Any] = {"runtime": runtime, "resume_delay": 0.05, "max_retries": 0}
    actors = [
        dramatiq_queue.continuable(broker, name=f"dramatiq at once {fn.__name__}", **options)(fn)
        for fn in (walk, walk_async)
    ]
    worker = dramatiq.Worker(broker, worker_timeout=50)
    worker.start()
    try:
        for actor in actors:
            sent = actor.send(9)
            broker.join(actor.queue_name, timeout=10_000)
            assert runtime.get(sent.message_id).result == RUNS
    finally:
        worker.stop()


def test_taskiq_with_a_broker_in_memory(runtime: Runtime) -> None:
    broker = InMemoryBroker()
    tasks = [
        taskiq.continuable(broker, runtime=runtime, name=f"taskiq at once {fn.__name__}")(fn)
        for fn in (walk, walk_async)
    ]

    async def kicks() -> None:
        for task in tasks:
            sent = await task.kiq(9)
            await broker.wait_all()
            assert (await sent.get_result()).return_value == RUNS

    asyncio.run(kicks())


def test_procrastinate_with_a_connector_in_memory(runtime: Runtime) -> None:
    app = App(connector=InMemoryConnector())
    tasks = [
        procrastinate.continuable(app, runtime=runtime, name=f"at once {fn.__name__}")(fn)
        for fn in (walk, walk_async)
    ]
    with app.open():
        rows = [task.defer(items=9) for task in tasks]
    app.run_worker(wait=False, install_signal_handlers=False)
    assert [runtime.get(str(row)).result for row in rows] == [RUNS, RUNS]
