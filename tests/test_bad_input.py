"""What is refused, where it is refused, and that the error says the value and the way out."""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING, Any

import pytest

import tracedjobs
from tracedjobs import AsyncContext, Context, Runtime
from tracedjobs.errors import (
    InvalidStepError,
    JobConflictError,
    SerializationError,
    TracedJobsError,
)
from tracedjobs.testing import interrupt_after

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.both_ways import Lab


# -- sources ---


UNFIT = {
    "a generator": ((n for n in range(3)), ["cannot be begun again", "source(cursor)"]),
    "a list_iterator": (iter([1, 2]), ["pass a list"]),
    "a map": (map(str, [1]), ["pass a list"]),
    "a set": ({1, 2}, ["order", "sorted(…)"]),
    "a frozenset": (frozenset({1}), ["sorted(…)"]),
    "a dict": ({"a": 1}, ["sorted(…)"]),
    "a dict_items": ({"a": 1}.items(), ["sorted(…)"]),
    "a dict_values": ({"a": 1}.values(), ["sorted(…)"]),
    "a str": ("text", ["single characters"]),
    "a bytes": (b"bytes", ["single characters or bytes"]),
    "a bytearray": (bytearray(b"x"), ["single characters or bytes"]),
    "a NoneType": (None, ["pass a sequence"]),
    "a int": (5, ["pass a sequence", "source(cursor)"]),
}


@pytest.mark.parametrize("kind", UNFIT)
def test_a_source_that_cannot_be_resumed_is_refused_with_the_way_out(lab: Lab, kind: str) -> None:
    source, said = UNFIT[kind]

    async def loop(ctx: AsyncContext) -> None:
        await ctx.step("before", str)
        async for _ in ctx.each("rows", source):  # type: ignore[arg-type]  # what is tested
            raise AssertionError

    job_id = lab.submit(loop, resume_errors_after_advancing=False)
    with pytest.raises(TypeError) as caught:
        lab.perform(job_id)
    message = str(caught.value)
    assert message.startswith(f"The source of step 'rows' is {kind}")
    for words in said:
        assert words in message
    assert [step.name for step in lab.get(job_id).steps] == ["before"]


@pytest.mark.parametrize(
    ("cursor_before", "yielded"),
    [
        *itertools.product([1, "a"], [7, (1,), (1, 2, 3), None]),
        # after ints what can be unpacked is not looked at any closer, see `PairsLoop`
        *itertools.product(["a"], [[1, 2], "ab"]),
    ],
)
def test_a_source_that_yields_no_pairs_is_refused_with_what_it_yielded(
    lab: Lab, cursor_before: object, yielded: object
) -> None:
    def source(cursor: object) -> Iterator[object]:
        yield ("fine", cursor_before)
        yield yielded

    async def loop(ctx: AsyncContext) -> None:
        async for item in ctx.each("rows", source):  # type: ignore[arg-type, var-annotated]  # what is tested
            seen.append(item)  # noqa: PERF401 - a comprehension would be no loop

    seen: list[object] = []
    job_id = lab.submit(loop, resume_errors_after_advancing=False)
    with pytest.raises(TypeError) as caught:
        lab.perform(job_id)
    assert str(caught.value) == (
        f"The source of step 'rows' yielded {yielded!r}, which is no pair: it must yield tuples "
        f"(item, cursor_after_item), so that the loop can be resumed."
    )
    assert seen == ["fine"]
    assert lab.get(job_id).steps[0].cursor == cursor_before


def test_a_source_that_returns_nothing_iterable_is_refused(lab: Lab) -> None:
    async def loop(ctx: AsyncContext) -> None:
        async for _ in ctx.each("rows", lambda cursor: 7):  # type: ignore[arg-type]  # what is tested
            raise AssertionError

    with pytest.raises(TypeError, match="The source of step 'rows' returned 7, which cannot be"):
        lab.run(loop)


@pytest.mark.parametrize("start", [-1, 1.0, True, "1"])
def test_the_start_of_a_loop_over_a_sequence_is_an_offset(lab: Lab, start: object) -> None:
    async def loop(ctx: AsyncContext) -> None:
        async for _ in ctx.each("rows", [1, 2], start=start):
            raise AssertionError

    with pytest.raises(InvalidStepError, match="start is an offset of 0 or more") as caught:
        lab.run(loop)
    assert repr(start) in str(caught.value)


# -- steps ---


@pytest.mark.parametrize("name", ["", "  ", "\n"])
def test_an_empty_step_name_is_refused(lab: Lab, name: str) -> None:
    async def empty(ctx: AsyncContext) -> None:
        await ctx.step(name, str)

    with pytest.raises(InvalidStepError, match="must have a name that is not empty") as caught:
        lab.run(empty)
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize("name", [None, 7, b"rows", ["rows"]])
def test_a_step_name_that_is_no_text_is_refused(lab: Lab, name: Any) -> None:
    async def step(ctx: AsyncContext) -> None:
        await ctx.step(name, str)

    async def each(ctx: AsyncContext) -> None:
        ctx.each(name, [1])

    for body in (step, each):
        with pytest.raises(InvalidStepError, match="must be named by a str") as caught:
            lab.run(body)
        assert repr(name) in str(caught.value)


def test_what_cannot_be_called_is_no_step(lab: Lab) -> None:
    async def wrong(ctx: AsyncContext) -> None:
        await ctx.step("work", 7)  # type: ignore[call-overload]  # what is tested

    with pytest.raises(TypeError, match="Step 'work' needs a function to call, found 7"):
        lab.run(wrong)


@pytest.mark.parametrize(
    ("total", "error", "said"),
    [
        (-1, ValueError, "total=-1 of step 'rows' must not be negative"),
        (1.5, TypeError, "total=1.5 of step 'rows' must be an int"),
        (True, TypeError, "total=True of step 'rows' must be an int"),
        ("9", TypeError, "total='9' of step 'rows' must be an int"),
    ],
)
@pytest.mark.parametrize("way", ["each", "step", "late", "source"])
def test_a_total_that_is_no_count_is_refused(
    lab: Lab, way: str, total: Any, error: type[Exception], said: str
) -> None:
    class Source:
        def __init__(self) -> None:
            self.total = total

        def __call__(self, cursor: object) -> list[tuple[int, int]]:
            return []

    async def wrong(ctx: AsyncContext) -> None:
        if way == "each":
            ctx.each("rows", [1], total=total)
        elif way == "source":
            ctx.each("rows", Source())
        elif way == "step":
            await ctx.step("rows", str, total=total)
        else:
            await ctx.step("rows", lambda step: setattr(step, "total", total))

    with pytest.raises(error, match=re.escape(said)):
        lab.run(wrong)


def test_a_cursor_that_is_a_function_is_refused(lab: Lab) -> None:
    async def start(ctx: AsyncContext) -> None:
        await ctx.step("work", str, start=lambda: None)

    async def source(ctx: AsyncContext) -> None:
        async for _ in ctx.each("rows", lambda cursor: [(1, lambda: None)]):
            raise AssertionError

    for body in (start, source):
        with pytest.raises(SerializationError, match="cursor cannot be stored: <function"):
            lab.run(body)


@pytest.mark.parametrize("seconds", [0, -1, "soon", float("nan"), True])
def test_stall_after_is_a_time_above_0(lab: Lab, seconds: Any) -> None:
    async def step(ctx: AsyncContext) -> None:
        await ctx.step("work", str, stall_after=seconds)

    async def each(ctx: AsyncContext) -> None:
        ctx.each("work", [1], stall_after=seconds)

    for body in (step, each):
        with pytest.raises((TypeError, ValueError), match="stall_after="):
            lab.run(body)


def test_nothing_is_lost_by_bad_input_after_progress(lab: Lab) -> None:
    async def mend(ctx: AsyncContext) -> int:
        await ctx.step("first", done.append, 1)
        return await ctx.step("second" if ctx.run > 1 else "", lambda: 5)

    done: list[int] = []
    job_id = lab.submit(mend)
    with pytest.raises(InvalidStepError):
        lab.perform(job_id)
    lab.runtime.retry(job_id)
    assert lab.perform(job_id).result == 5
    assert done == [1]


# -- arguments ---


@tracedjobs.job(name="bad-input")
def takes_two(ctx: Context, path: str, *, limit: int = 5) -> None: ...


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((), {}),
        (("a", "b"), {}),
        (("a",), {"speed": 1}),
        (("a",), {"path": "b"}),
        ((), {"limit": 1}),
    ],
)
def test_arguments_that_do_not_fit_are_refused_at_submit(
    runtime: Runtime, args: tuple[object, ...], kwargs: dict[str, Any]
) -> None:
    with pytest.raises(TypeError) as caught:
        runtime.submit(takes_two, *args, **kwargs)
    assert str(caught.value).startswith("These arguments do not fit bad-input(ctx: ")
    assert runtime.list() == []


def test_an_argument_that_cannot_be_stored_is_refused_at_submit_with_its_path(
    runtime: Runtime,
) -> None:
    with pytest.raises(SerializationError, match=r"arguments\['path'\]\[1\] cannot be stored"):
        runtime.submit(takes_two, ["a", print])
    assert runtime.list() == []


def test_an_argument_that_the_function_lost_since_is_named(lab: Lab) -> None:
    async def before(ctx: AsyncContext, path: str, speed: int) -> None: ...

    async def after(ctx: AsyncContext, path: str) -> None: ...

    before.__qualname__ = after.__qualname__ = "the_job"
    job_id = lab.submit(before, "a", 1, name="changing")
    lab.job(after, name="changing")
    with pytest.raises(TypeError, match="was submitted with the argument 'speed', which changing"):
        lab.perform(job_id)


@pytest.mark.parametrize("what", [print, "bad-input", None])
def test_only_a_job_can_be_submitted(runtime: Runtime, what: Any) -> None:
    with pytest.raises(TypeError, match="a function decorated with @job"):
        runtime.submit(what)


@pytest.mark.parametrize("job_id", ["", "x" * 256, "a\nb", 7])
def test_a_job_id_is_a_printable_text_of_some_length(runtime: Runtime, job_id: Any) -> None:
    with pytest.raises(TracedJobsError, match="must be a printable text of 1 to 255"):
        runtime.submit(takes_two, "a", job_id=job_id)


def test_the_same_id_with_other_arguments_is_an_error(runtime: Runtime) -> None:
    assert runtime.submit(takes_two, "a", job_id="one") == "one"
    assert runtime.submit(takes_two, path="a", job_id="one") == "one"
    with pytest.raises(JobConflictError, match="exists already with other arguments"):
        runtime.submit(takes_two, "b", job_id="one")


# -- runtime ---


@pytest.mark.parametrize("seconds", [0, 0.1, -5, "30", float("nan")])
def test_a_lease_too_short_to_renew_is_refused(seconds: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="lease_ttl="):
        Runtime("memory://", lease_ttl=seconds)


def test_one_name_in_place_of_a_list_of_modules_is_refused() -> None:
    with pytest.raises(TypeError, match=r"write modules=\['jobs'\]"):
        Runtime("memory://", modules="jobs")


def test_stopping_must_be_callable() -> None:
    with pytest.raises(TypeError, match="stopping=True must be a callable"):
        Runtime("memory://", stopping=True)  # type: ignore[arg-type]  # what is tested


def test_what_stopping_raises_counts_as_raised_by_the_job(lab: Lab) -> None:
    async def two(ctx: AsyncContext) -> None:
        await ctx.step("one", str)
        await ctx.step("two", str)

    after_one = interrupt_after("one")

    def stopping(ctx: Any) -> bool:
        if after_one(ctx):
            raise ZeroDivisionError("asked too much")
        return False

    outcome = lab.perform(lab.submit(two), stopping=stopping)
    assert (outcome.reason, type(outcome.error)) == ("error", ZeroDivisionError)
