"""Whether this process sends its spans, and where: by the settings and OpenTelemetry's own."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Final

from duckmesh import tracing
from duckmesh.errors import ErrorCode, Invalid
from duckmesh.settings_groups import TelemetrySettings

_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


def is_exporting(settings: TelemetrySettings, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether spans are sent: an address is named, and the environment does not forbid it."""
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    if environment.get("OTEL_TRACES_EXPORTER", "otlp").strip().lower() == "none":
        return False
    return settings.otlp_endpoint is not None or any(environment.get(e) for e in _ENDPOINTS)


@contextmanager
def exporting(settings: TelemetrySettings, *, service: str) -> Iterator[None]:
    """Send the spans of the block, if that is asked for; else nothing is loaded.

    On leaving, what is left is sent within two seconds. Raises Invalid (SETTINGS_INVALID) when
    OpenTelemetry is not installed.
    """
    if not is_exporting(settings):
        yield
        return
    tracer = _open(settings, service)
    tracing.use(tracer)
    try:
        yield
    finally:
        tracing.use(None)
        tracer.close()


def _open(settings: TelemetrySettings, service: str) -> Any:
    try:
        module = import_module("duckmesh.open_telemetry")
    except ImportError as error:
        raise Invalid(
            ErrorCode.SETTINGS_INVALID,
            "traces are to be exported and OpenTelemetry is not installed: install "
            "duckmesh[otel], or unset telemetry.otlp_endpoint and OTEL_EXPORTER_OTLP_ENDPOINT",
        ) from error
    return module.OpenTelemetry(service, settings.otlp_endpoint)
