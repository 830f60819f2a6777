"""What continuable tasks cost a queue: Celery on Redis, prefork workers, both kinds of its tasks.

A task's cost is that of its publishing and that of its working off, one after the other: first all
messages are sent while the worker is held, then the worker is let go and timed until
the last result is there. Both kinds are sent and worked off by the same processes, which have done
some of each before. Besides there is a third kind, the floor, see `queue_tasks`; and the CPU time
of all that take part, which what else runs on the machine disturbs less.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from benchmarks.harness import Figure, Plan, cpu, interleaved, ratios, scratch, shown_each, wall
from tests.stores.redis_servers import running_redis

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

__all__ = ["measure"]

ROOT: Final = Path(__file__).resolve().parents[1]
PROCESSES: Final = 4


def measure(plan: Plan) -> Iterator[Figure]:
    """An empty task on one process, a task of five pieces on four; the store on Redis and SQLite.

    Jobs a second are told as seconds a job: at most 1/0.6 of the plain task's.
    """
    for store in ("Redis",) if plan.tiny else ("Redis", "SQLite"):
        with _celery(store, 1) as celery:
            yield _figure(
                celery,
                plan,
                what=f"an empty continuable task of Celery, store on {store}, over a plain one",
                tasks=("nothing", "plain_nothing", "noted_nothing"),
                n=plan.size(400, 5),
                goal=1.5,
            )
    for store in () if plan.tiny else ("Redis", "SQLite"):
        with _celery(store, PROCESSES) as celery:
            yield _figure(
                celery,
                plan,
                what=f"seconds a job of five steps, {PROCESSES} workers, store on {store}, over a "
                f"plain task of five durable pieces",
                tasks=("pieces", "plain_pieces", "noted_pieces"),
                n=plan.size(400, 5),
                goal=1 / 0.6,
            )


class _Celery:
    """A worker that runs, and what sends to it."""

    def __init__(self, tasks: Any, broker: Any, worker: int, processes: int) -> None:
        self.tasks = tasks
        self.broker = broker
        self.worker = worker
        self.processes = processes
        self.parts: dict[str, list[float]] = {}
        self.cpu: dict[str, list[float]] = {}

    def took(self, name: str, n: int) -> float:
        """Seconds for `n` tasks of that name: publishing and working off."""
        for _ in range(self.processes):
            self.tasks.gate.apply_async(ignore_result=True)
        self._until(lambda: self.broker.llen("benchmark") == 0)
        task = getattr(self.tasks, name)
        cpu_before = self._cpu()
        began = wall()
        handles = [task.delay() for _ in range(n)]
        published = wall() - began
        began = wall()
        self.broker.rpush("benchmark-go", *range(self.processes))
        results = [f"celery-task-meta-{handle.id}" for handle in handles]
        # One key a look: a look at all of them took a quarter of a core from the worker.
        self._until(lambda: self.broker.exists(results[-1]))
        self._until(lambda: self.broker.exists(*results) == n)
        worked = wall() - began
        self.cpu.setdefault(name, []).append(self._cpu() - cpu_before)
        assert all(handle.successful() for handle in handles)
        self.parts.setdefault(f"{name} published", []).append(published)
        self.parts.setdefault(f"{name} worked off", []).append(worked)
        return published + worked

    def _cpu(self) -> float:
        """Seconds of CPU time that the worker, the server and this process have used so far."""
        server = self.broker.info("cpu")
        used: float = cpu() + server["used_cpu_user"] + server["used_cpu_sys"]
        for status in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                pid, _, rest = status.read_text().partition(" ")
                columns = rest.rpartition(") ")[2].split()
                if self.worker in {int(pid), int(columns[1])}:
                    used += (int(columns[11]) + int(columns[12])) / os.sysconf("SC_CLK_TCK")
        return used

    def _until(self, condition: Any) -> None:
        give_up = time.monotonic() + 120.0
        while not condition():
            assert time.monotonic() < give_up, "the worker has not done it"
            time.sleep(0.01)


def _figure(
    celery: _Celery, plan: Plan, *, what: str, tasks: tuple[str, str, str], n: int, goal: float
) -> Figure:
    for name in tasks:
        celery.took(name, 5)  # what is made at the first: connections, threads, scripts
    celery.parts.clear()
    celery.cpu.clear()
    found = interleaved(
        plan.rounds_or(7), {name: partial(celery.took, name, n) for name in reversed(tasks)}
    )
    ours, plain, noted = tasks
    measured = shown_each(found, n) | shown_each(celery.parts, n)
    rates = (f"{n / median(found[name]):.0f}" for name in tasks)
    measured["a second"] = " over ".join(rates)
    measured["in CPU time"] = f"{median(ratios(celery.cpu[ours], celery.cpu[plain])):.2f}"
    for what_else, used in (("the floor", found), ("the floor in CPU time", celery.cpu)):
        measured[what_else] = f"{median(ratios(used[noted], used[plain])):.2f}"
    measured["over the floor"] = f"{median(ratios(found[ours], found[noted])):.2f}"
    return Figure(what, goal, ratios(found[ours], found[plain]), measured=measured)


@contextmanager
def _celery(store: str, processes: int) -> Generator[_Celery]:
    """A broker, a store and a worker of its own; the store of that name."""
    with (
        scratch() as folder,
        running_redis(appendonly="yes", appendfsync="everysec") as server,
    ):
        address = server.url if store == "Redis" else f"sqlite:///{folder}/jobs.db"
        settings = {
            "BENCHMARK_BROKER": server.url,
            "BENCHMARK_STORE": address,
            "BENCHMARK_FOLDER": str(folder),
            "TRACEDJOBS_RUN_DIR": os.environ.get("TRACEDJOBS_RUN_DIR") or str(folder / "run"),
        }
        os.environ |= settings
        sys.modules.pop("benchmarks.queue_tasks", None)  # it was made for another broker
        tasks = import_module("benchmarks.queue_tasks")
        log = folder / "worker.log"
        with log.open("wb") as out:
            worker = subprocess.Popen(
                [
                    *(sys.executable, "-m", "celery", "-A", "benchmarks.queue_tasks", "worker"),
                    *("-c", str(processes), "-l", "warning"),
                    *("--without-mingle", "--without-gossip", "--without-heartbeat"),
                ],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        try:
            with server.client() as broker:
                yield _Celery(tasks, broker, worker.pid, processes)
        finally:
            worker.terminate()
            worker.wait(20.0)
            tasks.runtime.close()
            tasks.app.close()
