"""Sources that read files by byte offset, so that resuming seeks and never reads again.

Not for what has no such offset: compressed files, pipes and sockets are refused with the reason.
"""

from __future__ import annotations

import csv
import hashlib
import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, TypedDict, Unpack, cast

from tracedjobs.errors import SourceChangedError, SourceError
from tracedjobs.sources.lines import (
    WAY_OUT,
    Lines,
    allowed_encoding,
    at_end_of_line,
    codec_and_start,
)

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence
    from typing import BinaryIO

__all__ = ["CsvRows", "DialectOptions", "Row", "csv_rows"]

Row: TypeAlias = dict[str, str]
"""A row as wide as its header; what a longer or shorter one holds besides is up to `csv_rows`."""

_HEAD_BYTES = 64 * 1024

_COMPRESSED = (
    ("gzip", re.compile(rb"\x1f\x8b\x08")),
    ("zip (an .xlsx workbook is one too)", re.compile(rb"PK(\x03\x04|\x05\x06)")),
    ("bzip2", re.compile(rb"BZh[1-9](1AY&SY|\x17\x72\x45\x38\x50\x90)")),
    ("xz", re.compile(rb"\xfd7zXZ\x00")),
    ("zstandard", re.compile(rb"\x28\xb5\x2f\xfd")),
)


class DialectOptions(TypedDict, total=False):
    """What `csv.reader` takes to read a dialect, with the same meaning and defaults."""

    dialect: str | csv.Dialect | type[csv.Dialect]
    delimiter: str
    quotechar: str | None
    escapechar: str | None
    doublequote: bool
    skipinitialspace: bool
    lineterminator: str
    quoting: Literal[0, 1, 2, 3]
    strict: bool


def csv_rows(
    path: str | os.PathLike[str],
    *,
    encoding: str = "utf-8",
    total: Literal["bytes", "rows"] = "bytes",
    fieldnames: Sequence[str] | None = None,
    restkey: str | None = None,
    restval: str | None = None,
    **dialect: Unpack[DialectOptions],
) -> CsvRows:
    """Give the rows of a CSV file to a loop that resumes after the last finished row.

    Rows are those of `csv.DictReader` over the file opened with `newline=""`: dicts by the
    header's names, without blank lines; fields beyond the header come as a list under `restkey`,
    missing ones are `restval`. A byte order mark at the head is no part of the first name. The
    cursor is the byte offset after the row.

    Nothing is opened before the loop starts, so a job may call this in every run, also in those
    after the file was cleaned up.

    - `path`: a regular, uncompressed file. Rows may be appended to it between two runs; any other
      change is noticed on resume if the first 64 KiB differ, the file is shorter, or the cursor is
      no longer at the end of a line. The job fails then rather than mixing two files.
    - `encoding`: UTF-8, UTF-16, UTF-32, ASCII, ISO 8859, Windows code pages, or one of the
      stateless East Asian ones.
    - `total`: what progress is measured by. `"bytes"` is the file's size, to compare the cursor
      with; `"rows"` reads the file through once, when the total is first asked for.
    - `fieldnames`: names for a file without a header.
    - `dialect`: `delimiter`, `quotechar` and whatever else `csv.reader` takes. `strict=True`
      refuses what is otherwise read somehow, such as a quote that is still open at the end.

    Raises `ValueError` or `TypeError` at once for arguments that make no sense. The loop raises
    `SourceError` for what cannot be read (no such file, no header, a name twice in it, text that
    is not of this encoding, a field above `csv.field_size_limit()`), once all rows before that
    are done, and `SourceChangedError` for a file that is not the one the cursor was taken from.

    >>> rows = csv_rows("users.csv", delimiter=";")
    >>> rows.total_unit
    'bytes'
    """
    if total not in ("bytes", "rows"):
        raise ValueError(f"csv_rows: total={total!r} is neither 'bytes' nor 'rows'")
    try:
        csv.reader((), **dialect)
    except TypeError as error:
        raise TypeError(f"csv_rows: {error}") from None
    except (csv.Error, ValueError) as error:
        raise ValueError(f"csv_rows: {error}") from None
    form = _Form(
        encoding=allowed_encoding(encoding),
        fieldnames=None if fieldnames is None else _names_given(fieldnames),
        restkey=restkey,
        restval=restval,
        dialect=dialect,
    )
    return CsvRows(Path(path), form, "bytes" if total == "bytes" else "items")


def _names_given(fieldnames: Sequence[str]) -> tuple[str, ...]:
    if isinstance(fieldnames, str):
        raise TypeError(f"csv_rows: fieldnames={fieldnames!r} is one text; pass a list of names")
    names = tuple(fieldnames)
    if not names or _repeated(names):
        raise ValueError(
            f"csv_rows: fieldnames={fieldnames!r} must be names that differ, at least one"
        )
    return names


def _repeated(names: Sequence[str]) -> list[str]:
    return sorted({name for name in names if names.count(name) > 1})


@dataclass(frozen=True, slots=True)
class _Form:
    """How the file is to be read, as the caller says."""

    encoding: str
    fieldnames: tuple[str, ...] | None
    restkey: str | None
    restval: str | None
    dialect: DialectOptions


@dataclass(frozen=True, slots=True)
class _Layout:
    """What the head of the file says: its codec, its columns, and where its rows begin."""

    codec: str
    columns: tuple[str, ...]
    rows_at: int


@dataclass(slots=True, eq=False)
class CsvRows:
    """The source that `csv_rows` makes: call it with a cursor for the rows after it.

    `total_unit` is `"bytes"` if `total` is to be compared with the cursor, and `"items"` if with
    the number of rows.
    """

    path: Path
    _form: _Form = field(repr=False)
    total_unit: Literal["bytes", "items"]
    _row_count: int | None = field(default=None, init=False, repr=False)

    @property
    def total(self) -> int | None:
        """The file's size in bytes or its number of rows; `None` while it cannot be read.

        It never raises: a total is only shown, and what is wrong with the file the loop will say.
        """
        try:
            if self.total_unit == "bytes":
                return self.path.stat().st_size
            if self._row_count is None:
                self._row_count = self._counted_rows()
        except (SourceError, OSError, csv.Error, ValueError):
            return None
        return self._row_count

    def __call__(self, cursor: object = None) -> Generator[tuple[Row, int], None, None]:
        """Give each row after `cursor` with the byte offset after it; `None` or 0 is the start.

        Raises `SourceError` if the file cannot be read, and `SourceChangedError` if no row of it
        ends at `cursor`. The file is open only while the rows are being iterated over.

        >>> for row, cursor in csv_rows("users.csv")(None):
        ...     print(row["name"], cursor)
        Ada 14
        Grace 23
        """
        with self._opened() as file:
            layout = self._layout(file)
            start = self._start(file, layout, cursor)
        return self._rows(layout, start)

    def fingerprint(self) -> tuple[int, str]:
        """What to store when a loop starts: the size in bytes, and a hash of the first 64 KiB."""
        with self._opened() as file:
            size = os.fstat(file.fileno()).st_size
            return size, _digest(file, size)

    def check_fingerprint(self, stored: object) -> None:
        """Raise `SourceChangedError` unless the file is the one of `fingerprint()`, or it grew."""
        match stored:
            case (int(old_size), str(old_digest)):
                pass
            case _:
                raise SourceChangedError(
                    f"{self.path}: the step was started on another kind of source ({stored!r})"
                    + WAY_OUT
                )
        with self._opened() as file:
            size = os.fstat(file.fileno()).st_size
            if size < old_size:
                raise SourceChangedError(
                    f"{self.path} had {old_size} bytes when the step started and has {size} now"
                    + WAY_OUT
                )
            # The old size, because a short file that grew has more to hash now.
            if _digest(file, old_size) != old_digest:
                raise SourceChangedError(
                    f"{self.path} begins with other text than when the step started" + WAY_OUT
                )

    def _opened(self) -> BinaryIO:
        try:
            mode = self.path.stat().st_mode
            if stat.S_ISREG(mode):
                return self.path.open("rb")
        except OSError as error:
            raise SourceError(f"{self.path}: cannot open it: {error.strerror or error}") from error
        what = "a directory" if stat.S_ISDIR(mode) else "no regular file"
        raise SourceError(
            f"{self.path} is {what}: only a regular file can be read on from an offset"
        )

    def _layout(self, file: BinaryIO) -> _Layout:
        head = file.read(16)
        self._check_uncompressed(head)
        codec, start = codec_and_start(head, self.path, self._form.encoding)
        if self._form.fieldnames is not None:
            return _Layout(codec, self._form.fieldnames, start)
        lines = Lines(file, self.path, codec, start)
        reader = csv.reader(lines, **self._form.dialect)
        try:
            columns = tuple(next(filter(None, reader), ()))
        except (csv.Error, ValueError, OSError) as error:
            raise SourceError(
                f"{self.path}: cannot read its header: {error}{_hint(error)}"
            ) from error
        self._check_columns(columns)
        return _Layout(codec, columns, lines.end_of(reader.line_num))

    def _check_uncompressed(self, head: bytes) -> None:
        for name, magic in _COMPRESSED:
            if magic.match(head):
                raise SourceError(
                    f"{self.path} is compressed with {name}, so resuming could not seek and would "
                    "have to decompress everything before the cursor again: decompress it first, "
                    "in a step of its own"
                )

    def _check_columns(self, columns: tuple[str, ...]) -> None:
        if not columns:
            raise SourceError(
                f"{self.path} has no header: it is empty; pass fieldnames=[…] if that is right"
            )
        if repeated := _repeated(columns):
            raise SourceError(
                f"{self.path}: its header has {', '.join(map(repr, repeated))} more than once; "
                "rename a column, or pass fieldnames=[…] if the file has no header"
            )
        if any("\0" in column for column in columns):
            raise SourceError(
                f"{self.path}: its header has NUL characters; pass encoding='utf-16-le' or such"
            )

    def _start(self, file: BinaryIO, layout: _Layout, cursor: object) -> int:
        if cursor is None:
            return layout.rows_at
        if type(cursor) is not int or cursor < 0:  # a bool is an int too
            raise TypeError(
                f"{self.path}: {cursor!r} is no byte offset, so it cannot be a cursor of its rows"
            )
        if cursor in (0, layout.rows_at):
            return layout.rows_at
        size = os.fstat(file.fileno()).st_size
        if cursor > size:
            raise SourceChangedError(
                f"{self.path}: the cursor is at byte {cursor}, but the file ends at {size}"
                + WAY_OUT
            )
        if cursor < layout.rows_at or not at_end_of_line(file, layout.codec, cursor):
            raise SourceChangedError(
                f"{self.path}: no row ends at byte {cursor}, where the cursor is" + WAY_OUT
            )
        return cursor

    def _rows(self, layout: _Layout, start: int) -> Generator[tuple[Row, int], None, None]:
        names, width, cursor = layout.columns, len(layout.columns), start
        with self._opened() as file:
            lines = Lines(file, self.path, layout.codec, start)
            reader = csv.reader(lines, **self._form.dialect)
            try:
                for values in reader:
                    row = dict(zip(names, values))  # noqa: B905 - the keyword costs a fifth
                    if len(values) != width:
                        if not values:  # a blank line
                            continue
                        self._even_out(row, names, values)
                    # The reader takes no line more than the row needs, so this is its exact end.
                    cursor = lines.ends[reader.line_num - lines.before]
                    yield row, cursor
            except (csv.Error, ValueError, OSError) as error:
                raise SourceError(
                    f"{self.path}: cannot read the row at byte {cursor}: {error}{_hint(error)}"
                ) from error

    def _even_out(self, row: Row, names: tuple[str, ...], values: list[str]) -> None:
        ragged = cast("dict[str | None, str | list[str] | None]", row)
        if len(values) > len(names):
            ragged[self._form.restkey] = values[len(names) :]
        ragged.update(dict.fromkeys(names[len(values) :], self._form.restval))

    def _counted_rows(self) -> int:
        with self._opened() as file:
            layout = self._layout(file)
            lines = Lines(file, self.path, layout.codec, layout.rows_at)
            return sum(map(bool, csv.reader(lines, **self._form.dialect)))


def _digest(file: BinaryIO, size: int) -> str:
    file.seek(0)
    return hashlib.blake2b(file.read(min(size, _HEAD_BYTES)), digest_size=16).hexdigest()


def _hint(error: Exception) -> str:
    if "field limit" in str(error):
        return "; is a quote left open there? If not, raise csv.field_size_limit()"
    return ""
