"""How the two doors listen, and what they take at once."""

from pydantic import Field

from duckmesh.settings_groups.fields import GIB, MIB, Group, NonEmpty, Span, UserPath


class DoorSettings(Group):
    """Where a door listens, and with which certificates."""

    host: NonEmpty = Field(default="127.0.0.1", description="The address to listen on.")
    port: int | None
    tls_certificate: UserPath | None = Field(
        default=None,
        description="The server's certificate chain (PEM). With `tls_key` it turns TLS on.",
    )
    tls_key: UserPath | None = Field(
        default=None, description="The certificate's private key (PEM)."
    )
    client_ca: UserPath | None = Field(
        default=None,
        description="Certificates (PEM) that a client's must descend from: mutual TLS.",
    )
    allow_plaintext: bool = Field(
        default=False,
        description="Whether `prod` may listen without TLS beyond this machine, behind a proxy.",
    )

    @property
    def loopback_only(self) -> bool:
        """Whether only this machine can reach the door."""
        return self.host in {"localhost", "::1"} or self.host.startswith("127.")


class FlightSettings(DoorSettings):
    """The Flight SQL door."""

    port: int = Field(default=31337, ge=0, le=65535, description="The port; 0 takes a free one.")
    calls_max: int = Field(
        default=1024,
        ge=16,
        le=100_000,
        description=(
            "Calls in flight, idle streams among them; beyond, TOO_MANY_QUERIES. One in eight is "
            "kept for calls that are neither statements nor streams."
        ),
    )
    drain_seconds: float = Field(
        default=20,
        gt=0,
        le=3600,
        description="How long calls in flight may go on after SIGTERM.",
    )
    drain = Span("drain_seconds")


class HttpSettings(DoorSettings):
    """The HTTP door."""

    enabled: bool = Field(default=True, description="Whether serving processes open it.")
    port: int | None = Field(
        default=None,
        ge=0,
        le=65535,
        description="The port; 0 takes a free one. One above `flight.port` when not set.",
    )
    max_requests: int = Field(
        default=256, ge=1, le=10_000, description="Requests in flight; beyond, TOO_MANY_QUERIES."
    )
    max_body_bytes: int = Field(
        default=4 * GIB,
        ge=1,
        description="The largest body of an ingest, unpacked; beyond, PAYLOAD_TOO_LARGE.",
    )
    max_json_bytes: int = Field(
        default=32 * MIB,
        ge=1,
        le=GIB,
        description="The same for JSON records, which are read whole.",
    )
    max_records: int = Field(
        default=10_000, ge=1, le=1_000_000, description="JSON records of one ingest at most."
    )
    idle_timeout_seconds: float = Field(
        default=30,
        gt=0,
        le=3600,
        description="How long a client may pause while it sends a body or reads an answer.",
    )
    idle_timeout = Span("idle_timeout_seconds")
