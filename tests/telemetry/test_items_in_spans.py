"""Each item of a job is in one span of a step, and in no other, whoever did it and whoever tells.

A run whose lease has ended is closed by whoever finds that, with what is saved of it. Where its
process still lives then, what it did since its last save is read later, or never; and what is kept
in the user's own database is read by the next run alone.
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.processes import until
from tests.telemetry.test_tracing import Traced, attributes
from tracedjobs import Context, Runtime, Status, Step, job
from tracedjobs.errors import LeaseLostError, ResumeLimitError, StoreUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SIZE: Final = 20
AT: Final = 7
SAVED: Final = 3
pytestmark = pytest.mark.usefixtures("run_dir")


@pytest.fixture
def runtime(store_url: str) -> Iterator[Runtime]:
    with Runtime(store_url, lease_ttl=0.5) as made:
        yield made


def _unsaved(run: Any, patch: pytest.MonkeyPatch) -> None:
    def away(*_: object) -> None:
        raise StoreUnavailableError("away")

    patch.setattr(run.store, "save", away)
    patch.setattr(run.store, "save_one", away)


def _found_lost(ctx: Context, runtime: Runtime, patch: pytest.MonkeyPatch) -> None:
    """What others do while this process stands still: they find its lease at its end."""
    until(lambda: runtime.recover() == [ctx.id], "its lease ends")
    patch.undo()
    until(lambda: ctx._run.has_reason, "its saver sees that")


class _Late:
    """A job whose first run is found lost while its process lives, after seven items."""

    def __init__(self, runtime: Runtime, *, saved: int | None, limit: int | None = None) -> None:
        self.runtime = runtime
        self.done: list[int] = []
        self.leaves = False
        with pytest.MonkeyPatch.context() as patch:

            @job(
                name="late_in_the_recorder",
                checkpoint_every=1000,
                resume_delay=0,
                max_resumptions=limit,
            )
            def late(ctx: Context) -> None:
                if ctx.run == 1 and saved is None:
                    _unsaved(ctx._run, patch)
                if self.leaves:
                    ctx.interrupt("leaving")
                for item in ctx.each("items", range(SIZE)):
                    self.done.append(item)
                    if ctx.run == 1 and item == saved:
                        assert ctx._run.store.save_one(ctx._run.take_save())
                        _unsaved(ctx._run, patch)
                    if ctx.run == 1 and item == AT:
                        _found_lost(ctx, runtime, patch)

            self.id = runtime.submit(late)
            with pytest.raises(LeaseLostError):
                runtime.perform(self.id)
        found = runtime.get(self.id)
        assert (found.status, found.items) == (Status.INTERRUPTED, saved or 0)


def told(traced: Traced) -> dict[int, int]:
    """How many items the spans of steps tell of, by run."""
    found: dict[int, int] = {}
    for span in traced.named("step "):
        said = attributes(span)
        run = said["tracedjobs.run.number"]
        assert run not in found
        found[run] = said["tracedjobs.items.processed"]
    return found


def check_agree(traced: Traced, runtime: Runtime, job_id: str) -> None:
    """The spans of the steps, the root and the record tell of as many items."""
    found = runtime.get(job_id)
    (root,) = traced.named("job ")
    assert attributes(root)["tracedjobs.items.processed"] == found.items
    assert sum(told(traced).values()) == found.items
    runs = [attributes(span)["tracedjobs.run.outcome"] for span in traced.named("process ")]
    assert runs == [run.outcome for run in found.runs]


@pytest.mark.parametrize("sent", [False, True], ids=["unsent", "sent"])
@pytest.mark.parametrize("saved", [None, SAVED])
def test_what_a_run_did_that_was_found_lost_before_it_was_read_is_in_the_next_ones_span(
    traced: Traced, runtime: Runtime, saved: int | None, *, sent: bool
) -> None:
    late = _Late(runtime, saved=saved)
    if sent:
        assert len(traced.named("process ")) == 1
    assert runtime.perform(late.id).ok
    assert late.done == [*range(SIZE)]
    assert told(traced) == ({2: SIZE} if saved is None else {1: saved, 2: SIZE - saved})
    check_agree(traced, runtime, late.id)


@pytest.mark.parametrize("saved", [None, SAVED])
def test_it_is_in_that_span_though_the_run_does_not_come_to_the_step(
    traced: Traced, runtime: Runtime, saved: int | None
) -> None:
    late = _Late(runtime, saved=saved)
    late.leaves = True
    assert runtime.perform(late.id).reason == "leaving"
    assert runtime.get(late.id).items == AT + 1
    runtime.cancel(late.id)
    check_agree(traced, runtime, late.id)


def test_a_job_that_ends_without_another_run_has_no_items_that_no_span_tells_of(
    traced: Traced, runtime: Runtime
) -> None:
    late = _Late(runtime, saved=SAVED, limit=0)
    with pytest.raises(ResumeLimitError):
        runtime.perform(late.id)
    check_agree(traced, runtime, late.id)


def test_what_the_users_database_knows_better_is_in_the_span_of_the_run_that_reads_it_there(
    traced: Traced, tmp_path: Path
) -> None:
    theirs = sqlite3.connect(tmp_path / "theirs.db")

    with Runtime("memory://", lease_ttl=0.5) as runtime, pytest.MonkeyPatch.context() as patch:

        @job(name="late_in_transactions", checkpoint_every=1000, resume_delay=0)
        def late(ctx: Context) -> None:
            if ctx.run == 1:
                _unsaved(ctx._run, patch)

            def by_hand(step: Step) -> None:
                for item in range(step.cursor, SIZE):
                    step.advance()
                    if ctx.run == 1 and item == AT:
                        _found_lost(ctx, runtime, patch)

            ctx.step("items", by_hand, start=0, transaction=theirs)

        job_id = runtime.submit(late)
        with pytest.raises(LeaseLostError):
            runtime.perform(job_id)
        assert runtime.perform(job_id).ok
        assert told(traced) == {2: SIZE}
        check_agree(traced, runtime, job_id)
    theirs.close()
