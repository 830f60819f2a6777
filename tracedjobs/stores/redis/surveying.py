"""All that the servers know in figures: totals, running jobs, and the sizes of indexes.

It only reads. What is added up from several shards was true of each at one moment of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from tracedjobs._core.records import Living, Status, Survey, TotalKey
from tracedjobs.stores.redis.keys import SHARDS
from tracedjobs.stores.redis.packing import read_found, read_total_field
from tracedjobs.stores.redis.script import Command, call

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tracedjobs.stores.redis.keys import Keys
    from tracedjobs.stores.redis.store import RedisStore

__all__ = ["surveyed"]

MOST_INTERRUPTED: Final = 1000


def surveyed(store: RedisStore, keys: Keys) -> Survey:
    """See `Store.survey`."""
    asked = [Command(shard, ("ZRANGE", keys.leases(shard), 0, -1)) for shard in range(SHARDS)]
    running = store.answers(asked)
    totals: dict[TotalKey, float] = {}
    living: list[Living] = []
    now = 0.0
    looks = [_look(keys, shard, ids) for shard, ids in enumerate(running)]
    for (micros, fields, *jobs), ids in zip(store.answers(looks), running, strict=True):
        moment = int(micros) / 1e6
        now = max(now, moment)
        for field, value in zip(fields[::2], fields[1::2], strict=True):
            key = read_total_field(field)
            totals[key] = totals.get(key, 0.0) + float(value)
        for job_id, reply in zip(ids, jobs, strict=True):
            if reply is not None:
                head = read_found(job_id, reply).stored.job
                living.append(Living(head, store.heartbeat(head), head.lease_until > moment))
    queues = _queues(totals)
    jobs_by: dict[tuple[str, str, str], int] = {}
    oldest: dict[tuple[str, str], float] = {}
    for name, status, size, born in _sizes(store, keys, queues):
        queue = queues[name]
        jobs_by[name, queue, status] = jobs_by.get((name, queue, status), 0) + size
        if status == Status.PENDING.value and born:
            at = int(born) / 1e6
            oldest[name, queue] = min(at, oldest.get((name, queue), at))
    waiting = any(status == Status.INTERRUPTED.value for _, _, status in jobs_by)
    return Survey(
        now=now,
        totals=totals,
        jobs=jobs_by,
        living=living,
        oldest_pending=oldest,
        oldest_interrupted=_oldest_interrupted(store) if waiting else {},
    )


def _look(keys: Keys, shard: int, ids: Iterable[str]) -> Command:
    names = [keys.totals(shard)]
    for job_id in ids:
        names += [keys.part(job_id, part) for part in ("j", "h", "o", "x")]
    return call("survey", shard, names, [])


def _queues(totals: dict[TotalKey, float]) -> dict[str, str]:
    """The queue of each job name: the one that most of its jobs came from."""
    most: dict[str, tuple[float, str]] = {}
    for (metric, name, queue, _, _), value in totals.items():
        if metric == "jobs_enqueued":
            most[name] = max(most.get(name, (0.0, "")), (value, queue))
    return {name: queue for name, (_, queue) in most.items()}


def _sizes(
    store: RedisStore, keys: Keys, names: Iterable[str]
) -> Iterable[tuple[str, str, int, str]]:
    """Name, status, size and birth of the oldest of each index that has jobs."""
    pairs = [(name, status.value) for name in names for status in Status]
    asked = [
        call("cards", shard, [keys.indexes(shard, status, name)[1] for name, status in pairs], [])
        for shard in range(SHARDS)
    ]
    for reply in store.answers(asked) if pairs else ():
        answers: list[Any] = reply
        for (name, status), size, born in zip(pairs, answers[::2], answers[1::2], strict=True):
            if size:
                yield name, status, int(size), born


def _oldest_interrupted(store: RedisStore) -> dict[tuple[str, str], float]:
    entries = store.entries(Status.INTERRUPTED, None, None, MOST_INTERRUPTED)
    found: dict[tuple[str, str], float] = {}
    for each in store.find([job_id for _, job_id in entries], parts=False):
        if each is not None and each.stored.job.resume_at is not None:
            head = each.stored.job
            key = (head.name, head.queue or "")
            at = each.stored.job.resume_at
            found[key] = min(at, found.get(key, at))
    return found
