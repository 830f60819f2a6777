"""What the conformance suite needs of a queue, and the worker processes that it starts.

A queue plugs in with one file beside this one: a class that has what `Kind` asks for, and a line in
`conftest.KINDS`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from tests.processes import PATIENCE, ROOT, until

if TYPE_CHECKING:
    from types import ModuleType

    from tracedjobs import JobSnapshot, Runtime

__all__ = ["APP", "Kind", "Place", "Worker", "session"]

LEASE: Final = 2.0

APP: Final = '''\
import asyncio, os, time
from tracedjobs import Runtime, job
from tracedjobs.queues.{module} import continuable, queue

{app}
runtime = Runtime({store!r}, lease_ttl={lease})
import_queue = queue(app, runtime=runtime)
SOON = {{"runtime": runtime, "resume_delay": 0.2}}

def note(path, text):
    with open(path, "a", buffering=1) as file:
        file.write(text + "\\n")

@continuable(app, **SOON, {retries})
def count(ctx, path, items, pace=0.01):
    """Writes a line an item: which run, which item."""
    ctx.step("prepare", str)
    for item in ctx.each("items", range(items)):
        note(path, f"{{ctx.run}} {{item}}")
        time.sleep(pace)
    return ctx.step("finish", lambda: f"counted {{items}}")

@continuable(app, **SOON, {retries})
def stumble(ctx, path, falls):
    """Fails that often before it has made progress."""
    note(path, f"{{ctx.run}} begins")
    with open(path) as file:
        begun = len(file.readlines())
    if begun <= falls:
        raise ValueError(f"fall {{begun}}")
    return "up"

@continuable(app, **SOON)
def break_off(ctx, path, items):
    """Raises once in the middle, after it has made progress."""
    for item in ctx.each("items", range(items)):
        note(path, f"{{ctx.run}} {{item}}")
        if item == items // 2 and ctx.run == 1:
            raise OSError("in the middle")
    return "whole"

@continuable(app, **SOON, max_resumptions=1)
def limited(ctx, path):
    for item in ctx.each("items", range(9)):
        note(path, f"{{ctx.run}} {{item}}")
        ctx.interrupt("enough")

@continuable(app, **SOON, max_runtime=0.3)
def in_parts(ctx, path, items):
    for item in ctx.each("items", range(items)):
        note(path, f"{{ctx.run}} {{item}}")
        time.sleep(0.05)
    return "all parts"

@continuable(app, **SOON)
def simple(ctx, left, right=1):
    return left + right

@job(name="plain {name}", resume_delay=0.2)
def plain(ctx, path, items):
    for item in ctx.each("items", range(items)):
        note(path, f"{{ctx.run}} {{item}}")
        time.sleep(0.01)
    return "by way of a queue"

@job(name="plain async {name}", resume_delay=0.2)
async def plain_async(ctx, path, items):
    async for item in ctx.each("items", range(items)):
        note(path, f"{{ctx.run}} {{item}}")
        await asyncio.sleep(0.01)
{more}
'''


class Kind(Protocol):
    """One queue with its broker and one kind of its workers.

    It may have `close`, which is given the application at the end, and `rolling_items`, how many
    items the jobs of the rolling restarts have where a stop takes long to reach the worker.
    """

    module: str
    """The name in `tracedjobs.queues`."""
    ready: str
    """What a worker says when it is ready."""
    more: str
    """Tasks that only this queue has."""

    retries: str
    """The source of options with which a task is retried twice, soon."""

    def app(self, folder: Path) -> str:
        """The lines that make `app`, on a broker of the test's own."""
        ...

    def command(self, module: str) -> list[str]:
        """How a worker of two at a time is started."""
        ...

    def send(self, task: Any, *args: object, **kwargs: object) -> Any:
        """Enqueue as a user does; the queue's own handle."""
        ...

    def send_later(self, task: Any, seconds: float, *args: object) -> Any:
        """The same, to run later."""
        ...

    def id_of(self, handle: Any) -> str:
        """The id of its message."""
        ...

    def result(self, handle: Any) -> object:
        """What comes of it, within `PATIENCE`; raises an error that was given to the queue."""
        ...

    def deliver_again(self, task: Any, job_id: str, *args: object) -> None:
        """Enqueue one more message of that id."""
        ...


def session(leader: int) -> list[int]:
    """The processes that began in that one's session."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[3]) == leader:
                found.append(int(path.parent.name))
    return found


@dataclass
class Worker:
    """A worker in a session of its own, so that all its processes can be reached."""

    process: subprocess.Popen[bytes]
    log: Path
    ready: str

    def says_ready(self) -> None:
        """Wait until it takes messages."""
        until(lambda: self.ready in self.text(), f"the worker is ready: {self.text()}")

    def text(self) -> str:
        return self.log.read_text("utf-8", "replace")

    def stop(self) -> None:
        """SIGTERM it, alone, as `docker stop` does."""
        self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL it with all its children, also those that have a process group of their own."""
        if self.process.poll() is None:
            self.process.kill()
        for pid in session(self.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(PATIENCE)

    def ends(self, within: float = 15.0) -> None:
        """Wait for its end, which is to be a clean one that says nothing alarming."""
        try:
            code = self.process.wait(within)
        except subprocess.TimeoutExpired:
            self.kill()
            msg = f"the worker hangs after its stop:\n{self.text()}"
            raise AssertionError(msg) from None
        text = self.text()
        assert code == 0, (code, text)
        assert "Traceback" not in text, text
        assert "failed" not in text.lower(), text


@dataclass
class Place:
    """A folder with an application, its store, its broker and its workers."""

    kind: Kind
    folder: Path
    name: str
    store: str
    lease: float = LEASE
    workers: list[Worker] = field(default_factory=list)
    app: ModuleType = field(init=False)

    def __post_init__(self) -> None:
        path = self.folder / f"{self.name}.py"
        path.write_text(
            APP.format(
                module=self.kind.module,
                app=self.kind.app(self.folder),
                store=self.store,
                lease=self.lease,
                retries=self.kind.retries,
                name=self.name,
                more=self.kind.more,
            ),
            "utf-8",
        )
        spec = importlib.util.spec_from_file_location(self.name, path)
        assert spec is not None
        assert spec.loader is not None
        self.app = importlib.util.module_from_spec(spec)
        sys.modules[self.name] = self.app
        spec.loader.exec_module(self.app)

    @property
    def begins_slowly(self) -> bool:
        """Whether a worker of that kind takes a second from a message to its job's begin."""
        return bool(getattr(self.kind, "begins_slowly", False))

    @property
    def runtime(self) -> Runtime:
        found: Runtime = self.app.runtime
        return found

    def start(self) -> Worker:
        """Start a worker."""
        log = self.folder / f"worker{len(self.workers)}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                self.kind.command(self.name),
                cwd=self.folder,
                env={**os.environ, "PYTHONPATH": f"{ROOT}:{self.folder}"},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.workers.append(Worker(process, log, self.kind.ready))
        return self.workers[-1]

    def job(self, job_id: str) -> JobSnapshot:
        return self.runtime.get(job_id)

    def until_status(self, job_id: str, status: str, *, within: float = PATIENCE) -> None:
        """Wait until the job has that status."""
        until(
            lambda: self._status(job_id) == status,
            f"{job_id} is {status}, {self.told()}",
            within=within,
        )

    def _status(self, job_id: str) -> str | None:
        stored = self.runtime.store.load(job_id)
        return None if stored is None else str(stored.job.status)

    def runs(self, worker: Worker, name: str) -> bool:
        """Whether that name in a record is one of the worker's processes."""
        pid = int(name.rpartition(":")[2])
        return os.getsid(pid) == worker.process.pid

    def told(self) -> str:
        """What the workers have said, for a failure."""
        return "\n".join(worker.text() for worker in self.workers)

    def lines(self, path: Path) -> list[tuple[int, int]]:
        """Run and item of each line that a job wrote."""
        written = path.read_text().splitlines() if path.exists() else []
        return [(int(run), int(item)) for run, item in map(str.split, written)]

    def close(self) -> None:
        for worker in self.workers:
            worker.kill()
        close = getattr(self.kind, "close", None)
        if close is not None:
            close(self.app)
        self.runtime.close()
        sys.modules.pop(self.name, None)
