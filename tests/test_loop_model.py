"""Loops of each shape, driven at random as no `for` would, against a model of a few lines.

What it is about: no item is skipped, and none counts as done that was not handed out and followed
by the next ask. `test_loop_misuse` has the sentences that users are told.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.both_ways import Lab
from tracedjobs import Runtime
from tracedjobs._core.run import Run
from tracedjobs.errors import Interrupt, InvalidStepError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from tests.both_ways import Flavour
    from tracedjobs import AsyncContext
    from tracedjobs._core.records import Save

ITEMS: Final = 4
OPERATIONS: Final = ("ask", "ask", "ask", "source", "pull", "wait", "wish", "finish", "close")
"""`ask` for an item; the next four ask too, after they have arranged for something to happen."""


class BrokenError(Exception):
    """What a source raises, or a store."""


class LeftError(Exception):
    """What a job raises where its script ends before the step does."""


class Faults:
    """What is to happen next: `source` raises, its `pull` is cancelled, or the `wait` after it."""

    def __init__(self) -> None:
        self.armed = ""

    def fire(self, name: str) -> bool:
        """Whether that was to happen, which is then over."""
        fires, self.armed = self.armed == name, "" if self.armed == name else self.armed
        return fires

    def replacement(self) -> Callable[[Run, Save], str | None]:
        """Stands for the ask of the store whether the lease is ours still."""

        def token_after(run: Run, save: Save) -> str | None:
            if self.fire("wait"):
                if not run.is_async:
                    raise BrokenError
                self.loop.call_soon_threadsafe(self.cancel)  # it is there before the answer
            return TOKEN_AFTER(run, save)

        return token_after

    def cancel(self) -> None:
        assert self.task is not None
        self.task.cancel()

    def watch(self) -> None:
        """Take the current task as the one to cancel."""
        self.loop = asyncio.get_running_loop()
        self.task = asyncio.current_task()


TOKEN_AFTER: Final = Run._token_after


class Numbers(Sequence[int]):
    """A sequence of one's own."""

    def __init__(self, faults: Faults) -> None:
        self.faults = faults

    def __len__(self) -> int:
        return ITEMS

    def __getitem__(self, at: Any) -> Any:
        if at >= ITEMS:
            raise IndexError(at)
        if self.faults.fire("source"):
            raise BrokenError
        return at


def by_tens(item: int) -> object:
    return 10 * item


def by_letters(item: int) -> object:
    return "abcdef"[item]


def by_either(item: int) -> object:
    return item if item % 2 else "abcdef"[item]


Source = Any


def pairs(cursors: Callable[[int], object]) -> Callable[[Faults], Source]:
    def made(faults: Faults) -> Source:
        def source(cursor: object) -> Iterator[tuple[int, object]]:
            begin = [None, *map(cursors, range(1, ITEMS + 1))].index(cursor)
            for item in range(begin, ITEMS + 1):
                if faults.fire("source"):
                    raise BrokenError
                if item < ITEMS:
                    yield item, cursors(item + 1)

        return source

    return made


def async_pairs(cursors: Callable[[int], object]) -> Callable[[Faults], Source]:
    def made(faults: Faults) -> Source:
        async def source(cursor: object) -> AsyncIterator[tuple[int, object]]:
            begin = [None, *map(cursors, range(1, ITEMS + 1))].index(cursor)
            for item in range(begin, ITEMS + 1):
                if faults.fire("source"):
                    raise BrokenError
                if faults.fire("pull"):
                    faults.cancel()
                    await asyncio.sleep(0)
                if item < ITEMS:
                    yield item, cursors(item + 1)

        return source

    return made


def offset(item: int) -> object:
    return item


SHAPES: Final[dict[str, tuple[Callable[[Faults], Source], Callable[[int], object], set[str]]]] = {
    "range": (lambda _: range(ITEMS), offset, set()),
    "list": (lambda _: list(range(ITEMS)), offset, set()),
    "sequence": (Numbers, offset, {"source"}),
    "int pairs": (pairs(by_tens), by_tens, {"source"}),
    "text pairs": (pairs(by_letters), by_letters, {"source"}),
    "mixed pairs": (pairs(by_either), by_either, {"source"}),
    "async int pairs": (async_pairs(by_tens), by_tens, {"source", "pull"}),
    "async text pairs": (async_pairs(by_letters), by_letters, {"source", "pull"}),
}
"""How its source is made, its cursor after so many items, and what can happen in the source."""


class Model:
    """One loop as it should be."""

    def __init__(self, shape: str, *, is_async: bool) -> None:
        self.faults = SHAPES[shape][2]
        self.raises_at_its_end = shape != "sequence"
        self.is_async = is_async
        self.done = 0
        self.completed = False
        self.begin_run()

    def begin_run(self) -> None:
        self.in_hand = self.fetched = self.closed = self.ended = self.stopped = False

    def ask(self, fault: str) -> object:
        """What comes of it: an item, or the kind of what is raised."""
        if self.completed or self.closed:
            return StopAsyncIteration
        self.done += self.in_hand
        self.in_hand = False
        if self.stopped:
            return Interrupt if self.is_async else StopAsyncIteration
        if self.ended:
            return InvalidStepError if self.is_async else StopAsyncIteration
        left = self.done < ITEMS
        if fault in self.faults and not self.fetched and (left or self.raises_at_its_end):
            self.ended = True
            return BrokenError if fault == "source" else asyncio.CancelledError
        if not left:
            self.completed = True
            return StopAsyncIteration
        if fault == "wish":
            self.stopped = True
            return Interrupt
        if fault == "wait":  # in an async job the loop waits again when it is asked again
            self.ended, self.fetched = not self.is_async, True
            return asyncio.CancelledError if self.is_async else BrokenError
        self.in_hand, self.fetched = True, False
        return self.done

    def finish(self) -> object:
        if self.completed:
            return None if not self.stopped else Interrupt
        if self.stopped:
            return Interrupt
        self.done += self.in_hand
        self.completed = True
        return None

    def close(self) -> None:
        self.closed = True


class Driven:
    """The job of one loop, which does what the scripts say, one a run, and then its work."""

    def __init__(self, shape: str, lab: Lab, scripts: list[list[str]]) -> None:
        self.source, self.cursor_after, _ = SHAPES[shape]
        self.lab = lab
        self.scripts = scripts
        self.model = Model(shape, is_async=lab.is_async)
        self.faults = Faults()
        self.found: list[tuple[str, object, object]] = []
        """What came of each operation, and what should have come."""

    async def body(self, ctx: AsyncContext) -> None:
        if self.lab.is_async:
            self.faults.watch()
        self.model.begin_run()
        loop = ctx.each("loop", self.source(self.faults))
        items = aiter(loop)
        plain = getattr(items, "_items", None)
        script = self.scripts.pop(0) if self.scripts else ["ask"] * (ITEMS + 1)
        for operation in script:
            if operation == "finish":
                expected = self.model.finish()
                came = await self.outcome(loop.finish())
            elif operation == "close":
                if plain is None or not hasattr(plain, "close"):
                    continue
                self.model.close()
                came = expected = plain.close()
            else:
                expected = self.model.ask(operation)
                self.arm(ctx, operation)
                came = await self.outcome(anext(items))
                self.faults.armed = ""
            self.found.append((operation, came, expected))
            self.found.append(("place", (loop.items, loop.cursor), self.place()))
        if not self.model.completed:
            raise LeftError

    def arm(self, ctx: AsyncContext, fault: str) -> None:
        if fault == "wish" and not self.model.completed:
            ctx._run.request_stop("stopping")
        elif fault == "wait":
            ctx._run.doubt()
        self.faults.armed = fault

    async def outcome(self, asked: Any) -> object:
        try:
            return await asked
        except asyncio.CancelledError:
            task = asyncio.current_task()
            assert task is not None
            task.uncancel()
            return asyncio.CancelledError
        except BaseException as error:  # interruptions too, as a bare `except` would
            return type(error)

    def place(self) -> tuple[int, object]:
        done = self.model.done
        first = None if self.cursor_after is not offset else 0
        return done, self.cursor_after(done) if done else first

    def run_to_its_end(self, **options: Any) -> None:
        job_id = self.lab.submit(self.body, **options)
        while self.lab.get(job_id).status != "completed":
            try:
                self.lab.perform(job_id)
            except LeftError:
                self.lab.runtime.retry(job_id)
            assert [came for came in self.found if came[1] != came[2]] == [], self.found
            step = self.lab.get(job_id).steps[0]
            assert (step.items, step.cursor) == self.place(), self.found
            assert (step.status == "completed") is self.model.completed


@pytest.mark.parametrize("every", [1.0, 0], ids=["free", "saved at each item"])
@pytest.mark.parametrize(
    ("flavour", "shape"),
    [
        (flavour, shape)
        for flavour in ("def", "async def")
        for shape in SHAPES
        if flavour == "async def" or not shape.startswith("async")
    ],
)
def test_no_item_is_skipped_nor_counted_too_early_whatever_is_done_to_the_loop(
    monkeypatch: pytest.MonkeyPatch, flavour: Flavour, shape: str, every: float
) -> None:
    @settings(max_examples=40)
    @given(st.lists(st.lists(st.sampled_from(OPERATIONS), min_size=1, max_size=8), max_size=2))
    def holds(scripts: list[list[str]]) -> None:
        driven = Driven(shape, lab, [list(script) for script in scripts])
        with monkeypatch.context() as patch:
            patch.setattr(Run, "_token_after", driven.faults.replacement())
            driven.run_to_its_end(checkpoint_every=every)

    with Runtime("memory://") as runtime:
        lab = Lab(runtime, flavour)
        holds()
