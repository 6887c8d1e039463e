"""Choose a store by its URL."""

from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from duckmesh.errors import ErrorCode, Invalid
from object_store.directory import DirectoryStore
from object_store.options import StoreOptions
from object_store.port import ObjectStore

_FSSPEC: Final = "fsspec+"
_S3_PROTOCOLS: Final = frozenset({"s3", "s3a"})


def open_store(url: str, *, options: StoreOptions | None = None) -> ObjectStore:
    """The store that `url` names. No I/O: `probe` tells whether it works.

    `file:///folder` or a plain path: DirectoryStore. `s3://bucket/prefix`: S3Store.
    `fsspec+protocol://path`: FsspecStore. Raises Invalid for anything else.
    """
    options = options or StoreOptions()
    if url.startswith(_FSSPEC):
        return _fsspec(url.removeprefix(_FSSPEC), options)
    if "://" not in url and url:
        return DirectoryStore(Path(url))
    parts = urlsplit(url)
    if parts.scheme == "file" and parts.netloc in {"", "localhost"} and len(parts.path) > 1:
        return DirectoryStore(Path(unquote(parts.path)))
    if parts.scheme == "s3" and parts.netloc and not parts.query:
        # The clients are imported on use: a process with a directory needs none of them.
        from object_store.s3 import S3Store

        return S3Store(parts.netloc, prefix=parts.path, options=options)
    raise Invalid(
        ErrorCode.INVALID_COMMAND,
        "an object store is file:///folder, a plain path, s3://bucket/prefix "
        "or fsspec+protocol://path",
    )


def _fsspec(url: str, options: StoreOptions) -> ObjectStore:
    from object_store.fsspec_store import FsspecStore

    parts = urlsplit(url)
    if parts.scheme not in _S3_PROTOCOLS:
        return FsspecStore(url, options.fsspec_options, call_timeout=options.retry_timeout)

    def create() -> None:
        from object_store.s3_bucket import create_bucket

        create_bucket(parts.netloc, options)

    return FsspecStore(
        url,
        _s3fs_options(options) | dict(options.fsspec_options),
        call_timeout=options.retry_timeout,
        prepare=create if options.auto_create_bucket else None,
    )


def _s3fs_options(options: StoreOptions) -> dict[str, Any]:
    client = {"endpoint_url": options.endpoint, "region_name": options.region}
    return {
        "key": options.access_key_id,
        "secret": options.secret_access_key,
        "token": options.session_token,
        "client_kwargs": {name: value for name, value in client.items() if value is not None},
        "config_kwargs": {
            "connect_timeout": options.connect_timeout.total_seconds(),
            "read_timeout": options.request_timeout.total_seconds(),
            "s3": {"addressing_style": "virtual" if options.virtual_hosted_style else "path"},
        },
    }
