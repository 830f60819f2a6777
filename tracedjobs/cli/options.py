"""What commands share: the options `--store` and `--json`, and finding a store and a job."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from tracedjobs._core.runtime import DEFAULT_STORE, Runtime
from tracedjobs.errors import JobNotFoundError, StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "FAILED",
    "INTERRUPTED",
    "USAGE",
    "existing_store",
    "full_id",
    "json_option",
    "store_option",
]

FAILED: Final = 1
USAGE: Final = 2
INTERRUPTED: Final = 75

SHORTEST_PREFIX: Final = 4
PAGE: Final = 200
SEARCHED: Final = 2000

store_option = click.option(
    "--store",
    metavar="URL",
    envvar="TRACEDJOBS_STORE",
    show_envvar=True,
    default=DEFAULT_STORE,
    show_default=True,
    help="Where the jobs are kept.",
)
json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON, with keys that stay the same."
)


class Refused(click.ClickException):
    """What was asked for cannot be done; one line says why."""

    exit_code = USAGE

    def __init__(self, message: str) -> None:
        """Say it in one line."""
        super().__init__(" ".join(message.splitlines()))


@contextmanager
def existing_store(url: str) -> Iterator[Runtime]:
    """A runtime on a store that is there already: looking at a file never makes one."""
    with Runtime(url, handle_signals=False) as runtime:
        kind, _, path = runtime.store.url.partition(":///")
        if kind == "sqlite" and not Path(path).is_file():
            msg = (
                f"There is no store {path} here. A job makes it when it first runs: "
                f"tracedjobs run MODULE:JOB; or say where it is with --store or TRACEDJOBS_STORE."
            )
            raise StoreError(msg)
        if url.startswith("memory:"):
            msg = "A memory:// store ends with its process; name one that lasts, such as sqlite:///jobs.db."
            raise StoreError(msg)
        yield runtime


def full_id(runtime: Runtime, given: str) -> str:
    """The id of the one job that `given` is the id of, or the beginning of.

    Raises `JobNotFoundError` when none is, or several.
    """
    if runtime.store.load(given) is not None:
        return given
    found = _beginning_with(runtime, given) if len(given) >= SHORTEST_PREFIX else []
    if len(found) == 1:
        return found[0]
    if found:
        some = ", ".join(found[:3]) + (", …" if len(found) > 3 else "")  # noqa: PLR2004 - enough to see
        msg = f"{len(found)} jobs begin with {given!r}: {some}. Give more of the id."
        raise JobNotFoundError(msg)
    msg = (
        f"There is no job {given!r} in {runtime.store.url}; `tracedjobs list` shows what there is."
    )
    raise JobNotFoundError(msg)


def _beginning_with(runtime: Runtime, given: str) -> list[str]:
    found: list[str] = []
    before: str | None = None
    for _ in range(SEARCHED // PAGE):
        page = runtime.list(limit=PAGE, before=before)
        found += [each.id for each in page if each.id.startswith(given)]
        if len(page) < PAGE:
            break
        before = page[-1].id
    return found
