"""The table of commands, and what all of them do with an error: one line and an exit code."""

from __future__ import annotations

import io
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Final, cast

import click

from tracedjobs.cli.hints import program
from tracedjobs.cli.options import Refused
from tracedjobs.errors import TracedJobsError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["COMMANDS", "app", "group"]

COMMANDS: Final = {
    "run": "tracedjobs.cli.run",
    "list": "tracedjobs.cli.listing",
    "show": "tracedjobs.cli.show",
    "pause": "tracedjobs.cli.controls",
    "resume": "tracedjobs.cli.controls",
    "cancel": "tracedjobs.cli.controls",
    "retry": "tracedjobs.cli.controls",
    "rewind": "tracedjobs.cli.controls",
    "recover": "tracedjobs.cli.recover",
    "exporter": "tracedjobs.cli.exporter",
    "dashboard": "tracedjobs.cli.dashboard",
    "alerts": "tracedjobs.cli.alerts",
    "demo": "tracedjobs.cli.demo",
}
"""Where each command is. Its module holds a function of that name, `list` as `list_`."""

_SAME_AS_PYTHON: Final = {"list": "list_"}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - as above
        module = COMMANDS.get(cmd_name)
        if module is None:
            return None
        name = _SAME_AS_PYTHON.get(cmd_name, cmd_name)
        return cast("click.Command", getattr(import_module(module), name))

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except TracedJobsError as error:
            raise Refused(str(error)) from error


def _print_version(ctx: click.Context, _option: click.Parameter, wanted: bool) -> None:  # noqa: FBT001 - click's
    if wanted:
        from tracedjobs import __version__  # noqa: PLC0415 - slow, and seldom asked for

        click.echo(f"tracedjobs {__version__}")
        ctx.exit()


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version and exit.",
)
def group() -> None:
    """Jobs that stop, are killed, and resume where they were.

    \b
      tracedjobs run jobs.py:import_users users.csv    run a job; Ctrl-C saves and stops it
      tracedjobs list                                  what there is, newest first
      tracedjobs show JOB_ID                           one job, and what to type next

    Jobs are kept in --store, else in TRACEDJOBS_STORE, else in ./tracedjobs.db. An id may be
    shortened, as long as only one job begins with it.

    Exit codes: 0 done, 1 failed, 2 usage, 75 interrupted and resumable.
    """  # noqa: D301 - the character is click's: it keeps lines as they are


def app() -> int:
    """Run the command line; the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # An id or a message may hold what this output's encoding has not.
            stream.reconfigure(errors="backslashreplace")
    main = cast("Callable[..., object]", group.main)
    main(prog_name=program())
    return 0
