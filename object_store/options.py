"""How to reach a store, and how long to wait for it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreOptions:
    """The options of every kind of store; a directory needs none of them.

    Credentials left None are taken from where the S3 client finds them: its environment variables,
    a web identity or the machine's metadata. They never show in a repr.
    """

    endpoint: str | None = None
    """The address of an S3 server that is not AWS, such as `https://objects.example.com`."""
    region: str | None = None
    access_key_id: str | None = field(default=None, repr=False)
    secret_access_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)
    allow_http: bool = False
    virtual_hosted_style: bool = False
    """Whether the bucket stands in the host name; in the path when not."""
    auto_create_bucket: bool = False
    """Whether to create the bucket before the first write or listing."""
    connect_timeout: timedelta = timedelta(seconds=5)
    request_timeout: timedelta = timedelta(seconds=30)
    """For one request and its answer, whole."""
    retry_timeout: timedelta = timedelta(seconds=60)
    """No retry begins later than this after a call's first request; fsspec: the call's deadline."""
    max_retries: int = 8
    part_size_bytes: int = 8 * 1024 * 1024
    """The size of a part of a streamed object, and of a part read. S3 asks for 5 MiB or more."""
    upload_concurrency: int = 4
    """Parts of one streamed object under way at once: the bound of its memory, times three more."""
    fsspec_options: Mapping[str, Any] = field(
        default_factory=lambda: MappingProxyType({}), repr=False
    )
    """Further storage options of an fsspec store, such as gcsfs's `token`."""
