"""A job driven at random through all that can be asked of it, against a model of a few lines."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
)

from tracedjobs import Context, JobSnapshot, Runtime, Step, job
from tracedjobs.errors import InvalidTransitionError, JobConflictError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tracedjobs._core.context import BaseContext

STEPS = {"first": 1, "rows": 4, "block": 3, "last": 1}
"""The steps of the job and how many items each has; `first` and `last` are plain calls."""
CALLS = ("first", "last")
IDLE = {"pending", "interrupted", "paused"}
CONTROLS = {
    "pause": (IDLE, "paused"),
    "resume": (IDLE, "interrupted"),
    "retry": ({"failed"}, "interrupted"),
    "cancel": (IDLE | {"cancelled"}, "cancelled"),
}
"""What may be asked of a job: in which statuses, and which one it has then."""

Item = tuple[str, int]


class Model:
    """What should be: a status, the steps that are done, the open one, and the items in order."""

    def __init__(self) -> None:
        self.status = "pending"
        self.runs = 0
        self.completed: list[str] = []
        self.open: Item | None = None
        self.done: list[Item] = []

    def run(self, stop_after: int, fail_at: Item | None, wish: str | None) -> None:
        """One run, stopped after so many items, or failing before one."""
        self.runs += 1
        self.status, self.did, self.got_on = "completed", 0, False
        for name in [each for each in STEPS if each not in self.completed]:
            if self.got_on and self.did >= stop_after:
                return self._interrupted(wish)
            begin = self.open[1] if self.open and self.open[0] == name else 0
            for index in range(begin, STEPS[name]):
                self.open = (name, 0 if name in CALLS else index)
                if (name, index) == fail_at:
                    self.status = "failed"
                    return self._interrupted(wish) if self.got_on else None
                self.done.append((name, index))
                self.did += 1
                if name in CALLS:
                    continue
                self.open, self.got_on = (name, index + 1), True
                # A loop that has no item left completes its step rather than stop.
                if self.did >= stop_after and (name == "block" or index + 1 < STEPS[name]):
                    return self._interrupted(wish)
            self.completed.append(name)
            self.open, self.got_on = None, True
        return None

    def _interrupted(self, wish: str | None) -> None:
        self.status = {"pause": "paused", "cancel": "cancelled"}.get(wish or "", "interrupted")

    def rewind(self, step: str, cursor: int | None) -> None:
        if step in self.completed:
            del self.completed[self.completed.index(step) :]
        self.open = None if cursor is None else (step, cursor)
        if self.status not in {"pending", "paused"}:
            self.status = "interrupted"

    def begun(self, step: str) -> bool:
        return step in self.completed or (self.open is not None and self.open[0] == step)


class _Script:
    """What the job is to do in its next run, and what it did in all of them."""

    def __init__(self) -> None:
        self.done: dict[str, list[Item]] = {}
        self.did = 0
        self.fail_at: Item | None = None
        self.before_item: Callable[[str, int], None] = lambda _job_id, _did: None


SCRIPT = _Script()


class ScriptedError(Exception):
    pass


def do(ctx: BaseContext, name: str, index: int) -> None:
    if (name, index) == SCRIPT.fail_at:
        raise ScriptedError(name)
    SCRIPT.did += 1
    SCRIPT.before_item(ctx.id, SCRIPT.did)
    SCRIPT.done.setdefault(ctx.id, []).append((name, index))


@job(name="model-job", checkpoint_every=1000)
def modelled(ctx: Context, number: int) -> int:
    ctx.step("first", lambda: do(ctx, "first", 0))
    for index in ctx.each("rows", range(STEPS["rows"])):
        do(ctx, "rows", index)

    @ctx.step("block", start=0)
    def block(step: Step) -> None:
        for index in range(step.cursor, STEPS["block"]):
            do(ctx, "block", index)
            step.advance()

    ctx.step("last", lambda: do(ctx, "last", 0))
    return number


class Jobs(RuleBasedStateMachine):
    """The jobs of one runtime beside their models."""

    ids = Bundle("ids")

    @initialize(target=ids)
    def open_runtime(self) -> str:
        SCRIPT.done.clear()
        self.runtime = self.make_runtime()
        self.models: dict[str, Model] = {}
        return self.submit_number(0)

    def make_runtime(self) -> Runtime:
        return Runtime("memory://", handle_signals=False)

    def teardown(self) -> None:
        self.runtime.close()

    @rule(target=ids, number=st.integers(0, 4))
    def submit(self, number: int) -> str:
        return self.submit_number(number)

    def submit_number(self, number: int) -> str:
        job_id = self.runtime.submit(modelled, number, job_id=f"job-{number}")
        self.models.setdefault(job_id, Model())
        return job_id

    @rule(job_id=ids)
    def submit_with_other_arguments(self, job_id: str) -> None:
        with pytest.raises(JobConflictError):
            self.runtime.submit(modelled, 99, job_id=job_id)

    @rule(
        job_id=ids,
        stop_after=st.integers(1, sum(STEPS.values()) + 3),
        fail_at=st.sampled_from([None] * 6 + [(name, 0) for name in STEPS] + [("rows", 2)]),
        wish=st.sampled_from([None] * 6 + ["pause", "cancel"]),
    )
    def perform(self, job_id: str, stop_after: int, fail_at: Item | None, wish: str | None) -> None:
        model = self.models[job_id]
        if model.status in {"paused", "cancelled"}:
            with pytest.raises(InvalidTransitionError):
                self.runtime.perform(job_id)
            return
        if model.status == "completed":
            assert self.runtime.perform(job_id).ok
            return

        def ask(job_id: str, did: int) -> None:
            if did == stop_after and wish is not None:
                getattr(self.runtime, wish)(job_id)

        SCRIPT.did, SCRIPT.fail_at, SCRIPT.before_item = 0, fail_at, ask
        model.run(stop_after, fail_at, wish if self._meets(model, stop_after, fail_at) else None)
        try:
            outcome = self.runtime.perform(job_id, stopping=lambda _: SCRIPT.did >= stop_after)
        except ScriptedError:
            assert model.status == "failed"
        else:
            assert outcome.status == model.status
            assert (outcome.resume_in is not None) == (model.status == "interrupted")
            assert outcome.error is None or outcome.reason == "error"

    def _meets(self, model: Model, stop_after: int, fail_at: Item | None) -> bool:
        """Whether the run comes to the item at which the wish is uttered."""
        trial = Model()
        trial.completed, trial.open = [*model.completed], model.open
        trial.run(stop_after, fail_at, None)
        return trial.did >= stop_after

    @rule(
        job_id=ids,
        # A cancelled job is at its end: seldom, or there would be little else.
        action=st.sampled_from(["pause", "resume", "retry"] * 3 + ["cancel"]),
    )
    def control(self, job_id: str, action: str) -> None:
        model = self.models[job_id]
        statuses, becomes = CONTROLS[action]
        if model.status in statuses:
            getattr(self.runtime, action)(job_id)
            model.status = becomes if model.runs or action != "resume" else "pending"
            return
        before = self.runtime.get(job_id)
        with pytest.raises(InvalidTransitionError):
            getattr(self.runtime, action)(job_id)
        assert self.runtime.get(job_id) == before, "what is refused changes nothing"

    @rule(job_id=ids, step=st.sampled_from([*STEPS]), share=st.none() | st.integers(0, 4))
    def rewind(self, job_id: str, step: str, share: int | None) -> None:
        model = self.models[job_id]
        cursor = None if share is None or step in CALLS else min(share, STEPS[step])
        given = () if cursor is None else (cursor,)
        before = self.runtime.get(job_id)
        if model.status == "cancelled" or not model.begun(step):
            with pytest.raises(InvalidTransitionError):
                self.runtime.rewind(job_id, step, *given)
            assert self.runtime.get(job_id) == before
        else:
            self.runtime.rewind(job_id, step, *given)
            model.rewind(step, cursor)

    @rule()
    def recover(self) -> None:
        assert self.runtime.recover() == []

    @invariant()
    def jobs_are_as_their_models(self) -> None:
        for job_id, model in self.models.items():
            self._is_as(self.runtime.get(job_id), model)
            assert SCRIPT.done.get(job_id, []) == model.done
        assert {each.id for each in self.runtime.list()} == set(self.models)

    def _is_as(self, job: JobSnapshot, model: Model) -> None:
        assert job.status == model.status
        assert not job.lost
        assert (job.run, len(job.runs)) == (model.runs, model.runs)
        done = [step for step in job.steps if step.status == "completed"]
        assert [step.name for step in done] == model.completed
        current = job.current
        if model.open is None:
            assert current is None
        else:
            assert current is not None
            at = current.cursor
            assert (current.name, 0 if current.name in CALLS else at) == model.open
        finished = model.status in {"completed", "failed", "cancelled"}
        assert (job.ended_at is not None) == finished
        assert (job.expires_at is not None) == finished
        assert job.result == (int(job.id[-1]) if model.status == "completed" else None)
        assert job.wish is None


class JobsInAFile(Jobs):
    """The same in a SQLite file."""

    def make_runtime(self) -> Runtime:
        self.folder = Path(tempfile.mkdtemp(prefix="tracedjobs-model-"))
        return Runtime(f"sqlite:///{self.folder}/jobs.db?synchronous=normal", handle_signals=False)

    @rule()
    def open_again(self) -> None:
        self.runtime.close()
        self.runtime = Runtime(f"sqlite:///{self.folder}/jobs.db", handle_signals=False)

    def teardown(self) -> None:
        super().teardown()
        shutil.rmtree(self.folder)


TestJobsInMemory = Jobs.TestCase
TestJobsInMemory.settings = settings(max_examples=150, stateful_step_count=40)
TestJobsInAFile = JobsInAFile.TestCase
TestJobsInAFile.settings = settings(max_examples=60, stateful_step_count=40)
