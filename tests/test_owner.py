"""The run directory and the lock in it: who is dead is known for certain, or not said."""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
import time
import warnings
from typing import TYPE_CHECKING, Final

import pytest

from tests.processes import Children, until
from tracedjobs._core import owner
from tracedjobs._core.clock import boot_id
from tracedjobs._core.owner import owner_is_dead, owner_name, run_directory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OWNS: Final = """
from tracedjobs._core.owner import owner_name
say("owner", owner_name())
time.sleep(600)
"""
DAY: Final = 24 * 3600.0


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A run directory of the test's own, and no lock held yet."""
    directory = tmp_path / "run"
    monkeypatch.setenv("TRACEDJOBS_RUN_DIR", str(directory))
    monkeypatch.setattr(owner, "_held", None)
    monkeypatch.setattr(owner, "_warned", False)
    yield directory
    held = owner._held
    if held is not None:
        os.close(held[1])


@pytest.fixture
def children(tmp_path: Path) -> Iterator[Children]:
    with Children(tmp_path) as made:
        yield made


def dead(name: str | None) -> bool:
    return owner_is_dead(name, boot_id())


def test_the_directory_is_made_and_private(fresh: Path) -> None:
    assert run_directory() == fresh
    assert stat.S_IMODE(fresh.stat().st_mode) == 0o700


def test_without_a_given_directory_the_users_own_is_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("TRACEDJOBS_RUN_DIR")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert run_directory() == tmp_path / "tracedjobs"
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    assert run_directory() == tmp_path / f"tracedjobs-{os.getuid()}"


def test_a_directory_that_others_can_write_is_refused(fresh: Path) -> None:
    fresh.mkdir()
    fresh.chmod(0o777)
    with pytest.raises(OSError, match="can be written by others; make it mode 0700"):
        run_directory()


def test_a_symbolic_link_is_refused(fresh: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    fresh.symlink_to(tmp_path / "real")
    with pytest.raises(OSError, match="a symbolic link is refused"):
        run_directory()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a directory away")
def test_a_directory_of_another_user_is_refused(fresh: Path) -> None:
    fresh.mkdir(mode=0o700)
    os.chown(fresh, 65534, 65534)
    with pytest.raises(OSError, match="belongs to user 65534, not to 0"):
        run_directory()


def test_without_a_usable_directory_jobs_run_and_one_warning_says_what_is_amiss(
    fresh: Path,
) -> None:
    fresh.touch()
    with pytest.warns(RuntimeWarning, match="a killed job is found only when its lease ends"):
        assert owner_name() is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert owner_name() is None
    assert not dead(None)


def test_a_process_has_one_name_and_does_not_take_itself_for_dead(fresh: Path) -> None:
    name = owner_name()
    assert name is not None
    assert owner_name() == name
    assert not dead(name)
    (lock,) = fresh.iterdir()
    assert lock.name == f"{name}.lock"
    assert stat.S_IMODE(lock.stat().st_mode) == 0o600


def test_another_process_is_alive_until_it_is_killed(children: Children) -> None:
    child = children.start(OWNS, "-", "-")
    until(lambda: child.text().endswith("\n"), "its name")
    name = child.text().split()[1]
    assert not dead(name)
    child.stop()
    assert not dead(name)
    child.kill()
    assert dead(name)


def test_several_who_look_at_the_same_time_agree(children: Children) -> None:
    # An exclusive lock to look with would make one look seem to be the owner to another.
    child = children.start(OWNS, "-", "-")
    until(lambda: child.text().endswith("\n"), "its name")
    name = child.text().split()[1]
    child.kill()
    looking = os.open(run_directory() / f"{name}.lock", os.O_RDONLY)
    try:
        fcntl.flock(looking, fcntl.LOCK_SH)
        assert dead(name)
    finally:
        os.close(looking)


@pytest.mark.parametrize("name", [None, "0123abcd", "../../etc/passwd", "a/b", ""])
def test_what_cannot_be_seen_is_not_said_to_be_dead(fresh: Path, name: str | None) -> None:
    assert not dead(name)


def test_an_owner_of_another_boot_is_left_to_its_lease(fresh: Path) -> None:
    fresh.mkdir(mode=0o700)
    (fresh / "abc.lock").touch()
    assert dead("abc")
    assert not owner_is_dead("abc", "another boot")
    assert not owner_is_dead("abc", None)


def test_old_locks_that_nobody_holds_are_removed_and_no_others(fresh: Path) -> None:
    fresh.mkdir(mode=0o700)
    old = time.time() - 2 * DAY
    for each in ("free", "held", "young"):
        (fresh / f"{each}.lock").touch()
    (fresh / "other.txt").touch()
    for path in fresh.iterdir():
        if path.stem != "young":
            os.utime(path, (old, old))
    held = os.open(fresh / "held.lock", os.O_RDWR)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        name = owner_name()
        assert sorted(path.name for path in fresh.iterdir()) == sorted(
            ["held.lock", "young.lock", "other.txt", f"{name}.lock"]
        )
    finally:
        os.close(held)


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_forked_child_takes_a_name_of_its_own(fresh: Path, tmp_path: Path) -> None:
    name = owner_name()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writing, f"{owner_name()} {dead(name)}".encode())
        finally:
            os._exit(0)
    os.close(writing)
    _, status = os.waitpid(child, 0)
    childs, dead_there = os.read(reading, 1000).decode().split()
    os.close(reading)
    assert status == 0
    assert childs != name
    assert dead_there == "False"
    assert dead(childs)
    assert not dead(name)
