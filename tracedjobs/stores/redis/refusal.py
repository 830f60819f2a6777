"""What a server's refusal means: whether trying again may help, and what to do where it does not.

Errors inside scripts come as plain texts on older servers, so their texts are looked at too.
"""

from __future__ import annotations

from typing import Final

from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    NoPermissionError,
)
from redis.exceptions import (
    ConnectionError as RedisConnectionError,
)
from redis.exceptions import (
    TimeoutError as RedisTimeoutError,
)

from tracedjobs.errors import StoreError, StoreUnavailableError

__all__ = ["refusal", "status_of"]

PASSING: Final = {
    "BUSY": "it is busy with a script",
    "CLUSTERDOWN": "its cluster is down",
    "LOADING": "it is still loading its data",
    "MASTERDOWN": "its primary is away",
    "MISCONF": "it cannot persist its data, see its log",
    "MOVED": "the slot is moving between nodes",
    "ASK": "the slot is moving between nodes",
    "NOSCRIPT": "it has not taken a script of ours in time",
    "NOREPLICAS": "it has too few replicas that keep up",
    "OOM": "its memory is full (maxmemory)",
    "READONLY": "it is a read-only replica",
    "TRYAGAIN": "the slot is moving between nodes",
}
_NO_PERMISSION: Final = (
    "is not permitted to do what tracedjobs needs ({error}); give its user the commands and keys "
    "that the documentation of the Redis store lists"
)


def status_of(error: Exception) -> str:
    """The word a reply of error begins with, wherever the client or a script put it."""
    code = getattr(error, "status_code", None)
    if isinstance(code, str) and code != "ERR":
        return code
    words = str(error).replace(":", " ").split()
    if "maxmemory" in words or "'maxmemory'." in words:
        return "OOM"
    for word in words:
        if word.lstrip("-").strip("'") in PASSING:
            return word.lstrip("-").strip("'")
    return words[0].lstrip("-") if words else ""


def refusal(error: Exception, where: str) -> StoreError:
    """The error to raise for what the client, or the server at `where`, raised."""
    status = status_of(error)
    if isinstance(error, NoPermissionError) or status == "NOPERM":
        return StoreError(f"Redis at {where}: the user {_NO_PERMISSION.format(error=error)}.")
    if isinstance(error, (AuthenticationError, AuthorizationError)) or status in {
        "NOAUTH",
        "WRONGPASS",
    }:
        return StoreError(
            f"Redis at {where} refused the user or the password; check those in the store's "
            f"address ({error})."
        )
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return StoreError(
            f"Redis at {where} shows a certificate that cannot be verified; name the authority's "
            f"with ssl_ca_certs= in the store's address ({error})."
        )
    if status in PASSING:
        return StoreUnavailableError(f"Redis at {where} refused just now: {PASSING[status]}.")
    if isinstance(error, (RedisConnectionError, RedisTimeoutError, OSError)):
        return StoreUnavailableError(f"Redis at {where} cannot be reached: {error}")
    return StoreError(f"Redis at {where} refused: {error}")
