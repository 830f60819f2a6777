"""A flight recorder that is damaged, forged or none at all says the truth or nothing."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.killed_runs import (
    AT,
    SIZE,
    at,
    die,
    file_of,
    loaded,
    perform,
    taken,
    wrecked,
)
from tests.run_directories import own_run_directory
from tracedjobs import Runtime, Status
from tracedjobs._core import owner
from tracedjobs._core.cell_layout import (
    CELL,
    CHECK,
    HEADER,
    INTEGER,
    KEY,
    LENGTHS,
    NUMBERS,
    OFFSET,
    check_of,
    key_of,
    slots_of,
)
from tracedjobs._core.takeover import Takeover, forget, jobs_of_the_dead, takeover
from tracedjobs.errors import TracedJobsError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tracedjobs._core.records import Stored

# From Python 3.12 on a fork warns where there are other threads, and the saver is one.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")


@pytest.fixture
def runtime(tmp_path: Path, run_dir: Path) -> Iterator[Runtime]:
    with Runtime(f"sqlite:///{tmp_path}/jobs.db") as made:
        yield made


@dataclass(frozen=True)
class Wreck:
    """A job whose process is dead, and the file that it left."""

    stored: Stored
    path: Path
    data: bytes = field(repr=False)
    store: Path
    folder: Path

    @property
    def key(self) -> int:
        assert self.stored.job.token is not None
        return key_of(self.stored.job.id, self.stored.job.token)


@pytest.fixture(scope="module")
def wreck(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wreck]:
    folder = tmp_path_factory.mktemp("wreck")
    with own_run_directory(folder / "run"):
        with Runtime(f"sqlite:///{folder}/jobs.db") as runtime:
            job_id = wrecked(runtime)
            stored = loaded(runtime, job_id)
            path = file_of(runtime, job_id)
        # Closed, so that all that is stored is in the one file.
        yield Wreck(stored, path, path.read_bytes(), folder / "jobs.db", folder)


def look(wreck: Wreck, data: bytes) -> Takeover:
    """What is read when the file holds that; nothing may be raised."""
    wreck.path.write_bytes(data)
    list(jobs_of_the_dead())
    return takeover(wreck.stored)


def is_true(found: Takeover) -> bool:
    """Whether it is what the run did, or nothing, or how much alone, as of a job with state."""
    return (at(found), found.redone) in {(None, 0), ((str(AT), AT), 0), (None, AT)}


NO_SLOTS: Final[list[int]] = []
HEAD: Final = struct.pack("<2q", *HEADER).ljust(CELL, b"\0")
integers = st.one_of(
    st.sampled_from([0, 1, -1, 2, 7, 2**63 - 1, -(2**63), 1 << 16, (1 << 16) - 1, 447, 448]),
    st.integers(-(2**63), 2**63 - 1),
)


@given(data=st.binary(max_size=3 * CELL))
@settings(max_examples=150)
def test_random_bytes_say_nothing(wreck: Wreck, data: bytes) -> None:
    assert look(wreck, data) == Takeover(None)
    assert look(wreck, HEAD + data) == Takeover(None)
    assert look(wreck, HEAD + data.ljust(3 * CELL, b"\xff")) == Takeover(None)


@given(size=st.integers(0, 2 * CELL))
def test_a_file_that_was_cut_says_the_truth_or_nothing(wreck: Wreck, size: int) -> None:
    assert is_true(look(wreck, wreck.data[:size]))
    assert is_true(look(wreck, wreck.data[:size].ljust(len(wreck.data), b"\0")))


NOT_THE_POSITION: Final = [
    *range(16),
    *range(CELL + 8 * CHECK, CELL + 8 * (NUMBERS + 30)),
]


@given(
    flips=st.dictionaries(
        st.sampled_from(NOT_THE_POSITION), st.integers(1, 255), min_size=1, max_size=8
    )
)
@settings(max_examples=300)
def test_a_file_in_which_bytes_were_changed_says_the_truth_or_nothing(
    wreck: Wreck, flips: dict[int, int]
) -> None:
    data = bytearray(wreck.data)
    for where, flip in flips.items():
        data[where] ^= flip
    assert is_true(look(wreck, bytes(data)))


def cell(wreck: Wreck, numbers: list[int], texts: bytes, *, keyed: bool = True) -> bytes:
    numbers = [*numbers]
    if keyed:
        numbers[KEY] = wreck.key
    return HEAD + struct.pack("<8q", *numbers) + texts[: CELL - 64].ljust(CELL - 64, b"\0")


def with_slots(data: bytes, slots: list[int]) -> bytes:
    """The cell with those in its slots, over and over."""
    (lengths,) = struct.unpack_from("<q", data, CELL + 8 * LENGTHS)
    room = [] if slots == NO_SLOTS else slots_of(lengths)
    filled = [slot for _, slot in zip(room, itertools.cycle(slots), strict=False)]
    return data[: len(data) - 8 * len(filled)] + struct.pack(f"<{len(filled)}q", *filled)


@given(numbers=st.lists(integers, min_size=8, max_size=8), texts=st.binary(max_size=448))
@settings(max_examples=300)
def test_a_cell_with_the_right_key_and_nothing_else_right_says_nothing(
    wreck: Wreck, numbers: list[int], texts: bytes
) -> None:
    found = look(wreck, cell(wreck, numbers, texts))
    assert (found.position, found.redone) == (None, 0)


plain = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just("items")
)
laid_out = st.one_of(
    plain, st.lists(plain, max_size=6), st.lists(plain, min_size=5, max_size=5)
).map(lambda value: json.dumps(value).encode())


def hostile(wreck: Wreck, numbers: list[int], text: bytes, step: str) -> bytes:
    """A cell whose check is right."""
    numbers = [*numbers]
    name = wreck.stored.job.id.encode()
    numbers[LENGTHS] = len(name) | len(text) << 16
    numbers[CHECK] = check_of(wreck.key, step, text, 0)
    return cell(wreck, numbers, name + text)


@given(
    numbers=st.lists(integers, min_size=8, max_size=8),
    text=st.one_of(laid_out, st.binary(max_size=100)),
    step=st.sampled_from(["items", "", "None", "1"]),
    slots=st.one_of(st.just(NO_SLOTS), st.lists(integers, min_size=1, max_size=32)),
)
@example([0] * 8, b'["items", Infinity, null, 0, null]', "items", NO_SLOTS)
@example([0] * 8, b'["items", 1, null, Infinity, null]', "items", NO_SLOTS)
@example([0] * 8, b'["items", 1, null, 1' + b"0" * 370 + b", null]", "items", NO_SLOTS)
@example([0] * 8, b'["items", 1' + b"0" * 370 + b", null, 1, null]", "items", NO_SLOTS)
@example([0] * 8, b'["items", -1, null, NaN, null]', "items", NO_SLOTS)
@example([0] * 8, b'["\\ud800", null, null, 1, null]', "\ud800", NO_SLOTS)
@example([0] * 8, b"[" * 400, "items", NO_SLOTS)
@example(
    [2**63 - 1, 0, 0, OFFSET, -(2**63), 0, 0, 0], b'["items",1,null,1,null]', "items", NO_SLOTS
)
@example([-1, 0, 0, OFFSET, -8, 0, 0, 0], b'["items",1,null,1,null]', "items", NO_SLOTS)
@example([-1, 0, 0, INTEGER, 0, 0, 0, 0], b'["items",1,null,1,null]', "items", NO_SLOTS)
@example([0, 0, -1, INTEGER, 0, 0, 0, 0], b'["items",1,null,1,null]', "items", NO_SLOTS)
@example([0, 0, 2**63 - 1, 0, 0, 0, 0, 0], b'["items",1,null,1,null]', "items", NO_SLOTS)
@example([0, 7, -2, INTEGER, 0, 0, 0, 0], b'["items",1,null,1,null]', "items", [1])
@example([0, 7, -(2**63), INTEGER, 5, 0, 0, 0], b'["items",1,null,1,null]', "items", [1])
@settings(max_examples=60)
def test_a_cell_that_was_forged_crashes_nothing(
    wreck: Wreck, numbers: list[int], text: bytes, step: str, slots: list[int]
) -> None:
    # Whoever can write it is the user. It may say what it likes, and the job's own checks are
    # left; but what is read and stored is sound.
    data = with_slots(hostile(wreck, numbers, text, step), slots)
    found = look(wreck, data)
    position = found.position
    assert position is None or (position.items >= 0 and position.step == step)
    copy = wreck.folder / "copy.db"
    shutil.copy(wreck.store, copy)
    with Runtime(f"sqlite:///{copy}", handle_signals=False) as runtime:
        job_id = wreck.stored.job.id
        before = runtime.get(job_id)
        assert before.lost
        try:
            runtime.perform(job_id)
        except TracedJobsError:
            assert position is not None
        runtime.get(job_id)
        runtime.list()
        look(wreck, data)
        runtime.recover()
    copy.unlink()


def test_a_forged_cell_can_be_recovered(wreck: Wreck) -> None:
    numbers = [2**63 - 1, 0, 0, OFFSET, -(2**63), 0, 0, 0]
    look(wreck, hostile(wreck, numbers, b'["items", 1, null, 1, null]', "items"))
    copy = wreck.folder / "copy.db"
    shutil.copy(wreck.store, copy)
    with Runtime(f"sqlite:///{copy}", handle_signals=False) as runtime:
        assert runtime.recover() == [wreck.stored.job.id]
        assert runtime.get(wreck.stored.job.id).status is Status.INTERRUPTED
    copy.unlink()


def sparse(path: Path) -> None:
    path.touch()
    with path.open("r+b") as file:
        file.write(HEAD)
    os.truncate(path, 1 << 30)


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.symlink_to("/etc/passwd"),
        lambda path: path.symlink_to(path.parent / "nowhere"),
        os.mkfifo,
        Path.mkdir,
        Path.touch,
        sparse,
    ],
    ids=["symlink", "dangling", "fifo", "directory", "empty", "1 GiB"],
)
def test_what_is_no_file_of_cells_is_passed_over_and_the_others_are_read(
    runtime: Runtime, run_dir: Path, make: Any
) -> None:
    job_id = wrecked(runtime)
    other = runtime.submit(taken, "list")
    die(runtime, other)
    path = file_of(runtime, job_id)
    path.unlink()
    make(path)
    for name in ("0" * 24, "f" * 24):
        make(run_dir / f"{name}.lock")
    assert list(jobs_of_the_dead()) == [other]
    stored = loaded(runtime, job_id)
    assert takeover(stored) == Takeover(None)
    forget(stored.job)
    owner._remove_stale(run_dir)
    assert runtime.recover() == [other]
    assert perform(runtime, other) == list(range(AT, SIZE))
    if runtime.get(job_id).lost:
        assert perform(runtime, job_id) == list(range(SIZE))
