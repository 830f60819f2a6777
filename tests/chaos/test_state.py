from __future__ import annotations

from typing import Any

from tracedjobs import Context, Runtime, job
from tracedjobs._core.saver import saver


@job(name="chaos-state-seldom-saved", checkpoint_every=1000)
def count_in_state(ctx: Context) -> None:
    for _ in ctx.each("rows", range(5)):
        ctx.state["rows"] = ctx.state.get("rows", 0) + 1
    ctx.step("call", lambda: ctx.state.update(called=True))


def test_a_save_begun_while_a_step_completes_does_not_bring_the_older_state_back() -> None:
    with Runtime("memory://") as runtime:
        complete_step = runtime.store.complete_step
        seen = []

        def complete_and_save(job_id: str, *args: Any, **options: Any) -> bool:
            done = complete_step(job_id, *args, **options)
            runtime.store.save([run.take_save() for run in saver.runs()])
            seen.append(runtime.get(job_id).state)
            return done

        runtime.store.complete_step = complete_and_save  # type: ignore[method-assign]  # with a save
        runtime.perform(runtime.submit(count_in_state))
    assert seen == [{"rows": 5}, {"rows": 5, "called": True}]


@job(name="chaos-state-dear", checkpoint_every=0)
def carry_a_dear_state(ctx: Context, size: int) -> list[tuple[int, object]]:
    ctx.state["dear"] = {f"key {number}": number for number in range(size)}
    saved = []
    for index in ctx.each("rows", range(10)):
        current = RUNTIME.get(ctx.id).current
        saved.append((index, current.cursor if current else 0))
    return saved


RUNTIME = Runtime("memory://")


def test_checkpoint_every_0_saves_each_item_however_dear_the_state_is() -> None:
    outcome = RUNTIME.perform(RUNTIME.submit(carry_a_dear_state, 3000))
    assert outcome.result == [(index, index) for index in range(10)]
