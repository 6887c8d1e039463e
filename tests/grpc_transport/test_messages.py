"""Messages: put together however they are cut, unpacked within bounds."""

import gzip
import itertools
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpc_transport import messages
from grpc_transport.messages import (
    MESSAGE_MAX_BYTES,
    UNPACKED_MAX_BYTES,
    Assembly,
    Refused,
    joined,
    size_of,
)
from grpc_transport.status import Status
from tests.http2 import message

PACKS = {"gzip": gzip.compress, "deflate": zlib.compress}
CONTENTS = st.lists(st.binary(max_size=60), max_size=8)


def taken(assembly, *pieces):
    """What comes of the pieces, each of them taken out of the middle of other bytes."""
    found = []
    for piece in pieces:
        surrounded = b"\xff" * 7 + piece + b"\xee" * 7
        found += map(joined, assembly.take(surrounded, 7, 7 + len(piece)))
    return found


def refused(encoding, content):
    with pytest.raises(Refused) as caught:
        taken(Assembly(encoding), content)
    return caught.value


def test_messages_cut_at_every_byte_come_out_the_same():
    contents = [b"", b"a", b"", b"bcd" * 5, b""]
    wire = b"".join(map(message, contents))
    for at in range(len(wire) + 1):
        assembly = Assembly("identity")
        assert taken(assembly, wire[:at], wire[at:]) == contents, at
        assert assembly.is_between
    for first, second in itertools.combinations(range(len(wire) + 1), 2):
        pieces = wire[:first], wire[first:second], wire[second:]
        assert taken(Assembly("identity"), *pieces) == contents, (first, second)
    assert taken(Assembly("identity"), *(bytes([each]) for each in wire)) == contents


@pytest.mark.parametrize("encoding", ["identity", "gzip", "deflate"])
@given(contents=CONTENTS, cuts=st.lists(st.integers(0, 900)), packed=st.lists(st.booleans()))
def test_messages_come_out_the_same_however_they_are_cut_and_packed(
    encoding, contents, cuts, packed
):
    wire = b""
    for content, packs in itertools.zip_longest(contents, packed[: len(contents)]):
        pack = PACKS.get(encoding) if packs else None
        wire += message(pack(content), compressed=True) if pack else message(content)
    edges = sorted({0, len(wire), *(cut for cut in cuts if cut < len(wire))})
    pieces = [wire[a:b] for a, b in itertools.pairwise(edges)]
    assembly = Assembly(encoding)
    assert taken(assembly, *pieces) == contents
    assert assembly.is_between


@pytest.mark.parametrize("size", [16 * 1024, 16 * 1024 + 1, 300_000])
@pytest.mark.parametrize("pieces", [1, 2, 7])
def test_a_large_message_comes_whole_in_pieces(size, pieces):
    content = bytes(range(256)) * (size // 256 + 1)
    wire = message(content[:size]) + message(b"next")
    step = len(wire) // pieces + 1
    assembly = Assembly("identity")
    cut = [wire[at : at + step] for at in range(0, len(wire), step)]
    assert taken(assembly, *cut) == [content[:size], b"next"]


def test_a_small_message_keeps_no_more_in_memory_than_itself():
    surrounding = message(b"small") + bytes(2**20)
    (found,) = Assembly("identity").take(surrounding, 0, 10)
    assert all(isinstance(piece, bytes) for piece in found)
    assert size_of(found) == 5


def test_what_is_not_whole_is_known():
    assembly = Assembly("identity")
    for piece in (b"\0", b"\0\0\0\x03", b"ab"):
        assert not taken(assembly, piece)
        assert not assembly.is_between
    assert taken(assembly, b"c") == [b"abc"]
    assert assembly.is_between


def test_an_empty_message_that_says_that_it_is_compressed_is_empty():
    assert taken(Assembly("gzip"), message(b"", compressed=True)) == [b""]


@pytest.mark.parametrize("flag", [2, 3, 128, 255])
def test_an_unknown_flag_is_refused(flag):
    assert refused("identity", struct.pack(">BI", flag, 1)).status is Status.INTERNAL


def test_a_message_that_says_that_it_is_too_large_is_refused_before_it_comes():
    prefix = struct.pack(">BI", 0, MESSAGE_MAX_BYTES + 1)
    assert refused("identity", prefix).status is Status.RESOURCE_EXHAUSTED
    assert taken(Assembly("identity"), struct.pack(">BI", 0, MESSAGE_MAX_BYTES)) == []


@pytest.mark.parametrize("encoding", ["identity", "snappy", "br", ""])
def test_a_way_to_compress_that_is_not_offered_is_refused(encoding):
    found = refused(encoding, message(b"abc", compressed=True))
    assert found.status is Status.UNIMPLEMENTED
    assert "gzip" in found.why


@pytest.mark.parametrize("encoding", PACKS)
@pytest.mark.parametrize("content", [b"no archive", bytes(100)])
def test_what_cannot_be_unpacked_is_refused(encoding, content):
    assert refused(encoding, message(content, compressed=True)).status is Status.INTERNAL


@pytest.mark.parametrize("encoding", PACKS)
def test_a_compressed_message_that_is_cut_short_is_refused(encoding):
    content = PACKS[encoding](b"abc" * 100)[:-3]
    assert "cut short" in refused(encoding, message(content, compressed=True)).why


@pytest.mark.parametrize("encoding", PACKS)
def test_a_few_bytes_that_unpack_to_very_many_are_refused(encoding):
    packed = PACKS[encoding](bytes(UNPACKED_MAX_BYTES + 1))
    assert len(packed) < UNPACKED_MAX_BYTES // 100
    found = refused(encoding, message(packed, compressed=True))
    assert found.status is Status.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("encoding", PACKS)
@pytest.mark.parametrize("content", [b"a" * 1000, bytes(range(250)) * 4], ids=["same", "mixed"])
def test_a_message_of_just_the_size_that_may_be_is_unpacked(monkeypatch, encoding, content):
    monkeypatch.setattr(messages, "UNPACKED_MAX_BYTES", len(content))
    packed = message(PACKS[encoding](content), compressed=True)
    assert taken(Assembly(encoding), packed) == [content]
    monkeypatch.setattr(messages, "UNPACKED_MAX_BYTES", len(content) - 1)
    assert refused(encoding, packed).status is Status.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("encoding", PACKS)
@pytest.mark.parametrize("what", ["junk", "a second archive"])
def test_what_follows_the_end_of_a_compressed_message_is_not_dropped(encoding, what):
    pack = PACKS[encoding]
    more = b"junk" if what == "junk" else pack(b"more")
    found = refused(encoding, message(pack(b"content") + more, compressed=True))
    assert found.status is Status.INTERNAL
