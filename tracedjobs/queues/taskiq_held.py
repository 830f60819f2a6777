"""Which messages Taskiq's brokers on Redis hold, as far as they can tell.

A list forgets what it gives out, and a channel keeps nothing. A stream gives it to another worker
after `idle_timeout`, though not before it has given out something new: so what has waited for
longer counts as lost. Of other brokers nothing is known here.
"""

from __future__ import annotations

from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

from tracedjobs.queues.taskiq_worker import formatter_of, wait_for

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator

    from taskiq import AsyncBroker

__all__ = ["held_by"]

PAGE: Final = 1000
OVERLAP: Final = 100
"""So many messages may be put in front of a list while a page is read, and none is missed."""


def held_by(app: AsyncBroker, queues: Iterable[str]) -> Iterable[str] | None:
    """The ids of the messages in those queues, the next ones first; `None` if that is not known."""
    ids = _ids_of(app)
    match _kind_of(app):
        case "list":
            return (each for queue in set(queues) for each in ids(_in_list(app, queue)))
        case "stream":
            return (each for queue in set(queues) for each in ids(_in_stream(app, queue)))
        case "channel":
            return ()
        case _:
            return None


def _kind_of(app: AsyncBroker) -> str | None:
    """What kind of broker of taskiq-redis it is, or is derived from."""
    kinds = {"ListQueue": "list", "RedisStream": "stream", "PubSub": "channel"}
    for cls in type(app).__mro__:
        if cls.__module__.startswith("taskiq_redis."):
            for name, kind in kinds.items():
                if cls.__name__.startswith(name):
                    return kind
    return None


def _ids_of(app: AsyncBroker) -> Callable[[Iterable[bytes]], Iterator[str]]:
    loads = formatter_of(app).loads

    def ids(messages: Iterable[bytes]) -> Iterator[str]:
        for each in messages:
            with suppress(Exception):  # a message of somebody else's
                yield loads(each).task_id

    return ids


def _asked(app: AsyncBroker, command: str, *args: object, **options: object) -> Any:
    async def asking() -> Any:
        async with _client(app) as client:
            return await getattr(client, command)(*args, **options)

    return wait_for(app, asking)


@asynccontextmanager
async def _client(app: Any) -> AsyncIterator[Any]:
    """A client on the broker's own connections."""
    if hasattr(app, "connection_pool"):
        from redis.asyncio import Redis  # noqa: PLC0415 - slow, and not for every broker

        async with Redis(connection_pool=app.connection_pool) as client:
            yield client
    elif hasattr(app, "sentinel"):
        async with app.sentinel.master_for(app.master_name) as client:
            yield client
    else:
        yield app.redis


def _in_list(app: AsyncBroker, queue: str) -> Iterator[bytes]:
    """From the end, where workers take, to the front, where messages are put.

    By places counted from the front, which do not move when one is taken. They do when one is put:
    so each page begins where the last one did not come to.
    """
    end = int(_asked(app, "llen", queue)) + OVERLAP
    while end > 0:
        start = max(end - PAGE, 0)
        yield from reversed(_asked(app, "lrange", queue, start, end))
        end = start + OVERLAP if start else 0


def _in_stream(app: Any, queue: str) -> Iterator[bytes]:
    """What is not given out yet, and then what was given out not long ago."""
    group = app.consumer_group_name
    groups = _asked(app, "xinfo_groups", queue)
    mine = next(each for each in groups if _text(each["name"]) == group)
    last = _text(mine["last-delivered-id"])
    while page := _asked(app, "xrange", queue, min=f"({last}", count=PAGE):
        yield from (fields[b"data"] for _, fields in page)
        last = _text(page[-1][0])
    yield from _given_out(app, queue, group)


def _given_out(app: Any, queue: str, group: str) -> Iterator[bytes]:
    idle = getattr(app, "idle_timeout", None)  # a cluster's broker gives nothing back
    last = "-"
    while page := _asked(app, "xpending_range", queue, group, last, "+", PAGE):
        for each in page:
            if idle is not None and each["time_since_delivered"] < idle:
                at = each["message_id"]
                found = _asked(app, "xrange", queue, min=at, max=at)
                yield from (fields[b"data"] for _, fields in found)
        last = f"({_text(page[-1]['message_id'])}"


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
