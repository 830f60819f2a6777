"""The scripts, each one atomic write or read of one shard."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from tracedjobs.stores.redis.wire import Words

__all__ = ["Command", "Script", "call", "script"]


@dataclass(frozen=True, slots=True)
class Script:
    """A script and the digest by which a server that knows it runs it."""

    name: str
    text: str = field(repr=False)
    sha: str


class Command(NamedTuple):
    """One command for the server that has the shard; `script` is the one it runs, if it does."""

    shard: int
    words: Words
    script: Script | None = None
    writes: bool = False


@cache
def script(name: str) -> Script:
    """The script in `scripts/<name>.lua`."""
    text = (files(__package__) / "scripts" / f"{name}.lua").read_text("utf-8")
    return Script(name, text, hashlib.sha1(text.encode()).hexdigest())  # noqa: S324 - Redis' own name for it


def call(
    name: str,
    shard: int,
    keys: list[str],
    args: list[str | int],
    *,
    writes: bool = False,
) -> Command:
    """The command that runs a script."""
    found = script(name)
    words = ("EVALSHA", found.sha, len(keys), *keys, *args)
    return Command(shard, words, found, writes)
