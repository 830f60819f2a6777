"""Prometheus and Alertmanager for tests, real ones: from PATH, else from Debian's packages.

The packages are unpacked below `.tools`, not installed: so no service is started, and the machine
stays as it was. Where they cannot be had the tests are skipped and say why; in CI they fail.
"""

from __future__ import annotations

import fcntl
import functools
import json
import os
import shutil
import socket
import subprocess
import urllib.parse
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.processes import until

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["Prometheus", "free_port", "got", "program", "running_prometheus", "serving"]

ROOT: Final = Path(__file__).parents[1]
UNPACKED: Final = ROOT / ".tools" / "monitoring"
PACKAGES: Final = ("prometheus", "prometheus-alertmanager")
NAMES: Final = {"alertmanager": ("alertmanager", "prometheus-alertmanager")}
"""Debian calls it otherwise."""


def program(name: str) -> str:
    """The path of that program; skips the test, and fails it in CI, where it cannot be had."""
    found, trouble = _found(name)
    if found is None:
        words = f"{name} is not on PATH, and Debian's package cannot be had: {trouble}"
        if os.environ.get("CI"):
            pytest.fail(words)
        pytest.skip(words)
    return found


@functools.cache
def _found(name: str) -> tuple[str | None, str]:
    names = NAMES.get(name, (name,))
    places = f"{os.environ.get('PATH', '')}{os.pathsep}{UNPACKED / 'usr' / 'bin'}"
    for _ in range(2):
        for each in names:
            path = shutil.which(each, path=places)
            if path is not None:
                return path, ""
        trouble = _unpack()
        if trouble:
            return None, trouble
    return None, "it is not in the package"


@functools.cache
def _unpack() -> str:
    """Download and unpack the packages; what went wrong, or nothing."""
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        return "there is no apt-get here"
    UNPACKED.mkdir(parents=True, exist_ok=True)
    with (UNPACKED / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (UNPACKED / "usr" / "bin" / "promtool").exists():
            return ""
        done = _ran("apt-get", "download", *PACKAGES)
        if done.returncode and os.geteuid() == 0:  # a new machine has no lists of packages yet
            _ran("apt-get", "update")
            done = _ran("apt-get", "download", *PACKAGES)
        if done.returncode:
            return done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "apt-get failed"
        for package in UNPACKED.glob("*.deb"):
            done = _ran("dpkg", "-x", str(package), ".")
            if done.returncode:
                return done.stderr.strip()
            package.unlink()
    return ""


def _ran(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=UNPACKED, check=False, capture_output=True, text=True, timeout=300
    )


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def got(address: str, **parameters: str) -> Any:
    """The JSON that an address answers."""
    query = f"?{urllib.parse.urlencode(parameters)}" if parameters else ""
    with urllib.request.urlopen(f"{address}{query}", timeout=10) as answer:
        return json.loads(answer.read())


@contextmanager
def serving(
    command: Sequence[str], folder: Path, log: str, env: Mapping[str, str] | None = None
) -> Iterator[None]:
    """Run a server in that folder, and end it."""
    with (folder / log).open("wb") as out:
        server = subprocess.Popen(command, cwd=folder, env=env, stdout=out, stderr=out)
    try:
        yield
    finally:
        server.terminate()
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait(30)


class Prometheus:
    """A server that runs, and what can be asked of it."""

    def __init__(self, address: str) -> None:
        self.address = address

    def ask(self, query: str, *, at: float | None = None) -> list[tuple[dict[str, str], float]]:
        """The labels and the value of each series, now."""
        when = {} if at is None else {"time": repr(at)}
        data = got(f"{self.address}/api/v1/query", query=query, **when)["data"]
        if data["resultType"] == "scalar":
            return [({}, float(data["result"][1]))]
        return [(each["metric"], float(each["value"][1])) for each in data["result"]]

    def value(self, query: str) -> float | None:
        """The only value, if there is one."""
        found = self.ask(query)
        assert len(found) <= 1, (query, found)
        return found[0][1] if found else None

    def over(self, query: str, start: float, end: float, step: float = 1) -> list[dict[str, Any]]:
        """The series of a range."""
        when = {"start": repr(start), "end": repr(end), "step": str(step)}
        found = got(f"{self.address}/api/v1/query_range", query=query, **when)
        result: list[dict[str, Any]] = found["data"]["result"]
        return result


@contextmanager
def running_prometheus(
    folder: Path, targets: Mapping[str, str], *, more: str = "", every: str = "1s"
) -> Iterator[Prometheus]:
    """A server that scrapes these exporters, by the job's name of each; `more`: configuration."""
    command, port = program("prometheus"), free_port()
    scrapes = "".join(
        f"  - job_name: {name}\n    static_configs: [{{targets: ['{target}']}}]\n"
        for name, target in targets.items()
    )
    (folder / "prometheus.yml").write_text(
        f"global: {{scrape_interval: {every}, evaluation_interval: {every}}}\n{more}"
        f"scrape_configs:\n{scrapes}"
    )
    words = [
        command,
        "--config.file=prometheus.yml",
        "--storage.tsdb.path=data",
        f"--web.listen-address=127.0.0.1:{port}",
        "--enable-feature=exemplar-storage",
    ]
    with serving(words, folder, "prometheus.log"):
        server = Prometheus(f"http://127.0.0.1:{port}")

        def ready() -> bool:
            try:
                with urllib.request.urlopen(f"{server.address}/-/ready", timeout=5) as answer:
                    return bool(answer.status == 200)
            except OSError:
                return False  # it is starting

        until(ready, f"Prometheus: {(folder / 'prometheus.log').read_text()}")
        yield server
