"""The clocks: wall time for people, boot time for leases.

Boot time goes on while a laptop sleeps and is never set back, but it starts anew at each boot:
a time on it means something only together with the boot id beside it.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Final

__all__ = ["boot_id", "boot_time", "wall_time"]

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
_BOOT_ID_FILE = Path("/proc/sys/kernel/random/boot_id")
_boot_id: str | None = None


def wall_time() -> float:
    """Seconds since the epoch."""
    return time.time()


boot_time: Final = partial(time.clock_gettime, _CLOCK)
"""Seconds since the host booted, its sleep included."""


def boot_id() -> str:
    """A name of this boot of this host, the same in every container on it.

    Where the kernel gives none, the hour of the boot is taken, which the wall clock tells well
    enough to see a reboot.
    """
    global _boot_id  # noqa: PLW0603 - read once a process
    if _boot_id is None:
        try:
            _boot_id = _BOOT_ID_FILE.read_text("ascii").strip().replace("-", "")[:16]
        except OSError:
            _boot_id = f"at-{int((wall_time() - boot_time()) // 3600)}"
    return _boot_id
