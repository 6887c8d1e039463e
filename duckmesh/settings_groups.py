"""The settings, group by group: each with its default, its bounds and its meaning.

Values are plain and their units stand last in the names; `timedelta`s for use inside are derived.
"""

import re
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr

MIB: Final = 1024 * 1024
GIB: Final = 1024 * MIB
SEALING_SECRET_MIN_BYTES: Final = 32

_UNITS: Final = {
    "_ms": timedelta(milliseconds=1),
    "_seconds": timedelta(seconds=1),
    "_days": timedelta(days=1),
}
_STORE_URL: Final = re.compile(r"[a-z][a-z0-9+.-]*://.+")
_KEYS_URL: Final = re.compile(
    r"https://[^\s]+|http://(localhost|127\.0\.0\.1|\[::1\])(:[0-9]+)?(/[^\s]*)?"
)
_ALGORITHMS: Final = re.compile(r"(RS|PS|ES)(256|384|512)|EdDSA")
_ROLE_PAIR: Final = re.compile(
    r"\s*[^\s,][^,]*=\s*(ingest_writer|query_reader|table_admin|ops_admin)\s*"
)
_TENANT_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


class Profile(StrEnum):
    """Where DuckMesh runs: it chooses the defaults, and `prod` refuses what is unsafe."""

    DEV = "dev"
    TEST = "test"
    PROD = "prod"


class LogLevel(StrEnum):
    """The least severe level that is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(StrEnum):
    """`json`: one object a line, for machines. `console`: for people."""

    JSON = "json"
    CONSOLE = "console"


@dataclass(frozen=True, slots=True)
class Form:
    """The accepted form of a setting in words, where its type alone does not tell."""

    text: str


class Span:
    """A field such as `lease_seconds` as a timedelta, under the name without the unit."""

    def __init__(self, field: str) -> None:
        self._field = field
        self._unit = next(unit for suffix, unit in _UNITS.items() if field.endswith(suffix))

    def __get__(self, group: object, kind: type | None = None) -> timedelta:
        amount: float = getattr(group, self._field)
        return amount * self._unit


def _dsn(value: SecretStr) -> SecretStr:
    text = value.get_secret_value()
    if not (text.startswith(("postgresql://", "postgres://")) or "=" in text):
        raise ValueError("not a Postgres address")
    return value


def _sealing_secret(value: SecretStr) -> SecretStr:
    if len(value.get_secret_value().encode()) < SEALING_SECRET_MIN_BYTES:
        raise ValueError("too short")
    return value


def _store_url(value: str) -> str:
    if not _STORE_URL.fullmatch(value):
        raise ValueError("not a URL")
    return value


def _keys_url(value: str) -> str:
    if not _KEYS_URL.fullmatch(value):
        raise ValueError("not an address of a key set")
    return value


def _algorithms(value: str) -> str:
    if not all(_ALGORITHMS.fullmatch(name.strip()) for name in value.split(",")):
        raise ValueError("not algorithms")
    return value


def _role_map(value: str) -> str:
    if not all(_ROLE_PAIR.fullmatch(pair) for pair in value.split(",")):
        raise ValueError("not pairs of names")
    return value


def _tenant(value: str) -> str:
    if not _TENANT_NAME.fullmatch(value):
        raise ValueError("not a tenant's name")
    return value


Dsn = Annotated[
    SecretStr,
    AfterValidator(_dsn),
    Form("`postgresql://user:password@host:port/database`, or `key=value` pairs as libpq reads"),
]
SealingSecret = Annotated[
    SecretStr,
    AfterValidator(_sealing_secret),
    Form(f"random text of at least {SEALING_SECRET_MIN_BYTES} bytes"),
]
StoreUrl = Annotated[
    str,
    AfterValidator(_store_url),
    Form("a URL such as `s3://bucket/prefix` or `file:///directory`"),
]
TenantName = Annotated[
    str,
    AfterValidator(_tenant),
    Form("1 to 63 characters of a-z, 0-9, `-` and `_`, the first a letter or digit"),
]
KeysUrl = Annotated[
    str,
    AfterValidator(_keys_url),
    Form("a URL `https://...`; `http://` on this machine alone"),
]
SigningAlgorithms = Annotated[
    str,
    AfterValidator(_algorithms),
    Form("one or more of `RS256`, `PS256`, `ES256`, their 384 and 512, `EdDSA`; commas between"),
]
RoleMap = Annotated[
    str,
    AfterValidator(_role_map),
    Form(
        "pairs such as `analysts=query_reader, etl=ingest_writer`; the roles are `ingest_writer`, "
        "`query_reader`, `table_admin` and `ops_admin`"
    ),
]
UserPath = Annotated[Path, AfterValidator(Path.expanduser), Form("a path; `~` is the home")]
NonEmpty = Annotated[str, Field(min_length=1)]


class Group(BaseModel):
    """Frozen; an unknown key is refused; no error repeats the value it refuses."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        ignored_types=(Span,),
        allow_inf_nan=False,
    )


class CatalogSettings(Group):
    """The Postgres that holds the catalog and, by default, the bus."""

    dsn: Dsn | None = Field(
        default=None,
        description="The catalog's address. `duckmesh up` runs a Postgres of its own without.",
    )
    pool_min: int = Field(
        default=1, ge=0, le=1000, description="Connections that a process keeps open."
    )
    pool_max: int = Field(
        default=8, ge=1, le=1000, description="Connections that a process opens at most."
    )
    connect_timeout_seconds: float = Field(
        default=5, gt=0, le=300, description="How long a call waits for a connection."
    )
    connect_timeout = Span("connect_timeout_seconds")


class StoreSettings(Group):
    """The object store that holds the Parquet files."""

    url: StoreUrl | None = Field(
        default=None,
        description="Where objects lie. `duckmesh up` uses a directory in `data_dir` without.",
    )
    endpoint: NonEmpty | None = Field(
        default=None,
        description="The address of an S3 server that is not AWS, such as `https://host:9000`.",
    )
    region: NonEmpty | None = Field(default=None, description="The S3 region.")
    access_key_id: NonEmpty | None = Field(
        default=None,
        description="The S3 key's id. Without, the S3 client's own sources: environment, role.",
    )
    secret_access_key: SecretStr | None = Field(default=None, description="The S3 key's secret.")
    session_token: SecretStr | None = Field(
        default=None, description="The token of temporary S3 credentials."
    )
    allow_http: bool = Field(default=False, description="Whether the endpoint may be plain `http`.")
    virtual_hosted_style: bool = Field(
        default=False,
        description="Whether the bucket stands in the host name; in the path when not.",
    )
    auto_create_bucket: bool = Field(
        default=False, description="Whether to create the bucket when it is missing."
    )
    connect_timeout_seconds: float = Field(
        default=5, gt=0, le=300, description="How long a connection may take."
    )
    request_timeout_seconds: float = Field(
        default=30, gt=0, le=3600, description="How long one request with its answer may take."
    )
    retry_timeout_seconds: float = Field(
        default=60, ge=0, le=3600, description="No retry of a call begins later than this."
    )
    max_retries: int = Field(default=8, ge=0, le=100, description="Retries of one call at most.")
    connect_timeout = Span("connect_timeout_seconds")
    request_timeout = Span("request_timeout_seconds")
    retry_timeout = Span("retry_timeout_seconds")


class CacheSettings(Group):
    """The serving process's local copies of immutable files."""

    directory: UserPath | None = Field(
        default=None, description="Where copies lie; `cache` in `data_dir` when not set."
    )
    capacity_bytes: int = Field(
        default=10 * GIB, ge=16 * MIB, description="The size of all copies at most, in bytes."
    )


class FlightSettings(Group):
    """The Flight SQL door."""

    host: NonEmpty = Field(default="127.0.0.1", description="The address to listen on.")
    port: int = Field(default=31337, ge=0, le=65535, description="The port; 0 takes a free one.")
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

    @property
    def loopback_only(self) -> bool:
        """Whether only this machine can reach the door."""
        return self.host in {"localhost", "::1"} or self.host.startswith("127.")


class HttpSettings(Group):
    """The HTTP door."""

    enabled: bool = Field(default=True, description="Whether serving processes open it.")
    host: NonEmpty = Field(default="127.0.0.1", description="The address to listen on.")
    port: int | None = Field(
        default=None,
        ge=0,
        le=65535,
        description="The port; 0 takes a free one. One above `flight.port` when not set.",
    )
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

    @property
    def loopback_only(self) -> bool:
        """Whether only this machine can reach the door."""
        return self.host in {"localhost", "::1"} or self.host.startswith("127.")


class AuthSettings(Group):
    """Who may do what."""

    open_mode: bool = Field(
        default=False,
        description="Whether callers without credentials may do everything. Not in `prod`.",
    )
    default_tenant: TenantName = Field(
        default="default", description="The tenant of callers without credentials, in open mode."
    )
    session_lifetime_seconds: float = Field(
        default=86400, gt=0, description="How long a session's bearer token is valid."
    )
    ticket_lifetime_seconds: float = Field(
        default=3600, gt=0, description="How long a query's ticket may be redeemed."
    )
    sealing_secret: SealingSecret | None = Field(
        default=None,
        description=(
            "Signs sessions and tickets; equal in all serving processes. When not set, the one "
            "that the catalog keeps for all of them."
        ),
    )
    jwt_issuer: NonEmpty | None = Field(
        default=None,
        description=(
            "The identity provider whose tokens are believed: their claim `iss`, to the letter. "
            "Turns JSON Web Tokens on."
        ),
    )
    jwt_audience: NonEmpty | None = Field(
        default=None, description="What a token's claim `aud` must hold."
    )
    jwks_url: KeysUrl | None = Field(
        default=None, description="Where the provider publishes its keys (JWKS)."
    )
    jwks_file: UserPath | None = Field(
        default=None,
        description="The same as a file, for networks without a way out; read anew when it ages.",
    )
    jwks_timeout_seconds: float = Field(
        default=3, gt=0, le=60, description="How long a fetch of the keys may hold a caller."
    )
    jwt_algorithms: SigningAlgorithms = Field(
        default="RS256,ES256,EdDSA", description="The signatures that are believed."
    )
    jwt_tenant_claim: NonEmpty = Field(
        default="tenant",
        description="The claim that names the tenant; `a.b` leads into an object.",
    )
    jwt_roles_claim: NonEmpty = Field(
        default="roles",
        description="The claim that lists roles, as an array or with spaces between.",
    )
    jwt_role_map: RoleMap | None = Field(
        default=None,
        description=(
            "Which role of the provider's is which of DuckMesh's; others give nothing. Without it "
            "the names are DuckMesh's own."
        ),
    )
    jwt_leeway_seconds: float = Field(
        default=30, ge=0, le=600, description="How far the provider's clock may be off."
    )
    session_lifetime = Span("session_lifetime_seconds")
    jwks_timeout = Span("jwks_timeout_seconds")
    jwt_leeway = Span("jwt_leeway_seconds")
    ticket_lifetime = Span("ticket_lifetime_seconds")


class IngestSettings(Group):
    """What one write may be, and how it is carried."""

    inline_max_bytes: int = Field(
        default=MIB, ge=0, le=64 * MIB, description="A larger write is staged in the object store."
    )
    write_max_bytes: int = Field(
        default=64 * GIB, ge=1, description="A larger write is refused with PAYLOAD_TOO_LARGE."
    )
    staged_file_target_bytes: int = Field(
        default=128 * MIB, ge=MIB, description="The size of a staged file, about."
    )
    key_window_days: float = Field(
        default=7, gt=0, le=3650, description="How long an idempotency key is remembered."
    )
    max_pending_events: int = Field(
        default=100_000,
        ge=1,
        description="Writes of a tenant that wait for publication; beyond, QUOTA_EXCEEDED.",
    )
    max_pending_bytes: int = Field(
        default=4 * GIB, ge=1, description="The same, by the bytes that these writes carry."
    )
    stream_window: int = Field(
        default=32,
        ge=1,
        le=10_000,
        description="Batches of one ingest stream that wait for a receipt.",
    )
    key_window = Span("key_window_days")


class TransactionSettings(Group):
    """Transactions of clients."""

    idle_seconds: float = Field(
        default=900,
        ge=1,
        le=86_400,
        description="A transaction in which nothing is said for this long is rolled back.",
    )
    max_writes: int = Field(
        default=10_000, ge=1, le=100_000, description="Writes that one transaction may hold."
    )
    inline_max_bytes: int = Field(
        default=16 * MIB,
        ge=0,
        le=256 * MIB,
        description="Bytes of its writes that lie in the catalog; beyond, they are staged.",
    )
    idle = Span("idle_seconds")


class CoordinatorSettings(Group):
    """How accepted writes become visible."""

    consumer_id: NonEmpty | None = Field(
        default=None,
        description="The name that leases carry; host name and process id when not set.",
    )
    claim_limit: int = Field(
        default=5000, ge=1, le=1_000_000, description="Writes taken in one claim at most."
    )
    claim_max_bytes: int = Field(
        default=256 * MIB, ge=1, description="Payload bytes taken in one claim at most."
    )
    lease_seconds: float = Field(
        default=30,
        ge=1,
        le=3600,
        description="How long a claim is one coordinator's; it is extended.",
    )
    poll_seconds: float = Field(
        default=1.0,
        gt=0,
        le=60,
        description="How often to look for work when no notification comes.",
    )
    flush_interval_ms: int = Field(
        default=150,
        ge=0,
        le=60_000,
        description="How long to gather writes when nobody waits for them.",
    )
    inline_file_max_bytes: int = Field(
        default=MIB, ge=0, le=64 * MIB, description="A larger data file lies in the object store."
    )
    backoff_seconds: float = Field(
        default=0.1, gt=0, le=60, description="The pause after a first failure; it doubles."
    )
    backoff_max_seconds: float = Field(
        default=30, gt=0, le=3600, description="The longest pause after a failure."
    )
    metrics_host: NonEmpty = Field(
        default="127.0.0.1",
        description="Where `/metrics`, `/health` and `/ready` listen. They ask for no credentials.",
    )
    metrics_port: int | None = Field(
        default=None,
        ge=0,
        le=65535,
        description="Their port; 0 takes a free one. Not opened when not set.",
    )
    metrics_tenants_max: int = Field(
        default=20,
        ge=0,
        le=1000,
        description="Tenants that have a lag of their own there: those furthest behind.",
    )
    lease = Span("lease_seconds")
    poll = Span("poll_seconds")
    flush_interval = Span("flush_interval_ms")
    backoff = Span("backoff_seconds")
    backoff_max = Span("backoff_max_seconds")


class QuerySettings(Group):
    """What one query may use."""

    consistency_timeout_ms: int = Field(
        default=3000,
        ge=0,
        le=3_600_000,
        description="How long a query waits for its token by default.",
    )
    max_consistency_timeout_ms: int = Field(
        default=60_000,
        ge=0,
        le=3_600_000,
        description="The longest wait that a client may ask for.",
    )
    wall_time_seconds: float = Field(
        default=60, gt=0, le=86_400, description="How long a query may run; beyond, QUERY_TIMEOUT."
    )
    fetch_timeout_seconds: float = Field(
        default=300,
        gt=0,
        le=86_400,
        description="How long a query's rows may wait for their reader; beyond, QUERY_TIMEOUT.",
    )
    memory_bytes: int = Field(
        default=GIB,
        ge=64 * MIB,
        description="What the queries of a worker may hold in memory; beyond, QUERY_MEMORY.",
    )
    workers: int = Field(
        default=8,
        ge=0,
        le=1000,
        description=(
            "Processes that run queries at most, each for one tenant, beside one that waits "
            "ready; 0 runs queries in the serving process, without their walls."
        ),
    )
    worker_idle_seconds: float = Field(
        default=300, gt=0, le=86_400, description="A worker without a query for so long ends."
    )
    kill_grace_seconds: float = Field(
        default=2,
        gt=0,
        le=3600,
        description="How long a query may ignore that it was stopped; then its worker is killed.",
    )
    spill_max_bytes: int = Field(
        default=10 * GIB,
        ge=MIB,
        description="What the queries of a worker may write to disk when memory is short.",
    )
    threads: int = Field(default=2, ge=1, le=1024, description="Threads of one worker's queries.")
    max_concurrent: int = Field(
        default=16, ge=1, le=10_000, description="Queries of a serving process that run at once."
    )
    max_concurrent_per_tenant: int = Field(
        default=12,
        ge=1,
        le=10_000,
        description="Those of one tenant, so that others find a turn while it has many.",
    )
    max_queued: int = Field(
        default=64,
        ge=0,
        le=100_000,
        description="Queries that wait for their turn; beyond, TOO_MANY_QUERIES.",
    )
    batch_rows: int = Field(
        default=65_536, ge=1, le=10_000_000, description="Rows of one batch of an answer at most."
    )
    row_max_bytes: int = Field(
        default=15 * MIB,
        ge=MIB,
        le=GIB,
        description=(
            "One row of an answer at most, in bytes; beyond, QUOTA_EXCEEDED. A row travels in one "
            "message, of which ADBC takes 16 MiB and other gRPC clients 4 MiB unless told more."
        ),
    )
    consistency_timeout = Span("consistency_timeout_ms")
    max_consistency_timeout = Span("max_consistency_timeout_ms")
    wall_time = Span("wall_time_seconds")
    worker_idle = Span("worker_idle_seconds")
    kill_grace = Span("kill_grace_seconds")
    fetch_timeout = Span("fetch_timeout_seconds")


class LoggingSettings(Group):
    """What is logged to standard error, and how."""

    level: LogLevel = Field(
        default=LogLevel.INFO, description="The least severe level that is logged."
    )
    format: LogFormat = Field(
        default=LogFormat.JSON, description="One JSON object a line, or lines for people."
    )
