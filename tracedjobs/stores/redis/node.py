"""One server and the connections to it: commands go out in one write, replies come in one read.

redis-py's connections are used without its clients: those retry by themselves, their pipelines
register scripts in a round trip of their own, and RedisCluster refuses scripts in pipelines.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from inspect import signature
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

from redis.backoff import NoBackoff
from redis.connection import AbstractConnection, Connection, SSLConnection
from redis.exceptions import (
    ConnectionError as RedisConnectionError,
)
from redis.exceptions import (
    RedisError,
    ResponseError,
)
from redis.exceptions import (
    TimeoutError as RedisTimeoutError,
)
from redis.maint_notifications import MaintNotificationsConfig
from redis.retry import Retry

from tracedjobs._core.clock import boot_time
from tracedjobs.stores.redis.wire import on_the_wire

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracedjobs.stores.redis.wire import Words

__all__ = ["Node", "Sent"]

CONNECT_SHARE: Final = 0.5
"""Of the time limit of a call: for the connection to come about, and for each answer to what is
said before the first command."""
CLOCK_AGE: Final = 1.0
"""Seconds for which what is known of the server's clock is taken for true."""
NAMELESS: Final = dict.fromkeys(
    {"driver_info"} & set(signature(AbstractConnection).parameters) or ("lib_name", "lib_version")
)
"""Keeps redis-py from telling the server its name, which takes two round trips."""
SHORT: Final = 4096
"""Bytes of a reply that is read without redis-py's parser."""
FRESH: Final = 0.01
"""Seconds after an answer within which a connection is used again without a look whether the server
has closed it: no server is gone and back within them, and the look costs a tenth of a save."""


class _Connection(Protocol):
    def connect(self) -> None: ...
    def send_packed_command(self, command: list[bytes], check_health: bool) -> None: ...  # noqa: FBT001 - theirs
    def read_response(self) -> Any: ...
    def can_read(self, timeout: float = 0) -> bool: ...
    def disconnect(self) -> None: ...
    def update_current_socket_timeout(self, relaxed_timeout: float) -> None: ...


class Sent:
    """Commands on their way, or the error that kept them."""

    __slots__ = ("connection", "count", "error")

    def __init__(self, count: int, connection: _Connection | None, error: Exception | None) -> None:
        self.count = count
        self.connection = connection
        self.error = error


class Node:
    """A server at `host:port`.

    A call blocks for two and a half `timeout` at most where it has to connect to a server that is
    slow, for half of one where that is frozen, and else for one: no client's retry, no waiting for
    a pool.
    """

    def __init__(
        self, host: str, port: int, *, timeout: float, tls: bool, options: dict[str, Any]
    ) -> None:
        self.address = (host, port)
        self.where = f"{host}:{port}"
        self.failed_at = 0.0
        self.settings_asked = False
        self._clock: tuple[float, float] | None = None
        # One a thread that is waiting for the server, at most. redis-py's pools measure themselves
        # at each call, which takes as long as the packing of a save does.
        self._idle: list[tuple[_Connection, float]] = []
        self._closed = False
        self._kind: Any = SSLConnection if tls else Connection
        self._options: dict[str, Any] = {
            "host": host,
            "port": port,
            "protocol": 3,
            "decode_responses": True,
            "socket_timeout": timeout * CONNECT_SHARE,
            "socket_connect_timeout": timeout * CONNECT_SHARE,
            "socket_keepalive": True,
            "retry": Retry(NoBackoff(), 0),
            "health_check_interval": 0,
            "maint_notifications_config": MaintNotificationsConfig(enabled=False),
            **NAMELESS,
            **options,
        }
        self._timeout = timeout

    def send(self, commands: Sequence[Words]) -> Sent:
        """Send the commands; their replies are to be received."""
        try:
            connection = self._connection()
        except (RedisError, OSError) as error:
            self.failed_at = boot_time()
            return Sent(len(commands), None, error)
        try:
            connection.send_packed_command([b"".join(map(on_the_wire, commands))], False)  # noqa: FBT003 - theirs
        except (RedisError, OSError) as error:
            self._drop(connection)
            return Sent(len(commands), None, error)
        except BaseException:
            self._drop(connection)
            raise
        return Sent(len(commands), connection, None)

    def receive(self, sent: Sent) -> list[Any]:
        """A reply to each command; an exception in its place where there is none."""
        connection = sent.connection
        if connection is None:
            return [sent.error] * sent.count
        replies: list[Any] = []
        read = _only_reply if sent.count == 1 else _next_reply
        try:
            while len(replies) < sent.count:
                try:
                    replies.append(read(connection))
                except ResponseError as error:
                    replies.append(error)
        except (RedisError, OSError) as error:
            # What was sent may have been done; nobody waits for what is still to come.
            self._drop(connection)
            return [*replies, *[error] * (sent.count - len(replies))]
        except BaseException:
            self._drop(connection)  # a signal's exception: replies are left in it
            raise
        self._give_back(connection)
        return replies

    def answered(self, sent: Sent) -> bool:
        """Whether `receive` would find something at once."""
        try:
            return sent.connection is None or sent.connection.can_read(0)
        except (RedisError, OSError):
            return True  # the error

    def drop_sent(self, sent: Sent) -> None:
        """Give up replies that nobody will read."""
        if sent.connection is not None:
            self._drop(sent.connection)

    def run(self, *commands: Words) -> list[Any]:
        """Send and receive."""
        return self.receive(self.send(commands))

    def ask(self, command: Words) -> Any:
        """The reply to one command, or the exception in its place: what `run` does, shorter."""
        try:
            connection = self._connection()
        except (RedisError, OSError) as error:
            self.failed_at = boot_time()
            return error
        reply: Any
        try:
            connection.send_packed_command([on_the_wire(command)], False)  # noqa: FBT003 - theirs
            reply = _only_reply(connection)
        except ResponseError as error:
            reply = error
        except (RedisError, OSError) as error:
            self._drop(connection)  # as in `receive`
            return error
        except BaseException:
            self._drop(connection)
            raise
        self._give_back(connection)
        return reply

    def note_time(self, micros: str | int) -> None:
        """Note the server's clock, as an answer that has just come said it."""
        self._clock = (int(micros) / 1e6, boot_time())

    def time(self, *, age: float = CLOCK_AGE) -> float | None:
        """The server's clock now, or some moment before; `None` when it has to be asked."""
        if self._clock is None:
            return None
        passed = boot_time() - self._clock[1]
        return self._clock[0] + passed if passed <= age else None

    def close(self) -> None:
        """Close all connections, those that are in use after their answer."""
        self._closed = True
        while self._idle:
            with suppress(IndexError):  # another thread was faster
                self._idle.pop()[0].disconnect()

    def _connection(self) -> _Connection:
        """One that is connected, and has no answer of another call on its way."""
        try:
            connection, since = self._idle.pop()
        except IndexError:
            connection = cast("_Connection", self._kind(**self._options))
        else:
            if boot_time() - since < FRESH or not _is_spent(connection):
                return connection
            connection.disconnect()
        connection.connect()
        connection.update_current_socket_timeout(self._timeout)
        return connection

    def _give_back(self, connection: _Connection) -> None:
        self._idle.append((connection, boot_time()))
        if self._closed:
            self.close()

    def _drop(self, connection: _Connection) -> None:
        self.failed_at = boot_time()
        connection.disconnect()


def _next_reply(connection: _Connection) -> Any:
    return connection.read_response()


def _only_reply(connection: _Connection) -> Any:
    """The one reply that is to come. redis-py's parser takes longer over it than all else here.

    So it is looked at while it still is the socket's; what is not short, or not there as a whole,
    or through TLS, is left to the parser.
    """
    there = getattr(connection, "_sock", None)
    if type(there) is not socket.socket:
        return connection.read_response()
    text = there.recv(SHORT, socket.MSG_PEEK)
    kind = text[:1]
    reply: Any = None
    if kind == b"$":
        length, _, rest = text.partition(b"\r\n")
        size = int(length[1:]) if length[1:].isdigit() else -1
        if len(rest) == size + len(b"\r\n"):
            reply = rest[:size].decode()
    elif kind == b":" and text.endswith(b"\r\n") and text.count(b"\r\n") == 1:
        reply = int(text[1:-2])
    if reply is None:
        return connection.read_response()
    there.recv(len(text))
    return reply


def _is_spent(connection: _Connection) -> bool:
    """Whether the server has closed it, or sent what nobody asked for."""
    try:
        return connection.can_read()
    except (RedisError, OSError):
        return True


def is_away(reply: object) -> bool:
    """Whether no answer came: the server, or the way to it, is gone."""
    return isinstance(reply, (RedisConnectionError, RedisTimeoutError, OSError))
