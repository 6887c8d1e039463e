"""Header blocks: what is written decodes, and what is read is what was meant."""

import base64
import contextlib
import string
from urllib.parse import unquote

import pytest
from hpack import Decoder, Encoder
from hypothesis import given
from hypothesis import strategies as st

from grpc_transport.frames import ConnectionFault, Fault, StreamFault
from grpc_transport.header_blocks import (
    HEADERS_MAX_BYTES,
    HeaderReader,
    block_of,
    percent_encoded,
)
from tests.http2 import REQUEST

NAMES = st.text(string.ascii_lowercase + string.digits + "-_.", min_size=1, max_size=40).filter(
    lambda name: not name.endswith("-bin")
)
VALUES = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=300)
NEWEST, OLDER = b"\xbe", b"\xbf"
"""The newest entry of the table, and the one before it."""


def read(*more, without=()):
    fields = [*(each for each in REQUEST if each[0] not in without), *more]
    return HeaderReader().read(block_of(fields))


# ---- What is written


@given(st.lists(st.tuples(NAMES, VALUES), max_size=20))
def test_a_written_block_decodes_to_its_fields(fields):
    assert Decoder().decode(block_of(fields)) == fields


@pytest.mark.parametrize("length", [0, 1, 126, 127, 128, 254, 255, 256, 16_510, 16_511, 40_000])
def test_a_value_of_any_length_decodes(length):
    field = ("x", "v" * length)
    assert Decoder(max_header_list_size=2**20).decode(block_of([field])) == [field]


@given(st.binary(max_size=300))
def test_a_binary_value_is_base64_without_padding(value):
    ((name, text),) = Decoder().decode(block_of([("x-bin", value)]))
    assert (name, "=" in text) == ("x-bin", False)
    assert base64.b64decode(text + "=" * (-len(text) % 4)) == value
    assert read(("x-bin", value)).headers["x-bin"] == [value]


def test_a_written_block_leaves_the_table_as_it_is():
    decoder = Decoder()
    decoder.decode(block_of([("x-some", "value"), (":status", "200")]))
    assert not decoder.header_table.dynamic_entries


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_a_status_message_is_printable_ascii_and_means_the_same(text):
    encoded = percent_encoded(text)
    assert all(" " <= each <= "~" for each in encoded)
    assert unquote(encoded, errors="strict") == text


# ---- What is read


def test_a_request_says_its_path_its_headers_and_its_kind():
    request = read(("x-one", "1"), ("x-two", "2"), ("x-one", "3"))
    assert (request.path, request.is_grpc) == ("/a.Service/Method", True)
    assert (request.headers["x-one"], request.headers["x-two"]) == (["1", "3"], ["2"])
    assert (request.encoding, request.timeout_seconds) == ("identity", None)
    assert request.content_length is None
    assert ":path" not in request.headers


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1H", 3600),
        ("2M", 120),
        ("3S", 3),
        ("4m", 0.004),
        ("5u", 5e-6),
        ("6n", 6e-9),
        ("99999999H", 99_999_999 * 3600),
        ("0m", 0),
        ("100000000S", None),
        ("1", None),
        ("-1S", None),
        ("1 S", None),
        ("\u00b2S", None),
        ("", None),
    ],
)
def test_a_timeout_is_read_in_its_unit(text, seconds):
    found = read(("grpc-timeout", text)).timeout_seconds
    assert found == (None if seconds is None else pytest.approx(seconds))


def test_binary_headers_are_several_after_commas_padded_or_not():
    block = Encoder().encode([*REQUEST, ("a-bin", "AQI=, Aw"), ("a-bin", "BA==")])
    assert HeaderReader().read(block).headers["a-bin"] == [b"\x01\x02", b"\x03", b"\x04"]


@pytest.mark.parametrize(
    "change",
    [
        {"without": [":path"]},
        {"without": [":method"]},
        {"without": [":scheme"]},
        {"more": [(":path", "/again")]},
        {"more": [(":status", "200")]},
        {"more": [("X-Upper", "1")]},
        {"more": [("", "1")]},
        {"more": [("with space", "1")]},
        {"more": [("connection", "close")]},
        {"more": [("transfer-encoding", "chunked")]},
        {"more": [("te", "gzip")]},
        {"more": [("content-length", "-1")]},
        {"more": [("content-length", "one")]},
        {"more": [("content-length", "")]},
    ],
    ids=str,
)
def test_a_malformed_request_is_a_fault_of_its_stream_alone(change):
    with pytest.raises(StreamFault) as caught:
        read(*change.get("more", ()), without=change.get("without", ()))
    assert caught.value.fault is Fault.PROTOCOL_ERROR


@pytest.mark.parametrize("text", ["\u00b2", "1" * 5000, "1\u00b9"], ids=["two", "long", "mixed"])
def test_a_content_length_that_only_looks_like_a_number_is_a_fault_of_its_stream(text):
    with pytest.raises(StreamFault):
        read(("content-length", text))


def test_a_malformed_binary_header_is_a_fault_of_its_stream():
    fields = [*REQUEST, ("x-bin", "?")]
    block = Encoder().encode(fields)
    with pytest.raises(StreamFault):
        HeaderReader().read(block)


def test_a_request_that_is_no_grpc_is_known_as_such():
    assert not read(("content-type", "text/plain"), without=["content-type"]).is_grpc
    assert not read((":method", "GET"), *REQUEST[1:], without=[each[0] for each in REQUEST]).is_grpc


def test_trailers_hold_no_pseudo_header():
    reader = HeaderReader()
    reader.trailers(block_of([("x-checksum", "1")]))
    with pytest.raises(StreamFault):
        reader.trailers(block_of([(":path", "/")]))


@given(st.binary(min_size=1, max_size=200))
def test_any_bytes_are_a_request_or_a_fault(block):
    with contextlib.suppress(ConnectionFault, StreamFault):
        HeaderReader().read(block)


@pytest.mark.parametrize("how", ["one field", "one entry again and again"])
def test_a_block_that_unpacks_to_too_much_is_a_fault(how):
    reader, encoder = HeaderReader(), Encoder()
    if how == "one field":
        block = encoder.encode([*REQUEST, ("x", "v" * HEADERS_MAX_BYTES)])
    else:
        field = ("x", "v" * 3000)
        reader.read(encoder.encode([*REQUEST, field]))
        block = encoder.encode([*REQUEST, *[field] * 20])
        assert len(block) < 100
    with pytest.raises(ConnectionFault) as caught:
        reader.read(block)
    assert caught.value.fault is Fault.COMPRESSION_ERROR


# ---- Blocks that are remembered


def test_a_block_that_comes_again_is_read_once():
    reader, encoder = HeaderReader(), Encoder()
    reader.read(encoder.encode([*REQUEST, ("x", "1")]))
    again = encoder.encode([*REQUEST, ("x", "1")])
    assert reader.read(again) is reader.read(again)


def test_a_remembered_block_is_read_anew_when_the_table_has_changed():
    reader = HeaderReader()
    adds = {value: b"\x40\x01x" + bytes([len(value)]) + value.encode() for value in ("1", "2")}
    newest = block_of(REQUEST) + NEWEST
    for value in ("1", "2", "1"):
        reader.skip(adds[value])
        for _ in range(2):
            assert reader.read(newest).headers["x"] == [value]


def test_a_remembered_block_is_lost_with_what_the_table_has_dropped():
    reader = HeaderReader()
    reader.skip(b"\x40\x01x\x011" + b"\x40\x01y\x012")
    oldest = block_of(REQUEST) + OLDER
    assert reader.read(oldest).headers["x"] == ["1"]
    # Room for one entry, and the newest of them stays: 1 + 1 + 32 bytes.
    reader.skip(b"\x3f\x09")
    with pytest.raises(ConnectionFault):
        reader.read(oldest)


FIELDS = st.lists(
    st.tuples(
        st.sampled_from(["x", "y", "a-long-name-for-a-header"]),
        # A letter, and how often: a report of what failed must not be of megabytes.
        st.sampled_from([("1", 1), ("2", 1), ("v", 700), ("w", 1500), ("u", 3000), ("t", 4100)]),
        st.booleans(),
    ),
    max_size=4,
)


@given(st.lists(st.tuples(FIELDS, st.integers(1, 3)), min_size=1, max_size=30))
def test_remembered_blocks_mean_what_they_say_whatever_the_table_has_dropped(requests):
    reader, encoder = HeaderReader(), Encoder()
    for drawn, times in requests:
        fields = [(name, letter * count, secret) for name, (letter, count), secret in drawn]
        for _ in range(times):
            block = encoder.encode(
                [*((*each, False) for each in REQUEST), *((n, v, s) for n, v, s in fields)]
            )
            expected = {}
            for name, value, _ in fields:
                expected.setdefault(name, []).append(value)
            found = reader.read(block).headers
            assert {name: found[name] for name in expected} == expected


def test_a_remembered_block_still_sets_the_size_of_the_table():
    reader, encoder = HeaderReader(), Encoder()
    # The size of the table comes first in a block; no table keeps these fields.
    whole, none = (update + block_of(REQUEST) for update in (b"\x3f\xe1\x1f", b"\x20"))
    for block in (whole, none, whole):
        reader.read(block)
    reader.read(encoder.encode([*REQUEST, ("x", "1")]))
    assert reader.read(encoder.encode([*REQUEST, ("x", "1")])).headers["x"] == ["1"]


def test_a_block_that_is_passed_over_keeps_the_table_right():
    reader, encoder = HeaderReader(), Encoder()
    reader.skip(encoder.encode([*REQUEST, ("x", "1")]))
    assert reader.read(encoder.encode([*REQUEST, ("x", "1")])).headers["x"] == ["1"]
