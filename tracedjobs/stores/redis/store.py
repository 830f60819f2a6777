"""The Redis store: each method one atomic script, or one read, of a job's shard.

A change reads the job first and writes only if it is still as it was read. Nothing here retries:
the saver does, against the deadline of each run's lease.
"""

from __future__ import annotations

from contextlib import suppress
from heapq import nsmallest
from typing import TYPE_CHECKING, Final

from tracedjobs._core.clock import boot_time
from tracedjobs._core.compact import compact
from tracedjobs._core.counting import BUCKET_LABELS
from tracedjobs._core.records import (
    Change,
    Count,
    JobRecord,
    Save,
    Status,
    StepRecord,
    Stored,
    Survey,
)
from tracedjobs.errors import StoreError, StoreUnavailableError
from tracedjobs.stores.redis.adding import MANY_NAMES, Adding
from tracedjobs.stores.redis.address import Address
from tracedjobs.stores.redis.asking import Entry, pairs_of, raised
from tracedjobs.stores.redis.changing import (
    change_arguments,
    changed,
    check_transition,
    milliseconds_until,
)
from tracedjobs.stores.redis.completing import completion_arguments
from tracedjobs.stores.redis.keys import shard_of
from tracedjobs.stores.redis.owing import Owing
from tracedjobs.stores.redis.packing import (
    UNTOUCHED,
    VERSION_START,
    begun_text,
    end_entry,
    hand_micros,
    later_text,
    name_text,
    packed,
    read_begun,
    read_end_entry,
    submitted_text,
    to_micros,
)
from tracedjobs.stores.redis.paging import Paging
from tracedjobs.stores.redis.saving import LastSaves
from tracedjobs.stores.redis.script import Command, call
from tracedjobs.stores.redis.surveying import surveyed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tracedjobs._core.first_run import FirstRun
    from tracedjobs.stores.base import Saved
    from tracedjobs.stores.redis.saving import Part

__all__ = ["RedisStore"]

DEFAULT_TIMEOUT: Final = 5.0
ESTIMATE_AGE: Final = 10.0
"""Seconds for which the number of steps of a job name is taken for what it was."""
_WAITS: Final = " ".join(BUCKET_LABELS["queue_wait"][:-1])


class RedisStore(Adding, Owing, Paging):
    """Jobs on the servers at `address`."""

    def __init__(self, address: Address) -> None:
        """Remember the address; see `Asking`."""
        super().__init__(address)
        self._last_saves = LastSaves(self._keys)
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
        return lambda: bool(raised(reply()))

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
                *self._keys.of_beginning(job_id, shard),
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
            return self.load(job_id), False
        return self._reading(job_id, lambda: read_begun(job_id, first, reply)), True

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
            raised(reply)
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
            ended += pairs_of(reply)
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

    def heartbeat(self, job: JobRecord) -> float | None:
        """See `Store.heartbeat`."""
        return None if job.lease_ttl is None else job.lease_until - job.lease_ttl

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
