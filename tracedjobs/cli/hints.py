"""The commands that the command line tells people to type next."""

from __future__ import annotations

import shlex
import shutil
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Hints", "program"]


def program() -> str:
    """What was typed to start this program, such that it works again."""
    typed = Path(sys.argv[0])
    if typed.name == "__main__.py":
        return f"{sys.orig_argv[0]} -m tracedjobs"
    found = shutil.which(typed.name)
    if found is not None and typed.is_file() and Path(found).samefile(typed):
        return typed.name
    return str(typed)


@dataclass(frozen=True, slots=True)
class Hints:
    """Commands for the store that this command was given."""

    store: tuple[str, ...] = ()

    @classmethod
    def of(cls, ctx: click.Context) -> Hints:
        """Repeat `--store` where it was typed; the environment's and the default go without."""
        if ctx.get_parameter_source("store") is not click.core.ParameterSource.COMMANDLINE:
            return cls()
        url = str(ctx.params["store"])
        return cls(("--store", "…" if urlsplit(url).password else url))

    def command(self, *words: str) -> str:
        """That command, quoted for a shell."""
        return f"{program()} {shlex.join((*words, *self.store))}"

    def run(self, target: str, job_id: str) -> str:
        """The command that goes on with the job; its arguments are in the store."""
        return self.command("run", target, "--job-id", job_id)

    def run_by_name(self, name: str, job_id: str) -> str:
        """The same, as far as the job's name tells where its function is."""
        module, colon, function = name.partition(":")
        if not colon:
            return f"{program()} run MODULE:JOB {shlex.join(('--job-id', job_id, *self.store))}"
        if _importable(module):
            return self.run(name, job_id)
        return self.run(f"PATH/{module.replace('.', '/')}.py:{function}", job_id)


def _importable(module: str) -> bool:
    top = module.partition(".")[0]
    here: Sequence[str] = (".", *sys.path)
    if any((Path(each) / f"{top}.py").is_file() or (Path(each) / top).is_dir() for each in here):
        return True
    try:
        return find_spec(top) is not None
    except (ImportError, ValueError):
        return False
