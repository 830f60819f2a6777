"""Lines of text with exact byte offsets: which encodings allow that, and the reading itself.

Not for anything that knows what a line means; that is up to the source that reads them.
"""

from __future__ import annotations

import codecs
import io
import os
from itertools import accumulate, chain, repeat
from typing import TYPE_CHECKING

from tracedjobs.errors import SourceChangedError, SourceError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import BinaryIO

__all__ = ["WAY_OUT", "Lines", "allowed_encoding", "at_end_of_line", "codec_and_start"]

WAY_OUT = "; bring the old file back, or rewind the step to start over"
"""What every message about a changed source ends with."""

# A small first block keeps resuming cheap, larger ones afterwards keep reading fast.
_FIRST_BLOCK = 8 * 1024
_LARGEST_BLOCK = 64 * 1024

_BYTE_ORDER_MARKS = {
    "utf-8": codecs.BOM_UTF8,
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-le": codecs.BOM_UTF32_LE,
    "utf-32-be": codecs.BOM_UTF32_BE,
}
# Only encodings in which any line can be decoded by itself, and in which the bytes of a newline
# never are a part of another character. Stateful ones (utf-7, iso2022, hz) are not among them.
_ENCODINGS = frozenset(
    [
        *_BYTE_ORDER_MARKS,
        *("utf-8-sig", "utf-16", "utf-32", "ascii"),
        *(f"iso8859-{part}" for part in range(1, 17) if part != 12),  # noqa: PLR2004 - there is no part 12
        *(f"cp125{page}" for page in range(9)),
        *("cp437", "cp850", "cp852", "cp866", "koi8-r", "koi8-u", "mac-roman"),
        *("cp932", "shift_jis", "euc_jp", "cp949", "euc_kr"),
        *("gbk", "gb2312", "gb18030", "big5", "cp950"),
    ]
)


def allowed_encoding(encoding: str) -> str:
    """Give Python's name of the encoding; raise `ValueError` if its lines have no safe offsets."""
    try:
        name = codecs.lookup(encoding).name
    except LookupError:
        raise ValueError(f"Python knows no encoding {encoding!r}") from None
    if name not in _ENCODINGS:
        raise ValueError(
            f"encoding {encoding!r} is not among those whose lines can be decoded one by one from "
            f"any offset; convert the file first: iconv -f {encoding} -t utf-8"
        )
    return name


def codec_and_start(head: bytes, path: Path, encoding: str) -> tuple[str, int]:
    """Tell from the first bytes what decodes a line, and where the text begins after its mark."""
    if encoding in ("utf-16", "utf-32"):
        orders = (f"{encoding}-le", f"{encoding}-be")
        marked = [codec for codec in orders if head.startswith(_BYTE_ORDER_MARKS[codec])]
        if head and not marked:
            raise SourceError(
                f"{path} has no byte order mark at its head: say which order it has, "
                f"encoding={orders[0]!r} or {orders[1]!r}"
            )
        encoding = marked[0] if marked else orders[0]
    codec = encoding.removesuffix("-sig")
    mark = _BYTE_ORDER_MARKS.get(codec, b"")
    return codec, len(mark) if head.startswith(mark) else 0


class Lines:
    """The text lines of a file from `start` on, in blocks, with the byte offset after each."""

    __slots__ = ("_codec", "_file", "_path", "before", "ends")

    def __init__(self, file: BinaryIO, path: Path, codec: str, start: int) -> None:
        self._file = file
        self._path = path
        self._codec = codec
        self.before = 0
        """The number of lines in the blocks before the newest."""
        self.ends = [start]
        """Where the newest block begins, then the offset after each of its lines."""

    def end_of(self, line: int) -> int:
        """Give the byte offset after that line of the newest block; lines count from 1."""
        return self.ends[line - self.before]

    def __iter__(self) -> Iterator[str]:
        # No frame of Python per line: this is what makes it faster than csv.DictReader.
        return chain.from_iterable(self._blocks())

    def _blocks(self) -> Iterator[list[str]]:
        self._file.seek(self.ends[0])
        size_at_first = os.fstat(self._file.fileno()).st_size
        block, rest, ended = _FIRST_BLOCK, b"", False
        while not ended:
            # At least doubling what is left over keeps a very long line from being quadratic.
            read = self._file.read(max(block, len(rest)))
            ended = not read
            rest += read
            if ended and self.ends[-1] + len(rest) < size_at_first:
                raise SourceChangedError(
                    f"{self._path} was cut short while it was being read" + WAY_OUT
                )
            lines, rest = _split(rest, self._codec, ended=ended)
            if lines:
                self.before += len(self.ends) - 1
                self.ends = list(accumulate(map(len, lines), initial=self.ends[-1]))
                yield from self._decoded(lines)
            block = min(block * 2, _LARGEST_BLOCK)

    def _decoded(self, lines: list[bytes]) -> Iterator[list[str]]:
        try:
            texts = list(map(str, lines, repeat(self._codec)))
        except UnicodeDecodeError:
            # The lines before the bad one are given first, so that their rows get done.
            for number, line in enumerate(lines):
                try:
                    text = line.decode(self._codec)
                except UnicodeDecodeError as error:
                    raise ValueError(self._undecodable(error, self.ends[number])) from error
                yield [text]
        else:
            yield texts

    def _undecodable(self, error: UnicodeDecodeError, line_at: int) -> str:
        start = error.start
        return (
            f"byte {line_at + start} (0x{error.object[start]:02x}) is not {self._codec}: "
            f"{error.reason}; pass the file's encoding=…, or mend the file there"
        )


def _split(data: bytes, codec: str, *, ended: bool) -> tuple[list[bytes], bytes]:
    """Give the complete lines, and the rest; a CR at the end may yet be followed by its LF."""
    broken = False
    if codec.startswith(("utf-16", "utf-32")):
        lines, rest, broken = _split_wide(data, codec)
    else:
        # Of bytes, unlike of text, this splits at CR, LF and CRLF alone, as csv wants it.
        lines, rest = data.splitlines(keepends=True), b""
    if lines and not lines[-1].endswith("\n".encode(codec)):
        rest = lines.pop() + rest
    if rest and (ended or broken):
        lines.append(rest)
        rest = b""
    return lines, rest


def _split_wide(data: bytes, codec: str) -> tuple[list[bytes], bytes, bool]:
    """Give lines, what is left of a character cut in two, and whether that is no text at all."""
    decoder, broken = codecs.getincrementaldecoder(codec)(), False
    try:
        text = decoder.decode(data)
    except UnicodeDecodeError as error:
        text, broken = data[: error.start].decode(codec), True
    lines = [line.encode(codec) for line in io.StringIO(text, newline="")]
    return lines, data[sum(map(len, lines)) :], broken


def at_end_of_line(file: BinaryIO, codec: str, offset: int) -> bool:
    """Tell whether a line ends right before that byte, or at it."""
    newlines = ("\n".encode(codec), "\r".encode(codec))
    width = len(newlines[0])
    file.seek(offset - width)
    before, after = file.read(width), file.read(width)
    # A last line without a newline ends a row as well, and gets its newline when rows are appended.
    return offset % width == 0 and (before in newlines or not after or after in newlines)
