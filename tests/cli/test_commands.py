"""The table of commands: each has its help, and the whole needs its extra."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

import tracedjobs
from tracedjobs.cli.app import COMMANDS, group

VERSION_1 = {
    *("run", "list", "show", "pause", "resume", "cancel", "retry", "rewind", "recover", "demo"),
    *("exporter", "dashboard", "alerts"),
}


def test_these_commands_there_are() -> None:
    assert set(COMMANDS) == VERSION_1


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_each_command_has_a_help_that_fits_on_80_columns(name: str) -> None:
    command = group.get_command(click.Context(group), name)
    assert command is not None
    assert command.name == name
    assert command.help
    for option in command.params:
        assert isinstance(option, click.Argument) or getattr(option, "help", None), option.name
    for words in ([name, "--help"], [name, "-h"]):
        result = CliRunner().invoke(group, words)
        assert result.exit_code == 0
        assert all(len(line) <= 88 for line in result.output.splitlines())


def test_each_command_is_in_the_first_help_with_a_whole_sentence() -> None:
    lines = CliRunner().invoke(group, ["--help"]).output.splitlines()
    listed = lines[lines.index("Commands:") + 1 :]
    assert {line.split()[0] for line in listed} == set(COMMANDS)
    assert all(line.endswith(".") and not line.endswith("...") for line in listed)


def test_the_version_is_the_packages() -> None:
    result = CliRunner().invoke(group, ["--version"])
    assert result.output == f"tracedjobs {tracedjobs.__version__}\n"


def test_an_unknown_command_is_a_usage_error() -> None:
    assert CliRunner().invoke(group, ["frobnicate"]).exit_code == 2


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_without_the_extra_one_line_says_how_to_get_it(missing: str) -> None:
    code = (
        f"import sys; sys.modules[{missing!r}] = None; sys.argv[1:] = ['list']\n"
        f"from tracedjobs.cli import main; sys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "pip install 'tracedjobs[cli]'" in done.stderr


def test_the_package_loads_none_of_it() -> None:
    code = "import sys, tracedjobs.cli; print({'click', 'rich'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "set()\n"
