"""Which messages Celery's broker holds for others to take, where that is Redis.

Those in its lists. What a worker has taken stays noted as unacknowledged, and is given back after
`visibility_timeout`, which is hours: too late for a worker that was killed. So it does not count
here; a worker that lives tells of those that it has not begun with. RabbitMQ gives them back when
the worker's connection has gone, and cannot be asked what is in a queue.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from redis import Redis

from tracedjobs.queues.versions import check_version

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from celery import Celery

__all__ = ["held_by", "is_redis"]

MAJORS: Final = (5,)
PAGE: Final = 1000
OVERLAP: Final = 100
"""So many messages may be put in front of a list while a page is read, and none is missed."""


def held_by(app: Celery, queues: Iterable[str]) -> Iterable[str] | None:
    """The ids of the messages in those queues, the next ones first; `None` if that is not known."""
    if not is_redis(app) or not _is_known:
        return None
    declared = {str(name) for name in app.amqp.queues}
    return _ids(app, sorted({*queues, *declared}))


@cache
def is_redis(app: Celery) -> bool:
    """Whether that is its broker."""
    return "redis" in str(app.connection_for_read().transport.driver_type)


def _ids(app: Celery, queues: Iterable[str]) -> Iterator[str]:
    with _channel(app) as channel:
        client: Any = Redis(connection_pool=channel.pool)
        prefix = channel.global_keyprefix
        for priority in channel.priority_steps:
            for queue in queues:
                for raw in _in_list(client, prefix + channel._q_for_pri(queue, priority)):  # noqa: SLF001 - guarded
                    yield from _id_of(raw)


@contextmanager
def _channel(app: Celery) -> Iterator[Any]:
    """A channel of a connection of our own: those of the worker are its event loop's."""
    with app.connection_for_read() as connection:
        yield connection.default_channel


def _in_list(client: Any, key: str) -> Iterator[bytes]:
    """From the end, where workers take, to the front, where messages are put.

    By places counted from the front, which do not move when one is taken. They do when one is put:
    so each page begins where the last one did not come to.
    """
    end = int(client.llen(key)) + OVERLAP
    while end > 0:
        start = max(end - PAGE, 0)
        yield from reversed(client.lrange(key, start, end))
        end = start + OVERLAP if start else 0


def _id_of(raw: Any) -> Iterator[str]:
    """The id of the task in a message of kombu's."""
    message = json.loads(raw)
    headers, properties = message.get("headers") or {}, message.get("properties") or {}
    found = headers.get("id") or properties.get("correlation_id")
    if found is not None:
        yield str(found)


_is_known: Final = check_version(
    "kombu", MAJORS, "messages that a killed worker had taken and not begun with are not missed"
)
