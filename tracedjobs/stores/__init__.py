"""The table of stores: which address opens which."""

from __future__ import annotations

from importlib import import_module
from typing import Final, cast

from tracedjobs.errors import StoreError
from tracedjobs.stores.base import Store

__all__ = ["Store", "open_store"]

STORES: Final = {
    "sqlite": ("tracedjobs.stores.sqlite", "SQLiteStore"),
    "memory": ("tracedjobs.stores.memory", "MemoryStore"),
    **dict.fromkeys(
        ("redis", "rediss", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster"),
        ("tracedjobs.stores.redis", "RedisStore"),
    ),
}


def open_store(url: str, *, timeout: float = 5.0) -> Store:
    """The store at `url`, such as `sqlite:///jobs.db`.

    `timeout`: seconds that one call may wait for the store, unless the address says otherwise.
    Raises `StoreError` for an address that is malformed or of no known kind. The password in an
    address, if there is one, is never repeated.
    """
    scheme, separator, _ = url.partition("://")
    if not separator or scheme not in STORES:
        known = ", ".join(f"{each}://" for each in STORES)
        shown = f"{scheme}://…" if separator else "that address"
        msg = f"No store is known for {shown}; an address begins with one of {known}."
        raise StoreError(msg)
    module, name = STORES[scheme]
    return cast("Store", getattr(import_module(module), name).from_url(url, timeout=timeout))
