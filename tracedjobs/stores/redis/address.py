"""The addresses of Redis stores: what is asked of which servers, and what may be shown of it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

from tracedjobs.errors import StoreError

__all__ = ["Address"]

KINDS: Final = ("", "sentinel", "cluster")
OWN: Final[tuple[str, ...]] = (
    "prefix",
    "timeout",
    "wait",
    "waitaof",
    "sentinel_username",
    "sentinel_password",
)
TLS: Final = (
    "ssl_ca_certs",
    "ssl_ca_path",
    "ssl_ca_data",
    "ssl_certfile",
    "ssl_keyfile",
    "ssl_password",
    "ssl_cert_reqs",
    "ssl_check_hostname",
    "ssl_ciphers",
)
"""What redis-py takes of these as a text, or as yes or no."""


@dataclass(frozen=True, slots=True)
class Address:
    """`redis://`, `rediss://`, and with `+sentinel` or `+cluster` before the colon.

    `url` is without secrets; `connection` is what redis-py's connections are made with, and `repr`
    shows neither it nor `sentinel`.
    """

    url: str
    kind: str
    hosts: tuple[tuple[str, int], ...]
    service: str | None
    prefix: str
    timeout: float
    wait: int
    waitaof: bool
    tls: bool
    connection: dict[str, Any] = field(repr=False)
    sentinel: dict[str, Any] = field(repr=False)

    @classmethod
    def from_url(cls, url: str, *, timeout: float) -> Address:
        """Read it; `StoreError`, which repeats no password, when it is malformed."""
        try:
            return _parsed(url, timeout)
        except (ValueError, TypeError) as error:
            # from None: the cause may have the password in it
            msg = f"The address {_shown(url)} of a Redis store cannot be read: {_reason(error)}."
            raise StoreError(msg) from None


class _MalformedError(ValueError):
    """Has a message that may be shown."""


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, _MalformedError) else "it is malformed"


def _shown(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{re.split('[/?#]', rest.rpartition('@')[2])[0]}…"


def _parsed(url: str, timeout: float) -> Address:
    scheme, _, rest = url.partition("://")
    authority = re.split("[/?#]", rest)[0]
    # Without the hosts: several of them, with IPv6 among them, are refused by some Pythons.
    parts = urlsplit(f"{scheme}://hosts{rest.removeprefix(authority)}")
    base, _, kind = parts.scheme.partition("+")
    if base not in {"redis", "rediss"} or kind not in KINDS:
        raise _MalformedError("its scheme is unknown")
    if parts.fragment or "@" in parts.path:
        raise _MalformedError(
            "what follows the host is no database; in a password / ? # and @ are written as %2F, "
            "%3F, %23 and %40"
        )
    userinfo, _, netloc = authority.rpartition("@")
    default = 26379 if kind == "sentinel" else 6379
    hosts = tuple(_host(each, default) for each in netloc.split(","))
    if len(hosts) > 1 and not kind:
        raise _MalformedError(
            f"several hosts need {base}+sentinel:// or {base}+cluster://, as one server has one"
        )
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    own = {name: query.pop(name) for name in OWN if name in query}
    for name in query:
        if name not in TLS:
            shown = "an option" if "@" in name else f"the option {name!r}"  # part of a password
            raise _MalformedError(f"{shown} is unknown; there are {', '.join((*OWN[:4], *TLS))}")
        if base == "redis":
            raise _MalformedError(f"{name} is for rediss://, which speaks TLS")
    service, db = _path(parts.path, kind)
    username, _, password = userinfo.partition(":")
    connection: dict[str, Any] = {"db": db, **_tls(query)}
    if username:
        connection["username"] = unquote(username)
    if password:
        connection["password"] = unquote(password)
    sentinel: dict[str, Any] = _tls(query)
    for name in ("username", "password"):
        if f"sentinel_{name}" in own:
            sentinel[name] = own[f"sentinel_{name}"]
    kept = {name: own[name] for name in OWN[:4] if name in own}
    shown = "&".join(f"{name}={value}" for name, value in kept.items())
    return Address(
        url=f"{parts.scheme}://{netloc}{parts.path}{'?' if shown else ''}{shown}",
        kind=kind,
        hosts=hosts,
        service=service,
        prefix=_prefix(own.get("prefix", "tj")),
        timeout=_number(own, "timeout", timeout),
        wait=int(_number(own, "wait", 0)),
        waitaof=_number(own, "waitaof", 0) > 0,
        tls=base == "rediss",
        connection=connection,
        sentinel=sentinel,
    )


def _host(text: str, default: int) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    return unquote(parts.hostname or "localhost"), parts.port or default


def _path(path: str, kind: str) -> tuple[str | None, int]:
    words = [unquote(word) for word in path.split("/") if word]
    service = None
    if kind == "sentinel":
        if not words:
            raise _MalformedError("the service's name is missing: redis+sentinel://host/service")
        service = words.pop(0)
    if len(words) > 1 or not all(word.isdecimal() for word in words):
        raise _MalformedError("what follows the host is no number of a database")
    db = int(words[0]) if words else 0
    if kind == "cluster" and db:
        raise _MalformedError("a cluster has database 0 alone")
    return service, db


def _tls(query: dict[str, str]) -> dict[str, Any]:
    return {
        name: value.lower() in {"1", "true", "yes"} if name == "ssl_check_hostname" else value
        for name, value in query.items()
    }


def _prefix(prefix: str) -> str:
    if not prefix or not prefix.isprintable() or set(prefix) & set("{} "):
        raise _MalformedError(f"prefix={prefix!r} is empty, or has a space or a brace in it")
    return prefix


def _number(own: dict[str, str], name: str, default: float) -> float:
    text = own.get(name)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise _MalformedError(f"{name}={text} is no number that can be used")
    return value
