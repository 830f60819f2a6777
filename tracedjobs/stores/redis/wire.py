"""Commands as they go over the wire.

redis-py's packer is for any kind of value, and takes three times as long: a change has eighty
words.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Final, NamedTuple

__all__ = ["Packed", "Words", "on_the_wire", "word"]


class Packed(NamedTuple):
    """A command that whoever made it has packed already."""

    text: str


Words = Sequence[str | int] | Packed


class _Lengths(dict[int, str]):
    """How the length of a word is written; of a long one it is made each time."""

    def __missing__(self, length: int) -> str:
        return f"${length}"


_LENGTHS: Final = _Lengths((length, f"${length}") for length in range(1024))


def on_the_wire(command: Words) -> bytes:
    """The command as it is sent."""
    if type(command) is Packed:
        return command.text.encode()
    words = list(map(str, command))
    # No line of Python is run for each word, as long as all are ASCII.
    lines = [f"*{len(words)}"]
    lines += chain.from_iterable(
        zip(map(_LENGTHS.__getitem__, map(len, words)), words, strict=True)
    )
    lines.append("")
    text = "\r\n".join(lines)
    if not text.isascii():
        text = "".join((f"*{len(words)}\r\n", *map(word, words)))
    return text.encode()


def word(text: str) -> str:
    """One word of a command."""
    length = len(text) if text.isascii() else len(text.encode())
    return f"${length}\r\n{text}\r\n"
