"""Jobs in this process's memory, for tests and one-off scripts: gone when it ends.

It is the SQLite store without a file, so that what holds there holds here.
"""

from __future__ import annotations

from tracedjobs.errors import StoreError
from tracedjobs.stores.sqlite import SQLiteStore

__all__ = ["MemoryStore"]


class MemoryStore(SQLiteStore):
    """Jobs that only this object knows."""

    def __init__(self) -> None:
        """Make an empty store."""
        super().__init__(":memory:", synchronous="OFF")
        self.url = "memory://"

    @classmethod
    def from_url(cls, url: str, *, timeout: float = 5.0) -> MemoryStore:  # noqa: ARG003 - never waits
        """Read `memory://`; it has no options."""
        if url.removesuffix("/") != "memory:/":
            msg = f"The store {url!r} has something after memory://; it is private and has no name."
            raise StoreError(msg)
        return cls()
