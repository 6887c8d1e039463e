"""Where the catalog, the objects and their local copies lie."""

from pydantic import Field, SecretStr

from duckmesh.settings_groups.fields import GIB, MIB, Dsn, Group, NonEmpty, Span, StoreUrl, UserPath


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
    allow_fsync_off: bool = Field(
        default=False,
        description="Whether `prod` may run on a Postgres with `fsync` off, whose storage keeps "
        "commits by other means.",
    )


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
    files_max: int = Field(default=20_000, ge=100, description="The number of all copies at most.")
