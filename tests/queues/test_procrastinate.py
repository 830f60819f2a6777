"""What is Procrastinate's own: coroutines, aborts, locks, transactions, periodic tasks, rows."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import psycopg
import psycopg.conninfo
import pytest
from procrastinate import App, PsycopgConnector
from procrastinate.exceptions import AlreadyEnqueued
from procrastinate.testing import InMemoryConnector

from tests.processes import PATIENCE, ROOT, Children, counted, until
from tests.queues.on_procrastinate import OnProcrastinate
from tests.queues.test_conformance import begun, items_of
from tracedjobs import Context, Runtime
from tracedjobs.errors import JobNotFoundError
from tracedjobs.queues import procrastinate_rows
from tracedjobs.queues.procrastinate import continuable, queue

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.queues.harness import Kind, Place

    Makes = Callable[[Kind], Place]

MORE = """
import asyncio
from procrastinate import Blueprint
from tracedjobs.queues import procrastinate_app
procrastinate_app.STALLED_EVERY = 0.5

@continuable(app, **SOON)
async def acount(ctx, path, items, pace=0.01):
    async for item in ctx.each("items", range(items)):
        note(path, f"{ctx.run} {item}")
        await asyncio.sleep(pace)
    return f"counted {items}"

@continuable(app, **SOON, retry=2, resume_errors_after_advancing=False)
def falter(ctx, path):
    \"\"\"Is interrupted in the first three runs, fails in the two after them.\"\"\"
    note(path, f"{ctx.run} 0")
    if ctx.run <= 3:
        ctx.interrupt("enough")
    if ctx.run <= 5:
        raise ValueError(f"run {ctx.run}")
    return "at last"

@app.task
def deferring(path):
    count.configure(priority=3).defer(path=path, items=4)

@app.periodic(cron="* * * * * *")
@continuable(app, **SOON, queueing_lock="tick")
def tick(ctx, timestamp):
    return timestamp

blueprint = Blueprint()

@continuable(blueprint, **SOON)
def blue(ctx):
    return ctx.step("one", int)

app.add_tasks_from(blueprint, namespace="blue")

@job(name=f"aplain {__name__}", resume_delay=0.2)
async def aplain(ctx, path, items):
    async for item in ctx.each("items", range(items)):
        note(path, f"{ctx.run} {item}")
"""


def kind_of(place: Place) -> OnProcrastinate:
    assert isinstance(place.kind, OnProcrastinate)
    return place.kind


def row_of(place: Place, row: object) -> Any:
    """The row of that number; `None` where there is none."""
    with psycopg.connect(kind_of(place).address) as connection:
        cursor = connection.cursor(row_factory=psycopg.rows.namedtuple_row)
        return cursor.execute(
            "SELECT * FROM procrastinate_jobs WHERE id = %s", [int(str(row))]
        ).fetchone()


def change(place: Place, text: str, row: object) -> None:
    with psycopg.connect(kind_of(place).address) as connection:
        connection.execute(f"UPDATE procrastinate_jobs SET {text} WHERE id = %s", [int(str(row))])


@pytest.fixture
def made(procrastinate: OnProcrastinate, place_of: Makes) -> Place:
    """An application with the tasks above."""
    procrastinate.more = MORE
    return place_of(procrastinate)


def test_a_coroutine_is_stopped_and_killed_and_goes_on(made: Place, tmp_path: Path) -> None:
    path, via = tmp_path / "items", tmp_path / "via"
    worker = made.start()
    handle = made.kind.send(made.app.acount, str(path), 200)
    plain = made.runtime.submit(made.app.aplain, str(via), 5, via=made.app.import_queue)
    begun(made, path)
    worker.stop()
    made.until_status(str(handle.row), "interrupted", within=2.0)
    worker.ends()
    assert row_of(made, handle.row).status == "todo"
    worker = made.start()
    made.until_status(str(handle.row), "running")
    begun(made, path, 100)
    worker.kill()
    assert items_of(made, path) == list(range(len(items_of(made, path))))
    assert row_of(made, handle.row).status == "doing"
    made.start()
    assert made.kind.result(handle) == "counted 200"
    items = items_of(made, path)
    assert sorted(set(items)) == list(range(200))
    assert len(items) - 200 <= 1
    assert row_of(made, handle.row).attempts == 1
    assert made.job(plain).status == "completed"
    assert items_of(made, via) == list(range(5))


def test_a_worker_that_waits_no_longer_puts_a_coroutine_back(made: Place, tmp_path: Path) -> None:
    path = tmp_path / "items"
    kind_of(made).options = ("--shutdown-graceful-timeout", "0.3")
    worker = made.start()
    handle = made.kind.send(made.app.acount, str(path), 3, 60.0)
    begun(made, path, 0)
    worker.stop()
    worker.ends()
    assert made.job(str(handle.row)).reason == "CancelledError"
    assert row_of(made, handle.row).status == "todo"


def test_interruptions_use_no_retry(made: Place, tmp_path: Path) -> None:
    path = tmp_path / "runs"
    made.start()
    handle = made.kind.send(made.app.falter, str(path))
    assert made.kind.result(handle) == "at last"
    assert len(made.lines(path)) == 6
    assert row_of(made, handle.row).attempts == 3  # two that failed, and the last


def test_what_is_cancelled_or_aborted_there_is_cancelled_here(made: Place, tmp_path: Path) -> None:
    paths = [tmp_path / "count", tmp_path / "acount"]
    kind, manager = made.kind, made.app.app.job_manager
    waits = kind.send_later(made.app.count, 3600, str(tmp_path / "never"), 3)
    assert manager.cancel_job_by_id(waits.row)
    assert made.job(str(waits.row)).status == "cancelled"
    made.start()
    for path, task in zip(paths, (made.app.count, made.app.acount), strict=True):
        handle = kind.send(task, str(path), 10_000)
        begun(made, path)
        manager.cancel_job_by_id(handle.row, abort=True)
        with pytest.raises(RuntimeError, match=r"ABORTED, the job cancelled"):
            kind.result(handle)
    assert "Traceback" not in made.told()


def test_a_job_paused_before_it_ran_is_resumed_by_who_does_not_know_its_queue(
    made: Place, tmp_path: Path
) -> None:
    handle = made.kind.send(made.app.count, str(tmp_path / "items"), 3)
    made.runtime.pause(str(handle.row))
    worker = made.start()
    until(lambda: "Interrupted" in worker.text(), worker.text())
    until(lambda: row_of(made, handle.row).status == "todo", worker.text())
    controls = [sys.executable, "-m", "tracedjobs", "resume", str(handle.row)]
    subprocess.run([*controls, "--store", made.store], check=True, timeout=PATIENCE)
    assert made.kind.result(handle) == "counted 3"


def test_a_row_that_was_taken_away_behind_our_back_is_not_brought_back(
    made: Place, tmp_path: Path
) -> None:
    cancelled = made.kind.send(made.app.count, str(tmp_path / "never"), 3)
    made.runtime.pause(str(cancelled.row))
    change(made, "status = 'cancelled'", cancelled.row)
    assert made.runtime.resume(str(cancelled.row)).status == "cancelled"
    assert row_of(made, cancelled.row).status == "cancelled"
    aborted = made.kind.send(made.app.count, str(tmp_path / "never"), 3)
    change(made, "status = 'doing', abort_requested = true", aborted.row)
    made.start()
    made.until_status(str(aborted.row), "cancelled")
    assert row_of(made, aborted.row).status == "aborted"


def test_a_worker_killed_before_there_was_a_run_loses_nothing(made: Place, tmp_path: Path) -> None:
    path = tmp_path / "items"
    handle = made.kind.send(made.app.count, str(path), 3)
    change(made, "status = 'doing'", handle.row)
    made.start()
    assert made.kind.result(handle) == "counted 3"


def test_locks_hold_over_a_kill(made: Place, tmp_path: Path) -> None:
    paths = [tmp_path / "first", tmp_path / "second"]
    worker = made.start()
    kind_of(made).opened_app(made.app.count)
    locked = made.app.count.configure(lock="one", queueing_lock="waiting")
    first = locked.defer(path=str(paths[0]), items=100)
    begun(made, paths[0])
    second = locked.defer(path=str(paths[1]), items=5)
    with pytest.raises(AlreadyEnqueued):
        locked.defer(path=str(paths[1]), items=5)
    worker.kill()
    made.start()
    made.until_status(str(second), "completed")
    until(lambda: row_of(made, second).status == "succeeded", made.told())
    assert (row_of(made, first).status, row_of(made, first).queueing_lock) == ("succeeded", None)
    ended, began = made.job(str(first)).ended_at, made.job(str(second)).started_at
    assert ended is not None
    assert began is not None
    assert ended <= began


def test_a_transaction_that_is_taken_back_leaves_no_job(made: Place, tmp_path: Path) -> None:
    kind, count = kind_of(made), made.app.count
    kind.opened_app(count)
    path = tmp_path / "items"
    with psycopg.connect(kind.address) as connection:
        gone = count.configure(connection=connection).defer(path=str(path), items=3)
        connection.rollback()
        kept = count.configure(connection=connection).defer(path=str(path), items=3)
        connection.commit()
    for row in (gone, kept):
        with pytest.raises(JobNotFoundError):
            made.job(str(row))
    made.start()
    made.until_status(str(kept), "completed")
    assert row_of(made, gone) is None


async def test_a_number_that_the_store_has_from_another_database_is_passed_over(
    made: Place,
) -> None:
    kind, simple = kind_of(made), made.app.simple
    before = [kind.send(simple, number).row for number in range(9)]
    with psycopg.connect(kind.address) as connection:
        connection.execute("DELETE FROM procrastinate_jobs")
        connection.execute("ALTER SEQUENCE procrastinate_jobs_id_seq RESTART")
    rows = simple.batch_defer({"left": 10}, {"left": 11}, {"left": 12})
    async with made.app.app.open_async():
        rows += await simple.batch_defer_async({"left": 13})
    assert not set(before) & set(rows)
    for left, row in enumerate(rows, 10):
        assert made.job(str(row)).arguments == {"left": left}
        assert row_of(made, row).args == {"left": left}
    with psycopg.connect(kind.address) as connection:
        assert connection.execute("SELECT count(*) FROM procrastinate_jobs").fetchone() == (4,)
    with pytest.raises(TypeError, match="wrong"):
        simple.defer(left=1, wrong=1)


async def test_a_caller_that_is_cancelled_leaves_no_record_without_a_row(
    made: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, record = made.app.app, made.runtime.store.create
    came = asyncio.Event()

    def slow(*given: Any) -> bool:
        loop.call_soon_threadsafe(came.set)
        time.sleep(0.2)
        return record(*given)

    monkeypatch.setattr(made.runtime.store, "create", slow)
    loop = asyncio.get_running_loop()
    async with app.open_async():
        deferring = asyncio.create_task(made.app.simple.defer_async(left=1))
        await came.wait()
        deferring.cancel()
        with pytest.raises(asyncio.CancelledError):
            await deferring
    (recorded,) = made.runtime.list()
    assert row_of(made, recorded.id).status == "todo"


def test_a_deleted_row_comes_back_under_its_number(made: Place, tmp_path: Path) -> None:
    path = tmp_path / "falls"
    kind_of(made).options = ("--delete-jobs", "always")
    made.start()
    row = made.app.stumble.configure(priority=7, task_kwargs={"path": str(path)})
    kind_of(made).opened_app(made.app.stumble)
    number = row.defer(falls=3)
    made.until_status(str(number), "failed")
    until(lambda: row_of(made, number) is None, "it is deleted")
    made.runtime.retry(str(number))
    made.until_status(str(number), "completed")


async def test_jobs_are_deferred_from_everywhere(made: Place, tmp_path: Path) -> None:
    app, count = made.app.app, made.app.count
    paths = [tmp_path / f"items{number}" for number in range(3)]
    async with app.open_async():
        rows = await count.batch_defer_async(*({"path": str(path), "items": 4} for path in paths))
        assert [made.job(str(row)).status for row in rows] == ["pending"] * 3
        via = await asyncio.to_thread(
            made.runtime.submit, made.app.plain, str(tmp_path / "via"), 3, via=made.app.import_queue
        )
        await made.app.deferring.defer_async(path=str(tmp_path / "inner"))
        rows.append(await made.app.blue.defer_async())
        assert made.job(str(rows[-1])).status == "pending"
        waits = await count.configure(schedule_in={"hours": 1}).defer_async(path="", items=1)
        await app.job_manager.cancel_job_by_id_async(waits)
        assert made.job(str(waits)).status == "cancelled"
    made.start()
    for row in (*rows, via):
        await asyncio.to_thread(made.until_status, str(row), "completed")
    await asyncio.to_thread(
        until, lambda: items_of(made, tmp_path / "inner") == list(range(4)), made.told()
    )
    ticks = await asyncio.to_thread(until, lambda: made.runtime.list(name=tick(made)), "a tick")
    await asyncio.to_thread(made.until_status, ticks[-1].id, "completed")
    assert made.job(ticks[-1].id).result == ticks[-1].arguments["timestamp"]


def tick(made: Place) -> str:
    return f"{made.name}:tick"


SETTINGS = """
INSTALLED_APPS = ["procrastinate.contrib.django", "shop"]
DATABASES = {{"default": {{"ENGINE": "django.db.backends.postgresql", "NAME": {name!r},
    "HOST": {host!r}, "USER": "postgres"}}}}
USE_TZ = True
"""
SHOP = """
import time, tracedjobs
from procrastinate.contrib.django import app
from tracedjobs.queues.procrastinate import continuable, queue

runtime = tracedjobs.Runtime({store!r}, lease_ttl=2.0)
import_queue = queue(app, runtime=runtime)

@continuable(app, runtime=runtime, resume_delay=0.2)
def count(ctx, path, items):
    with open(path, "a", buffering=1) as file:
        for item in ctx.each("items", range(items)):
            file.write(f"{{ctx.run}} {{item}}\\n")
            time.sleep(0.01)

@tracedjobs.job(name="plain of the shop")
def plain(ctx):
    return ctx.step("one", int)
"""
DEFER = """
import sys, django
django.setup()
from django.db import transaction
from shop.tasks import count, import_queue, plain, runtime
try:
    with transaction.atomic():
        gone = count.defer(path=sys.argv[1], items=1)
        raise ZeroDivisionError
except ZeroDivisionError:
    pass
with transaction.atomic():
    kept = count.defer(path=sys.argv[1], items=80)
known = [job.id for job in runtime.list()]
assert known == [str(kept)], (known, gone, kept)
print(kept, runtime.submit(plain, via=import_queue))
"""


def test_tasks_of_django_go_on_after_a_kill(
    procrastinate: OnProcrastinate, tmp_path: Path, children: Children
) -> None:
    place = psycopg.conninfo.conninfo_to_dict(procrastinate.address)
    path, store = tmp_path / "items", f"sqlite:///{tmp_path}/jobs.db"
    (tmp_path / "settings.py").write_text(SETTINGS.format(name=place["dbname"], host=place["host"]))
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "__init__.py").touch()
    (tmp_path / "shop" / "tasks.py").write_text(SHOP.format(store=store))
    env = {"PYTHONPATH": f"{ROOT}:{tmp_path}", "DJANGO_SETTINGS_MODULE": "settings"}
    ids = children.start(DEFER, path, env=env, prelude="").ends().split()
    work = "from django.core.management import execute_from_command_line as execute\n"
    work += "execute(['django', 'procrastinate', 'worker', '-p', '0.1'])"
    worker = children.start(work, env=env, prelude="")
    until(lambda: len(counted(path)) > 20, worker.text())
    worker.kill()
    children.start(work, env=env, prelude="")
    with Runtime(store) as runtime:
        until(lambda: all(runtime.get(each).status == "completed" for each in ids), "they are done")
    items = [item for _, item in counted(path)]
    assert sorted(set(items)) == list(range(80))
    assert len(items) - 80 <= 1


def test_a_missing_package_is_named() -> None:
    script = (
        "import sys; sys.modules['procrastinate'] = None; import tracedjobs.queues.procrastinate"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert b"MissingExtraError" in done.stderr
    assert b"pip install 'tracedjobs[procrastinate]'" in done.stderr


def test_without_a_known_table_the_plain_retry_has_to_do(
    procrastinate: OnProcrastinate,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(procrastinate_rows, "MAJORS", (2,))
    app = App(connector=PsycopgConnector(conninfo=procrastinate.address))
    with Runtime("memory://") as runtime:

        def parts(ctx: Context, items: int) -> int:
            for item in ctx.each("items", range(items)):
                if item == 3 and ctx.run == 1:
                    ctx.interrupt("enough")
            return ctx.run

        task = continuable(app, runtime=runtime, resume_delay=0)(parts)
        assert "is not a version that tracedjobs was tried with (2.x)" in caplog.text
        with app.open():
            row = task.defer(items=6)
        app.run_worker(wait=False, install_signal_handlers=False)
        with app.open():
            (found,) = app.job_manager.list_jobs(id=row)
        assert (runtime.get(str(row)).result, found.status, found.attempts) == (2, "succeeded", 2)
        assert task(items=2) == 1


def test_what_cannot_be_had_is_refused() -> None:
    app = App(connector=InMemoryConnector())

    def refused(ctx: object) -> None: ...

    with pytest.raises(TypeError, match="pass_context"):
        continuable(app, pass_context=True)(refused)
    with pytest.raises(TypeError, match=r"a procrastinate\.App or a Blueprint"):
        continuable(object())  # type: ignore[arg-type]  # what is refused
    with pytest.raises(TypeError, match="queueing_lock"):
        queue(app, queueing_lock="one")
