"""Commands as they go over the wire.

redis-py's packer is for any kind of value, and takes three times as long: a save has a dozen words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Packed", "Words", "on_the_wire", "word"]


class Packed(NamedTuple):
    """A command that whoever made it has packed already."""

    text: str


Words = Sequence[str | int] | Packed


def word(text: str) -> str:
    """One word of a command."""
    length = len(text) if text.isascii() else len(text.encode())
    return f"${length}\r\n{text}\r\n"


def on_the_wire(commands: Sequence[Words]) -> bytes:
    """All that is to be sent for the commands."""
    parts: list[str] = []
    for words in commands:
        if type(words) is Packed:
            parts.append(words.text)
            continue
        parts.append(f"*{len(words)}\r\n")
        for each in words:
            text = str(each)
            length = len(text) if text.isascii() else len(text.encode())
            parts.append(f"${length}\r\n{text}\r\n")
    return "".join(parts).encode()
