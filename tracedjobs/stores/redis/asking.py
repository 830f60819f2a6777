"""How a store on Redis comes by its servers, asks them, and reads the jobs in their answers."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any, Final, TypeVar

from tracedjobs.errors import StoreError, StoreUnavailableError
from tracedjobs.stores.redis.keys import SHARDS, Keys, shard_of
from tracedjobs.stores.redis.packing import Found, read_found
from tracedjobs.stores.redis.script import Command, call
from tracedjobs.stores.redis.servers import Servers
from tracedjobs.stores.redis.settings import warn_of_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tracedjobs._core.records import JobRecord
    from tracedjobs.stores.redis.address import Address

__all__ = ["Asking", "Entry", "pairs_of", "raised"]

_log: Final = logging.getLogger("tracedjobs")
CLOCK_DRIFTS: Final = 3600.0
"""Seconds after which this host's clocks may have gone another way than the server's."""
T = TypeVar("T")
Entry = tuple[int, str]
"""Birth and id of a job: its place among all."""


class Asking:
    """The servers at `address`, as one object of a process knows them."""

    def __init__(self, address: Address) -> None:
        """Remember the address; connections are made at the first use, and anew after a fork."""
        self.url = address.url
        self._address = address
        self._keys = Keys(address.prefix)
        self._servers: Servers | None = None
        self._closed = False
        self._checked = False
        self._told_away = False

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
        return [raised(reply) for reply in self._run(commands)]

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
        return [(look.shard, pairs_of(reply)) for look, reply in self._there(looks) if reply]

    def _heads(self, ids: Sequence[str]) -> list[JobRecord]:
        """Those jobs, without what belongs to them."""
        return [each.stored.job for each in self.find(ids, parts=False) if each is not None]

    def _call(
        self, name: str, shard: int, keys: list[str], args: list[str | int], *, writes: bool
    ) -> Any:
        return raised(self._ready().run_one(call(name, shard, keys, args, writes=writes)))

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


def raised(reply: Any) -> Any:
    """The reply, unless it is an error."""
    if isinstance(reply, StoreError):
        raise reply
    return reply


def pairs_of(reply: Sequence[str]) -> list[Entry]:
    """A script's numbers and texts, which come by turns."""
    return [(int(number), text) for number, text in zip(reply[::2], reply[1::2], strict=True)]
