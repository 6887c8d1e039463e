"""Where the spans of a process go."""

import re
from typing import Annotated, Final

from pydantic import AfterValidator, Field

from duckmesh.settings_groups.fields import Form, Group

_URL: Final = re.compile(r"https?://[^\s]+")


def _collector(value: str) -> str:
    if not _URL.fullmatch(value):
        raise ValueError("not a collector's address")
    return value


CollectorUrl = Annotated[
    str, AfterValidator(_collector), Form("a URL `http://host:4318` or `https://...`")
]


class TelemetrySettings(Group):
    """Traces, as OpenTelemetry has them."""

    otlp_endpoint: CollectorUrl | None = Field(
        default=None,
        description=(
            "The collector that takes spans by OTLP over HTTP, without `/v1/traces`; wants "
            "`duckmesh[otel]`. Without it OTEL_EXPORTER_OTLP_ENDPOINT counts, and without either "
            "nothing is sent."
        ),
    )
