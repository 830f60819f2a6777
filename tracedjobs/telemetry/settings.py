"""The `OTEL_*` variables, as far as we read them ourselves: a wrong one is one line of the log."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from tracedjobs._core.masking import shown

__all__ = ["SettingsError", "protocol_of", "whole"]

GRPC_PORT = 4317
PROTOCOLS = {"grpc": "otlp_proto_grpc", "http/protobuf": "otlp_proto_http"}


class SettingsError(Exception):
    """A setting of telemetry that cannot be followed, in one line."""


def whole(name: str, default: int) -> int:
    """The whole number above 0 that the variable of that name has."""
    text = os.environ.get(name, "").strip()
    if not text:
        return default
    if text.isascii() and text.isdecimal() and int(text) > 0:
        return int(text)
    msg = f"{name}={text} is no whole number above 0"
    raise SettingsError(msg)


def protocol_of(group: str) -> str:
    """The name of the OTLP exporter for `traces` or `logs`."""
    general = "OTEL_EXPORTER_OTLP_PROTOCOL"
    special = f"OTEL_EXPORTER_OTLP_{group.upper()}_PROTOCOL"
    setting = special if os.environ.get(special) else general
    protocol = (os.environ.get(setting) or "").strip().lower()
    if protocol and protocol not in PROTOCOLS:
        msg = f"{setting}={protocol} is none of grpc and http/protobuf"
        raise SettingsError(msg)
    endpoint = (
        os.environ.get(f"OTEL_EXPORTER_OTLP_{group.upper()}_ENDPOINT")
        or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
        or ""
    ).strip()
    port = _port(endpoint)
    if protocol != "grpc" and endpoint and "://" not in endpoint:
        msg = f"the OTLP endpoint has no scheme; write {shown(f'http://{endpoint}')}, or https://"
        raise SettingsError(msg)
    protocol = protocol or ("grpc" if port == GRPC_PORT else "http/protobuf")
    if protocol == "grpc" and "@" in endpoint:
        msg = (
            f"the OTLP endpoint {shown(endpoint)} has a user, which gRPC does not take; "
            f"see OTEL_EXPORTER_OTLP_HEADERS"
        )
        raise SettingsError(msg)
    return PROTOCOLS[protocol]


def _port(endpoint: str) -> int | None:
    endpoint = endpoint if "://" in endpoint else f"http://{endpoint}"
    try:
        return urlsplit(endpoint).port
    except ValueError:
        msg = f"the OTLP endpoint {shown(endpoint)} has no valid port"
        raise SettingsError(msg) from None
