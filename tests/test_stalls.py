"""A stall is told by the stack of the thread or task that hangs."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import linecache
import os
import re
import sys
import threading
import time
import types
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tracedjobs import Context, Runtime, job
from tracedjobs._core.stalls import Stall, is_stalled, stack_of_task, stack_of_thread

if TYPE_CHECKING:
    from pathlib import Path

PATIENCE = 10.0
LINE = re.compile(r"^(\S.*) \((.+):(\d+)\)$")

Look = Callable[[], list[str]]


def functions(stack: list[str]) -> list[str]:
    """The functions of the stack by their short names; notes as they are."""
    found = (LINE.match(line) for line in stack)
    return [
        match[1].rpartition(".")[2] if match else line
        for line, match in zip(stack, found, strict=True)
    ]


def source(line: str) -> str:
    """The source of a line of this file on a stack."""
    match = LINE.match(line)
    return linecache.getline(__file__, int(match[3])).strip() if match else ""


def until(
    look: Look, innermost: str, *, also: Callable[[list[str]], bool] = lambda stack: True
) -> list[str]:
    """The stack, once that function is its innermost, and the rest of it holds too."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        stack = look()
        match = LINE.match(stack[-1]) if stack else None
        if match and f".{match[1]}".endswith(f".{innermost}") and also(stack):
            return stack
        time.sleep(0.001)
    raise AssertionError(f"not in {innermost}: {look()}")


@contextmanager
def thread(work: Callable[[], object], *, release: Callable[[], object]) -> Iterator[int]:
    """The number of a thread that does the work, until it is released."""
    made = threading.Thread(target=work)
    made.start()
    assert made.ident is not None
    try:
        yield made.ident
    finally:
        release()
        made.join(PATIENCE)
        assert not made.is_alive()


# Threads


def test_a_thread_that_waits_for_a_lock_is_seen_there() -> None:
    lock = threading.Lock()
    lock.acquire()

    def wait() -> None:
        with lock:
            pass

    def outer() -> None:
        wait()

    with thread(outer, release=lock.release) as ident:
        stack = until(
            lambda: stack_of_thread(ident),
            "wait",
            also=lambda stack: source(stack[-1]) == "with lock:",
        )

    assert functions(stack)[-2:] == ["outer", "wait"]
    assert "(tests/test_stalls.py:" in stack[-1]


def test_a_thread_that_sleeps_is_seen_there() -> None:
    stop = threading.Event()

    def nap() -> None:
        while not stop.is_set():
            time.sleep(0.05)

    with thread(nap, release=stop.set) as ident:
        stack = until(lambda: stack_of_thread(ident), "nap")

    assert functions(stack)[-1] == "nap"


def test_a_thread_in_a_call_of_c_is_seen_at_the_line_of_the_call() -> None:
    reading, writing = os.pipe()

    def read() -> None:
        os.read(reading, 1)

    try:
        with thread(read, release=lambda: os.write(writing, b"x")) as ident:
            stack = until(
                lambda: stack_of_thread(ident),
                "read",
                also=lambda stack: source(stack[-1]) == "os.read(reading, 1)",
            )
    finally:
        os.close(reading)
        os.close(writing)

    assert functions(stack)[-1] == "read"


def test_a_thread_in_a_generator_is_seen_through_it() -> None:
    event = threading.Event()

    def inner() -> Iterator[int]:
        event.wait()
        yield 1

    def items() -> Iterator[int]:
        yield from inner()

    def consume() -> None:
        for _ in items():
            pass

    with thread(consume, release=event.set) as ident:
        stack = until(lambda: stack_of_thread(ident), "Condition.wait")

    assert functions(stack)[-5:-2] == ["consume", "items", "inner"]
    assert stack[-1].startswith("Condition.wait (threading.py:")


def test_a_thread_that_is_gone_has_no_stack() -> None:
    with thread(lambda: None, release=lambda: None) as ident:
        pass

    assert stack_of_thread(ident) == []
    assert stack_of_thread(-1) == []


def test_a_stack_tells_no_value_and_no_source() -> None:
    event = threading.Event()

    def login(password: str) -> None:
        secret = password.upper()
        event.wait()
        assert secret

    with thread(lambda: login("hunter2"), release=event.set) as ident:
        stack = until(lambda: stack_of_thread(ident), "Condition.wait")

    assert all(LINE.match(line) for line in stack)
    assert "hunter2" not in "".join(stack).lower()
    assert "login" in functions(stack)


def test_a_stack_that_is_too_deep_is_told_by_its_two_ends() -> None:
    event = threading.Event()

    def deeper(levels: int) -> None:
        if levels:
            deeper(levels - 1)
        else:
            event.wait()

    with thread(lambda: deeper(300), release=event.set) as ident:
        stack = until(lambda: stack_of_thread(ident), "Condition.wait")

    assert len(stack) == 50
    assert re.fullmatch(r"\.\.\. 2\d\d more frames \.\.\.", stack[10])
    assert "<lambda>" in functions(stack)[:5]


def test_names_of_any_kind_and_length_fit_in_8_kib_of_printable_text() -> None:
    event = threading.Event()
    name = "é" * 3000
    namespace: dict[str, Any] = {"event": event}
    source = f"def {name}(levels):\n    {name}(levels - 1) if levels else event.wait()\n"
    code = compile(source, "/" + "\x1b[31m\ndir\udcff/" * 500 + "f.py", "exec")
    exec(code, namespace)

    with thread(lambda: namespace[name](80), release=event.set) as ident:
        stack = until(lambda: stack_of_thread(ident), "Condition.wait")

    text = "\n".join(stack)
    assert len(text.encode()) <= 8192
    assert all(line.isprintable() for line in stack)
    assert "é" * 30 in text


@pytest.mark.parametrize(
    ("within", "file", "told"),
    [
        (".", "{here}/app/jobs.py", "app/jobs.py"),
        (".", "{here}/venv/site-packages/queue/worker.py", "queue/worker.py"),
        (".", "/elsewhere/of/somebody/jobs.py", ".../somebody/jobs.py"),
        (".", "jobs.py", "jobs.py"),
        (".", "<string>", "<string>"),
        ("gone", "{here}/app/jobs.py", ".../app/jobs.py"),
    ],
)
def test_files_are_told_as_they_are_imported(
    within: str, file: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    (here / "gone").mkdir(parents=True)
    monkeypatch.chdir(here / within)
    (here / "gone").rmdir()
    monkeypatch.syspath_prepend(str(here / "venv" / "site-packages"))
    event = threading.Event()
    namespace: dict[str, Any] = {"event": event}
    exec(compile("def hang(): event.wait()", file.format(here=here), "exec"), namespace)

    with thread(namespace["hang"], release=event.set) as ident:
        stack = until(lambda: stack_of_thread(ident), "Condition.wait")

    assert f"hang ({told}:1)" in stack


def test_a_thread_may_run_on_while_it_is_looked_at() -> None:
    stop = threading.Event()

    def count(levels: int) -> Iterator[int]:
        if levels:
            yield from count(levels - 1)
        yield levels

    def busy() -> None:
        while not stop.is_set():
            sum(count(20))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with thread(busy, release=stop.set) as ident:
            seen = [stack_of_thread(ident) for _ in range(1000)]
    finally:
        sys.setswitchinterval(interval)

    assert all(LINE.match(line) for stack in seen for line in stack)
    assert max(map(len, seen)) > 10


# Jobs


def in_pause(stack: list[str]) -> bool:
    return "pause" in functions(stack)


def test_what_leads_to_the_function_of_a_job_is_left_out() -> None:
    event = threading.Event()

    @job(name="hangs, and is looked at")
    def hangs(ctx: Context) -> None:
        ctx.step("wait", pause)

    def pause() -> None:
        event.wait()

    def caller() -> None:
        with Runtime("memory://") as runtime:
            runtime.perform(runtime.submit(hangs))

    with thread(caller, release=event.set) as ident:
        stack = until(lambda: stack_of_thread(ident), "Condition.wait", also=in_pause)

    names = functions(stack)
    assert names[0] == "hangs"
    assert names[-3:] == ["pause", "wait", "wait"]


def test_what_leads_to_the_function_of_an_async_job_is_left_out() -> None:
    @job(name="hangs_async")
    async def hangs_async(ctx: Context) -> None:
        await ctx.step("wait", pause)

    async def pause() -> None:
        await asyncio.sleep(3600)

    async def main() -> None:
        with Runtime("memory://") as runtime:
            await runtime.perform_async(runtime.submit(hangs_async))

    with task(main()) as look:
        names = functions(until(look, "sleep", also=in_pause))

    assert names[0] == "hangs_async"
    assert names[-2:] == ["pause", "sleep"]


# Tasks


@contextmanager
def task(main: Coroutine[Any, Any, object]) -> Iterator[Look]:
    """A look, from this thread, at a task that runs in another thread's event loop."""
    started: list[asyncio.Task[object]] = []

    async def watched() -> None:
        made = asyncio.ensure_future(main)
        started.append(made)
        with contextlib.suppress(asyncio.CancelledError):
            await made

    with ThreadPoolExecutor(1) as threads:
        ended = threads.submit(asyncio.run, watched())
        while not started and not ended.done():
            time.sleep(0.001)
        made = started[0]
        try:
            yield lambda: stack_of_task(made)
        finally:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                made.get_loop().call_soon_threadsafe(made.cancel)
            ended.result(PATIENCE)
    assert stack_of_task(made) == []


async def asleep() -> None:
    await asyncio.sleep(3600)


def test_a_task_that_sleeps_is_seen_at_the_innermost_await() -> None:
    async def middle() -> None:
        await asleep()

    async def main() -> None:
        await middle()

    with task(main()) as look:
        stack = until(look, "sleep")

    assert functions(stack) == ["main", "middle", "asleep", "sleep"]
    assert stack[-2].startswith("asleep (tests/test_stalls.py:")
    assert stack[-1].startswith("sleep (asyncio/tasks.py:")


def test_a_task_that_awaits_a_future_is_seen_there() -> None:
    async def wait() -> None:
        await asyncio.get_running_loop().create_future()

    async def main() -> None:
        await wait()

    with task(main()) as look:
        assert functions(until(look, "wait")) == ["main", "wait"]


def test_a_gather_is_followed_into_the_first_of_its_tasks_that_is_open() -> None:
    async def nothing() -> None:
        pass

    async def main() -> None:
        await asyncio.gather(nothing(), asyncio.gather(asleep()))

    with task(main()) as look:
        stack = until(look, "sleep")

    assert functions(stack) == ["main", "awaits the task of asleep:", "asleep", "sleep"]


def test_an_awaited_task_is_followed_by_the_name_of_its_function_alone() -> None:
    async def main() -> None:
        await asyncio.create_task(asleep(), name="import of joe@example.com")

    with task(main()) as look:
        stack = until(look, "sleep")

    assert functions(stack) == ["main", "awaits the task of asleep:", "asleep", "sleep"]
    assert "joe" not in "".join(stack)


async def by_wait_for() -> None:
    await asyncio.wait_for(asyncio.create_task(asleep()), 3600)


async def by_wait() -> None:
    await asyncio.wait([asyncio.create_task(asleep())])


async def by_shield() -> None:
    await asyncio.shield(asleep())


async def by_group() -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(asleep())


@pytest.mark.parametrize("main", [by_wait_for, by_wait, by_shield, by_group])
def test_a_task_that_is_awaited_through_a_callback_is_followed_too(
    main: Callable[[], Coroutine[Any, Any, None]],
) -> None:
    with task(main()) as look:
        names = functions(until(look, "sleep"))

    assert names[0] == main.__name__
    assert names[-3:] == ["awaits the task of asleep:", "asleep", "sleep"]


def followed(stack: list[str]) -> list[str]:
    return [line for line in stack if line.startswith("awaits the task of")]


def test_only_so_many_tasks_are_followed() -> None:
    async def nest(levels: int) -> None:
        await (asyncio.create_task(nest(levels - 1)) if levels else asleep())

    with task(nest(20)) as look:
        until(look, "nest", also=lambda stack: len(followed(stack)) == 4)
        assert len(followed(look())) == 4


async def items(levels: int) -> AsyncIterator[int]:
    if levels:
        async for item in items(levels - 1):
            yield item
    await asleep()
    yield 1


class ByCoroutine:
    def __await__(self) -> Generator[Any, None, None]:
        return asleep().__await__()


@types.coroutine
def old_style() -> Generator[Any, None, None]:
    yield from asleep().__await__()


async def by_loop() -> None:
    async for _ in items(1):
        pass


async def by_anext() -> None:
    await anext(items(1))


async def by_anext_with_default() -> None:
    await anext(items(1), None)


async def by_asend() -> None:
    await items(1).__anext__()


async def by_await_method() -> None:
    await ByCoroutine()


async def by_generator() -> None:
    await old_style()


@pytest.mark.parametrize(
    ("main", "told"),
    [
        (by_loop, ["items", "items"]),
        (by_anext, ["items", "items"]),
        (by_anext_with_default, ["items", "items"]),
        (by_asend, ["items", "items"]),
        (by_await_method, []),
        (by_generator, ["old_style"]),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_what_a_task_awaits_is_followed_through(
    main: Callable[[], Coroutine[Any, Any, None]], told: list[str]
) -> None:
    with task(main()) as look:
        stack = until(look, "sleep")

    assert functions(stack) == [main.__name__, *told, "asleep", "sleep"]


def test_a_task_that_blocks_its_event_loop_is_seen_in_its_thread() -> None:
    event = threading.Event()

    def block() -> None:
        event.wait()

    async def inner() -> None:
        block()

    async def main() -> None:
        await inner()

    with task(main()) as look:
        try:
            stack = until(look, "Condition.wait")
        finally:
            event.set()

    assert functions(stack)[:3] == ["main", "inner", "block"]


def test_of_a_task_that_waits_for_its_loop_what_holds_the_loop_is_told_too() -> None:
    event = threading.Event()

    def block() -> None:
        event.wait()

    async def neighbour() -> None:
        await asyncio.sleep(0)
        block()

    async def main() -> None:
        other = asyncio.create_task(neighbour())
        await asyncio.sleep(0.01)
        await other

    with task(main()) as look:
        try:
            stack = until(look, "Condition.wait")
        finally:
            event.set()

    names = functions(stack)
    note = next(line for line in stack if line.startswith("meanwhile"))
    assert note.startswith("meanwhile the event loop runs the task of ")
    assert note.endswith("neighbour:")
    assert names[:2] == ["main", "sleep"]
    assert names[3:5] == ["neighbour", "block"]


def test_a_task_that_awaits_another_kind_of_awaitable_is_seen_before_it() -> None:
    class Strange:
        asked: list[str] = []  # noqa: RUF012 - of the test

        def __await__(self) -> Strange:
            return self

        def __iter__(self) -> Strange:
            return self

        def __next__(self) -> object:
            waiting = asyncio.get_running_loop().create_future()
            waiting._asyncio_future_blocking = True
            return waiting

        def __getattr__(self, name: str) -> object:
            self.asked.append(name)
            raise AttributeError(name)

    async def main() -> None:
        await Strange()  # type: ignore[misc]  # an iterator that is no generator

    with task(main()) as look:
        stack = until(look, "main")

    assert functions(stack) == ["main"]
    assert "cr_frame" not in Strange.asked


def test_tasks_may_run_on_and_end_while_they_are_looked_at() -> None:
    stop = threading.Event()

    async def tick(levels: int) -> None:
        if levels:
            await tick(levels - 1)
        async for _ in items_of(3):
            await asyncio.sleep(0)

    async def items_of(count: int) -> AsyncIterator[int]:
        for item in range(count):
            await asyncio.sleep(0)
            yield item

    async def main() -> None:
        while not stop.is_set():
            await asyncio.gather(tick(3), tick(5))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with task(main()) as look:
            try:
                seen = [look() for _ in range(1000)]
            finally:
                stop.set()
    finally:
        sys.setswitchinterval(interval)

    assert all(stack for stack in seen)
    assert {functions(stack)[0] for stack in seen} == {"main"}
    assert any("items_of" in functions(stack) for stack in seen)


def test_a_look_keeps_nothing_alive() -> None:
    class Held:
        pass

    release = threading.Event()
    alive = threading.Event()

    def work() -> None:
        held = Held()
        alive.set()
        release.wait()
        del held

    with thread(work, release=release.set) as ident:
        assert alive.wait(PATIENCE)
        stack_of_thread(ident)
    gc.collect()

    assert not [one for one in gc.get_objects() if isinstance(one, Held)]


# What is kept of a stall


@pytest.mark.parametrize(
    ("age", "stall_after", "stalled"),
    [(59.9, 60.0, False), (60.0, 60.0, True), (1e9, None, False), (-1.0, 60.0, False)],
)
def test_a_cursor_is_stalled_from_its_threshold_on(
    age: float, stall_after: float | None, *, stalled: bool
) -> None:
    assert is_stalled(progressed_age=age, stall_after=stall_after) is stalled


def test_a_stall_comes_back_from_its_text() -> None:
    stall = Stall(at=1700000000.25, step="imp\udcffort", cursor='"é"', stack=("f (a.py:1)", "g"))

    assert Stall.from_text(stall.text()) == stall
    assert stall.text().isascii()


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "{",
        "null",
        "[]",
        "[" * 100_000,
        '{"at":1}',
        '{"at":"1","step":"a","cursor":"1","stack":[]}',
        '{"at":NaN,"step":"a","cursor":"1","stack":[]}',
        '{"at":1,"step":null,"cursor":"1","stack":[]}',
        '{"at":1,"step":"a","cursor":1,"stack":[]}',
        '{"at":1,"step":"a","cursor":"1","stack":[1]}',
        '{"at":1,"step":"a","cursor":"1","stack":"f"}',
        f'{{"at":1{"0" * 400},"step":"a","cursor":"1","stack":[]}}',
    ],
)
def test_a_text_that_makes_no_sense_is_no_stall(text: str | None) -> None:
    assert Stall.from_text(text) is None


def test_a_stall_of_a_later_version_is_read_as_far_as_it_is_known() -> None:
    text = '{"at":1,"step":"a","cursor":"1","stack":["f"],"more":[1]}'

    assert Stall.from_text(text) == Stall(1.0, "a", "1", ("f",))
