"""The command line. Its libraries are an extra, so nothing here imports them before `main` runs."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> int:
    """Do what the command line says; the exit code.

    Without the extra `cli` one line says how to get it, and the code is 2.
    """
    try:
        import click  # noqa: F401, PLC0415 - an extra
        import rich  # noqa: F401, PLC0415 - an extra
    except ImportError as error:
        print(
            f"The command line needs {error.name}, which is not installed: "
            f"pip install 'tracedjobs[cli]'",
            file=sys.stderr,
        )
        return 2
    from tracedjobs.cli.app import app  # noqa: PLC0415 - imports them

    return app()
