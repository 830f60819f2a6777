"""A real RabbitMQ for tests: a node of the tests' own; no system service is started or touched.

It has its own directory, its own ports on loopback, its own epmd, and no plugins. Where the machine
has no RabbitMQ, and it is a Debian on which the tests run as root, its package is installed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pika
import pytest
from pika.exceptions import AMQPError

from tests.processes import until
from tests.stores.redis_servers import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["INSTALLING", "RabbitServer", "rabbit_for_tests", "running_rabbit"]

INSTALLING: Final = 600.0
"""Seconds that the first test may take which needs it, on a machine that has none yet."""
STARTING: Final = 60.0
POLICY: Final = Path("/usr/sbin/policy-rc.d")
"""What Debian's packages ask whether they may start their services."""


@dataclass
class RabbitServer:
    """One node."""

    folder: Path
    port: int

    @property
    def url(self) -> str:
        """The address of its broker."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}/%2F"

    def answers(self) -> bool:
        """Whether it serves."""
        with contextlib.suppress(AMQPError, OSError):
            pika.BlockingConnection(pika.URLParameters(self.url)).close()
            return True
        return False

    def forget(self, *queues: str) -> None:
        """Delete these queues with what is in them."""
        with pika.BlockingConnection(pika.URLParameters(self.url)) as connection:
            for queue in queues:
                connection.channel().queue_delete(queue)


@contextmanager
def running_rabbit() -> Iterator[RabbitServer]:
    """Start a node, stop it; its directory is removed."""
    folder = Path(tempfile.mkdtemp(prefix="tj-rabbit-"))
    server = RabbitServer(folder, free_port())
    names = free_port()
    (folder / "plugins").write_text("[].", "ascii")
    (folder / "rabbit.conf").touch()
    (folder / "environment").touch()
    env = {
        **os.environ,
        "HOME": str(folder),  # where Erlang keeps its cookie
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "ERL_EPMD_PORT": str(names),
        "RABBITMQ_NODENAME": f"tj{names}@localhost",
        "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODE_PORT": str(server.port),
        "RABBITMQ_DIST_PORT": str(free_port()),
        "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
        "RABBITMQ_LOG_BASE": str(folder / "log"),
        "RABBITMQ_LOGS": "-",
        "RABBITMQ_PID_FILE": str(folder / "pid"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
        "RABBITMQ_CONFIG_FILE": str(folder / "rabbit"),
        "RABBITMQ_CONF_ENV_FILE": str(folder / "environment"),
    }
    started: list[subprocess.Popen[bytes]] = []
    try:
        # Epmd is not left to the node, which would leave it behind as a daemon.
        started.extend(_started(program, folder, env) for program in ("epmd", str(_program())))
        until(server.answers, f"RabbitMQ starts; see {folder}/output", within=STARTING)
        yield server
    finally:
        # The node first: it would start another epmd. Its helpers end when it is gone.
        for process in reversed(started):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _started(program: str, folder: Path, env: dict[str, str]) -> subprocess.Popen[bytes]:
    with (folder / "output").open("ab") as output:
        return subprocess.Popen(
            program,
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def rabbit_for_tests() -> Iterator[RabbitServer]:
    """The body of a session's fixture; skips where there is none, but never in CI."""
    try:
        _program()
    except LookupError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    with running_rabbit() as server:
        yield server


def _program() -> Path:
    found = _there() or _installed()
    if found is None:
        msg = "RabbitMQ is not installed (rabbitmq-server), and apt-get cannot do it here as root."
        raise LookupError(msg)
    program = Path(found).resolve()
    # Debian's becomes another user, in the service's directory; what it calls is beside it.
    beside = program.with_name("rabbitmq-server")
    return beside if program.name == "rabbitmq-script-wrapper" else program


def _there() -> str | None:
    # Debian has it where only an administrator's PATH goes.
    return shutil.which("rabbitmq-server", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def _installed() -> str | None:
    """Where it is once its package is installed, without its service being started."""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return None
    ours = not POLICY.exists()
    if ours:
        POLICY.write_text("#!/bin/sh\nexit 101\n", "ascii")
        POLICY.chmod(0o755)
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    try:
        for words in (
            ["update", "-q"],
            ["install", "-q", "-y", "--no-install-recommends", "rabbitmq-server"],
        ):
            done = subprocess.run(
                ["apt-get", *words], env=env, capture_output=True, text=True, check=False
            )
            if done.returncode:
                msg = f"apt-get {' '.join(words)} ended with {done.returncode}:\n{done.stderr}"
                raise LookupError(msg)
    finally:
        if ours:
            POLICY.unlink()
    return _there()
