"""What is added to the totals of a shard: their fields, with few names of steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tracedjobs._core.counting import OTHER
from tracedjobs.errors import StoreError, StoreUnavailableError
from tracedjobs.stores.base import STEP_NAMES
from tracedjobs.stores.redis.asking import Asking
from tracedjobs.stores.redis.keys import shard_of
from tracedjobs.stores.redis.packing import total_field
from tracedjobs.stores.redis.script import call

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracedjobs._core.records import Count, TotalKey
    from tracedjobs.stores.redis.address import Address

__all__ = ["MANY_NAMES", "Adding"]

MANY_NAMES: Final = 10_000
"""Step names that a process remembers, those included that are not told apart."""


class Adding(Asking):
    """Knows which names of steps are told apart."""

    def __init__(self, address: Address) -> None:
        """Know none."""
        super().__init__(address)
        self._step_names: dict[tuple[str, str], str] = {}
        self._fields: dict[TotalKey, str] = {}

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
