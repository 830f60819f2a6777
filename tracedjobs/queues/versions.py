"""Whether a queue's package is there, and of a version that was tried."""

from __future__ import annotations

import logging
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Final

__all__ = ["check_version", "missing"]

_log: Final = logging.getLogger("tracedjobs")


def missing(extra: str, error: ImportError) -> str:
    """What is said where a queue's package is not installed, or one that is too old."""
    if (error.name or "").split(".")[0] == extra:
        with suppress(PackageNotFoundError):
            found = version(extra)
            wanted = [
                each.split(";")[0].strip()
                for each in requires("tracedjobs") or ()
                if each.startswith(extra) and f'"{extra}"' in each.replace("'", '"')
            ]
            return (
                f"tracedjobs.queues.{extra} works with {', '.join(wanted)}, and {extra} {found} "
                f"is installed: pip install 'tracedjobs[{extra}]'."
            )
    return (
        f"tracedjobs.queues.{extra} needs {error.name or extra}, which is not installed: "
        f"pip install 'tracedjobs[{extra}]'."
    )


def check_version(package: str, majors: tuple[int, ...], what: str) -> bool:
    """Whether the installed version is one whose insides are known; if not, it is said."""
    found = version(package)
    if int(found.split(".")[0]) in majors:
        return True
    _log.warning(
        "%s %s is not a version that tracedjobs was tried with (%s): %s.",
        package,
        found,
        ", ".join(f"{major}.x" for major in majors),
        what,
    )
    return False
