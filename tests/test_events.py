"""The reporter: who is told what, and what is never told."""

from __future__ import annotations

import _thread
import asyncio
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.processes import PATIENCE, until
from tracedjobs import Context, Runtime, events, job
from tracedjobs._core import values
from tracedjobs._core.loop import Loop
from tracedjobs._core.masking import mask_text
from tracedjobs._core.records import Change
from tracedjobs._core.saver import saver
from tracedjobs.errors import LeaseLostError, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tracedjobs._core.run import Run
    from tracedjobs.events import Event


@contextmanager
def told(**options: Any) -> Iterator[list[Event]]:
    """What a subscriber is told meanwhile."""
    found: list[Event] = []
    subscriber = found.append
    events.subscribe(subscriber, **options)
    try:
        yield found
    finally:
        events.unsubscribe(subscriber)


def test_a_subscriber_is_a_callable_or_has_emit() -> None:
    class Listener:
        def __init__(self) -> None:
            self.found: list[Event] = []

        def emit(self, event: Event) -> None:
            self.found.append(event)

    listener = Listener()
    events.subscribe(listener)
    with told() as found:
        events.notify("one", a=1)
    events.unsubscribe(Listener)
    events.notify("two")
    assert [event.name for event in found] == [event.name for event in listener.found] == ["one"]
    for wrong in (None, "text", Listener, 3):
        with pytest.raises(TypeError, match="a callable, or an object with emit"):
            events.subscribe(wrong)  # type: ignore[arg-type]  # as users do


def test_an_event_says_where_it_was_told() -> None:
    with told() as found:
        events.notify("here")
    where = found[0].source_location
    assert where is not None
    assert where.filepath == __file__
    assert where.label == "test_an_event_says_where_it_was_told"


def test_a_filter_chooses() -> None:
    with told(filter=lambda event: event.payload.get("x") == 1) as found:
        events.notify("no", x=2)
        events.notify("yes", x=1)
    assert [event.name for event in found] == ["yes"]


def test_debug_tells_in_debug_mode_alone() -> None:
    with told() as found:
        events.debug("before")
        with events.debug_mode():
            events.debug("within")
        events.debug("after")
    assert [event.name for event in found] == ["within"]


def test_tags_add_up_and_end_with_their_block() -> None:
    with told() as found:
        with events.tagged("deploy", region="eu"):
            with events.tagged(region="us", night=True):
                events.notify("inner")
            events.notify("outer")
        events.notify("none")
    assert [dict(event.tags) for event in found] == [
        {"deploy": True, "region": "us", "night": True},
        {"deploy": True, "region": "eu"},
        {},
    ]


def test_context_stays_until_it_is_cleared() -> None:
    with told() as found:
        events.set_context(request="a")
        events.set_context(user=1)
        events.notify("with")
        events.clear_context()
        events.notify("without")
    assert [dict(event.context) for event in found] == [{"request": "a", "user": 1}, {}]


def test_threads_and_tasks_have_tags_and_context_of_their_own() -> None:
    async def one(name: str) -> None:
        with events.tagged(name):
            events.set_context(task=name)
            await asyncio.sleep(0)
            events.notify(name)

    async def both() -> None:
        await asyncio.gather(one("a"), one("b"))

    with told() as found, events.tagged("mine"):
        asyncio.run(both())
        thread = threading.Thread(target=events.notify, args=("c",))
        thread.start()
        thread.join()
        events.notify("d")
    assert {event.name: (dict(event.tags), dict(event.context)) for event in found} == {
        "a": ({"mine": True, "a": True}, {"task": "a"}),
        "b": ({"mine": True, "b": True}, {"task": "b"}),
        "c": ({}, {}),
        "d": ({"mine": True}, {}),
    }


def test_what_sounds_like_a_secret_is_masked_at_any_depth_and_left_as_it_was() -> None:
    @dataclass
    class Login:
        user: str
        password: str

    payload: dict[str, Any] = {
        "api_key": 1,
        "list": [{"Token": 2, "ok": 3}, (4, {"PASSWORD": 5})],
        "login": Login("ann", "hush"),
    }
    with told() as found, events.tagged(secret="s"):
        events.set_context(cookie="c")
        events.notify("e", **payload)
        events.clear_context()
    assert found[0].payload == {
        "api_key": "[FILTERED]",
        "list": [{"Token": "[FILTERED]", "ok": 3}, (4, {"PASSWORD": "[FILTERED]"})],
        "login": {"user": "ann", "password": "[FILTERED]"},
    }
    assert found[0].tags == {"secret": "[FILTERED]"}
    assert found[0].context == {"cookie": "[FILTERED]"}
    assert payload["list"][0]["Token"] == 2


def test_what_holds_itself_is_told_all_the_same() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with told() as found:
        events.notify("e", loop=loop)
    assert "FILTERED" in str(found[0].payload)


def test_the_parts_of_keys_can_be_chosen() -> None:
    events.filter_parameters.append("Iban")
    try:
        with told() as found:
            events.notify("e", iban="DE", password="p", bic="x")
    finally:
        events.filter_parameters.remove("Iban")
    assert found[0].payload == {"iban": "[FILTERED]", "password": "[FILTERED]", "bic": "x"}


NESTED: Any = st.recursive(
    st.none() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "b", 1]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(NESTED, st.sampled_from(["password", "X-Api-Key", "my_secret"]))
def test_a_stored_cursor_shows_no_secret(value: Any, key: str) -> None:
    text = values.encode({key: "hush!", "rest": [value, {key: "hush!", 2: value}]})
    assert "hush!" in text
    assert "hush!" not in mask_text(text, limit=100_000)
    assert len(mask_text(text, limit=20)) <= 20


def test_a_cursor_in_an_event_is_masked() -> None:
    with told() as found:
        events.notify("e", cursor=values.encode({"page_token": "hush!", "page": 3}))
    assert "hush!" not in found[0].payload["cursor"]
    assert "3" in found[0].payload["cursor"]


def test_a_subscriber_that_raises_is_reported_once_and_the_others_are_told() -> None:
    def broken(event: Event) -> None:
        raise RuntimeError("broken")

    events.subscribe(broken)
    try:
        with told() as found:
            with pytest.warns(RuntimeWarning, match="broken"):
                events.notify("one")
            events.notify("two")
    finally:
        events.unsubscribe(broken)
    assert [event.name for event in found] == ["one", "two"]


class UnshowableError(Exception):
    def __repr__(self) -> str:
        raise LookupError("as asked")


def test_an_error_that_cannot_be_shown_harms_no_job() -> None:
    def broken(event: Event) -> None:
        raise UnshowableError

    events.subscribe(broken)
    try:
        with Runtime("memory://") as runtime, pytest.warns(RuntimeWarning, match="UnshowableError"):
            assert runtime.perform(runtime.submit(notifying)).ok
    finally:
        events.unsubscribe(broken)


def test_errors_of_each_subscription_are_reported() -> None:
    def broken(event: Event) -> None:
        raise RuntimeError("broken")

    for _ in range(2):
        events.subscribe(broken)
        with pytest.warns(RuntimeWarning, match="broken"):
            events.notify("one")
        events.unsubscribe(broken)


def test_a_text_that_is_executed_can_tell() -> None:
    with told() as found:
        exec("notify('one')", {"notify": events.notify, "__name__": None})
        _thread.start_new_thread(events.notify, ("two",))
        until(lambda: len(found) == 2, "the thread told")
    assert found[0].source_location is not None
    assert found[0].source_location.filepath == "<string>"
    assert found[1].source_location is None


def test_a_subscriber_that_tells_is_not_told_of_that() -> None:
    found: list[str] = []

    def echo(event: Event) -> None:
        found.append(event.name)
        events.notify(f"again {event.name}")

    events.subscribe(echo)
    try:
        with told() as others:
            events.notify("once")
    finally:
        events.unsubscribe(echo)
    assert found == ["once"]
    assert sorted(event.name for event in others) == ["again once", "once"]


@job(name="test_events_notify")
def notifying(ctx: Context) -> None:
    ctx.notify("outside")
    for item in ctx.each("items", range(3)):
        if item == 2:
            ctx.notify("inside", item=item, password="hush")


def test_what_a_job_tells_says_which_job_run_step_and_cursor() -> None:
    with Runtime("memory://") as runtime:
        job_id = runtime.submit(notifying)
        with told() as found:
            runtime.perform(job_id)
    (inside,) = [event for event in found if event.name == "inside"]
    assert inside.payload == {
        "job": "test_events_notify",
        "job_id": job_id,
        "run": 1,
        "step": "items",
        "cursor": "2",
        "item": 2,
        "password": "[FILTERED]",
    }
    assert inside.source_location is not None
    assert inside.source_location.label == "notifying"


ENDS = {"job_step_completed", "job_step_interrupted", "job_step_failed"}


@job(name="test_events_loop", resume_errors_after_advancing=False)
def looping(ctx: Context, how: str) -> None:
    for item in ctx.each("items", range(3)):
        if item == 1:
            HOW[how](ctx)


def _fails(ctx: Context) -> None:
    raise LookupError


def _loses_its_lease(ctx: Context) -> None:
    store = ctx._run.store
    revision = store.load(ctx.id).job.revision  # type: ignore[union-attr]  # it is there
    store.change(Change(ctx.id, revision, {"token": "another's", "run": 2}))


def _is_refused(ctx: Context) -> None:
    def refuse(change: Change) -> bool:
        raise StoreError("as asked")

    vars(ctx._run.store)["change"] = refuse
    raise LookupError


def _finds_the_store_closed(ctx: Context) -> None:
    ctx._run.store.close()
    raise LookupError


def _is_interrupted_twice(ctx: Context) -> None:
    def second(_: object) -> None:
        raise KeyboardInterrupt

    type.__setattr__(Loop, "abandon", second)
    raise KeyboardInterrupt


HOW: dict[str, Callable[[Context], object]] = {
    "fails": _fails,
    "is interrupted": lambda ctx: ctx.interrupt("as asked"),
    "loses its lease": _loses_its_lease,
    "is refused": _is_refused,
    "finds the store closed": _finds_the_store_closed,
    "is interrupted twice": _is_interrupted_twice,
    "goes on": lambda ctx: None,
}


@pytest.mark.parametrize("how", HOW)
def test_each_loop_that_was_begun_ends_with_one_event(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Loop, "abandon", Loop.abandon)  # put back, where the job changes it
    with told() as found, Runtime("memory://") as runtime:
        job_id = runtime.submit(looping, how)
        with suppress(LookupError, LeaseLostError, StoreError, KeyboardInterrupt):
            runtime.perform(job_id)
        if how == "is interrupted twice":
            assert runtime.get(job_id).status == "interrupted"
    names = [event.name for event in found]
    assert names.count("job_step_started") == 1
    (end,) = [event for event in found if event.name in ENDS]
    expected = {"fails": "job_step_failed", "goes on": "job_step_completed"}
    assert end.name == expected.get(how, "job_step_interrupted")
    assert (end.payload["step"], end.payload["job_id"]) == ("items", job_id)
    assert names.index(end.name) == len(names) - 2
    assert names[-1] in {
        "job_failed",
        "job_interrupted",
        "job_lease_lost",
        "job_completed",
    }


@job(name="test_events_saved", checkpoint_every=0.05)
def saving(ctx: Context) -> None:
    (run,) = saver.runs()
    for item in ctx.each("items", range(10_000)):
        time.sleep(0.005)
        if item > 5 and BLOCKED.is_set():
            until(partial(_renewed_since, run, run.lease_deadline), "it is renewed", within=5)
            ctx.interrupt("seen")


def _renewed_since(run: Run, deadline: float) -> bool:
    return run.lease_deadline > deadline


BLOCKED = threading.Event()


def test_a_subscriber_that_blocks_at_what_the_saver_sees_ends_no_lease() -> None:
    released = threading.Event()

    def blocks(event: Event) -> None:
        if event.name == "job_cursor_advanced":
            BLOCKED.set()
            released.wait(PATIENCE)

    BLOCKED.clear()
    events.subscribe(blocks)
    try:
        with Runtime("memory://", lease_ttl=1.0) as runtime:
            outcome = runtime.perform(runtime.submit(saving))
            assert outcome.reason == "seen"
    finally:
        released.set()
        events.unsubscribe(blocks)
