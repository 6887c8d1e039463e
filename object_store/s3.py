"""S3Store: objects in an S3 bucket, through obstore."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import obstore
from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import S3Store as Bucket

from duckmesh.errors import Unavailable
from object_store import keys
from object_store.failures import bad_range, missing, no_bucket, unavailable
from object_store.local_copy import new_local_file
from object_store.options import StoreOptions
from object_store.port import ObjectStat
from object_store.probe import probe
from object_store.s3_bucket import create_bucket
from object_store.s3_writer import S3Writer

if TYPE_CHECKING:  # obstore publishes these as types only.
    from obstore.store import ClientConfig, RetryConfig, S3Config

_LIST_PAGE: Final = 1000


class S3Store:
    """An ObjectStore in one bucket of S3 or of a server that speaks its protocol, under `prefix`.

    A call ends within `retry_timeout + request_timeout`; a commit, which may have parts to finish
    and an upload to abort, within twice that; a large read takes that for each part.
    A process that dies in a streamed upload leaves parts that nobody can see but somebody pays for:
    give the bucket a lifecycle rule that aborts incomplete multipart uploads.
    The constructor does no I/O.
    """

    def __init__(self, bucket: str, *, prefix: str = "", options: StoreOptions) -> None:
        self._bucket_name = bucket
        self._options = options
        folder = keys.check_prefix(prefix.strip("/"))
        self._bucket = Bucket(
            bucket,
            prefix=folder or None,
            config=_config(options),
            client_options=_client_options(options),
            retry_config=_retry_config(options),
        )
        self._bucket_lock = threading.Lock()
        self._bucket_is_there = not options.auto_create_bucket

    def put(self, key: str, content: bytes) -> None:
        keys.check(key)
        self._create_bucket_once()
        self.upload(key, content)

    def open_writer(self, key: str) -> S3Writer:
        keys.check(key)
        self._create_bucket_once()
        return S3Writer(self, key, part_size_bytes=self._options.part_size_bytes)

    def get(self, key: str) -> bytes:
        return b"".join(self._parts(keys.check(key)))

    def get_range(self, key: str, *, start: int, length: int) -> bytes:
        keys.check(key)
        if start < 0 or length < 1:
            raise bad_range(key, start, length)
        try:
            with _translated("read the object", key):
                part = obstore.get_range(self._bucket, key, start=start, length=length)
                return part.to_bytes()
        except Unavailable:
            # S3 answers a start past the end with 416, which obstore does not tell from others.
            size_bytes = self.stat(key).size_bytes
            if start >= size_bytes:
                raise bad_range(key, start, length, size_bytes) from None
            raise

    def download(self, key: str, destination: Path) -> int:
        with new_local_file(destination, keys.check(key)) as file:
            for part in self._parts(key):
                file.write(part)
            return file.tell()

    def stat(self, key: str) -> ObjectStat:
        keys.check(key)
        with _translated("look at the object", key):
            return ObjectStat(key, obstore.head(self._bucket, key)["size"])

    def delete(self, key: str) -> None:
        keys.check(key)
        try:
            with _translated("delete the object", key, absent=FileNotFoundError):
                obstore.delete(self._bucket, key)
        except FileNotFoundError:
            return

    def list(self, prefix: str) -> Iterator[ObjectStat]:
        return self._listed(keys.check_prefix(prefix))

    def local_path(self, key: str) -> Path | None:
        keys.check(key)
        return None

    def probe(self) -> None:
        probe(self)

    def upload(self, key: str, content: bytes | bytearray) -> None:
        """One PUT: the object is there whole when it returns."""
        with _translated("store the object", key):
            try:
                obstore.put(self._bucket, key, content, use_multipart=False)
            except FileNotFoundError as error:
                raise no_bucket(key) from error

    def upload_parts(self, key: str, parts: Iterator[bytes]) -> None:
        """A multipart upload of what `parts` yields, aborted when it raises.

        Blocks on `parts` in the calling thread only: the client's own threads stay free.
        """
        with _translated("store the object", key):
            obstore.put(
                self._bucket,
                key,
                parts,
                use_multipart=True,
                chunk_size=self._options.part_size_bytes,
                max_concurrency=self._options.upload_concurrency,
            )

    def _parts(self, key: str) -> Iterator[bytes]:
        """The object part by part: no request outgrows its time limit, no caller its memory."""
        part_bytes = self._options.part_size_bytes
        first, size_bytes = self._first_part(key)
        yield first
        for start in range(part_bytes, size_bytes, part_bytes):
            length = min(part_bytes, size_bytes - start)
            with _translated("read the object", key):
                part = obstore.get_range(self._bucket, key, start=start, length=length)
            if len(part) != length:
                raise unavailable("read the object", key)
            yield part.to_bytes()

    def _first_part(self, key: str) -> tuple[bytes, int]:
        """The first part and the size of the whole, in one request."""
        span = (0, self._options.part_size_bytes)
        try:
            with _translated("read the object", key):
                answer = obstore.get(self._bucket, key, options={"range": span})
                return answer.bytes().to_bytes(), answer.meta["size"]
        except Unavailable:
            # S3 answers 416 to any range of an empty object.
            if self.stat(key).size_bytes == 0:
                return b"", 0
            raise

    def _listed(self, folder: str) -> Iterator[ObjectStat]:
        self._create_bucket_once()
        with _translated("list its objects", folder):
            pages = iter(obstore.list(self._bucket, folder or None, chunk_size=_LIST_PAGE))
        while True:
            with _translated("list its objects", folder):
                page = next(pages, None)
            if page is None:
                return
            for found in page:
                yield ObjectStat(found["path"], found["size"])

    def _create_bucket_once(self) -> None:
        if self._bucket_is_there:
            return
        with self._bucket_lock:
            if not self._bucket_is_there:
                create_bucket(self._bucket_name, self._options)
                self._bucket_is_there = True


@contextmanager
def _translated(act: str, key: str, absent: type[Exception] | None = None) -> Iterator[None]:
    """obstore's errors as ours. Its texts name the endpoint, so they only travel as the cause."""
    try:
        yield
    except FileNotFoundError as error:
        if absent is not None:
            raise
        raise missing(key) from error
    except (PermissionDeniedError, UnauthenticatedError) as error:
        raise unavailable(act, key, "it refused the credentials; check them") from error
    except (BaseError, OSError, ValueError) as error:
        raise unavailable(act, key) from error


def _config(options: StoreOptions) -> "S3Config":
    config: S3Config = {"virtual_hosted_style_request": options.virtual_hosted_style}
    if options.endpoint is not None:
        config["endpoint"] = options.endpoint
    if options.region is not None:
        config["region"] = options.region
    if options.access_key_id is not None:
        config["access_key_id"] = options.access_key_id
    if options.secret_access_key is not None:
        config["secret_access_key"] = options.secret_access_key
    if options.session_token is not None:
        config["session_token"] = options.session_token
    return config


def _client_options(options: StoreOptions) -> "ClientConfig":
    return {
        "allow_http": options.allow_http,
        "connect_timeout": options.connect_timeout,
        "timeout": options.request_timeout,
    }


def _retry_config(options: StoreOptions) -> "RetryConfig":
    return {"max_retries": options.max_retries, "retry_timeout": options.retry_timeout}
