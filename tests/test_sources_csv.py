"""CSV rows as a source: the rows of csv.DictReader, resumed from any cursor, or a clear error."""

from __future__ import annotations

import bz2
import codecs
import csv
import doctest
import gc
import gzip
import io
import lzma
import os
import zipfile
from collections import deque
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tracedjobs.errors import SourceChangedError, SourceError, TracedJobsError
from tracedjobs.sources import CsvRows, csv_rows, files, lines

if TYPE_CHECKING:
    from tracedjobs.sources.files import Row

Write = Callable[[str | bytes], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write users.csv anew and give its path."""

    def to_file(content: str | bytes) -> Path:
        path = tmp_path / "users.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return to_file


def names(source: CsvRows, cursor: object = None) -> list[str]:
    return [row["name"] for row, _ in source(cursor)]


USERS = "id,name\n1,Ada\n2,Grace\n3,Barbara\n"


# Against csv.DictReader

ENCODINGS = {
    "utf-8": "utf-8",
    "utf-8-sig": "utf-8-sig",
    "utf-16": "utf-16",
    "utf-16-le": "utf-16-le",
    "utf-16-be": "utf-16-be",
    "utf-32": "utf-32",
    "latin-1": "latin-1",
    "cp1252": "cp1252",
    "shift_jis": "shift_jis",
    "gb18030": "gb18030",
}
# What splits lines somewhere in Python, what csv gives a meaning, and what takes several bytes.
AWKWARD = "ab,;\"'\r\n \t\0\x0b\x0c\x1c\x85\u2028éßŠ漢😀Ċ\u0a0a\u0d0d"

encodings = st.sampled_from(sorted(ENCODINGS))
any_file = settings(
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def encodable(text: str, encoding: str) -> str:
    return text.encode(encoding, "ignore").decode(encoding)


def check_against_dict_reader(
    path: Path, encoding: str, block: int, fieldnames: list[str] | None = None
) -> None:
    with path.open(newline="", encoding=encoding) as file:
        expected = list(csv.DictReader(file, fieldnames))
    source = csv_rows(path, encoding=encoding, fieldnames=fieldnames)
    with patch.object(lines, "_FIRST_BLOCK", block), patch.object(lines, "_LARGEST_BLOCK", block):
        pairs = list(source(None))
        assert [row for row, _ in pairs] == expected
        assert all(type(cursor) is int for _, cursor in pairs)
        for done, (_, cursor) in enumerate(pairs, start=1):
            assert list(source(cursor)) == pairs[done:]
    assert list(source(0)) == pairs
    assert csv_rows(path, encoding=encoding, fieldnames=fieldnames, total="rows").total == len(
        pairs
    )


@any_file
@given(
    data=st.data(),
    encoding=encodings,
    newline=st.sampled_from(["\n", "\r\n", "\r"]),
    block=st.integers(1, 40),
)
def test_any_table_reads_as_dict_reader_reads_it_and_resumes_from_every_cursor(
    tmp_path: Path, data: st.DataObject, encoding: str, newline: str, block: int
) -> None:
    cell = st.text(AWKWARD, max_size=6).map(lambda text: encodable(text, encoding))
    header = data.draw(
        st.lists(cell.filter(lambda name: "\0" not in name), min_size=1, max_size=4, unique=True)
    )
    width = len(header)
    table = data.draw(st.lists(st.lists(cell, min_size=width, max_size=width), max_size=6))
    path = tmp_path / "table.csv"
    with path.open("w", newline="", encoding=encoding) as file:
        csv.writer(file, lineterminator=newline, quoting=csv.QUOTE_ALL).writerows([header, *table])
    check_against_dict_reader(path, encoding, block)


@any_file
@given(text=st.text(AWKWARD, max_size=60), encoding=encodings, block=st.integers(1, 40))
@example(text='a,"b\n', encoding="utf-8", block=1)
@example(text="a\r\nb\rc\r", encoding="utf-16", block=3)
@example(text="\n\n,\n\n", encoding="utf-8", block=2)
def test_any_text_at_all_reads_as_dict_reader_reads_it(
    tmp_path: Path, text: str, encoding: str, block: int
) -> None:
    path = tmp_path / "text.csv"
    path.write_bytes(encodable(text, encoding).encode(encoding))
    check_against_dict_reader(path, encoding, block, fieldnames=["first", "second"])


def test_long_rows_keep_their_extra_fields_and_short_ones_are_filled(write: Write) -> None:
    path = write("id,name\n1,Ada,x,y\n2\n")
    assert [row for row, _ in csv_rows(path)(None)] == [
        {"id": "1", "name": "Ada", None: ["x", "y"]},
        {"id": "2", "name": None},
    ]
    assert [row for row, _ in csv_rows(path, restkey="more", restval="-")(None)] == [
        {"id": "1", "name": "Ada", "more": ["x", "y"]},
        {"id": "2", "name": "-"},
    ]


def test_dialect_options_are_those_of_the_csv_module(write: Write) -> None:
    path = write("id;name\n1;'Ada; Countess'\n")
    assert names(csv_rows(path, delimiter=";", quotechar="'")) == ["Ada; Countess"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_byte_order_mark_is_no_part_of_the_first_name(write: Write, encoding: str) -> None:
    path = write(codecs.BOM_UTF8 + b"name\nAda\nGrace\n")
    assert names(csv_rows(path, encoding=encoding)) == ["Ada", "Grace"]
    assert names(csv_rows(path, encoding=encoding), 12) == ["Grace"]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_a_byte_order_mark_is_skipped_where_the_order_is_given_too(
    write: Write, encoding: str
) -> None:
    path = write("\ufeffname\nAda\n".encode(encoding))
    assert names(csv_rows(path, encoding=encoding)) == ["Ada"]
    assert names(csv_rows(path, encoding=encoding[:6])) == ["Ada"]


def test_blank_lines_before_the_header_and_after_the_last_row_are_skipped(write: Write) -> None:
    source = csv_rows(write("\r\n\n" + USERS + "\n\n"))
    pairs = list(source(None))
    assert len(pairs) == 3
    assert list(source(pairs[-1][1])) == []


def test_the_docstrings_examples_hold(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write("id,name\n1,Ada\n2,Grace\n").parent)
    assert doctest.testmod(files).failed == 0


# Resuming


class CountingFile(io.FileIO):
    """A file that tells how much was read of it."""

    bytes_read = 0

    def readinto(self, buffer: bytearray | memoryview) -> int | None:  # type: ignore[override]  # typeshed's Buffer is 3.12's
        got = super().readinto(buffer)
        CountingFile.bytes_read += got or 0
        return got

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(-1 if size is None else size)
        CountingFile.bytes_read += len(data or b"")
        return data or b""


@pytest.fixture
def count_bytes(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Count in `CountingFile.bytes_read` what is read from now on."""

    def start() -> None:
        CountingFile.bytes_read = 0
        monkeypatch.setattr(
            CsvRows, "_opened", lambda self: io.BufferedReader(CountingFile(self.path, "r"))
        )

    return start


def test_resuming_near_the_end_reads_no_more_than_starting_does(
    tmp_path: Path, count_bytes: Callable[[], None]
) -> None:
    path = tmp_path / "large.csv"
    with path.open("w") as file:
        file.write("id,name\n")
        file.writelines(f"{number},name of {number}\n" for number in range(100_000))
    source = csv_rows(path)
    cursors = [cursor for _, cursor in source(None)]

    def bytes_to_first_row(cursor: int) -> int:
        count_bytes()
        with closing(source(cursor)) as rows:
            next(rows)
        return CountingFile.bytes_read

    at_start, at_end = bytes_to_first_row(0), bytes_to_first_row(cursors[-1000])
    assert 0 < at_start < 64 * 1024
    assert at_end <= at_start + 16 * 1024
    assert [row["id"] for row, _ in source(cursors[-3])] == ["99998", "99999"]


def test_after_the_last_row_nothing_is_left(write: Write) -> None:
    for text in (USERS, USERS.rstrip("\n")):
        source = csv_rows(write(text))
        last = list(source(None))[-1][1]
        assert last == len(text)
        assert list(source(last)) == []


def test_rows_that_were_appended_are_read_on_resume(write: Write) -> None:
    source = csv_rows(write(USERS))
    stored, last = source.fingerprint(), list(source(None))[-1][1]
    write(USERS + "4,Edsger\n")
    source.check_fingerprint(stored)
    assert names(source, last) == ["Edsger"]


def test_rows_are_appended_after_a_last_line_that_had_no_newline(write: Write) -> None:
    source = csv_rows(write("id,name\n1,Ada"))
    last = list(source(None))[-1][1]
    write("id,name\n1,Ada\n2,Grace\n")
    assert names(source, last) == ["Grace"]


def test_a_last_row_that_was_read_half_written_is_noticed(write: Write) -> None:
    source = csv_rows(write("id,name\n1,Ad"))
    last = list(source(None))[-1][1]
    write("id,name\n1,Ada\n")
    with pytest.raises(SourceChangedError, match="no row ends at byte 12"):
        source(last)


# A changed file


def test_the_same_file_has_the_same_fingerprint(write: Write) -> None:
    stored = csv_rows(write(USERS)).fingerprint()
    again = csv_rows(write(USERS))
    assert again.fingerprint() == stored
    again.check_fingerprint(stored)
    again.check_fingerprint(list(stored))


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        (USERS[:-1], "had 32 bytes when the step started and has 31 now"),
        ("", "had 32 bytes when the step started and has 0 now"),
        (USERS.replace("Ada", "Bob"), "begins with other text than when the step started"),
        ("x" + USERS, "begins with other text than when the step started"),
    ],
)
def test_a_changed_file_is_noticed_by_its_fingerprint(
    write: Write, changed: str, what: str
) -> None:
    path = write(USERS)
    stored = csv_rows(path).fingerprint()
    write(changed)
    with pytest.raises(SourceChangedError) as caught:
        csv_rows(path).check_fingerprint(stored)
    assert what in str(caught.value)
    assert str(path) in str(caught.value)
    assert "rewind the step" in str(caught.value)


@pytest.mark.parametrize("stored", [None, 7, "text", (), (1,), ("a", 1), (1, "a", 2)])
def test_a_fingerprint_of_something_else_is_refused(write: Write, stored: object) -> None:
    with pytest.raises(SourceChangedError, match="another kind of source"):
        csv_rows(write(USERS)).check_fingerprint(stored)


def test_a_cursor_beyond_the_end_of_the_file_is_refused(write: Write) -> None:
    with pytest.raises(SourceChangedError, match="at byte 33, but the file ends at 32"):
        csv_rows(write(USERS))(33)


@pytest.mark.parametrize("cursor", [1, 3, 10, 17, 31])
def test_a_cursor_in_the_header_or_within_a_row_is_refused(write: Write, cursor: int) -> None:
    source = csv_rows(write(USERS.rstrip("\n") + ".."))
    with pytest.raises(SourceChangedError, match=f"no row ends at byte {cursor},") as caught:
        source(cursor)
    assert isinstance(caught.value, SourceError)
    assert isinstance(caught.value, TracedJobsError)


def test_a_cursor_between_the_bytes_of_a_character_is_refused(write: Write) -> None:
    path = write(USERS.encode("utf-16"))
    assert names(csv_rows(path, encoding="utf-16"), 2 + 2 * 14) == ["Grace", "Barbara"]
    with pytest.raises(SourceChangedError, match="no row ends at byte 31"):
        csv_rows(path, encoding="utf-16")(31)
    # The second byte of one character and the first of the next look like a newline.
    path = write("name\n\u0a61\u6100\n".encode("utf-16-le"))
    with pytest.raises(SourceChangedError, match="no row ends at byte 13"):
        csv_rows(path, encoding="utf-16-le")(13)


@pytest.mark.parametrize("cursor", [True, -1, 8.0, "8", [8]])
def test_what_is_no_offset_is_refused_as_a_cursor(write: Write, cursor: object) -> None:
    with pytest.raises(TypeError, match="is no byte offset"):
        csv_rows(write(USERS))(cursor)


def test_a_file_that_is_cut_short_while_it_is_read_does_not_end_the_loop_quietly(
    write: Write,
) -> None:
    path = write("id,name\n" + "1,Ada\n" * 100_000)
    rows = csv_rows(path)(None)
    next(rows)
    os.truncate(path, 300_003)
    with pytest.raises(SourceChangedError, match="was cut short while it was being read"):
        deque(rows, maxlen=0)


# Totals


def test_the_total_is_the_size_in_bytes_which_the_cursor_reaches(write: Write) -> None:
    source = csv_rows(write(USERS))
    assert (source.total, source.total_unit) == (32, "bytes")
    assert list(source(None))[-1][1] == source.total


def test_the_total_in_rows_is_counted_once(write: Write) -> None:
    path = write('id,name\n1,"A\nda"\n\n2,Grace\n')
    source = csv_rows(path, total="rows")
    assert (source.total, source.total_unit) == (2, "items")
    path.unlink()
    assert source.total == 2


@pytest.mark.parametrize("total", ["bytes", "rows"])
def test_there_is_no_total_of_a_file_that_is_gone(tmp_path: Path, total: str) -> None:
    source = csv_rows(tmp_path / "gone.csv", total="rows" if total == "rows" else "bytes")
    assert source.total is None


def test_there_is_no_total_in_rows_of_a_file_that_cannot_be_read_through(write: Write) -> None:
    assert csv_rows(write(b"name\nAda\n\xff\n"), total="rows").total is None


# Files that cannot be read


def test_nothing_is_opened_before_the_loop_starts(tmp_path: Path) -> None:
    source = csv_rows(tmp_path / "gone.csv")
    with pytest.raises(SourceError, match=r"gone\.csv: cannot open it: No such file") as caught:
        source(None)
    assert isinstance(caught.value.__cause__, FileNotFoundError)
    with pytest.raises(SourceError, match="No such file"):
        source.fingerprint()


def test_a_directory_and_a_pipe_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="is a directory"):
        csv_rows(tmp_path)(None)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SourceError, match="is no regular file"):
        csv_rows(tmp_path / "pipe")(None)


def zipped(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("users.csv", data)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (gzip.compress(USERS.encode()), "gzip"),
        (bz2.compress(USERS.encode()), "bzip2"),
        (bz2.compress(b""), "bzip2"),
        (lzma.compress(USERS.encode()), "xz"),
        (zipped(USERS.encode()), "zip"),
        (b"\x28\xb5\x2f\xfd\x04\x58", "zstandard"),
    ],
    ids=["gzip", "bzip2", "an empty bzip2", "xz", "zip", "zstandard"],  # some bear the time
)
def test_a_compressed_file_is_refused_with_the_reason_whatever_its_name(
    write: Write, content: bytes, kind: str
) -> None:
    with pytest.raises(SourceError) as caught:
        csv_rows(write(content))(None)
    assert f"is compressed with {kind}" in str(caught.value)
    assert "resuming could not seek" in str(caught.value)
    assert "decompress it first" in str(caught.value)


def test_text_that_only_begins_like_a_compressed_file_is_read(write: Write) -> None:
    assert list(csv_rows(write("BZh1,PK\n1,2\n"))(None)) == [({"BZh1": "1", "PK": "2"}, 12)]


@pytest.mark.parametrize("content", ["", "\n\r\n", "\ufeff"])
def test_a_file_without_a_header_is_refused(write: Write, content: str) -> None:
    with pytest.raises(SourceError, match="has no header: it is empty"):
        csv_rows(write(content))(None)
    assert list(csv_rows(write(content), fieldnames=["name"])(None)) == []


def test_a_name_twice_in_the_header_is_refused(write: Write) -> None:
    with pytest.raises(SourceError, match="its header has 'id', 'name' more than once"):
        csv_rows(write("name,id,id,name,age\n"))(None)


def test_a_header_with_nul_characters_hints_at_the_encoding(write: Write) -> None:
    with pytest.raises(SourceError, match="NUL characters; pass encoding='utf-16-le'"):
        csv_rows(write(USERS.encode("utf-16-le")))(None)


def test_utf_16_without_a_byte_order_mark_needs_its_order(write: Write) -> None:
    with pytest.raises(SourceError, match=r"no byte order mark .* encoding='utf-16-le' or"):
        csv_rows(write(USERS.encode("utf-16-le")), encoding="utf-16")(None)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "utf-32-be", "ascii"])
def test_rows_before_one_that_cannot_be_decoded_are_done_and_the_error_names_the_byte(
    write: Write, encoding: str
) -> None:
    bad = {"utf-16-le": b"\x00\xdc", "utf-32-be": b"\x00\x11\x00\x00"}.get(encoding, b"\xe9")
    before = USERS.encode(encoding)
    path = write(before + "4,B".encode(encoding) + bad + "c\n5,Niklaus\n".encode(encoding))
    source = csv_rows(path, encoding=encoding)
    done: list[tuple[Row, int]] = []
    with pytest.raises(SourceError) as caught:
        done.extend(source(None))
    assert [row["name"] for row, _ in done] == ["Ada", "Grace", "Barbara"]
    assert f"cannot read the row at byte {len(before)}: " in str(caught.value)
    byte = len(before) + len("4,B".encode(encoding))
    assert f"byte {byte} (0x{bad[0]:02x}) is not {encoding}" in str(caught.value)
    assert "pass the file's encoding" in str(caught.value)
    with pytest.raises(SourceError, match=f"byte {byte} "):
        list(source(done[-1][1]))


def test_a_bad_character_is_told_without_reading_the_rest_of_the_file(
    write: Write, count_bytes: Callable[[], None]
) -> None:
    path = write(b"n\0\n\0" + b"\x00\xdc" + "Ada\n".encode("utf-16-le") * 100_000)
    count_bytes()
    with pytest.raises(SourceError, match="byte 4 "):
        list(csv_rows(path, encoding="utf-16-le", fieldnames=["name"])(None))
    assert 0 < CountingFile.bytes_read < 64 * 1024


def test_a_file_that_ends_within_a_character_is_refused(write: Write) -> None:
    for encoding, content in (("utf-8", b"name\nAd\xc3"), ("utf-16-le", USERS.encode("utf-16-le"))):
        cut = content if encoding == "utf-8" else content[:-3]
        with pytest.raises(SourceError, match="cannot read the row at byte"):
            list(csv_rows(write(cut), encoding=encoding)(None))


def test_a_header_that_cannot_be_decoded_is_refused(write: Write) -> None:
    with pytest.raises(SourceError, match=r"cannot read its header: byte 0 \(0xff\) is not utf-8"):
        csv_rows(write(USERS.encode("utf-16")))(None)


def test_a_field_that_is_too_large_is_refused_with_the_way_out(write: Write) -> None:
    path = write('id,name\n1,Ada\n2,"' + "x" * 200_000 + '"\n3,Grace\n')
    done: list[tuple[Row, int]] = []
    with pytest.raises(SourceError) as caught:
        done.extend(csv_rows(path)(None))
    assert [row["name"] for row, _ in done] == ["Ada"]
    assert "cannot read the row at byte 14: field larger than field limit" in str(caught.value)
    assert "is a quote left open there? If not, raise csv.field_size_limit()" in str(caught.value)


def test_a_strict_dialect_refuses_a_quote_left_open(write: Write) -> None:
    path = write('id,name\n1,Ada\n2,"Grace\n')
    assert names(csv_rows(path)) == ["Ada", "Grace\n"]
    with pytest.raises(SourceError, match="the row at byte 14: unexpected end of data"):
        names(csv_rows(path, strict=True))


def test_nul_characters_in_rows_are_data(write: Write) -> None:
    assert names(csv_rows(write("id,name\n1,A\0da\n"))) == ["A\0da"]


# Arguments that make no sense


@pytest.mark.parametrize("encoding", ["utf-7", "iso2022_jp", "hz", "cp037", "idna", "rot13", "hex"])
def test_encodings_without_safe_offsets_are_refused_at_once(encoding: str) -> None:
    with pytest.raises(ValueError, match=f"encoding '{encoding}' .* iconv -f {encoding} -t utf-8"):
        csv_rows("users.csv", encoding=encoding)


def test_an_unknown_encoding_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="Python knows no encoding 'utf-9'"):
        csv_rows("users.csv", encoding="utf-9")


@pytest.mark.parametrize("name", sorted(lines._ENCODINGS))
def test_every_allowed_encoding_is_one_whose_newlines_stand_alone(name: str) -> None:
    assert lines.allowed_encoding(name) == name
    if name.startswith(("utf-16", "utf-32")):
        return
    every = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x11000)]))
    text = every.replace("\n", "").replace("\r", "")
    data = text.encode(name, "ignore")
    assert b"\n" not in data
    assert b"\r" not in data
    ascii_text = "".join(map(chr, range(0x20, 0x7F))) + "\r\n"
    assert ascii_text.encode(name).removeprefix(codecs.BOM_UTF8) == ascii_text.encode()


def test_other_arguments_that_make_no_sense_are_refused_at_once() -> None:
    with pytest.raises(ValueError, match="total='lines' is neither 'bytes' nor 'rows'"):
        csv_rows("users.csv", total="lines")  # type: ignore[arg-type]  # that is the point
    with pytest.raises(TypeError, match=r"csv_rows: .*delimeter"):
        csv_rows("users.csv", delimeter=";")  # type: ignore[call-arg]  # that is the point
    with pytest.raises(TypeError, match=r'csv_rows: "delimiter" must be'):
        csv_rows("users.csv", delimiter=";;")
    with pytest.raises(ValueError, match="csv_rows: unknown dialect"):
        csv_rows("users.csv", dialect="none of these")
    with pytest.raises(TypeError, match="fieldnames='id' is one text"):
        csv_rows("users.csv", fieldnames="id")
    for fieldnames in ([], ["id", "id"]):
        with pytest.raises(ValueError, match="must be names that differ, at least one"):
            csv_rows("users.csv", fieldnames=fieldnames)


# The file handle


def open_files() -> set[str]:
    gc.collect()
    paths = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            paths.add(str(descriptor.readlink()))
        except FileNotFoundError:  # the listing's own
            continue
    return paths


def test_the_file_is_closed_however_the_loop_ends(write: Write) -> None:
    path = write(USERS)
    source = csv_rows(path)
    never_iterated_over = source(None)
    assert str(path) not in open_files()
    list(source(None))
    assert str(path) not in open_files()
    with closing(source(None)) as rows:
        next(rows)
        assert str(path) in open_files()
    assert str(path) not in open_files()
    write(USERS.encode() + b"\xff\n")
    with pytest.raises(SourceError):
        list(source(None))
    assert str(path) not in open_files()
    del never_iterated_over
