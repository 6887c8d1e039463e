"""Messages of a call, cut out of the bytes that come in: one flag, a length of four bytes, content.

https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md
"""

import struct
import zlib
from collections.abc import Sequence
from typing import Final, TypeAlias

from grpc_transport.status import Status

PREFIX: Final = struct.Struct(">BI")
"""What stands before each message: whether it is compressed, and its length."""

_PREFIX_BYTES: Final = PREFIX.size
_read_prefix: Final = PREFIX.unpack_from

MESSAGE_MAX_BYTES: Final = 2**31 - 1
ENCODINGS: Final = "identity,deflate,gzip"
"""How a client may compress what it sends. What is sent to it is not compressed."""

_COPIED_BYTES: Final = 16 * 1024
"""Pieces up to this size are cut out: a view of one would keep all it came with in memory."""

_ZLIB_BITS: Final = {"gzip": 31, "deflate": 15}

Message: TypeAlias = Sequence[bytes | memoryview]
"""The pieces of a message, in their order. Together they are its content."""


class Refused(Exception):
    """The call ends with this status: its client asks for what is not there."""

    def __init__(self, status: Status, why: str) -> None:
        super().__init__(why)
        self.status = status
        self.why = why


def joined(message: Message) -> bytes:
    """A message as one piece."""
    return bytes(message[0]) if len(message) == 1 else b"".join(message)


def size_of(message: Message) -> int:
    return sum(map(len, message))


class Assembly:
    """Puts the messages of one call together. Holds one message at most that is not whole."""

    __slots__ = ("_compressed", "_encoding", "_limit", "_missing", "_pieces", "_prefix", "_size")

    def __init__(self, encoding: str) -> None:
        self._encoding = encoding
        self._prefix = b""
        self._limit = MESSAGE_MAX_BYTES
        self._compressed = False
        self._size = 0
        self._missing = 0
        self._pieces: list[bytes | memoryview] = []

    @property
    def is_between(self) -> bool:
        """Whether no message is begun."""
        return not (self._prefix or self._missing)

    def limit(self, size: int) -> None:
        """Take no message over this size from now on. Raises Refused when one is under way."""
        self._limit = size
        if self._missing:
            self._check(self._size)

    def take(self, data: bytes, start: int, end: int) -> list[Message]:
        """The messages that are whole with these bytes of `data`. Raises Refused."""
        if not (self._missing or self._prefix) and end - start > _PREFIX_BYTES:
            flag, length = _read_prefix(data, start)
            if (
                not flag
                and start + _PREFIX_BYTES + length == end
                and length <= _COPIED_BYTES
                and length <= self._limit
            ):
                # As nearly every small one comes: whole, and alone.
                return [[data[start + _PREFIX_BYTES : end]]]
        whole: list[Message] = []
        while start < end:
            if not self._missing:
                start = self._begin(data, start, end)
                if not self._missing:
                    if not self._prefix:
                        whole.append(self._content([]))
                    continue
            stop = min(end, start + self._missing)
            piece = (
                data[start:stop] if stop - start <= _COPIED_BYTES else memoryview(data)[start:stop]
            )
            self._missing -= stop - start
            start = stop
            if self._missing:
                self._pieces.append(piece)
            elif self._pieces:
                pieces, self._pieces = self._pieces, []
                pieces.append(piece)
                whole.append(self._content(pieces))
            else:
                whole.append(self._content([piece]))
        return whole

    def _begin(self, data: bytes, start: int, end: int) -> int:
        """Read the prefix of the next message, or what there is of it; where its content begins."""
        if not self._prefix and end - start >= _PREFIX_BYTES:
            flag, length = _read_prefix(data, start)
            start += _PREFIX_BYTES
        else:
            stop = min(end, start + _PREFIX_BYTES - len(self._prefix))
            self._prefix += data[start:stop]
            start = stop
            if len(self._prefix) < _PREFIX_BYTES:
                return start
            flag, length = _read_prefix(self._prefix)
            self._prefix = b""
        if flag > 1:
            raise Refused(Status.INTERNAL, "a message begins with an unknown flag")
        self._check(length)
        self._compressed = bool(flag)
        self._size = self._missing = length
        return start

    def _check(self, length: int) -> None:
        if length > self._limit:
            raise Refused(
                Status.RESOURCE_EXHAUSTED, f"a message here holds {self._limit} bytes at most"
            )

    def _content(self, pieces: list[bytes | memoryview]) -> Message:
        return [self._unpacked(joined(pieces))] if self._compressed and pieces else pieces

    def _unpacked(self, content: bytes) -> bytes:
        bits = _ZLIB_BITS.get(self._encoding)
        if bits is None:
            raise Refused(Status.UNIMPLEMENTED, f"messages may be compressed by one of {ENCODINGS}")
        unpacker = zlib.decompressobj(bits)
        try:
            plain = unpacker.decompress(content, UNPACKED_MAX_BYTES)
        except zlib.error:
            raise Refused(Status.INTERNAL, "a compressed message cannot be read") from None
        if unpacker.unused_data:
            raise Refused(Status.INTERNAL, "a compressed message is followed by other bytes")
        if not unpacker.eof:
            raise Refused(
                Status.RESOURCE_EXHAUSTED,
                f"a compressed message is cut short, or holds over {UNPACKED_MAX_BYTES} bytes",
            )
        return plain


UNPACKED_MAX_BYTES: Final = 64 * 2**20
"""Of a compressed message: a few bytes may pretend to be many."""
