"""What commands that write files share: where to, in which form, and saying what was written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tracedjobs.cli.options import Refused

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["folder_option", "kubernetes_option", "write"]

folder_option = click.option(
    "--to",
    "folder",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(),
    help="Where to; made where it is not there. Files of these names are replaced.  "
    "[default: here]",
)
kubernetes_option = click.option(
    "--kubernetes", is_flag=True, help="Write an object of Kubernetes instead."
)


def write(folder: Path, files: Mapping[str, str]) -> None:
    """Write these files there, and say so."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name).write_text(text, "utf-8")
            click.echo(folder / name)
    except OSError as error:
        msg = f"It cannot be written to {folder}: {error.strerror or error}."
        raise Refused(msg) from error
