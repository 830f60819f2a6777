"""Jobs in the order of their birth, merged from the indexes of all shards."""

from __future__ import annotations

from heapq import nlargest
from typing import TYPE_CHECKING

from tracedjobs.stores.redis.asking import Asking, pairs_of
from tracedjobs.stores.redis.keys import SHARDS, shard_of
from tracedjobs.stores.redis.script import Command, call

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tracedjobs._core.records import Status
    from tracedjobs.stores.redis.asking import Entry

__all__ = ["Paging"]


class Paging(Asking):
    """Reads them a page at a time."""

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
                behind = (each for each in pairs_of(reply) if last is None or each < last)
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
