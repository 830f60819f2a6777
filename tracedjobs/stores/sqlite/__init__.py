"""Jobs in a SQLite file: for one host, any number of processes, no server.

The lease clock is the host's boot clock. With `synchronous=FULL`, the default, what was
acknowledged outlives a loss of power; `?synchronous=normal` trades that for speed and keeps only
what an ordinary end of process or kill leaves.
"""

from __future__ import annotations

from tracedjobs.stores.sqlite.store import SQLiteStore

__all__ = ["SQLiteStore"]
