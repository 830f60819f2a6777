"""What Taskiq's worker and its clients need of us: a middleware, the stop, and the event loop.

The worker is told to stop by a signal of which Taskiq tells its tasks nothing, so ours is chained
to its handlers. A process of its pool for `def` functions is told nothing at all: it looks for a
file. Whoever sends from a thread has it done by the event loop in which the broker was started.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import BrokenExecutor
from contextlib import aclosing, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar
from weakref import WeakKeyDictionary

from taskiq import (
    AckableMessage,
    InMemoryBroker,
    NoResultError,
    TaskiqFormatter,
    TaskiqMiddleware,
)
from taskiq.kicker import AsyncKicker

from tracedjobs._core.clock import boot_time
from tracedjobs._core.owner import run_directory
from tracedjobs._core.saver import saver
from tracedjobs.errors import TracedJobsError
from tracedjobs.queues.base import log
from tracedjobs.queues.delivery import Again, Over
from tracedjobs.queues.recovery import keep_unknown, start_recovery, taken
from tracedjobs.queues.stopping import stop
from tracedjobs.queues.versions import check_version

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
    from types import FrameType

    from taskiq import AsyncBroker, BrokerMessage, TaskiqMessage, TaskiqResult

__all__ = [
    "Said",
    "adopt",
    "formatter_of",
    "is_followed",
    "is_stopping",
    "name_of",
    "silently",
    "wait_for",
]

T = TypeVar("T")
MAJORS: Final = (0,)
LAST_POLL: Final = 0.5
"""Seconds after a stop until the worker, and the others under the same command, ask their broker
for no more: what Redis gives to one that has gone, or is about to, is lost or soon given back."""
LONGEST_SEND: Final = 10.0
"""Seconds after which a message that a thread sends counts as not sent."""
EVERY: Final = 0.05
"""Seconds between two looks of a pool's process at whether its worker stops."""
WORKER: Final = "TRACEDJOBS_TASKIQ_WORKER"
"""The variable of the environment that tells processes of a pool whose they are."""
NOT_RECORDED: Final = frozenset({"store_unavailable", "unknown"})
"""Reasons to go on later of which no record tells `recover`."""
PIPELINE: Final = "_pipe_data"
"""The label in which `taskiq-pipelines` keeps the steps of a pipeline."""

_quiet: Final[ContextVar[bool]] = ContextVar("tracedjobs_taskiq_quiet", default=False)
"""Whether what is sent is the message of a job that is recorded already."""
_loops: Final[WeakKeyDictionary[AsyncBroker, tuple[int, AbstractEventLoop]]] = WeakKeyDictionary()
"""Of each broker the process and the event loop in which it was started, or used."""


@dataclass(frozen=True, slots=True)
class Said:
    """What a delivery came to, other than a result: the middleware does what is to be done.

    The task returns it, and raises nothing: what Taskiq resolved for it, a database's session say,
    is to be left as by a task that did well.
    """

    verdict: Again | Over


def is_followed(message: TaskiqMessage) -> bool:
    """Whether it is of a pipeline, whose next step is sent at its end."""
    return PIPELINE in message.labels


def name_of(app: AsyncBroker) -> str:
    """The name of the broker's queue, as jobs record it."""
    return str(getattr(app, "queue_name", "taskiq"))


@contextmanager
def silently() -> Iterator[None]:
    """Send without recording."""
    token = _quiet.set(True)
    try:
        yield
    finally:
        _quiet.reset(token)


def adopt(app: AsyncBroker, family: str) -> None:
    """Have the broker tell us what it sends and receives, once."""
    if not any(isinstance(each, _Middleware) for each in app.middlewares):
        check_version("taskiq", MAJORS, "running jobs may not see that their worker stops")
        app.add_middlewares(_Middleware(family))
        last = _Answered()
        last.set_broker(app)
        app.middlewares.insert(0, last)  # results go through them backwards


class _Middleware(TaskiqMiddleware):
    def __init__(self, family: str) -> None:
        super().__init__()
        self._family = family
        self._over = asyncio.Event()
        """Nothing is to wait any more: the worker is to end."""
        self._alone = asyncio.Event()
        """The broker is shut down: it asks for no messages, and no process of the pool is left."""
        self._waiting: set[asyncio.Task[None]] = set()
        self._is_taskiqs = False
        """Whether this process is a worker's alone."""

    # -- in any process ---

    async def startup(self) -> None:
        _loops[self.broker] = os.getpid(), asyncio.get_running_loop()
        if self.broker.is_worker_process:
            self.broker.formatter = _Watching(self.broker)
            self._note_what_comes()
            self._is_taskiqs = _chain(self._over)
            start_recovery(self._family)

    async def pre_send(self, message: TaskiqMessage) -> TaskiqMessage:
        _loops[self.broker] = os.getpid(), asyncio.get_running_loop()
        made = self._made(message)
        if made is not None and not _quiet.get() and "_retries" not in message.labels:
            await made.sending(message)
        return message

    # -- in a worker ---

    async def post_execute(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> None:
        taken.discard(message.task_id)
        said = result.return_value
        if not isinstance(said, Said):
            return
        result.return_value = None
        result.error = NoResultError()
        match said.verdict:
            case Over("cancelled"):
                result.is_err = True
                result.error = TracedJobsError(f"The job {message.task_id} is cancelled.")
            case Again(delay, reason):
                await self._goes_on(message, delay, reason)

    async def on_error(
        self, message: TaskiqMessage, result: TaskiqResult[Any], exception: BaseException
    ) -> None:
        if not isinstance(exception, BrokenExecutor) or self._made(message) is None:
            return
        log.error("A process of the pool has died: this worker can call no `def` functions.")
        result.error = NoResultError()
        if self._is_taskiqs and not stop.came:
            signal.raise_signal(signal.SIGTERM)  # and another is started in its place
        await self._goes_on(message, 0.0, "")

    async def shutdown(self) -> None:
        if self.broker.is_worker_process:
            self._over.set()
            self._alone.set()
            await asyncio.gather(*self._waiting)
            with suppress(OSError):
                _stop_file(os.getpid()).unlink()

    def _note_what_comes(self) -> None:
        """Note what this worker takes, which may wait in it for long: see `Taken`."""
        listen, loads = self.broker.listen, formatter_of(self.broker).loads

        async def noting() -> AsyncGenerator[bytes | AckableMessage, None]:
            async with aclosing(listen()) as coming:
                async for each in coming:
                    with suppress(Exception):  # which Taskiq says when it comes to this message
                        data = each.data if isinstance(each, AckableMessage) else each
                        message = loads(data)
                        made = self._made(message)
                        if made is not None:
                            taken.add(made, message.task_id)
                    yield each

        self.broker.listen = noting  # type: ignore[method-assign]  # of this one broker

    def _made(self, message: TaskiqMessage) -> Any:
        """The continuable of which that is a message, if it is of one."""
        return getattr(self.broker.find_task(message.task_name), "continuable", None)

    def _takes_more(self) -> bool:
        """Whether what is sent after a stop may be given to this worker, until it is shut down.

        Taskiq's command ends the asking for messages first, an application of its own may not; and
        of a loop such as uvloop's processes of the pool cannot let go: see `_after_fork_in_child`.
        """
        loop = asyncio.get_running_loop()
        held = not hasattr(loop, "_selector") and bool(multiprocessing.active_children())
        return held or not self._is_taskiqs

    async def _goes_on(self, message: TaskiqMessage, delay: float, reason: str) -> None:
        again = self._again(message, delay)
        at_once = delay <= 0 or stop.came or reason in NOT_RECORDED
        if at_once and not self._takes_more():
            await again  # before the message is acknowledged
            return
        # Else each would take a place of the worker's while it waits.
        task = asyncio.create_task(again)
        self._waiting.add(task)
        task.add_done_callback(self._waiting.discard)

    async def _again(self, message: TaskiqMessage, delay: float) -> None:
        """Send the message once more, in that many seconds, or when the worker ends."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._over.wait(), max(delay, 0.0))
        if stop.came_at is not None:
            await asyncio.sleep(max(stop.came_at + LAST_POLL - boot_time(), 0.0))
            if self._takes_more():
                await self._alone.wait()
        kicker: Any = AsyncKicker(message.task_name, self.broker, dict(message.labels))
        try:
            with silently():
                await kicker.with_task_id(message.task_id).kiq(*message.args, **message.kwargs)
        except Exception as error:  # noqa: BLE001 - whatever the broker raises
            log.warning(
                "The job %s cannot be sent again just now, and is left to `recover`: %s",
                message.task_id,
                error.__cause__ or error,
            )


class _Answered(TaskiqMiddleware):
    """Hears of a result when all other middlewares have: what follows it is sent by then."""

    async def post_save(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> None:
        made = getattr(self.broker.find_task(message.task_name), "continuable", None)
        if made is not None and is_followed(message) and not result.is_err:
            await asyncio.to_thread(made.answered, message.task_id)


class _Watching(TaskiqFormatter):
    """The broker's formatter, which sees messages of tasks that the worker does not have."""

    def __init__(self, app: AsyncBroker) -> None:
        self._app = app
        self.formatter = app.formatter

    def dumps(self, message: TaskiqMessage) -> BrokerMessage:
        return self.formatter.dumps(message)

    def loads(self, message: bytes) -> TaskiqMessage:
        loaded = self.formatter.loads(message)
        if self._app.find_task(loaded.task_name) is None:
            # Taskiq logs it and throws the message away.
            asyncio.get_running_loop().run_in_executor(
                None, keep_unknown, "taskiq", loaded.task_id, loaded.task_name
            )
        return loaded


# -- the stop ---


def formatter_of(app: AsyncBroker) -> TaskiqFormatter:
    """The broker's own formatter."""
    found = app.formatter
    return found.formatter if isinstance(found, _Watching) else found


def is_stopping() -> bool:
    """Whether this worker was told to stop, or the one of whose pool this process is."""
    _watch_worker()
    return stop.came


def _chain(over: asyncio.Event) -> bool:
    """Hear of the signals that stop this worker, before Taskiq does, if it does."""
    if threading.current_thread() is not threading.main_thread():
        log.warning("Off the main thread a stop of the worker is not seen by running jobs.")
        return False
    global _worker  # noqa: PLW0603 - one a process
    loop = asyncio.get_running_loop()
    pid = os.getpid()
    _worker = pid, loop
    os.environ[WORKER] = str(pid)
    file = _stop_file(pid)
    with suppress(OSError):
        file.unlink()
    before: dict[int, Callable[[int, FrameType | None], object]] = {}

    def on_signal(number: int, frame: FrameType | None) -> None:
        stop.set()
        if os.getpid() == pid:  # a pool's process has inherited this, and has a loop of its own
            with suppress(OSError):
                file.touch()
            with suppress(RuntimeError):
                # Wakes the loop, too, which sleeps through what a handler does to its events.
                loop.call_soon_threadsafe(over.set)
        before[number](number, frame)

    handler = signal.getsignal(signal.SIGTERM)
    is_taskiqs = str(getattr(handler, "__module__", "")).startswith("taskiq.")
    # A SIGHUP may mean something else in an application that runs the worker itself.
    for number in (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if is_taskiqs else [])):
        found = signal.getsignal(number)
        if callable(found):
            before[number] = found
            signal.signal(number, on_signal)
    return is_taskiqs


def _stop_file(pid: int) -> Path:
    """What is there when that worker is to stop, of which processes of its pool see no signal."""
    try:
        # Containers that share a run directory have the same small pids.
        return run_directory() / f"taskiq.{Path('/proc/self/ns/pid').stat().st_ino}.{pid}.stop"
    except OSError:
        return Path(os.devnull, "none")  # and they see no stop


# -- its pool of processes ---


_worker: tuple[int, AbstractEventLoop] | None = None
"""The worker that this process is: its pid, and its event loop."""
_watching = 0


def _watch_worker() -> None:
    """Look for the stop of the worker of whose pool this process is, if it is of one."""
    global _watching  # noqa: PLW0603 - of this process
    parent = multiprocessing.parent_process()
    if _watching == os.getpid() or parent is None or os.environ.get(WORKER) != str(parent.pid):
        return
    _watching = os.getpid()
    file = _stop_file(int(os.environ[WORKER]))
    threading.Thread(target=_look, args=(file,), name="tracedjobs-stop", daemon=True).start()


def _look(file: Path) -> None:
    parent = os.getppid()
    while not file.exists():
        if os.getppid() != parent:
            # Nobody takes what the job comes to: another worker is to go on with it.
            for run in saver.runs():
                run.request_stop("exit")
            return
        time.sleep(EVERY)
    stop.set()


def _after_fork_in_child() -> None:
    """Let go of the connections of the worker's event loop, in a process of its pool.

    While one of them is held Redis takes a worker that has gone for one that waits, and gives it
    the next message.
    """
    global _worker  # noqa: PLW0603 - one a process
    if _worker is None:
        return
    try:
        sockets = list(_worker[1]._selector.get_map())  # type: ignore[attr-defined]  # noqa: SLF001
    except AttributeError:
        return  # uvloop: see `_takes_more`
    nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for each in sockets:
        os.dup2(nothing, each, inheritable=False)
    os.close(nothing)
    _worker = None


os.register_at_fork(after_in_child=_after_fork_in_child)


# -- the event loop ---


_alone: Final = threading.Lock()


def wait_for(app: AsyncBroker, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Have an event loop send with that broker, from a thread, and wait for it.

    Its connections are of the loop in which it was started; where there is none, it is started
    for this sending alone, and leaves no connection to a loop that has ended.
    """
    with suppress(RuntimeError):
        asyncio.get_running_loop()
        msg = (
            "A job cannot be sent to Taskiq from inside an event loop, which it would block: "
            "await asyncio.to_thread(runtime.submit, …)."
        )
        raise TypeError(msg)
    pid, loop = _loops.get(app, (0, None))
    if loop is not None and pid == os.getpid() and loop.is_running():
        return asyncio.run_coroutine_threadsafe(make(), loop).result(LONGEST_SEND)
    if app.is_worker_process:
        msg = "This worker ends, or begins, and sends nothing."
        raise TracedJobsError(msg)
    with _alone:
        return asyncio.run(asyncio.wait_for(_started(app, make), LONGEST_SEND))


async def _started(app: AsyncBroker, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
    if isinstance(app, InMemoryBroker):
        made = await make()
        await app.wait_all()  # it runs here what is sent, and cannot be started twice
        return made
    try:
        await app.startup()
        return await make()
    finally:
        await app.shutdown()
