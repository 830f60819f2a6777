"""Which server has which shard: one, the primary that Sentinels name, or the nodes of a cluster.

It sends each server its commands in one round trip, and again those alone that failed for a reason
that can be mended at once: a script it did not know, a slot that has moved.
"""

from __future__ import annotations

import os
import random
import time
from typing import TYPE_CHECKING, Any, Final, cast

from redis.crc import key_slot
from redis.exceptions import (
    ConnectionError as RedisConnectionError,
)
from redis.exceptions import (
    TimeoutError as RedisTimeoutError,
)

from tracedjobs.errors import StoreError
from tracedjobs.stores.redis.keys import SHARDS, Keys
from tracedjobs.stores.redis.node import Node, Sent, is_away
from tracedjobs.stores.redis.refusal import refusal, status_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tracedjobs.stores.redis.address import Address
    from tracedjobs.stores.redis.script import Command, Script
    from tracedjobs.stores.redis.wire import Words

__all__ = ["Servers"]

TRIES: Final = 4
"""How often a command is sent: at first, with its script, and where its slot has moved."""
FINDING: Final = 0.9
"""Of a call's time limit: for finding out who is the primary. One that is frozen takes half of it,
and the next one is asked."""

NO_TIME: Final = "no answer in the time that was left by other servers"


class Servers:
    """The servers of one address, as one process knows them."""

    def __init__(self, address: Address) -> None:
        self._address = address
        # Half, where a call may have to ask who is the primary first.
        self._timeout = address.timeout / (2 if address.kind else 1)
        self._nodes: dict[tuple[str, int], Node] = {}
        self._sentinels = [self._sentinel(host, port) for host, port in address.hosts]
        self._owners: list[Node] | None = None
        self._has_waits = bool(self._waits())
        self._known: set[Script | None] = set()
        """Scripts that the one server knew when they were last sent by `send_one`."""
        self.fresh = False
        """Whether owners were found since this was last set back."""
        self.pid = os.getpid()

    def run(self, commands: Sequence[Command]) -> list[Any]:
        """The replies in the commands' order; a `StoreError` in the place of one that failed."""
        replies: list[Any] = [None] * len(commands)
        pending = list(range(len(commands)))
        asking: dict[int, Node] = {}
        unknown: set[tuple[Node, Script]] = set()
        give_up = time.monotonic() + self._address.timeout
        for attempt in range(TRIES):
            try:
                groups = self._groups(commands, pending, asking)
            except StoreError as error:
                for index in pending:
                    replies[index] = error
                break
            pending = []
            for node, indexes, answers in self._exchange(groups, commands, asking, unknown):
                for index, answer in zip(indexes, answers, strict=True):
                    replies[index] = answer
                    if not isinstance(answer, Exception):
                        continue
                    replies[index] = refusal(answer, node.where)
                    if attempt + 1 < TRIES and self._mended(
                        node, commands[index], index, answer, asking, unknown
                    ):
                        pending.append(index)
            if not pending or time.monotonic() >= give_up:
                break
        return replies

    def run_one(self, command: Command) -> Any:
        """The reply, or a `StoreError` in its place: what `run` does of one command.

        In a third of the time where there is one server, and nothing goes wrong.
        """
        if self._address.kind or self._has_waits:
            return self.run([command])[0]
        node = self.node(command.shard)
        return self._judged(node, command, node.ask(command.words))

    def send_one(self, command: Command) -> Callable[[], Any]:
        """Send it, and give what waits for what `run_one` gives, to be called once.

        It waits by itself for a script that the server may not know: that would be sent once more,
        and so be run only when somebody waits.
        """
        if self._address.kind or self._has_waits or command.script not in self._known:
            reply = self.run_one(command)
            if not isinstance(reply, StoreError):
                self._known.add(command.script)
            return lambda: reply
        node = self.node(command.shard)
        sent = node.send([command.words])

        def wait() -> Any:
            reply = node.receive(sent)[0]
            if isinstance(reply, Exception):
                self._known.discard(command.script)
            return self._judged(node, command, reply)

        return wait

    def _judged(self, node: Node, command: Command, answer: Any) -> Any:
        if not isinstance(answer, Exception):
            return answer
        if _lacks_script(answer):
            return self.run([command])[0]  # as if it had not been sent: it was not run
        return refusal(answer, node.where)

    def node(self, shard: int) -> Node:
        """The server that has the shard; `StoreError` when none is known."""
        owners = self._owners
        if owners is None:
            owners = self._owners = self._find()
            self.fresh = True
        return owners[shard]

    def nodes(self) -> list[Node]:
        """All servers that have shards."""
        return list({id(node): node for node in map(self.node, range(SHARDS))}.values())

    def shards(self) -> list[int]:
        """One shard of each server."""
        return list({id(self.node(shard)): shard for shard in range(SHARDS)}.values())

    def time(self, *, age: float) -> float | None:
        """The clock of one of the servers, as `Node.time`; `None` when one has to be asked."""
        now = self.node(0).time(age=age)
        if now is not None:
            return now
        known = (node.time(age=age) for node in self._owners or ())
        return next((now for now in known if now is not None), None)

    def forget(self) -> None:
        """Look the owners up again at the next call: one may have taken the place of another."""
        if self._address.kind:
            self._owners = None

    def close(self) -> None:
        """Close all connections."""
        for node in [*self._nodes.values(), *self._sentinels]:
            node.close()

    # -- sending ---

    def _groups(
        self, commands: Sequence[Command], pending: list[int], asking: dict[int, Node]
    ) -> list[tuple[Node, list[int]]]:
        groups: dict[int, tuple[Node, list[int]]] = {}
        for index in pending:
            node = asking.get(index) or self.node(commands[index].shard)
            groups.setdefault(id(node), (node, []))[1].append(index)
        return list(groups.values())

    def _exchange(
        self,
        groups: list[tuple[Node, list[int]]],
        commands: Sequence[Command],
        asking: dict[int, Node],
        unknown: set[tuple[Node, Script]],
    ) -> list[tuple[Node, list[int], list[Any]]]:
        """Send to all before anything is received, so that one slow server delays no other.

        Those that were away last time come last, and together they are waited for no longer than
        one is.
        """
        if len(groups) == 1 and not (asking or unknown or self._has_waits):
            # As nearly always: one server, and nothing to be sent beside the commands.
            ((node, indexes),) = groups
            return [(node, indexes, node.run(*[commands[index].words for index in indexes]))]
        groups.sort(key=lambda group: group[0].failed_at)
        late = time.monotonic() + self._timeout
        sent: list[tuple[Node, list[int], list[int | None], Sent]] = []
        found: list[tuple[Node, list[int], list[Any]]] = []
        try:
            for node, indexes in groups:
                words: list[Words] = []
                meant: list[int | None] = []
                for which, script in list(unknown):
                    if which is node:
                        words.append(("SCRIPT", "LOAD", script.text))
                        meant.append(None)
                        unknown.discard((which, script))
                for index in indexes:
                    if index in asking:
                        words.append(("ASKING",))
                        meant.append(None)
                    words.append(commands[index].words)
                    meant.append(index)
                if any(commands[index].writes for index in indexes):
                    words += self._waits()
                way = (
                    node.send(words)
                    if node is groups[0][0] or time.monotonic() < late
                    else Sent(len(words), None, RedisTimeoutError(NO_TIME))
                )
                sent.append((node, indexes, meant, way))
            while sent:
                node, indexes, meant, way = sent.pop(0)
                if found and time.monotonic() >= late and not node.answered(way):
                    node.drop_sent(way)
                    way = Sent(way.count, None, RedisTimeoutError(NO_TIME))
                answers = node.receive(way)
                short = self._unacknowledged(answers[len(meant) :])
                loads = meant.index(next(each for each in meant if each is not None))
                refused = next((each for each in answers[:loads] if _is_refusal(each)), None)
                judged: list[Any] = []
                for at, answer in zip(meant, answers, strict=False):
                    if at is None:
                        continue
                    if refused is not None and _lacks_script(answer):
                        judged.append(refused)
                    elif short and commands[at].writes and not isinstance(answer, Exception):
                        judged.append(short)
                    else:
                        judged.append(answer)
                found.append((node, indexes, judged))
        finally:
            for node, _, _, way in sent:
                node.drop_sent(way)
        for index in asking.keys() & {index for _, indexes, _ in found for index in indexes}:
            del asking[index]
        return found

    def _waits(self) -> list[Words]:
        limit = max(int(self._timeout * 500), 1)
        if self._address.waitaof:
            return [("WAITAOF", 1, self._address.wait, limit)]
        return [("WAIT", self._address.wait, limit)] if self._address.wait else []

    def _unacknowledged(self, answers: list[Any]) -> Exception | None:
        for answer in answers:
            if isinstance(answer, Exception):
                return answer
            local, replicas = answer if isinstance(answer, list) else (1, answer)
            if replicas < self._address.wait or local < 1:
                return RedisConnectionError(
                    f"{replicas} of {self._address.wait} replicas acknowledged the write in time"
                )
        return None

    def _mended(  # noqa: PLR0917 - what one exchange knows
        self,
        node: Node,
        command: Command,
        index: int,
        error: Exception,
        asking: dict[int, Node],
        unknown: set[tuple[Node, Script]],
    ) -> bool:
        """Whether it is worth sending the command again at once."""
        status = status_of(error)
        if status == "NOSCRIPT" and command.script is not None:
            unknown.add((node, command.script))
            return True
        if self._address.kind == "cluster" and status in {"MOVED", "ASK"}:
            host, port = str(error).rsplit(" ", 1)[-1].rsplit(":", 1)
            there = self._node_at(host or node.address[0], int(port))
            if status == "ASK":
                asking[index] = there
            else:
                owners = self._owners
                if owners is not None:
                    self._owners = [
                        there if at == command.shard else owner for at, owner in enumerate(owners)
                    ]
            return True
        if is_away(error) or status in {"READONLY", "CLUSTERDOWN"}:
            self.forget()
        return False

    # -- finding ---

    def _find(self) -> list[Node]:
        if self._address.kind == "cluster":
            return self._ask_cluster()
        if self._address.kind == "sentinel":
            return [self._ask_sentinels()] * SHARDS
        return [self._node_at(*self._address.hosts[0])] * SHARDS

    def _ask_sentinels(self) -> Node:
        error: Exception = RedisConnectionError("none of them knows it")
        where = ", ".join(node.where for node in self._sentinels)
        give_up = time.monotonic() + self._address.timeout * FINDING
        # The one that answered last is asked first, and those that were away last time last.
        for node in sorted(self._sentinels, key=lambda node: node.failed_at):
            if time.monotonic() >= give_up:
                break
            (answer,) = node.run(
                ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._address.service or "")
            )
            if isinstance(answer, list):
                self._sentinels.sort(key=lambda each, node=node: each is not node)  # type: ignore[misc]  # a default binds
                return self._node_at(answer[0], int(answer[1]))
            if isinstance(answer, Exception):
                error = answer
        raise refusal(error, f"{where} (Sentinels of {self._address.service!r})")

    def _ask_cluster(self) -> list[Node]:
        for host, port in self._address.hosts:
            self._node_at(host, port)
        known = list(self._nodes.values())
        random.shuffle(known)
        known.sort(key=lambda node: node.failed_at)  # one that was away is asked last
        error: Exception = RedisConnectionError("it knows no owner of a slot")
        give_up = time.monotonic() + self._address.timeout * FINDING
        for node in known:
            if time.monotonic() >= give_up:
                break
            (answer,) = node.run(("CLUSTER", "SLOTS"))
            if isinstance(answer, list):
                owners = self._owners_of(answer, node)
                if owners is not None:
                    return owners
            elif isinstance(answer, Exception):
                error = answer
        raise refusal(error, ", ".join(f"{host}:{port}" for host, port in self._address.hosts))

    def _owners_of(self, ranges: list[Any], asked: Node) -> list[Node] | None:
        keys = Keys("")
        slots = [key_slot(keys.at(shard, "").encode()) for shard in range(SHARDS)]
        owners: list[Node | None] = [None] * SHARDS
        for first, last, primary, *_ in ranges:
            for shard, slot in enumerate(slots):
                if first <= slot <= last:
                    owners[shard] = self._node_at(primary[0] or asked.address[0], primary[1])
        return None if None in owners else cast("list[Node]", owners)

    def _node_at(self, host: str, port: int) -> Node:
        address = (host, port)
        if address not in self._nodes:
            self._nodes[address] = Node(
                host,
                port,
                timeout=self._timeout,
                tls=self._address.tls,
                options=self._address.connection,
            )
        return self._nodes[address]

    def _sentinel(self, host: str, port: int) -> Node:
        return Node(
            host,
            port,
            timeout=self._timeout,
            tls=self._address.tls,
            options=self._address.sentinel,
        )


def _is_refusal(answer: object) -> bool:
    return isinstance(answer, Exception) and not is_away(answer)


def _lacks_script(answer: object) -> bool:
    return isinstance(answer, Exception) and status_of(answer) == "NOSCRIPT"
