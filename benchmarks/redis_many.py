"""A hundred thousand jobs on Redis against a thousand, and a server that does not answer.

The jobs are records that were made for this: no worker performs them; the server is a real one.
"""

from __future__ import annotations

import random
import time
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import count, cycle
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from benchmarks.harness import Figure, Plan, interleaved, ratios, shown, shown_each, wall
from benchmarks.redis_store import settle
from tests.stores.redis_servers import RedisServer, running_redis
from tracedjobs import Context, Runtime, job
from tracedjobs._core.records import (
    Change,
    JobRecord,
    Position,
    Save,
    Status,
    StepRecord,
)
from tracedjobs.errors import StoreUnavailableError
from tracedjobs.stores import open_store
from tracedjobs.stores.redis import RedisStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tracedjobs.stores.redis.script import Command

__all__ = ["create_running", "measure_frozen", "measure_many", "next_save"]

TOKEN: Final = "0123456789abcdef"
LEASE_TTL: Final = 3600.0
AT_ONCE: Final = 2_000
NAMES: Final = ("import_users", "send_letters", "resize_images", "rebuild_index")


@job
def _nothing(ctx: Context) -> None:
    """Is submitted, and not performed."""


class _Batched(RedisStore):
    """Keeps its commands back, to send many in one write."""

    def __init__(self, store: RedisStore) -> None:
        super().__init__(store._address)
        self.kept: list[Command] = []

    def answers(self, commands: Sequence[Command]) -> list[Any]:
        self.kept += commands
        return [1] * len(commands)

    def flush(self) -> None:
        kept, self.kept = self.kept, []
        super().answers(kept)


def create_running(
    store: RedisStore, ids: Sequence[str], *, steps: int = 0, ended: frozenset[str] = frozenset()
) -> None:
    """Create jobs that run, in the step after `steps` others; the leases of some have ended."""
    batched = _Batched(store)
    now = time.time()
    for at, job_id in enumerate(ids):
        position = Position("import_rows", "0", 0, 1_000_000, None, now)
        batched.create(
            JobRecord(
                id=job_id,
                name=NAMES[at % len(NAMES)],
                arguments='{"path":"users.csv"}',
                submitted_at=now,
                status=Status.RUNNING,
                run=1,
                token=TOKEN,
                worker="host:1",
                lease_until=now + (-60.0 if job_id in ended else LEASE_TTL),
                started_at=now,
                step=position.step,
                total=position.total,
                step_started_at=now,
                progressed_at=now,
            )
        )
        for number in range(steps):
            step = StepRecord(f"step_{number}", "9", "null", 0, None, None, now, now, 1)
            batched.complete_step(job_id, TOKEN, step, position=number, seq=0, state=None)
        if len(batched.kept) >= AT_ONCE:
            batched.flush()
    batched.flush()
    batched.close()


def next_save(job_id: str, seq: int) -> Save:
    """A save of the job, further than the last."""
    position = Position("import_rows", str(seq * 100), seq * 100, 1_000_000, None, 1.7e9)
    return Save(job_id, TOKEN, seq, LEASE_TTL, position, 1.7e9 + seq)


@dataclass(frozen=True, slots=True)
class _Worker:
    """A worker as the server sees it: its own connection, and jobs from all over the memory."""

    store: RedisStore
    ids: list[str]


@dataclass(frozen=True, slots=True)
class _Population:
    """A server with that many jobs of as many workers as that takes, and as many plain keys."""

    store: RedisStore
    client: Any
    ids: list[str]
    turns: Iterator[_Worker]
    seqs: Iterator[int]

    def save(self) -> float:
        """Save all jobs of the worker whose turn it is, in one call."""
        seq, worker = next(self.seqs), next(self.turns)
        saves = [next_save(job_id, seq) for job_id in worker.ids]
        began = wall()
        answer = worker.store.save(saves)
        took = wall() - began
        assert len(answer) == len(worker.ids)
        return took

    def set(self) -> float:
        """Set as many of the plain keys, in one pipeline."""
        ids = next(self.turns).ids
        pipeline = self.client.pipeline(transaction=False)
        for job_id in ids:
            pipeline.set(f"bare:{job_id}", next(self.seqs))
        began = wall()
        pipeline.execute()
        return wall() - began


def measure_many(plan: Plan) -> Iterator[Figure]:
    """What the number of jobs does to a save, to pages, and to finding the lost ones."""
    sizes = {"few": plan.size(1_000, 30), "many": plan.size(100_000, 300)}
    n = plan.size(500, 10)
    with ExitStack() as stack:
        servers = {
            name: stack.enter_context(running_redis(appendonly="yes", appendfsync="everysec"))
            for name in sizes
        }
        found = {name: _populated(servers[name], size, n, stack) for name, size in sizes.items()}
        for population in found.values():
            settle(population.client)
        yield _cost_of_saves(found, n, plan)
        runtime = stack.enter_context(Runtime(found["many"].store))
        yield _pages(runtime, found["many"].ids, plan)
        yield _expired(found, n, plan)


def _populated(server: RedisServer, size: int, n: int, stack: ExitStack) -> _Population:
    store = _opened(server)
    client = stack.enter_context(server.client())
    ids = [f"job-{number}" for number in range(size)]
    create_running(store, ids)
    for at in range(0, size, AT_ONCE):
        client.mset({f"bare:{job_id}": 0 for job_id in ids[at : at + AT_ONCE]})
    mixed = random.sample(ids, size)
    workers = [_Worker(_opened(server), mixed[at : at + n]) for at in range(0, size, n)]
    for worker in workers:
        stack.callback(worker.store.close)
    found = _Population(store, client, ids, cycle(workers), count(1))
    for _ in range(2 * len(workers)):  # from then on each knows what it saved last
        found.save()
    return found


def _opened(server: RedisServer) -> RedisStore:
    store = open_store(server.url)
    assert isinstance(store, RedisStore)
    return store


def _cost_of_saves(found: dict[str, _Population], n: int, plan: Plan) -> Figure:
    contestants: dict[str, Callable[[], float]] = {}
    for name, population in found.items():
        contestants[f"save, {name}"] = population.save
        contestants[f"SET, {name}"] = population.set
    took = interleaved(plan.rounds_or(40), contestants)
    saves = ratios(took["save, many"], took["save, few"])
    sets = ratios(took["SET, many"], took["SET, few"])
    return Figure(
        what=f"a save among {len(found['many'].ids):,} jobs over one among "
        f"{len(found['few'].ids):,}, over the same of a SET",
        goal=1.2,
        # Over the median: a ratio of two ratios would be noisy twice.
        rounds=[each / median(sets) for each in saves],
        measured={**shown_each(took, n, "a job"), "SETs": f"{median(sets):.2f}"},
    )


def _pages(here: Runtime, ids: list[str], plan: Plan) -> Figure:
    deep = ids[len(ids) // 2]
    kinds: dict[str, Callable[[], object]] = {
        "first": lambda: here.list(limit=50),
        "in the middle": lambda: here.list(limit=50, before=deep),
        "by status": lambda: here.list(limit=50, status="running", before=deep),
        "by name": lambda: here.list(limit=50, name=NAMES[0], before=deep),
        "by both": lambda: here.list(limit=50, status="running", name=NAMES[0]),
        "none": lambda: here.list(limit=50, status="failed"),
    }
    took = interleaved(
        plan.rounds_or(15), {name: partial(_timed, kind) for name, kind in kinds.items()}
    )
    return Figure(
        what=f"a page of 50 among {len(ids):,} jobs, the slowest kind",
        goal=50.0,
        rounds=[1000 * max(each) for each in zip(*took.values(), strict=True)],
        unit=" ms",
        measured=shown_each(took),
    )


def _expired(found: dict[str, _Population], n: int, plan: Plan) -> Figure:
    """The same number of lost jobs, among many and among few."""
    contestants: dict[str, Callable[[], float]] = {}
    for name, population in found.items():
        lost = [f"lost-{number}" for number in range(n)]
        create_running(population.store, lost, ended=frozenset(lost))
        assert len(population.store.expired(limit=n)) == n
        contestants[name] = partial(_timed, partial(population.store.expired, limit=100))
    took = interleaved(plan.rounds_or(15), contestants)
    return Figure(
        what=f"100 of {n} lost found among {len(found['many'].ids):,} running, over among "
        f"{len(found['few'].ids):,}",
        goal=1.5,
        rounds=ratios(took["many"], took["few"]),
        measured=shown_each(took),
    )


def _timed(call: Callable[[], object]) -> float:
    began = wall()
    call()
    return wall() - began


def measure_frozen(plan: Plan) -> Iterator[Figure]:
    """The longest that any call blocks while the server is stopped by SIGSTOP."""
    lease_ttl = 8.0 if not plan.tiny else 0.8
    longest: list[float] = []
    slowest = ""
    with running_redis(appendonly="yes") as server, Runtime(server.url, lease_ttl=lease_ttl) as one:
        job_id = one.submit(_nothing)
        stored = one.store.load(job_id)
        assert stored is not None
        for _ in range(plan.rounds_or(3)):
            with Runtime(server.url, lease_ttl=lease_ttl) as fresh:
                one.store.load(job_id)  # so that it is connected
                with server.frozen():
                    took = {
                        f"{name}, {how}": _blocked(call)
                        for how, runtime in (("connected", one), ("not yet", fresh))
                        for name, call in _calls(runtime, stored.job).items()
                    }
            slowest = max(took, key=lambda name: took[name])
            longest.append(took[slowest])
    yield Figure(
        what="a frozen server: the longest call, over a third of the lease",
        goal=1.0,
        rounds=[each / (lease_ttl / 3) for each in longest],
        measured={"longest": f"{shown(max(longest))} of {lease_ttl:g} s", "it was": slowest},
    )


def _calls(here: Runtime, head: JobRecord) -> dict[str, Callable[[], object]]:
    store, save = here.store, next_save(head.id, 1)
    step = StepRecord("one", "1", "null", 0, None, None, 1.0, 1.0, 1)
    return {
        "submit": lambda: here.submit(_nothing),
        "perform": lambda: here.perform(head.id),
        "get": lambda: here.get(head.id),
        "list": lambda: here.list(before=head.id),
        "pause": lambda: here.pause(head.id),
        "recover": here.recover,
        "purge": here.purge,
        "change": lambda: store.change(Change(head.id, head.revision, {"wish": "pause"})),
        "save": lambda: store.save([save]),
        "save_one": lambda: store.save_one(save),
        "complete_step": lambda: store.complete_step(
            head.id, TOKEN, step, position=0, seq=1, state=None
        ),
        "lease_alive": lambda: store.lease_alive(head),
    }


def _blocked(call: Callable[[], object]) -> float:
    began = wall()
    try:
        call()
    except StoreUnavailableError:
        return wall() - began
    return wall() - began
