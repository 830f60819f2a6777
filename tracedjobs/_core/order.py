"""The rules of the order of steps: one function a rule, the name is the rule.

The rules, their order and their sentences are those of Rails' `Continuation::Validation`; only the
last one is ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from tracedjobs.errors import InvalidStepError

if TYPE_CHECKING:
    from tracedjobs._core.progress import Progress

__all__ = ["check_returned_complete", "check_step"]


def check_step(progress: Progress, name: object) -> str:
    """Check that a step of this name may come now; the name."""
    text = step_is_named(name)
    step_not_encountered(progress, text)
    step_not_nested(progress, text)
    step_resume_expected(progress, text)
    step_expected_order(progress, text)
    return text


def check_returned_complete(progress: Progress) -> None:
    """Check that a job that returned has met the step it was to resume from."""
    position = progress.resume_from
    if position is None:
        return
    if position.step in progress.encountered:
        refuse(
            f"The job returned though step '{position.step}' was left before it was done: its "
            f"error was caught. Let the error pass, so that the step is resumed."
        )
    refuse(
        f"The job returned without meeting step '{position.step}', which it was to resume from. "
        f"Bring the step back, or rewind the job to a step that is still there."
    )


def step_is_named(name: object) -> str:
    """A step is named by a text that is not empty."""
    if not isinstance(name, str):
        refuse(f"Step {name!r} must be named by a str, found '{type(name).__name__}'")
    if not name.strip():
        refuse(f"Step {name!r} must have a name that is not empty")
    if not _is_unicode(name):
        refuse(f"Step {name!r} must have a name without lone surrogates, which no store takes")
    return name


def step_not_encountered(progress: Progress, name: str) -> None:
    """A name comes once a run."""
    if name in progress.encountered:
        refuse(f"Step '{name}' has already been encountered")


def step_not_nested(progress: Progress, name: str) -> None:
    """No step inside a step."""
    if progress.running is not None:
        refuse(f"Step '{name}' is nested inside step '{progress.running}'")


def step_resume_expected(progress: Progress, name: str) -> None:
    """The first step that is not done is the one that was interrupted."""
    position = progress.resume_from
    if position is not None and position.step != name and name not in progress.completed:
        refuse(f"Step '{name}' found, expected to resume from '{position.step}'")


def step_expected_order(progress: Progress, name: str) -> None:
    """Completed steps come in the order in which they were completed."""
    met = len(progress.encountered)
    if len(progress.order) > met and progress.order[met] != name:
        refuse(f"Step '{name}' found, expected to see '{progress.order[met]}'")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def refuse(message: str) -> NoReturn:
    """Raise the one error of this file."""
    raise InvalidStepError(message)
