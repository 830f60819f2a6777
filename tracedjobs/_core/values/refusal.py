"""Why a value cannot be stored, and where in the whole it was found.

The path is put together only when something is refused: what can be stored does not pay for it.
"""

from __future__ import annotations

import reprlib

_SHOWN_STEPS = 8


class RefusedError(Exception):
    """A value inside the one being encoded cannot be stored; collects the path on its way out."""

    def __init__(self, reason: str) -> None:
        """Take what is wrong and what to do, the end of a sentence that begins with the path."""
        super().__init__(reason)
        self.reason = reason
        self._steps: list[str] = []

    def within(self, step: str) -> None:
        """Add the step that leads from a container to what was refused in it."""
        self._steps.append(step)

    def located(self, path: str) -> str:
        """Return the whole sentence, for a value that is known as `path`."""
        steps = self._steps[::-1]
        if len(steps) > 2 * _SHOWN_STEPS:
            steps[_SHOWN_STEPS:-1] = [" ... "]
        return f"{path}{''.join(steps)} cannot be stored: {self.reason}"


def shown(value: object) -> str:
    """Return a short text of any value, also of one whose `repr` fails."""
    try:
        return reprlib.repr(value)
    except Exception:  # an int over the digit limit, or anything in a user's repr
        return f"<{type_name(type(value))}>"


def type_name(cls: type) -> str:
    """Return the name of a class as one would import it."""
    if cls.__module__ == "builtins":
        return cls.__qualname__
    return f"{cls.__module__}.{cls.__qualname__}"
