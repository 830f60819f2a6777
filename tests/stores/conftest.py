"""The stores that keep the promises of `Store`: one table of factories."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

import pytest

from tracedjobs.stores import open_store
from tracedjobs.stores.memory import MemoryStore
from tracedjobs.stores.sqlite import SQLiteStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.stores.redis_servers import RedisServer
    from tracedjobs.stores import Store

STORES: Final[dict[str, Callable[[pytest.FixtureRequest, Path], Store]]] = {
    "sqlite": lambda _, folder: SQLiteStore(str(folder / "jobs.db"), synchronous="NORMAL"),
    "memory": lambda *_: MemoryStore(),
    "redis": lambda request, _: open_store(
        f"{request.getfixturevalue('redis_server').url}?prefix=tj{os.urandom(6).hex()}"
    ),
    "redis+cluster": lambda request, _: open_store(
        f"{request.getfixturevalue('redis_cluster').url}?prefix=tj{os.urandom(6).hex()}"
    ),
}


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """An empty store, of each kind in turn."""
    made = STORES[request.param](request, tmp_path)
    yield made
    made.close()


@pytest.fixture
def prefix() -> str:
    """Of the keys of `redis_store`."""
    return f"tj{os.urandom(6).hex()}"


@pytest.fixture
def redis_store(redis_server: RedisServer, prefix: str) -> Iterator[Store]:
    """An empty store on the server that tests share."""
    made = open_store(f"{redis_server.url}?prefix={prefix}")
    yield made
    made.close()
