"""Jobs in Redis or Valkey: for any number of hosts.

What was acknowledged lasts as long as the server's persistence makes it last; see `docs/redis.md`.
"""

from __future__ import annotations

from tracedjobs.stores.redis.store import RedisStore

__all__ = ["RedisStore"]
