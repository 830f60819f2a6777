"""Commands as they go over the wire, where whoever makes them packs them too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Packed", "Words", "word"]


class Packed(NamedTuple):
    """A command that whoever made it has packed already."""

    text: str


Words = Sequence[str | int] | Packed


def word(text: str) -> str:
    """One word of a command."""
    length = len(text) if text.isascii() else len(text.encode())
    return f"${length}\r\n{text}\r\n"
