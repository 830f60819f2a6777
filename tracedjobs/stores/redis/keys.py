"""The names of the keys: 64 shards by a hash of the id, each in a slot of Redis Cluster.

All keys of a job and the indexes it stands in have its shard's hash tag, so that one script may
touch them all. The number of shards is part of the layout and never changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from zlib import crc32

from tracedjobs._core.records import Status

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["SHARDS", "Keys", "shard_of"]

SHARDS: Final = 64
_PARTS: Final = ("j", "h", "s", "r", "c", "z", "o", "x")


def shard_of(text: str) -> int:
    """The shard of a job's id, or of a job's name."""
    return crc32(text.encode()) % SHARDS


class Keys:
    """The keys under one prefix."""

    def __init__(self, prefix: str) -> None:
        """Remember how the keys of each shard begin."""
        self.starts = [f"{prefix}:{{{shard:02}}}:" for shard in range(SHARDS)]

    def at(self, shard: int, what: str) -> str:
        """A key of the shard."""
        return self.starts[shard] + what

    def job(self, job_id: str) -> list[str]:
        """Hash, head, steps, runs, controls, state, open step and cursor: what is a job's own.

        The last two are there only for texts that would not fit the hash's compact form.
        """
        start, end = self.starts[shard_of(job_id)], f":{job_id}"
        return [start + part + end for part in _PARTS]

    def of_beginning(self, job_id: str, shard: int) -> list[str]:
        """What the first run of a job finds of it: hash, head, and a state where there is one."""
        start = self.starts[shard]
        return [f"{start}j:{job_id}", f"{start}h:{job_id}", f"{start}z:{job_id}"]

    def of_completion(self, job_id: str, shard: int) -> list[str]:
        """What the completion of a step writes: hash, steps and state, leases and totals."""
        start = self.starts[shard]
        return [
            *(f"{start}j:{job_id}", f"{start}s:{job_id}", f"{start}z:{job_id}"),
            *(start + "leases", start + "totals"),
        ]

    def part(self, job_id: str, part: str) -> str:
        """One key of a job: `j` its hash, `s` steps, `z` state, `o` open step, `x` cursor."""
        return self.at(shard_of(job_id), f"{part}:{job_id}")

    def leases(self, shard: int) -> str:
        """Running jobs of the shard by the end of their leases."""
        return self.at(shard, "leases")

    def spans(self, shard: int) -> str:
        """Jobs of the shard that owe spans, by when their sending may be claimed."""
        return self.at(shard, "spans")

    def waiting(self, shard: int) -> str:
        """Interrupted jobs of queues of the shard, by when they are to be handed back."""
        return self.at(shard, "waiting")

    def unbegun(self, shard: int) -> str:
        """Pending jobs of queues of the shard, by when their messages are to be looked for."""
        return self.at(shard, "unbegun")

    def handed(self, shard: int, status: Status) -> str:
        """The one of these two in which a job of that status may stand."""
        return self.unbegun(shard) if status is Status.PENDING else self.waiting(shard)

    def elected(self, name: str) -> str:
        """Who does what that name stands for."""
        return self.at(shard_of(name), f"elected:{name}")

    def ends(self, shard: int) -> str:
        """Finished jobs of the shard by the end of their retention."""
        return self.at(shard, "ends")

    def totals(self, shard: int) -> str:
        """What happened so far to the jobs of the shard, in figures."""
        return self.at(shard, "totals")

    def step_names(self, job_name: str) -> str:
        """The step names of a job that are told apart in totals."""
        return self.at(shard_of(job_name), f"names:{job_name}")

    def indexes(self, shard: int, status: str, name: str) -> list[str]:
        """The two indexes that a job of that status and name stands in, each by birth."""
        start = self.starts[shard]
        return [f"{start}i:{status}", f"{start}n:{status}:{name}"]

    def indexes_of(self, shard: int, status: Status | None, name: str | None) -> Sequence[str]:
        """The indexes that together have the jobs of that status and name; `None` for any."""
        statuses = Status if status is None else (status,)
        if name is None:
            return [self.at(shard, f"i:{each.value}") for each in statuses]
        return [self.at(shard, f"n:{each.value}:{name}") for each in statuses]

    def counts(self, name: str) -> str:
        """How many steps the last completed job of each name had, by name."""
        return self.at(shard_of(name), "counts")
