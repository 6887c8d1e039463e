"""Request bodies: bounded before they are parsed, unpacked while they arrive.

A small body is gathered whole, up to its limit. A large one is pulled from the connection by the
thread that parses it, chunk by chunk, so that memory holds little of it and a slow store slows the
sender down. Both limits count the bytes after unpacking too: a bomb is refused where it passes one.
"""

import asyncio
import concurrent.futures
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import pyarrow as pa
from starlette.requests import Request

from duckmesh.errors import Cancelled, ErrorCode, Invalid
from http_shim.boundary import refusal

UNPACK_BYTES: Final = 2**20
"""How much is unpacked at a time."""

_ENCODINGS: Final = {"": None, "identity": None, "gzip": "gzip", "x-gzip": "gzip", "zstd": "zstd"}


def encoding_of(request: Request) -> str | None:
    """How the body is packed; None when it is not. Refuses (415) what cannot be unpacked."""
    named = ",".join(request.headers.getlist("content-encoding")).strip().lower()
    if named not in _ENCODINGS:
        raise refusal(415, "Content-Encoding is gzip, zstd or identity, and one of them alone")
    return _ENCODINGS[named]


def media_type_of(request: Request, *, default: str) -> str:
    """The Content-Type without its parameters. Refuses (415) text that is not UTF-8."""
    kind, _, parameters = request.headers.get("content-type", default).partition(";")
    for parameter in parameters.split(";"):
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset" and value.strip(" \"'").lower() not in (
            "utf-8",
            "utf8",
            "us-ascii",
        ):
            raise refusal(415, "text is UTF-8: send it so, and leave charset out")
    return kind.strip().lower() or default


def check_announced(request: Request, limit: int) -> None:
    """Raise PAYLOAD_TOO_LARGE for a body that says so itself, before any of it is read."""
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and (len(announced) > 18 or int(announced) > limit):
        raise too_large(limit)


def too_large(limit: int) -> Invalid:
    """The refusal of a body beyond `limit` bytes, packed or unpacked."""
    return Invalid(
        ErrorCode.PAYLOAD_TOO_LARGE,
        f"the body of this request holds at most {limit} bytes, also when it is unpacked: "
        "send it in parts",
        limit_bytes=limit,
    )


async def read_whole(request: Request, *, limit: int, idle_seconds: float) -> bytes:
    """The body as it came, at most `limit` bytes.

    Raises Invalid (PAYLOAD_TOO_LARGE), Cancelled when the sender leaves, and 408 when it stops
    sending for longer than `idle_seconds`.
    """
    check_announced(request, limit)
    parts: list[bytes] = []
    size = 0
    more = True
    while more:
        part, more = await _next_part(request, idle_seconds)
        size += len(part)
        if size > limit:
            raise too_large(limit)
        parts.append(part)
    return b"".join(parts)


async def read_json(request: Request, *, limit: int, idle_seconds: float) -> bytes:
    """A JSON body, unpacked. Refuses (415) another Content-Type; raises as `read_whole` does."""
    kind = media_type_of(request, default="application/json")
    if kind != "application/json" and not kind.endswith("+json"):
        raise refusal(415, "the body is JSON: send it with `Content-Type: application/json`")
    encoding = encoding_of(request)
    body = await read_whole(request, limit=limit, idle_seconds=idle_seconds)
    if encoding is None:
        return body
    return await asyncio.to_thread(unpacked, body, encoding, limit)


def unpacked(body: bytes, encoding: str | None, limit: int) -> bytes:
    """A whole body without its packing, at most `limit` bytes."""
    if encoding is None:
        return body
    with _damage_named(encoding), pa.CompressedInputStream(pa.BufferReader(body), encoding) as rest:
        parts: list[bytes] = []
        size = 0
        while part := rest.read(UNPACK_BYTES):
            size += len(part)
            if size > limit:
                raise too_large(limit)
            parts.append(part)
    return b"".join(parts)


async def _next_part(request: Request, idle_seconds: float) -> tuple[bytes, bool]:
    try:
        async with asyncio.timeout(idle_seconds):
            message = await request.receive()
    except TimeoutError:
        raise refusal(408, "the body stopped coming: send it again, without a pause") from None
    if message["type"] == "http.disconnect":
        raise Cancelled(
            ErrorCode.INGEST_CANCELLED, "the body was cut short: nothing of it was accepted"
        )
    return message.get("body", b""), message.get("more_body", False)


class IncomingBody(io.RawIOBase):
    """A body as a binary file for one thread, pulled from the connection as it is read.

    `read` blocks, and raises what `read_whole` raises; the first such error is raised again by
    every later call, and kept in `failure`: a parser in between may have made another of it.
    """

    def __init__(
        self,
        request: Request,
        loop: asyncio.AbstractEventLoop,
        *,
        limit: int,
        idle_seconds: float,
    ) -> None:
        super().__init__()
        self._request = request
        self._loop = loop
        self._limit = limit
        self._idle_seconds = idle_seconds
        self._part = memoryview(b"")
        self._more = True
        self.size = 0
        self.failure: Exception | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        view = memoryview(target).cast("B")
        while not self._part and self._more:
            self._pull()
        count = min(len(view), len(self._part))
        view[:count] = self._part[:count]
        self._part = self._part[count:]
        return count

    def _pull(self) -> None:
        if self.failure is not None:
            raise self.failure
        try:
            part, self._more = self._next()
        except Exception as error:
            self.failure = error
            raise
        self.size += len(part)
        if self.size > self._limit:
            self.failure = too_large(self._limit)
            raise self.failure
        self._part = memoryview(part)

    def _next(self) -> tuple[bytes, bool]:
        pulling = asyncio.run_coroutine_threadsafe(
            _next_part(self._request, self._idle_seconds), self._loop
        )
        try:
            return pulling.result()
        except concurrent.futures.CancelledError:
            raise Cancelled(
                ErrorCode.INGEST_CANCELLED, "the server ends: nothing of the body was accepted"
            ) from None


class UnpackedBody(io.RawIOBase):
    """The same without its packing. Counts what comes out against the limit too."""

    def __init__(self, packed: IncomingBody, encoding: str, *, limit: int) -> None:
        super().__init__()
        self._packed = packed
        self._encoding = encoding
        self._limit = limit
        self._source = pa.CompressedInputStream(pa.PythonFile(packed, mode="r"), encoding)
        self._size = 0
        self.failure: Exception | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        view = memoryview(target).cast("B")
        try:
            part = self._read(min(len(view), UNPACK_BYTES))
        except Exception as error:
            self.failure = error
            raise
        view[: len(part)] = part
        return len(part)

    def _read(self, size: int) -> bytes:
        with _damage_named(self._encoding, self._packed):
            part = bytes(self._source.read(size))
        self._size += len(part)
        if self._size > self._limit:
            raise too_large(self._limit)
        return part


Body = IncomingBody | UnpackedBody


def open_body(
    request: Request, loop: asyncio.AbstractEventLoop, *, limit: int, idle_seconds: float
) -> Body:
    """The request's body for a thread to read, unpacked."""
    check_announced(request, limit)
    encoding = encoding_of(request)
    incoming = IncomingBody(request, loop, limit=limit, idle_seconds=idle_seconds)
    return incoming if encoding is None else UnpackedBody(incoming, encoding, limit=limit)


@contextmanager
def body_failures(body: Body, reading: Callable[[Exception], Exception]) -> Iterator[None]:
    """Raise the body's own failure where a parser made another of it, else what `reading` makes."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, KeyError, MemoryError) as error:
        if body.failure is not None:
            raise body.failure from None
        raise reading(error) from error


@contextmanager
def _damage_named(encoding: str, packed: IncomingBody | None = None) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        if packed is not None and packed.failure is not None:
            raise packed.failure from None
        raise Invalid(
            ErrorCode.INVALID_PAYLOAD, f"the body is not valid {encoding}: pack it again"
        ) from error
