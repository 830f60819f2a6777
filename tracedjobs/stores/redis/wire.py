"""Commands as they go over the wire.

redis-py's packer is for any kind of value, and takes three times as long: a change has eighty
words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Packed", "Words", "on_the_wire", "word"]


class Packed(NamedTuple):
    """A command that whoever made it has packed already."""

    text: str


Words = Sequence[str | int] | Packed


def on_the_wire(command: Words) -> bytes:
    """The command as it is sent."""
    if type(command) is Packed:
        return command.text.encode()
    words = list(map(str, command))
    start = f"*{len(words)}\r\n"
    text = start + "".join([f"${len(each)}\r\n{each}\r\n" for each in words])
    if not text.isascii():
        text = start + "".join(map(word, words))
    return text.encode()


def word(text: str) -> str:
    """One word of a command."""
    length = len(text) if text.isascii() else len(text.encode())
    return f"${length}\r\n{text}\r\n"
