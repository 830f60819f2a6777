"""Jobs on Redis: what a save costs the worker and the server, and what a job takes of its memory.

The server is a real one, started for this, with `appendfsync everysec`.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks.harness import Figure, Plan, interleaved, ratios, scratch, shown, shown_each, wall
from benchmarks.live import _live, _move_all_on, _tick
from tests.stores.redis_servers import RedisServer, running_redis
from tracedjobs import Context, Runtime, job
from tracedjobs.stores.redis.node import Node

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

    from tracedjobs.stores.redis.node import Sent

__all__ = [
    "measure_cpu",
    "measure_durable",
    "measure_space",
    "measure_tick",
    "redis_runtime",
    "settle",
]


@job(checkpoint_every=0)
def _durable_on_redis(ctx: Context, n: int) -> float:
    began = wall()
    for _ in ctx.each("items", range(n)):
        pass
    return wall() - began


@contextmanager
def redis_runtime(lease_ttl: float = 30.0) -> Generator[tuple[RedisServer, Runtime]]:
    """An empty server, and a runtime on it whose lock files are its own."""
    with (
        scratch() as folder,
        running_redis(appendonly="yes", appendfsync="everysec") as server,
        Runtime(server.url, lease_ttl=lease_ttl) as made,
    ):
        os.environ.setdefault("TRACEDJOBS_RUN_DIR", str(folder))
        yield server, made


def measure_durable(plan: Plan) -> Iterator[Figure]:
    """The cost of a durable item, over a `SET` of redis-py's plain client."""
    n = plan.size(1_000, 20)
    with redis_runtime() as (server, here), server.client() as client:
        contestants: dict[str, Callable[[], float]] = {
            "bare": partial(_sets, client, n),
            "durable": partial(_performed, here, n),
        }
        found = interleaved(plan.rounds_or(25), contestants)
    yield Figure(
        what="an item saved durably on Redis, over a bare SET",
        goal=1.4,
        rounds=ratios(found["durable"], found["bare"]),
        measured=shown_each({"ours": found["durable"], "bare SET": found["bare"]}, n, "an item"),
    )


def _sets(client: Any, n: int) -> float:
    began = wall()
    for number in range(n):
        client.set("bare", number)
    return wall() - began


def _performed(here: Runtime, n: int) -> float:
    return float(str(here.perform(here.submit(_durable_on_redis, n)).result))


def measure_tick(plan: Plan) -> Iterator[Figure]:
    """A tick of the saver with all runs due: what it takes, and how often it asks the server."""
    n = plan.size(1_000, 5)
    with redis_runtime(lease_ttl=600.0) as (_, here):
        seconds, trips = asyncio.run(_ticks(here, n, plan.rounds_or(15)))
    yield Figure(
        what=f"round trips a tick, {n:,} live runs on Redis",
        goal=1.0,
        rounds=trips,
        measured={"most": f"{max(trips):g}"},
    )
    yield Figure(
        what=f"a tick of the saver, {n:,} live runs on Redis",
        goal=50.0,
        rounds=[each * 1000 for each in seconds],
        unit=" ms",
        measured={"a run": shown(median(seconds) / n)},
    )


async def _ticks(here: Runtime, n: int, rounds: int) -> tuple[list[float], list[float]]:
    seconds: list[float] = []
    trips: list[float] = []
    async with _live(here, n):
        for _ in range(rounds):
            with _counted_trips() as count:
                seconds += interleaved(1, {"tick": _tick})["tick"]
                trips.append(count())
            await _move_all_on(n)
    return seconds, trips


@contextmanager
def _counted_trips() -> Generator[Callable[[], float]]:
    send, sent = Node.send, 0

    def counted(self: Node, commands: Sequence[Sequence[str | int]]) -> Sent:
        nonlocal sent
        sent += 1
        return send(self, commands)

    Node.send = counted  # type: ignore[method-assign]  # the same, counted
    try:
        yield lambda: float(sent)
    finally:
        Node.send = send  # type: ignore[method-assign]  # as it was


def measure_space(plan: Plan) -> Iterator[Figure]:
    """What Redis says of the keys of live jobs with five steps, indexes included."""
    n = plan.size(2_000, 200)
    with redis_runtime() as (server, here), server.client() as client:
        before = client.info("memory")["used_memory"]
        keys, after = asyncio.run(_space(here, client, n))
    parts: dict[str, float] = {}
    for key, size in keys.items():
        kind = key.split(":")[2]
        parts[kind] = parts.get(kind, 0) + size / n
    yield Figure(
        what="bytes of Redis a live job with five steps",
        goal=2048.0,
        rounds=[sum(parts.values())],
        unit=" B",
        measured={
            **{f"keys {kind}:": f"{size:.0f} B" for kind, size in sorted(parts.items())},
            "growth of used_memory": f"{(after - before) / n:.0f} B",
        },
    )


async def _space(here: Runtime, client: Any, n: int) -> tuple[dict[str, int], int]:
    async with _live(here, n):
        keys = [*client.scan_iter(match="tj:*", count=10_000)]
        pipeline = client.pipeline(transaction=False)
        for key in keys:
            pipeline.memory_usage(key, samples=0)
        sizes = dict(zip(keys, pipeline.execute(), strict=True))
        return sizes, int(client.info("memory")["used_memory"])


def measure_cpu(plan: Plan) -> Iterator[Figure]:
    """The server's own processor time while many workers save their jobs once a second."""
    workers, n = plan.size(20, 2), plan.size(500, 5)
    seconds = 5.0 if not plan.tiny else 1.0
    with redis_runtime() as (server, _), server.client() as client, ExitStack() as stack:
        processes = [stack.enter_context(_saving(server, at, n)) for at in range(workers)]
        shares: list[float] = []
        rates: list[float] = []
        settle(client)
        for _ in range(plan.rounds_or(5)):
            began, cpu_before, before = wall(), _cpu(client), _saves(processes)
            time.sleep(seconds)
            took = wall() - began
            shares.append((_cpu(client) - cpu_before) / took * 100)
            rates.append((_saves(processes) - before) / took)
    yield Figure(
        what=f"a core for the server, {workers * n:,} live jobs saved each second",
        goal=10.0,
        rounds=shares,
        unit=" %",
        measured={
            "saves": f"{median(rates):,.0f} a second from {workers} processes",
            "a save": shown(median(shares) / 100 / max(median(rates), 1.0)),
        },
    )


Saving = subprocess.Popen[str]


@contextmanager
def _saving(server: RedisServer, number: int, n: int) -> Generator[Saving]:
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.redis_saves", server.url, str(number), str(n)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def _saves(processes: Sequence[Saving]) -> int:
    """How many saves they have made, all together."""
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    return sum(int(process.stdout.readline()) for process in processes if process.stdout)


def _cpu(client: Any) -> float:
    found = client.info("cpu")
    return float(found["used_cpu_user"]) + float(found["used_cpu_sys"])


def settle(client: Any) -> None:
    """Wait until the server has done what the setting up left it to do."""
    while True:
        found = client.info("persistence")
        if not found["aof_rewrite_in_progress"] and not found["aof_rewrite_scheduled"]:
            return
        time.sleep(0.1)
