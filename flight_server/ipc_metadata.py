"""What the metadata of an Arrow IPC message says of its rows, read before Arrow makes them.

The metadata is a flatbuffer of `Message.fbs`: a table has a list of where its fields lie, and a
field that is left out has its default. What is read is bounded by the bytes that came.
https://arrow.apache.org/docs/format/Columnar.html#encapsulated-message-format
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from duckmesh.errors import ErrorCode, Invalid
from grpc_transport.messages import Message, size_of

UNPACKED_MAX_BYTES: Final = 256 * 2**20
"""Of a compressed batch: a few bytes may pretend to be many. One that is not compressed may be as
large as its message."""

_SHORT: Final = struct.Struct("<h")
_USHORT: Final = struct.Struct("<H")
_INT: Final = struct.Struct("<i")
_UINT: Final = struct.Struct("<I")
_LONG: Final = struct.Struct("<q")

_VERSION, _HEADER_TYPE, _HEADER = 0, 1, 2
_LENGTH, _BUFFERS, _COMPRESSION = 0, 2, 3
_DICTIONARY_DATA: Final = 1
_DICTIONARY_BATCH, _RECORD_BATCH = 2, 3
_BUFFER_BYTES: Final = 16
_V5: Final = 4
_COMPRESSION_BEFORE_V5: Final = b"ARROW:experimental_compression"

_NOT_COMPRESSED: Final = -1
"""In the place of a buffer's unpacked length: the bytes that follow are the buffer."""


@dataclass(frozen=True, slots=True)
class BatchHead:
    """What a record batch or a dictionary says of itself."""

    row_count: int
    is_compressed: bool
    buffers: tuple[int, ...]
    """The place in the body and the length of each, one after the other."""

    size_bytes: int = field(init=False)
    """Of all buffers as they lie in the body."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "size_bytes", sum(self.buffers[1::2]))

    def check_size(self, body: Message) -> None:
        """Raise Invalid (PAYLOAD_TOO_LARGE) for more bytes than a batch may become, and ValueError
        for buffers that contradict their body. The body of a compressed one is in one piece.
        """
        if self.size_bytes > size_of(body):
            raise ValueError("the buffers of a batch are larger than its body")
        if self.is_compressed and sum(self._unpacked_bytes(body)) > UNPACKED_MAX_BYTES:
            raise Invalid(
                ErrorCode.PAYLOAD_TOO_LARGE,
                f"a compressed batch holds at most {UNPACKED_MAX_BYTES} bytes when it is unpacked: "
                "send fewer rows in a batch, or send it without compression",
                limit_bytes=UNPACKED_MAX_BYTES,
            )

    def _unpacked_bytes(self, message: Message) -> Iterator[int]:
        """What each buffer says that it holds."""
        body = message[0] if message else b""
        for at, length in zip(self.buffers[::2], self.buffers[1::2], strict=True):
            if not length:
                continue
            if length < _LONG.size or at + length > len(body):
                raise ValueError("a compressed buffer is cut short")
            (unpacked,) = _LONG.unpack_from(body, at)
            if unpacked < _NOT_COMPRESSED:
                raise ValueError("a compressed buffer says that it holds less than nothing")
            yield length - _LONG.size if unpacked == _NOT_COMPRESSED else unpacked


def batch_head(metadata: bytes) -> BatchHead | None:
    """The head of the batch that this is the metadata of; None for another message.

    Raises ValueError for what is no such metadata.
    """
    try:
        return _batch_head(metadata)
    except (struct.error, IndexError):
        raise ValueError("the metadata of a message is damaged") from None


def _batch_head(metadata: bytes) -> BatchHead | None:
    message = _followed(metadata, 0)
    kind_at = _field(metadata, message, _HEADER_TYPE)
    kind = metadata[kind_at] if kind_at else 0
    batch = _table(metadata, message, _HEADER)
    if kind == _DICTIONARY_BATCH and batch:
        batch = _table(metadata, batch, _DICTIONARY_DATA)
    elif kind != _RECORD_BATCH:
        return None
    if not batch:
        return None
    length_at = _field(metadata, batch, _LENGTH)
    buffers = _pairs(metadata, _table(metadata, batch, _BUFFERS))
    row_count = _LONG.unpack_from(metadata, length_at)[0] if length_at else 0
    if row_count < 0 or min(buffers, default=0) < 0:
        raise ValueError("a batch says that it holds less than nothing")
    compressed = bool(_field(metadata, batch, _COMPRESSION)) or _is_compressed_as_once(
        metadata, message
    )
    return BatchHead(row_count, compressed, buffers)


def _is_compressed_as_once(metadata: bytes, message: int) -> bool:
    """Arrow 0.17 said so beside the batch; its readers still heed it."""
    if _COMPRESSION_BEFORE_V5 not in metadata:
        return False
    at = _field(metadata, message, _VERSION)
    version = _SHORT.unpack_from(metadata, at)[0] if at else 0
    return bool(version < _V5)


def _followed(data: bytes, at: int) -> int:
    """Where the table or the vector lies that is named here."""
    return at + int(_UINT.unpack_from(data, at)[0])


def _table(data: bytes, table: int, number: int) -> int:
    """Where that field of a table leads; 0 when it is left out."""
    at = _field(data, table, number)
    return _followed(data, at) if at else 0


def _field(data: bytes, table: int, number: int) -> int:
    """Where the field of this number lies in a table; 0 when it is left out."""
    fields = table - int(_INT.unpack_from(data, table)[0])
    if fields < 0:
        raise IndexError
    at = 4 + 2 * number
    if at >= _USHORT.unpack_from(data, fields)[0]:
        return 0
    offset = int(_USHORT.unpack_from(data, fields + at)[0])
    return table + offset if offset else 0


def _pairs(data: bytes, vector: int) -> tuple[int, ...]:
    """The numbers of a vector of pairs."""
    if not vector:
        return ()
    count = int(_UINT.unpack_from(data, vector)[0])
    if vector + 4 + count * _BUFFER_BYTES > len(data):
        raise IndexError
    return struct.unpack_from(f"<{2 * count}q", data, vector + 4)
