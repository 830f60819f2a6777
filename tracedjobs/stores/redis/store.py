"""The Redis store: each method one atomic script, or one read, of a job's shard.

A change reads the job first and writes only if it is still as it was read. Nothing here retries:
the saver does, against the deadline of each run's lease.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from heapq import nlargest, nsmallest
from typing import TYPE_CHECKING, Any, Final, TypeVar

from tracedjobs._core.clock import boot_time
from tracedjobs._core.compact import compact
from tracedjobs._core.counting import BUCKET_LABELS, OTHER
from tracedjobs._core.records import (
    Change,
    Count,
    JobRecord,
    Save,
    SpansSent,
    Status,
    StepRecord,
    Stored,
    Survey,
    TotalKey,
)
from tracedjobs.errors import StoreError, StoreUnavailableError
from tracedjobs.stores.base import LONGEST_CLAIM, STEP_NAMES
from tracedjobs.stores.redis.address import Address
from tracedjobs.stores.redis.changing import (
    change_arguments,
    changed,
    check_transition,
    milliseconds_until,
)
from tracedjobs.stores.redis.completing import completion_arguments
from tracedjobs.stores.redis.keys import SHARDS, Keys, shard_of
from tracedjobs.stores.redis.packing import (
    UNTOUCHED,
    VERSION_START,
    Found,
    begun_text,
    end_entry,
    hand_micros,
    later_text,
    name_text,
    packed,
    read_begun,
    read_end_entry,
    read_found,
    submitted_text,
    to_micros,
    total_field,
)
from tracedjobs.stores.redis.saving import LastSaves
from tracedjobs.stores.redis.script import Command, call
from tracedjobs.stores.redis.servers import Servers
from tracedjobs.stores.redis.settings import warn_of_settings
from tracedjobs.stores.redis.surveying import surveyed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from tracedjobs._core.first_run import FirstRun
    from tracedjobs.stores.base import Saved
    from tracedjobs.stores.redis.saving import Part

__all__ = ["RedisStore"]

_log: Final = logging.getLogger("tracedjobs")
DEFAULT_TIMEOUT: Final = 5.0
CLOCK_DRIFTS: Final = 3600.0
"""Seconds after which this host's clocks may have gone another way than the server's."""
MANY_NAMES: Final = 10_000
"""Step names that a process remembers, those included that are not told apart."""
ESTIMATE_AGE: Final = 10.0
"""Seconds for which the number of steps of a job name is taken for what it was."""
_WAITS: Final = " ".join(BUCKET_LABELS["queue_wait"][:-1])
T = TypeVar("T")
Entry = tuple[int, str]
"""Birth and id of a job: its place among all."""


class RedisStore:
    """Jobs on the servers at `address`."""

    def __init__(self, address: Address) -> None:
        """Remember the address; connections are made at the first use, and anew after a fork."""
        self.url = address.url
        self._address = address
        self._keys = Keys(address.prefix)
        self._last_saves = LastSaves(self._keys)
        self._servers: Servers | None = None
        self._closed = False
        self._checked = False
        self._told_away = False
        self._step_names: dict[tuple[str, str], str] = {}
        self._fields: dict[TotalKey, str] = {}
        self._steps: dict[str, tuple[float, int | None]] = {}
        """Since when this process knows of a job's name how many steps it last had."""

    def __repr__(self) -> str:
        """Its address, without secrets."""
        return f"<RedisStore {self.url}>"

    @classmethod
    def from_url(cls, url: str, *, timeout: float = DEFAULT_TIMEOUT) -> RedisStore:
        """Read `redis://host:6379/0`, `rediss://` for TLS, `+sentinel` or `+cluster` in either."""
        return cls(Address.from_url(url, timeout=timeout))

    def create(self, job: JobRecord, counts: Sequence[Count] = ()) -> bool:
        """See `Store.create`."""
        return self.creating(job, counts)()

    def creating(self, job: JobRecord, counts: Sequence[Count] = ()) -> Callable[[], bool]:
        """See `stores.base.Creating`."""
        reply = self._ready().send_one(self._creation(job, counts))
        return lambda: bool(_raised(reply()))

    def _creation(self, job: JobRecord, counts: Sequence[Count]) -> Command:
        shard = shard_of(job.id)
        columns = packed(job)
        keep, entry = "", ""
        if job.expires_at is not None:
            keep = milliseconds_until(job.expires_at, self.time())
            entry = end_entry(job.id, job.status, job.name)
        return call(
            "create",
            shard,
            [
                *self._keys.job(job.id),
                *self._keys.indexes(shard, job.status, job.name),
                self._keys.leases(shard),
                self._keys.ends(shard),
                self._keys.totals(shard),
                self._keys.handed(shard, job.status),
            ],
            [
                *(job.id, submitted_text(job) + later_text(job, None)),
                *(job.status, job.revision),
                *(job.token or "", job.wish or "", job.saved_seq, to_micros(job.lease_until)),
                columns.tail,
                *(columns.cursor, columns.open, job.state or ""),
                *(columns.spilled_open, columns.spilled_cursor, keep, entry),
                *(job.meter or "", job.counted or "", hand_micros(job)),
                *self._added(counts, shard),
            ],
            writes=True,
        )

    def load(self, job_id: str) -> Stored | None:
        """See `Store.load`."""
        (found,) = self.find([job_id])
        return None if found is None else found.stored

    def begin(self, job_id: str, first: FirstRun) -> tuple[Stored | None, bool]:
        """See `Store.begin`."""
        shard = shard_of(job_id)
        reply = self._call(
            "begin",
            shard,
            [
                *self._keys.job(job_id),
                *self._keys.indexes(shard, Status.PENDING, first.job_name),
                *self._keys.indexes(shard, Status.RUNNING, first.job_name),
                self._keys.leases(shard),
                self._keys.totals(shard),
                self._keys.unbegun(shard),
            ],
            [
                *(job_id, name_text(first.job_name), VERSION_START, UNTOUCHED, begun_text(first)),
                *(first.token, to_micros(first.lease_ttl), repr(float(first.now)), _WAITS),
            ],
            writes=True,
        )
        if reply is None:
            return None, False
        if isinstance(reply, str):
            return self._reading(job_id, lambda: read_begun(job_id, first, reply)), True
        return self._read(job_id, reply).stored, False

    def page(
        self, *, status: Status | None, name: str | None, before: str | None, limit: int
    ) -> list[Stored]:
        """See `Store.page`."""
        last = None if before is None else self._entry_of(before)
        if before is not None and last is None:
            return []
        stored: list[Stored] = []
        while len(stored) < limit:
            entries = self.entries(status, name, last, limit - len(stored))
            if not entries:
                break
            last = entries[-1]
            found = self.find([job_id for _, job_id in entries])
            there = [
                each.stored
                for each, (born, _) in zip(found, entries, strict=True)
                if each is not None
                and int(each.born) == born
                and status in {None, each.stored.job.status}
            ]
            stored += there
            if len(there) < len(entries) // 2:
                with suppress(StoreError):  # such as a replica's, which can be read all the same
                    self.purge(limit=1000)  # nobody does, and this would read much for nothing
        return stored

    def change(self, change: Change) -> bool:
        """See `Store.change`."""
        stored = change.known
        if stored is None or stored.job.revision != change.revision or change.drop_steps:
            (read,) = self.find([change.job_id], parts=bool(change.drop_steps))
            if read is None or read.stored.job.revision != change.revision:
                return False
            stored = read.stored
        old = stored.job
        if change.if_token is not None and old.token != change.if_token:
            return False
        new = changed(old, change)
        if new.status is not old.status or "status" in change.columns:
            check_transition(old, new.status)
        shard = shard_of(old.id)
        added = self._added(change.counts, shard)
        now = self.time()
        self._last_saves.forget(old.id)
        found = completion_arguments(self._keys, stored, change, new, now=now)
        if found is not None:
            steps = self._call("complete", shard, found[0], found[1] + added, writes=True)
        else:
            keys, args = change_arguments(self._keys, stored, new, change, added, now=now)
            steps = self._call("change", shard, keys, args, writes=True)
        if steps < 0:
            return False
        if change.columns.get("status") is Status.COMPLETED:
            self._count_steps(new.name, steps)
        return True

    def save(self, saves: Sequence[Save]) -> Mapping[str, Saved]:
        """See `Store.save`."""
        answer: dict[str, Saved] = {}
        refused = self._save_all(self._last_saves.parts(saves), answer)
        if refused:
            self._save_all(self._last_saves.parts(refused, whole=True), answer)
        return answer

    def _save_all(self, parts: Sequence[Part], answer: dict[str, Saved]) -> list[Save]:
        """Send them, and note what is answered; the saves that are to be made whole."""
        replies = self._run([part.command for part in parts])
        if replies and not answer and all(isinstance(reply, StoreError) for reply in replies):
            raise replies[0]
        refused: list[Save] = []
        for part, reply in zip(parts, replies, strict=True):
            if isinstance(reply, StoreError):
                answer.update(dict.fromkeys((save.job_id for save in part.saves), reply))
                continue
            self._note_time(part.command.shard, self._last_saves.time(part, reply))
            for save, saved, told in self._last_saves.read(part, reply):
                if told is not None:
                    answer[save.job_id] = told
                elif not (saved or part.whole):
                    refused.append(save)
        return refused

    def save_one(self, save: Save) -> bool:
        """See `Store.save_one`."""
        for whole in (False, True):
            part = self._last_saves.part(save, whole=whole)
            reply = self._ready().run_one(part.command)
            if isinstance(reply, StoreError):
                raise reply
            self._note_time(part.command.shard, self._last_saves.time(part, reply))
            if any(saved for _, saved, _ in self._last_saves.read(part, reply)):
                return True
            if part.whole:
                break
        return False

    def complete_step(
        self,
        job_id: str,
        token: str,
        step: StepRecord,
        *,
        position: int,
        seq: int,
        state: str | None,
        lease_ttl: float | None = None,
        counts: Sequence[Count] = (),
    ) -> bool:
        """See `Store.complete_step`."""
        self._last_saves.forget(job_id)
        shard = shard_of(job_id)
        keys = self._keys.of_completion(job_id, shard)
        args: list[str | int] = [job_id, token, position, compact(step), seq, state or ""]
        args.append("" if lease_ttl is None else to_micros(lease_ttl))
        args += self._added(counts, shard)
        return bool(self._call("complete_step", shard, keys, args, writes=True))

    def lease_alive(self, job: JobRecord) -> bool:
        """See `Store.lease_alive`; asks the server for its time once a second at most."""
        return job.lease_until > self._time(shard_of(job.id))

    def expired(self, *, limit: int) -> list[JobRecord]:
        """See `Store.expired`."""
        checks = []
        for shard, entries in self._due(self._keys.leases, limit=limit):
            ids = [job_id for _, job_id in entries]
            keys = [self._keys.leases(shard), *(self._keys.part(each, "j") for each in ids)]
            checks.append(call("expired", shard, keys, [*ids], writes=True))
        ended: list[Entry] = []
        for _, reply in self._there(checks):
            ended += _pairs(reply)
        heads = self._heads([job_id for _, job_id in nsmallest(limit, ended)])
        return [head for head in heads if head.status is Status.RUNNING]

    def steps_of_last_completed(self, name: str) -> int | None:
        """See `Store.steps_of_last_completed`."""
        known = self._steps.get(name)
        if known is not None and boot_time() - known[0] < ESTIMATE_AGE:
            return known[1]
        try:
            count = self.answers([Command(shard_of(name), ("HGET", self._keys.counts(name), name))])
        except StoreUnavailableError:
            if self._address.kind != "cluster":
                raise
            return None  # an estimate, which is no reason to do without the nodes that are there
        return self._note_steps(name, None if count[0] is None else int(count[0]))

    def count(self, counts: Sequence[Count]) -> None:
        """See `Store.count`."""
        groups: dict[int, list[Count]] = {}
        for count in counts:
            groups.setdefault(shard_of(count.job_name), []).append(count)
        self.answers(
            [
                call(
                    "count",
                    shard,
                    [self._keys.totals(shard)],
                    self._added(group, shard),
                    writes=True,
                )
                for shard, group in groups.items()
            ]
        )

    def survey(self) -> Survey:
        """See `Store.survey`: the totals of each shard and its running jobs in one script.

        Which jobs are running is asked before: one that began since is seen the next time, and one
        that ended since has its items in the totals already. `oldest_interrupted` is among the
        thousand newest of those jobs.
        """
        return surveyed(self, self._keys)

    def time(self) -> float:
        """See `Store.time`: the server's, as of its last answer and what has passed since.

        On a cluster that of any node: one that is away keeps no job of another from its time.
        """
        servers = self._connected()
        now = servers.node(0).time(age=CLOCK_DRIFTS)
        if now is not None:
            return now
        now = servers.time(age=CLOCK_DRIFTS)
        if now is None:
            shards = self._connected().shards()
            for command, answer in self._there([Command(each, ("TIME",)) for each in shards]):
                self._note_time(command.shard, f"{answer[0]}{int(answer[1]):06}")
            now = self._connected().time(age=CLOCK_DRIFTS)
        return self._time(0) if now is None else now

    def heartbeat(self, job: JobRecord) -> float | None:
        """See `Store.heartbeat`."""
        return None if job.lease_ttl is None else job.lease_until - job.lease_ttl

    def claim_spans(self, ids: Sequence[str], *, seconds: float) -> Mapping[str, float]:
        """See `Store.claim_spans`."""
        asked = {
            job_id: call(
                "claim_spans",
                shard,
                self._span_keys(job_id),
                [job_id, to_micros(min(seconds, LONGEST_CLAIM)), to_micros(LONGEST_CLAIM)],
                writes=True,
            )
            for job_id, shard in ((each, shard_of(each)) for each in ids)
        }
        job_ids = {id(command): job_id for job_id, command in asked.items()}
        return {
            job_ids[id(command)]: int(ends) / 1e6
            for command, ends in self._there([*asked.values()])
            if ends is not None
        }

    def spans_sent(self, sent: Sequence[SpansSent]) -> None:
        """See `Store.spans_sent`."""
        self.answers(
            [
                call(
                    "spans_sent",
                    shard_of(each.job_id),
                    self._span_keys(each.job_id),
                    [
                        *(each.job_id, to_micros(each.claim), each.revision),
                        *(each.steps, each.runs, int(each.root)),
                    ],
                    writes=True,
                )
                for each in sent
            ]
        )

    def owing(self, *, limit: int) -> list[str]:
        """See `Store.owing`."""
        found = [
            each for _, entries in self._due(self._keys.spans, limit=limit) for each in entries
        ]
        return [job_id for _, job_id in nsmallest(limit, found)]

    def waiting(self, *, limit: int, after: float = 0.0) -> list[JobRecord]:
        """See `Store.waiting`."""
        return self._to_be_handed(Status.INTERRUPTED, limit, after)

    def unbegun(self, *, limit: int, after: float = 0.0) -> list[JobRecord]:
        """See `Store.unbegun`."""
        return self._to_be_handed(Status.PENDING, limit, after)

    def _to_be_handed(self, status: Status, limit: int, after: float) -> list[JobRecord]:
        def index(shard: int) -> str:
            return self._keys.handed(shard, status)

        looks = self._due(index, limit=limit, after=int(to_micros(after)))
        found = [each for _, entries in looks for each in entries]
        heads = self._heads([job_id for _, job_id in nsmallest(limit, found)])
        return [head for head in heads if head.status is status and hand_micros(head)]

    def elect(self, name: str, holder: str, *, seconds: float) -> bool:
        """See `Store.elect`."""
        key, limit = self._keys.elected(name), round(seconds * 1000)
        return bool(self._call("elect", shard_of(name), [key], [holder, limit], writes=True))

    def purge(self, *, limit: int) -> int:
        """See `Store.purge`: Redis has removed the jobs themselves; what is left is in indexes."""
        purges = []
        left = limit
        for shard, entries in self._due(self._keys.ends, limit=limit, unit=1000):
            keys = [self._keys.ends(shard), self._keys.spans(shard)]
            args: list[str | int] = []
            for _, entry in entries[:left]:
                born, job_id, status, name = read_end_entry(entry)
                keys += [self._keys.part(job_id, "j"), *self._keys.indexes(shard, status, name)]
                args += [job_id, born, entry]
            left -= len(entries[:left])
            if args:
                purges.append(call("purge", shard, keys, args, writes=True))
        return sum(int(reply) for _, reply in self._there(purges))

    def close(self) -> None:
        """See `Store.close`."""
        self._closed = True
        servers, self._servers = self._servers, None
        if servers is not None and servers.pid == os.getpid():
            servers.close()

    # -- commands ---

    def _run(self, commands: Sequence[Command]) -> list[Any]:
        servers = self._ready()
        return servers.run(commands) if commands else []

    def _ready(self) -> Servers:
        if self._closed:
            msg = f"The store {self.url} is closed."
            raise StoreError(msg)
        servers = self._connected()
        if servers.fresh or not self._checked:
            warn_of_settings(servers, self.url)
            self._checked = True
        return servers

    def _connected(self) -> Servers:
        servers = self._servers
        if servers is None or servers.pid != os.getpid():
            # What was inherited through a fork is the parent's: it is neither used nor closed.
            servers = self._servers = Servers(self._address)
        return servers

    def answers(self, commands: Sequence[Command]) -> list[Any]:
        """The answers of the servers; raises where one is an error."""
        replies = self._run(commands)
        for reply in replies:
            if isinstance(reply, StoreError):
                raise reply
        return replies

    def _there(self, commands: Sequence[Command]) -> list[tuple[Command, Any]]:
        """The commands that were answered, with their answers; raises where none was.

        For what is done for all jobs that can be reached: a node that is away disturbs no other.
        """
        replies = self._run(commands)
        there: list[tuple[Command, Any]] = []
        away: StoreError | None = None
        for command, reply in zip(commands, replies, strict=True):
            if isinstance(reply, StoreUnavailableError):
                away = reply
            elif isinstance(reply, StoreError):
                raise reply
            else:
                there.append((command, reply))
        if away is not None and not there:
            raise away
        if away is not None and not self._told_away:
            self._told_away = True
            _log.warning("Jobs of a part of %s are left out for now: %s", self.url, away)
        elif len(there) == SHARDS:
            self._told_away = False
        return there

    def _due(
        self, index: Callable[[int], str], *, limit: int, unit: int = 1, after: int = -1
    ) -> list[tuple[int, list[Entry]]]:
        """Of each shard that is there the entries of that index whose moment has come."""
        looks = [call("due", at, [index(at)], [limit, unit, after]) for at in range(SHARDS)]
        return [(look.shard, _pairs(reply)) for look, reply in self._there(looks) if reply]

    def _heads(self, ids: Sequence[str]) -> list[JobRecord]:
        """Those jobs, without what belongs to them."""
        return [each.stored.job for each in self.find(ids, parts=False) if each is not None]

    def _call(
        self, name: str, shard: int, keys: list[str], args: list[str | int], *, writes: bool
    ) -> Any:
        return _raised(self._ready().run_one(call(name, shard, keys, args, writes=writes)))

    def find(self, ids: Sequence[str], *, parts: bool = True) -> list[Found | None]:
        """Those jobs, with or without their steps, runs and controls."""
        replies = self.answers(
            [
                call("load", shard_of(job_id), self._keys.job(job_id), ["all" if parts else "head"])
                for job_id in ids
            ]
        )
        return [
            None if reply is None else self._read(job_id, reply)
            for job_id, reply in zip(ids, replies, strict=True)
        ]

    def _read(self, job_id: str, reply: Sequence[Any]) -> Found:
        return self._reading(job_id, lambda: read_found(job_id, reply))

    def _reading(self, job_id: str, read: Callable[[], T]) -> T:
        try:
            return read()
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            msg = f"The job {job_id} in {self.url} is damaged: {error}."
            raise StoreError(msg) from error

    def _span_keys(self, job_id: str) -> list[str]:
        return [self._keys.part(job_id, "j"), self._keys.spans(shard_of(job_id))]

    # -- changes ---

    def _count_steps(self, name: str, steps: int) -> None:
        # An estimate for who looks at the next job, beside the change: it may be missed, and is not
        # written again at each of many short jobs.
        known = self._steps.get(name)
        if known is not None and known[1] == steps and boot_time() - known[0] < ESTIMATE_AGE:
            return
        self._note_steps(name, steps)
        self._run([Command(shard_of(name), ("HSET", self._keys.counts(name), name, steps))])

    def _note_steps(self, name: str, steps: int | None) -> int | None:
        if len(self._steps) >= MANY_NAMES:
            self._steps.clear()
        self._steps[name] = (boot_time(), steps)
        return steps

    def _added(self, counts: Sequence[Count], shard: int) -> list[str | int]:
        """Fields of totals of that shard, then what is added to each, with few step names.

        Each field once, for scripts that read all of them before they write: names that are not
        told apart have the same.
        """
        known = self._fields
        amounts: dict[str, float] = {}
        for count in counts:
            key, amount = count[:5], count[5]
            field = known.get(key)
            if field is None:
                field = self._field(key, shard)
            amounts[field] = amounts[field] + amount if field in amounts else amount
        return [*amounts, *map(repr, amounts.values())]

    def _field(self, key: TotalKey, shard: int) -> str:
        metric, job_name, queue, step, label = key
        name = self._told_apart(job_name, step, shard) if step else ""
        if name is None:
            return total_field(metric, job_name, queue, OTHER, label)  # and asked again next time
        if len(self._fields) >= MANY_NAMES:
            self._fields.clear()
        field = self._fields[key] = total_field(metric, job_name, queue, name, label)
        return field

    def _told_apart(self, job_name: str, step: str, shard: int) -> str | None:
        """What that step is called in totals; `None` while that cannot be known."""
        known = self._step_names.get((job_name, step))
        if known is not None:
            return known
        keys = [self._keys.step_names(job_name)]
        asked = call("admit", shard_of(job_name), keys, [step, STEP_NAMES], writes=True)
        (admitted,) = self._run([asked])
        if isinstance(admitted, StoreError):
            # Names are with their job's name, maybe on another node: then that one is counted
            # as other while it is away, and its absence keeps no job of this one from going on.
            servers = self._connected()
            away = isinstance(admitted, StoreUnavailableError)
            if not away or servers.node(asked.shard) is servers.node(shard):
                raise admitted
            return None
        if len(self._step_names) >= MANY_NAMES:
            self._step_names.clear()
        name = self._step_names[job_name, step] = step if admitted else OTHER
        return name

    # -- indexes ---

    def _entry_of(self, job_id: str) -> Entry | None:
        (born,) = self.answers(
            [Command(shard_of(job_id), ("HGET", self._keys.part(job_id, "j"), "b"))]
        )
        return None if born is None else (int(born), job_id)

    def entries(
        self,
        status: Status | None,
        name: str | None,
        last: Entry | None,
        limit: int,
    ) -> list[Entry]:
        """The next `limit` jobs behind `last`, merged from all shards.

        Each shard is asked for its part and a little more. Only one that gave all it was asked
        for, and whose last would still be among the first, is asked for the rest.
        """
        entries: dict[int, list[Entry]] = {}
        shards: Iterable[int] = range(SHARDS)
        size = min(limit, limit // 16 + 4)
        while True:
            asked = [
                call(
                    "page",
                    shard,
                    list(self._keys.indexes_of(shard, status, name)),
                    [last[0] if last else "+inf", size + (last is not None)],
                )
                for shard in shards
            ]
            for command, reply in zip(asked, self.answers(asked), strict=True):
                behind = (each for each in _pairs(reply) if last is None or each < last)
                entries[command.shard] = nlargest(size, behind)
            found = nlargest(limit, (entry for part in entries.values() for entry in part))
            shards = [
                shard
                for shard, part in entries.items()
                if len(part) == size < limit and (len(found) < limit or part[-1] in found)
            ]
            if not shards:
                return found
            size = limit

    # -- time ---

    def _time(self, shard: int) -> float:
        node = self._connected().node(shard)
        now = node.time()
        if now is None:
            (answer,) = self.answers([Command(shard, ("TIME",))])
            now = int(answer[0]) + int(answer[1]) / 1e6
            node.note_time(round(now * 1e6))
        return now

    def _note_time(self, shard: int, micros: str | int) -> None:
        self._connected().node(shard).note_time(micros)


def _raised(reply: Any) -> Any:
    if isinstance(reply, StoreError):
        raise reply
    return reply


def _pairs(reply: Sequence[str]) -> list[Entry]:
    return [(int(number), text) for number, text in zip(reply[::2], reply[1::2], strict=True)]
