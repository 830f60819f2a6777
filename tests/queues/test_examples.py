"""The example of each queue, as its README runs it, but on a broker of the test's own."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tests.processes import ROOT, until
from tracedjobs import Runtime

if TYPE_CHECKING:
    from tests.stores.redis_servers import RedisServer

HEADER: Final = "carrier,flight,origin,dest,time_hour,arr_delay\n"
WORKERS: Final = {
    "celery": ["celery", "-A", "tasks", "worker", "-c", "2", "-l", "info"],
    "dramatiq": ["dramatiq", "tasks:app", "--processes", "2", "--threads", "1"],
    "huey": ["huey.bin.huey_consumer", "tasks.app", "-g", "TERM", "-w", "2"],
    "procrastinate": ["procrastinate", "--app=tasks.app", "worker", "-c", "2"],
    "rq": ["rq.cli", "worker", "-c", "tasks", "--with-scheduler", "imports"],
    "taskiq": ["taskiq", "worker", "tasks:broker", "--workers", "2"],
}
SEND: Final = "import tasks; from tasks import import_flights as task; {}"
SENDS: Final = {
    "celery": "print(task.delay('flights.csv', 'flights.db').id)",
    "dramatiq": "print(task.send('flights.csv', 'flights.db').message_id)",
    "huey": "print(task('flights.csv', 'flights.db').id)",
    "procrastinate": (
        "app = tasks.app; app.open(); app.schema_manager.apply_schema(); "
        "print(task.defer(csv_path='flights.csv', database='flights.db')); app.close()"
    ),
    "rq": "print(task.delay('flights.csv', 'flights.db').id)",
    "taskiq": (
        "import asyncio, tasks; print(asyncio.run(tasks.send('flights.csv', 'flights.db')))"
    ),
}


@pytest.mark.parametrize("queue", sorted(WORKERS))
def test_the_example_imports_every_flight(
    queue: str, tmp_path: Path, redis_server: RedisServer, request: pytest.FixtureRequest
) -> None:
    folder = tmp_path / "example"
    shutil.copytree(Path(ROOT) / "examples" / queue, folder)
    (folder / "flights.csv").write_text(HEADER + "UA,1545,EWR,IAH,2013-01-01,11\n" * 500)
    broker = redis_server.url.removesuffix("/0") + "/5"
    env = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}:{folder}",
        "CELERY_BROKER_URL": broker,
        "CELERY_RESULT_BACKEND": broker,
        "REDIS_URL": broker,
    }
    if queue == "procrastinate":
        env["DATABASE_URL"] = request.getfixturevalue("postgres")
    job_id = subprocess.run(
        [sys.executable, "-c", SEND.format(SENDS[queue])],
        cwd=folder,
        env=env,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    log = folder / "log"
    with log.open("wb") as out:
        worker = subprocess.Popen(
            [sys.executable, "-m", *WORKERS[queue]],
            cwd=folder,
            env=env,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    try:
        with Runtime(f"sqlite:///{folder}/jobs.db") as runtime:
            until(lambda: runtime.get(job_id).status == "completed", "it is imported")
        with closing(sqlite3.connect(folder / "flights.db")) as db:
            assert db.execute("SELECT count(*) FROM flights").fetchone() == (500,)
    finally:
        os.killpg(worker.pid, signal.SIGKILL)  # how it stops, other tests try
        worker.wait(20.0)


def test_the_demonstration_of_duplicates_does_each_item_once(tmp_path: Path) -> None:
    script = Path(ROOT) / "examples" / "duplicates" / "run.py"
    found = subprocess.run(
        [sys.executable, script, "--items", "300", "--visibility-timeout", "1"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    done = [int(each) for each in re.findall(r"by then ([0-9]+) items were done", found)]
    assert len(done) == 2, found
    assert done[0] > 300, found
    assert done[1] == 300, found
    assert int(found.rsplit(": ", 1)[1].rstrip(".\n")) >= 1, found
