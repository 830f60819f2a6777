"""SIGTERM and SIGINT: the first interrupts at the next checkpoint, the second ends the process."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from typing import TYPE_CHECKING, Final

import pytest

from tests.processes import Children, count, counted, until
from tracedjobs import AsyncContext, Context, Runtime, Status, job
from tracedjobs._core.signals import StopSignals

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import FrameType

BOTH: Final = (signal.SIGTERM, signal.SIGINT)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/jobs.db"


@pytest.fixture
def files(url: str) -> Iterator[Runtime]:
    with Runtime(url) as made:
        yield made


@pytest.fixture
def children(tmp_path: Path) -> Iterator[Children]:
    with Children(tmp_path) as made:
        yield made


PERFORM: Final = """
with Runtime(URL) as runtime:
    outcome = runtime.perform(JOB_ID)
    say("outcome", outcome.status, outcome.reason)
say("after", signal.getsignal(signal.SIGTERM) is signal.SIG_DFL,
    signal.getsignal(signal.SIGINT) is signal.default_int_handler)
"""


# -- in a process of its own ---


@pytest.mark.parametrize("number", BOTH)
def test_the_first_signal_interrupts_at_the_next_checkpoint_and_saves(
    files: Runtime, children: Children, url: str, tmp_path: Path, number: signal.Signals
) -> None:
    log = tmp_path / "log"
    job_id = files.submit(count, str(log), 10**6, 0.002)
    child = children.start(PERFORM, url, job_id)
    until(lambda: len(counted(log)) > 5, "some items")
    child.send(number)
    child.says("outcome interrupted stopping")
    child.says("after True True")
    child.ends()
    found = files.get(job_id)
    assert (found.status, found.reason) == (Status.INTERRUPTED, "stopping")
    assert found.steps[0].cursor == len(counted(log))


STUBBORN: Final = """
import threading
from tracedjobs._core.signals import StopSignals

def watch() -> None:
    while StopSignals.seen is None:
        time.sleep(0.005)
    say("seen")

@job(name="stubborn")
def stubborn(ctx: Context) -> None:
    threading.Thread(target=watch, daemon=True).start()
    for item in ctx.each("items", range(10)):
        say("item")
        while True:
            try:
                time.sleep(600)
            except BaseException as error:
                say("swallowed", type(error).__name__)
"""


@job(name="stubborn")
def stubborn(ctx: Context) -> None:
    """Stands for the job of the same name in the children."""


@pytest.mark.parametrize("second", BOTH)
@pytest.mark.parametrize("first", BOTH)
def test_the_second_signal_ends_the_process_by_that_signal_whatever_the_job_catches(
    files: Runtime, children: Children, url: str, first: signal.Signals, second: signal.Signals
) -> None:
    job_id = files.submit(stubborn)
    child = children.start(STUBBORN + PERFORM, url, job_id)
    child.says("item")
    child.send(first)
    child.says("seen")  # before that, Python would take two of a kind for one
    assert child.process.poll() is None
    child.send(second)
    assert child.ends(-second) == "item\nseen\n"
    assert files.get(job_id).lost


BLOCKING: Final = """
@job(name="blocking")
def blocking(ctx: Context) -> list:
    took = []
    for how in ctx.each("items", ["sleep", "subprocess", "never"]):
        if how == "never":
            say("too far")
        began = time.monotonic()
        say(how)
        if how == JOB_WITH:
            os.kill(os.getpid(), signal.SIGTERM)
        if how == "sleep":
            time.sleep(0.5)
        else:
            subprocess.run([sys.executable, "-c", "import time; time.sleep(0.5)"], check=True)
        say("took long enough", time.monotonic() - began >= 0.5)

JOB_WITH = sys.argv[3]
"""


@job(name="blocking")
def blocking(ctx: Context) -> None:
    """Stands for the job of the same name in the children."""


@pytest.mark.parametrize("how", ["sleep", "subprocess"])
def test_a_call_that_blocks_in_an_item_is_not_cut(
    files: Runtime, children: Children, url: str, how: str
) -> None:
    job_id = files.submit(blocking)
    child = children.start(BLOCKING + PERFORM, url, job_id, how)
    child.says("outcome interrupted stopping")
    assert "False" not in child.ends()
    assert files.get(job_id).steps[0].cursor == ["sleep", "subprocess"].index(how) + 1


IGNORING: Final = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)

@job(name="ignoring")
def ignoring(ctx: Context) -> None:
    for item in ctx.each("items", range(20)):
        os.kill(os.getpid(), signal.SIGTERM)

with Runtime(URL) as runtime:
    job_id = runtime.submit(ignoring)
    say(runtime.perform(job_id).status, signal.getsignal(signal.SIGTERM) is signal.SIG_IGN)
"""


def test_a_signal_that_was_ignored_before_stays_ignored(children: Children, url: str) -> None:
    child = children.start(IGNORING, url, "-")
    assert child.ends() == "completed True\n"


ASYNC: Final = """
import asyncio

@job(name="asyncs")
async def asyncs(ctx, path):
    async for item in ctx.each("items", range(10**6)):
        if item == 3:
            say("running")
        with open(path, "a") as file:
            file.write(f"{ctx.run} {item}\\n")
        await asyncio.sleep(0.002)

async def main():
    with Runtime(URL) as runtime:
        outcome = await runtime.perform_async(JOB_ID)
        say("outcome", outcome.status, outcome.reason)

asyncio.run(main())
say("after", signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)
"""


@job(name="asyncs")
async def asyncs(ctx: AsyncContext, path: str) -> None:
    """Stands for the job of the same name in the children."""


def test_an_async_job_is_interrupted_by_sigterm(
    files: Runtime, children: Children, url: str, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    job_id = files.submit(asyncs, str(log))
    child = children.start(ASYNC, url, job_id)
    child.says("running")
    child.send(signal.SIGTERM)
    child.says("outcome interrupted stopping")
    child.says("after True")
    child.ends()
    assert files.get(job_id).steps[0].cursor == len(counted(log))


def test_an_async_job_is_interrupted_by_ctrl_c_and_it_propagates(
    files: Runtime, children: Children, url: str, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    job_id = files.submit(asyncs, str(log))
    child = children.start(ASYNC, url, job_id)
    child.says("running")
    child.send(signal.SIGINT)
    assert "KeyboardInterrupt" in child.ends(None)
    found = files.get(job_id)
    assert found.status is Status.INTERRUPTED
    assert found.reason in {"CancelledError", "KeyboardInterrupt"}
    # The item in hand was cut, and is done again: what it wrote may be there already.
    assert len(counted(log)) - 1 <= int(str(found.steps[0].cursor)) <= len(counted(log))


FORKED: Final = """
@job(name="forked")
def forked(ctx: Context) -> None:
    for item in ctx.each("items", range(3)):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.write(writing, b"up")
                time.sleep(600)
            finally:
                os._exit(7)
        os.read(reading, 2)  # a signal that comes while Python is forking is lost in any program
        os.kill(child, signal.SIGTERM)
        say("ended by", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

with Runtime(URL) as runtime:
    say(runtime.perform(runtime.submit(forked)).status)
"""


def test_a_child_that_a_job_forks_is_ended_by_the_first_signal(
    children: Children, url: str
) -> None:
    child = children.start(FORKED, url, "-")
    assert child.ends().splitlines() == ["ended by -15"] * 3 + ["completed"]


# -- in this process ---


def signalling(runtime: Runtime, number: int = signal.SIGTERM) -> str:
    """The id of a job that sends itself a signal in item 2."""

    @job(name="signals:signalling")
    def signals(ctx: Context) -> None:
        for item in ctx.each("items", range(10)):
            if item == 2:
                signal.raise_signal(number)

    return runtime.submit(signals)


def test_a_handler_that_was_there_is_called_too_and_put_back(runtime: Runtime) -> None:
    seen: list[tuple[int, bool]] = []

    def handler(number: int, frame: FrameType | None) -> None:
        seen.append((number, frame is not None))

    before = signal.signal(signal.SIGTERM, handler)
    try:
        outcome = runtime.perform(signalling(runtime))
        assert (outcome.status, outcome.reason) == (Status.INTERRUPTED, "stopping")
        assert seen == [(signal.SIGTERM, True)]
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_handler_that_somebody_installs_meanwhile_stays(runtime: Runtime) -> None:
    def handler(number: int, frame: FrameType | None) -> None:
        raise AssertionError

    @job(name="signals:installs")
    def installs(ctx: Context) -> None:
        ctx.step("install", lambda: signal.signal(signal.SIGTERM, handler) and None)

    before = signal.getsignal(signal.SIGTERM)
    try:
        assert runtime.perform(runtime.submit(installs)).ok
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)


def test_handlers_are_put_back_when_the_job_fails(runtime: Runtime) -> None:
    before = [signal.getsignal(number) for number in BOTH]

    @job(name="signals:fails")
    def fails(ctx: Context) -> None:
        assert [signal.getsignal(number) for number in BOTH] != before
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        runtime.perform(runtime.submit(fails))
    assert [signal.getsignal(number) for number in BOTH] == before


def test_a_signal_stops_the_inner_run_and_the_outer_one(runtime: Runtime) -> None:
    outcomes = []

    @job(name="signals:outer")
    def outer(ctx: Context) -> None:
        for _ in ctx.each("items", range(10)):
            outcomes.append(runtime.perform(signalling(runtime)))  # noqa: PERF401 - the loop is the job's

    outcomes.append(runtime.perform(runtime.submit(outer)))
    assert [outcome.reason for outcome in outcomes] == ["stopping", "stopping"]


def test_a_signal_of_an_earlier_run_does_not_stop_a_later_one(runtime: Runtime) -> None:
    job_id = signalling(runtime)
    assert runtime.perform(job_id).reason == "stopping"
    assert runtime.perform(job_id).ok


def test_off_the_main_thread_nothing_is_installed(runtime: Runtime) -> None:
    before = [signal.getsignal(number) for number in BOTH]
    inside: list[object] = []

    @job(name="signals:thread")
    def thread(ctx: Context) -> None:
        inside.extend(signal.getsignal(number) for number in BOTH)

    worker = threading.Thread(target=runtime.perform, args=(runtime.submit(thread),))
    worker.start()
    worker.join(20)
    assert inside == before


def test_nothing_is_installed_when_the_application_handles_signals(store_url: str) -> None:
    before = [signal.getsignal(number) for number in BOTH]
    inside: list[object] = []

    @job(name="signals:unhandled")
    def unhandled(ctx: Context) -> None:
        inside.extend(signal.getsignal(number) for number in BOTH)

    with Runtime(store_url, handle_signals=False) as runtime:
        assert runtime.perform(runtime.submit(unhandled)).ok
    assert inside == before


def test_a_handler_of_the_event_loop_is_called_too(runtime: Runtime) -> None:
    called = asyncio.Event()

    @job(name="signals:loop-handler")
    async def signals(ctx: AsyncContext) -> None:
        async for item in ctx.each("items", range(10)):
            if item == 2:
                os.kill(os.getpid(), signal.SIGTERM)
                await called.wait()

    async def main() -> str | None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, called.set)
        try:
            return (await runtime.perform_async(runtime.submit(signals))).reason
        finally:
            loop.remove_signal_handler(signal.SIGTERM)

    assert asyncio.run(main()) == "stopping"


def test_several_async_jobs_are_all_stopped_and_the_handlers_put_back(runtime: Runtime) -> None:
    before = signal.getsignal(signal.SIGTERM)

    @job(name="signals:several")
    async def several(ctx: AsyncContext, kills: int) -> None:
        async for item in ctx.each("items", range(10**6)):
            if item == 20 and kills:
                os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(0.001)

    async def main() -> list[str | None]:
        ids = [runtime.submit(several, number == 3) for number in range(6)]
        outcomes = await asyncio.gather(*map(runtime.perform_async, ids))
        return [outcome.reason for outcome in outcomes]

    assert asyncio.run(main()) == ["stopping"] * 6
    assert signal.getsignal(signal.SIGTERM) is before
    assert StopSignals._depth == 0


def test_a_signal_that_was_met_stops_no_later_job_in_another_thread(tmp_path: Path) -> None:
    with Runtime(f"sqlite:///{tmp_path}/jobs.db") as runtime:
        path = tmp_path / "done.txt"
        first = runtime.submit(count, str(path), 3, 0.0)
        stopped = runtime.perform(first, stopping=lambda _ctx: signal.raise_signal(signal.SIGTERM))
        assert stopped.reason == "stopping"
        outcomes = []
        second = runtime.submit(count, str(path), 3, 0.0)
        thread = threading.Thread(target=lambda: outcomes.append(runtime.perform(second)))
        thread.start()
        thread.join()
        assert outcomes[0].ok
