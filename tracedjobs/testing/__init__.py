"""Helpers for testing jobs: values for `stopping=` that interrupt a run where a test wants it.

runtime.perform(job_id, stopping=interrupt_during("import_rows", cursor=433))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from tracedjobs._core.context import BaseContext

__all__ = ["interrupt_after", "interrupt_during"]


class _Any:
    def __repr__(self) -> str:
        return "any cursor"


ANY: Final = _Any()


def interrupt_during(
    step: str, cursor: object = ANY, *, reason: str | None = None
) -> Callable[[BaseContext], bool | str]:
    """Interrupt at the checkpoint at which `step` stands at `cursor`, or at its first one.

    `reason` instead of `stopping`.
    """

    def stopping(ctx: BaseContext) -> bool | str:
        current = ctx.current
        if current is None or current.name != step:
            return False
        return (cursor is ANY or current.cursor == cursor) and (reason or True)

    return stopping


def interrupt_after(step: str, *, reason: str | None = None) -> Callable[[BaseContext], bool | str]:
    """Interrupt at the checkpoint after `step`, before the next one.

    There is none after the last step, so that a job is never interrupted there.
    """

    def stopping(ctx: BaseContext) -> bool | str:
        return ctx.current is None and ctx.completed[-1:] == (step,) and (reason or True)

    return stopping
