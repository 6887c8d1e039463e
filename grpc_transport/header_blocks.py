"""Header blocks: what a request's says, and how a response's is written.

Reading them is the work of `hpack`. What is written refers to no table, so that it is the same for
every connection: the blocks of most answers are constants.
https://www.rfc-editor.org/rfc/rfc7541 and
https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md
"""

import base64
import binascii
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from hpack import Decoder
from hpack.exceptions import HPACKError

from grpc_transport.frames import ConnectionFault, Fault, StreamFault

HEADERS_MAX_BYTES: Final = 32 * 1024
"""Of one request, unpacked."""

_TABLE_SIZE_MASK: Final = 0xE0
_TABLE_SIZE: Final = 0x20
"""Begins a block that also says how large the table may be: it must be read each time."""

_KNOWN_MAX: Final = 64
_KNOWN_BLOCK_BYTES: Final = 2048
"""So many blocks of a connection are remembered."""

_PSEUDO: Final = frozenset({b":method", b":scheme", b":path", b":authority"})
_NEEDED: Final = (b":method", b":scheme", b":path")
_OF_CONNECTIONS: Final = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"}
)
_NAME: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")
_NUMBER: Final = re.compile("[0-9]{1,18}")
_TIMEOUT: Final = re.compile(rb"([0-9]{1,8})([HMSmun])")
_UNIT_SECONDS: Final = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}

Headers = Mapping[str, list[str | bytes]]
"""Lower-case names, each with its values in their order; a name that ends in `-bin` has bytes."""


@dataclass(frozen=True, slots=True)
class Request:
    """What the header block of a request says."""

    path: str
    headers: Headers
    is_grpc: bool
    encoding: str
    """How a message that says that it is compressed is compressed."""
    timeout_seconds: float | None
    content_length: int | None


class HeaderReader:
    """Reads the header blocks of one connection, in their order."""

    def __init__(self) -> None:
        self._decoder = Decoder(max_header_list_size=HEADERS_MAX_BYTES)
        self._known: dict[bytes, tuple[object, int, Request]] = {}

    def read(self, block: bytes) -> Request:
        """What the block says.

        Raises ConnectionFault when the table is lost with it, and StreamFault for a request that
        is none.
        """
        # A client says nearly the same with each call, and its block is the same then. It means
        # the same as long as the table is the same: the newest entry, and how many there are.
        entries = self._decoder.header_table.dynamic_entries
        known = self._known.get(block)
        newest = entries[0] if entries else None
        if known is not None and known[0] is newest and known[1] == len(entries):
            return known[2]
        length = len(entries)
        fields = self._decoded(block)
        request = _request_of(fields)
        entries = self._decoder.header_table.dynamic_entries
        changed = len(entries) != length or (entries[0] if entries else None) is not newest
        if (
            not changed
            and len(block) <= _KNOWN_BLOCK_BYTES
            and block[0] & _TABLE_SIZE_MASK != _TABLE_SIZE
        ):
            if len(self._known) >= _KNOWN_MAX:
                self._known.clear()
            self._known[block] = (newest, length, request)
        return request

    def skip(self, block: bytes) -> None:
        """Keep the table right over a block that nobody asks for. Raises ConnectionFault."""
        self._decoded(block)

    def trailers(self, block: bytes) -> None:
        """Read the block that ends a request. Raises ConnectionFault, StreamFault."""
        if any(name.startswith(b":") for name, _ in self._decoded(block)):
            raise StreamFault(Fault.PROTOCOL_ERROR, "trailers hold a pseudo-header")

    def _decoded(self, block: bytes) -> list[tuple[bytes, bytes]]:
        try:
            return [(bytes(each[0]), bytes(each[1])) for each in self._decoder.decode(block, True)]
        except (HPACKError, IndexError, ValueError) as cause:
            raise ConnectionFault(
                Fault.COMPRESSION_ERROR, "the header block cannot be read"
            ) from cause


def _request_of(fields: Iterable[tuple[bytes, bytes]]) -> Request:
    pseudo: dict[bytes, bytes] = {}
    headers: dict[str, list[str | bytes]] = {}
    for name, value in fields:
        if name.startswith(b":"):
            if headers or name in pseudo or name not in _PSEUDO:
                raise _malformed("a pseudo-header is unknown, repeated or out of place")
            pseudo[name] = value
            continue
        if not _NAME.fullmatch(name):
            raise _malformed("a header's name is malformed")
        if name in _OF_CONNECTIONS or (name == b"te" and value != b"trailers"):
            raise _malformed("a header speaks of the connection")
        text = name.decode("ascii")
        headers.setdefault(text, []).extend(
            _binary(value) if text.endswith("-bin") else [value.decode("latin-1")]
        )
    if any(not pseudo.get(name) for name in _NEEDED):
        raise _malformed("a pseudo-header is missing")
    return Request(
        path=pseudo[b":path"].decode("latin-1"),
        headers=headers,
        is_grpc=pseudo[b":method"] == b"POST"
        and str(_last(headers, "content-type")).startswith("application/grpc"),
        encoding=str(_last(headers, "grpc-encoding") or "identity"),
        timeout_seconds=_timeout(str(_last(headers, "grpc-timeout"))),
        content_length=_length(_last(headers, "content-length")),
    )


def _last(headers: Headers, name: str) -> str | bytes | None:
    values = headers.get(name)
    return values[-1] if values else None


def _length(value: str | bytes | None) -> int | None:
    if value is None:
        return None
    if not isinstance(value, str) or not _NUMBER.fullmatch(value):
        raise _malformed("content-length is no number")
    return int(value)


def _binary(value: bytes) -> list[str | bytes]:
    """The values of a `-bin` header: base64, its padding left out, several after commas."""
    try:
        return [
            base64.b64decode(part.strip() + b"=" * (-len(part.strip()) % 4), validate=True)
            for part in value.split(b",")
        ]
    except binascii.Error:
        raise _malformed("a -bin header is not base64") from None


def _timeout(text: str) -> float | None:
    found = _TIMEOUT.fullmatch(text.encode("latin-1"))
    return None if found is None else int(found[1]) * _UNIT_SECONDS[found[2]]


def _malformed(why: str) -> StreamFault:
    return StreamFault(Fault.PROTOCOL_ERROR, why)


def block_of(fields: Iterable[tuple[str, str | bytes]]) -> bytes:
    """A header block of these fields: literals that no table keeps."""
    return b"".join(_literal(name, value) for name, value in fields)


# Names and short values come again and again.
@lru_cache(maxsize=512)
def _name(name: str) -> bytes:
    encoded = name.encode("ascii")
    return b"\x00" + _length_of(encoded) + encoded


def _literal(name: str, value: str | bytes) -> bytes:
    if name.endswith("-bin"):
        raw = value if isinstance(value, bytes) else value.encode()
        encoded = base64.b64encode(raw).rstrip(b"=")
    else:
        encoded = value if isinstance(value, bytes) else value.encode("latin-1", "replace")
    return _name(name) + _length_of(encoded) + encoded


def _length_of(text: bytes) -> bytes:
    """A string's length, not Huffman-coded: an integer with a prefix of seven bits."""
    length = len(text)
    if length < 127:
        return bytes((length,))
    length -= 127
    octets = [127]
    while length >= 128:
        octets.append(length & 127 | 128)
        length >>= 7
    octets.append(length)
    return bytes(octets)


def percent_encoded(text: str) -> str:
    """A status message as `grpc-message` carries it."""
    return "".join(
        chr(octet) if 0x20 <= octet <= 0x7E and octet != 0x25 else f"%{octet:02X}"
        for octet in text.encode()
    )
