"""The spans that jobs owe: whose they are to send, and what was sent."""

from __future__ import annotations

from heapq import nsmallest
from typing import TYPE_CHECKING

from tracedjobs.stores.base import LONGEST_CLAIM
from tracedjobs.stores.redis.asking import Asking
from tracedjobs.stores.redis.keys import shard_of
from tracedjobs.stores.redis.packing import to_micros
from tracedjobs.stores.redis.script import call

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tracedjobs._core.records import SpansSent

__all__ = ["Owing"]


class Owing(Asking):
    """Claims them, and notes what was sent."""

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

    def _span_keys(self, job_id: str) -> list[str]:
        return [self._keys.part(job_id, "j"), self._keys.spans(shard_of(job_id))]
