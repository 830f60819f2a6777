"""Telemetry of the command line: on where the environment names a collector, and off elsewhere."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from tracedjobs.cli.screen import console

if TYPE_CHECKING:
    from tracedjobs._core.runtime import Runtime

__all__ = ["telemetry_if_asked"]

ASK: Final = (
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT",
    "OTEL_TRACES_EXPORTER",
    "OTEL_LOGS_EXPORTER",
)


def telemetry_if_asked(runtime: Runtime) -> None:
    """Send what jobs do, and what others left in that store, where the environment asks for it."""
    if not any(os.environ.get(name) for name in ASK):
        return
    from tracedjobs import telemetry  # noqa: PLC0415 - slow, and mostly not wanted

    try:
        telemetry.configure()
    except ImportError as error:
        words = f"Telemetry is off: {error}"
        console(stderr=True).print(words, style="yellow", soft_wrap=True, markup=False)
        return
    telemetry.watch(runtime)
