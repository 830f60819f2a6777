"""What the server's settings promise: read once, and said once in plain words where it is less."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

from tracedjobs.stores.redis.node import is_away
from tracedjobs.stores.redis.refusal import refusal

if TYPE_CHECKING:
    from tracedjobs.stores.redis.node import Node
    from tracedjobs.stores.redis.servers import Servers

__all__ = ["warn_of_settings"]

_log: Final = logging.getLogger("tracedjobs")
NAMES: Final = ("appendonly", "appendfsync", "save", "maxmemory", "maxmemory-policy")
_said: set[str] = set()


def warn_of_settings(servers: Servers, url: str) -> None:
    """Warn where jobs may be lost. Raises `StoreError` when no server answers.

    Each is asked once: a replica that became the primary may be set otherwise.
    """
    asked = [("CONFIG", "GET", name) for name in NAMES]
    nodes, servers.fresh = servers.nodes(), False
    new = [node for node in nodes if not node.settings_asked]
    sent = [(node, node.send(asked)) for node in new]
    answers = [(node, node.receive(way)) for node, way in sent]
    there = [(node, replies) for node, replies in answers if not is_away(replies[0])]
    for node in new:
        node.settings_asked = True
    if len(new) == len(nodes) and not there:
        for node in new:
            node.settings_asked = False
        node, replies = answers[0]
        servers.forget()
        raise refusal(replies[0], node.where)
    for node, replies in there:
        for sentence in _amiss(node, replies):
            if sentence not in _said:
                _said.add(sentence)
                _log.warning("%s (store %s)", sentence, url)


def _amiss(node: Node, replies: list[Any]) -> list[str]:
    found: dict[str, str] = {}
    for name, reply in zip(NAMES, replies, strict=True):
        if isinstance(reply, Exception):
            return [
                f"Redis at {node.where} does not let its settings be read: it cannot be known "  # noqa: ISC004 - one sentence
                f"whether jobs outlive a restart, or are evicted when its memory is full."
            ]
        found[name] = reply.get(name, "")
    amiss = []
    if found["appendonly"] != "yes" and not found["save"]:
        amiss.append(
            f"Redis at {node.where} persists nothing (appendonly no, no save): a restart of it "
            f"loses all jobs. Set appendonly yes."
        )
    elif found["appendonly"] != "yes":
        amiss.append(
            f"Redis at {node.where} writes snapshots alone (save {found['save']}): a restart of it "
            f"may lose what was saved since the last one. Set appendonly yes."
        )
    elif found["appendfsync"] == "no":
        amiss.append(
            f"Redis at {node.where} leaves it to its host when jobs are written to the disk "
            f"(appendfsync no): a failure of the host may lose half a minute of saves. Set "
            f"appendfsync everysec."
        )
    if found["maxmemory"] != "0" and found["maxmemory-policy"] != "noeviction":
        amiss.append(
            f"Redis at {node.where} evicts keys when its memory is full (maxmemory-policy "
            f"{found['maxmemory-policy']}), and jobs may be among them. Set noeviction."
        )
    return amiss
