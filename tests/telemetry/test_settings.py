"""What is made of the variables that say where telemetry goes."""

from __future__ import annotations

import pytest

from tracedjobs.telemetry.settings import SettingsError, protocol_of, whole

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
PROTOCOL = "OTEL_EXPORTER_OTLP_PROTOCOL"


@pytest.fixture(autouse=True)
def _unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (ENDPOINT, PROTOCOL, "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("settings", "exporter"),
    [
        ({}, "otlp_proto_http"),
        ({ENDPOINT: "http://collector:4318"}, "otlp_proto_http"),
        ({ENDPOINT: "http://collector:4317"}, "otlp_proto_grpc"),
        ({ENDPOINT: "http://collector:4317", PROTOCOL: "http/protobuf"}, "otlp_proto_http"),
        ({ENDPOINT: "collector:4317", PROTOCOL: "grpc"}, "otlp_proto_grpc"),
        ({"OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": "http://logs:4317"}, "otlp_proto_grpc"),
    ],
)
def test_the_protocol_follows_from_the_variables(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], exporter: str
) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    assert protocol_of("logs") == exporter


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (
            {ENDPOINT: "collector:4317"},
            "the OTLP endpoint has no scheme; write http://collector:4317, or https://",
        ),
        (
            {ENDPOINT: "ann:hush@collector:4318"},
            (
                "the OTLP endpoint has no scheme; write http://ann:[FILTERED]@collector:4318, "
                "or https://"
            ),
        ),
        (
            {ENDPOINT: "http://ann:hush@collector:99999"},
            "the OTLP endpoint http://ann:[FILTERED]@collector:99999 has no valid port",
        ),
        (
            {ENDPOINT: "http://ann:hush@collector:4317"},
            (
                "the OTLP endpoint http://ann:[FILTERED]@collector:4317 has a user, which gRPC "
                "does not take; see OTEL_EXPORTER_OTLP_HEADERS"
            ),
        ),
        ({PROTOCOL: "xml"}, "OTEL_EXPORTER_OTLP_PROTOCOL=xml is none of grpc and http/protobuf"),
    ],
)
def test_what_is_wrong_with_them_is_said_in_a_line_without_secrets(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], why: str
) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as caught:
        protocol_of("logs")
    assert str(caught.value) == why


def test_numbers_are_whole_and_above_0(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BLRP_SCHEDULE_DELAY", " 250 ")
    assert whole("OTEL_BLRP_SCHEDULE_DELAY", 1000) == 250
    monkeypatch.setenv("OTEL_BLRP_SCHEDULE_DELAY", "")
    assert whole("OTEL_BLRP_SCHEDULE_DELAY", 1000) == 1000
    for wrong in ("0", "-1", "1.5", "soon", "\u0663"):
        monkeypatch.setenv("OTEL_BLRP_SCHEDULE_DELAY", wrong)
        with pytest.raises(SettingsError, match="no whole number above 0"):
            whole("OTEL_BLRP_SCHEDULE_DELAY", 1000)
