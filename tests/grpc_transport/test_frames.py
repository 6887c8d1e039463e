"""Frames: what is written is what RFC 9113 says, and what is malformed is a fault."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpc_transport import frames
from grpc_transport.frames import ConnectionFault, Fault, Kind, Setting
from tests.http2 import Frame, go_away, read_frames

U31 = st.integers(0, 2**31 - 1)


@given(st.sampled_from(Kind), st.integers(0, 255), U31, st.binary(max_size=300), st.binary())
def test_a_frame_is_read_as_it_was_written(kind, flags, stream_id, payload, after):
    whole = frames.frame(kind, flags, stream_id, payload)
    found, rest = read_frames(whole + b"\0\0\x99" + bytes(6) + after[:100])
    assert found[0] == Frame(kind, flags, stream_id, payload)
    assert len(whole) == frames.HEAD_BYTES + len(payload)
    assert rest or len(found) > 1


@pytest.mark.parametrize("length", [0, 1, 255, 256, 65_535, 65_536, 2**24 - 1])
def test_a_length_has_three_bytes(length):
    head = frames.head(length, Kind.DATA, 1, 7)
    assert int.from_bytes(head[:3], "big") == length
    assert head[3:] == b"\0\x01\0\0\0\x07"


@given(st.dictionaries(st.sampled_from(Setting), st.integers(0, 2**32 - 1)))
def test_settings_are_read_as_they_were_written_in_their_order(values):
    (frame,), _ = read_frames(frames.settings(values))
    assert (frame.kind, frame.flags, frame.stream_id) == (Kind.SETTINGS, 0, 0)
    assert frames.read_settings(frame.payload) == list(values.items())


@pytest.mark.parametrize("length", [1, 5, 7, 11])
def test_settings_that_are_cut_short_are_a_fault(length):
    with pytest.raises(ConnectionFault) as caught:
        frames.read_settings(bytes(length))
    assert caught.value.fault is Fault.FRAME_SIZE_ERROR


@given(U31, st.integers(1, 2**31 - 1))
def test_an_increment_is_read_as_it_was_written(stream_id, increment):
    (frame,), _ = read_frames(frames.window_update(stream_id, increment))
    assert (frame.kind, frame.stream_id) == (Kind.WINDOW_UPDATE, stream_id)
    assert frames.read_u32(frame.payload) == increment


@given(st.binary(max_size=12).filter(lambda content: len(content) != 4))
def test_a_number_has_four_bytes_and_no_other_length(payload):
    with pytest.raises(ConnectionFault) as caught:
        frames.read_u32(payload)
    assert caught.value.fault is Fault.FRAME_SIZE_ERROR


@pytest.mark.parametrize("fault", list(Fault))
def test_a_reset_says_why(fault):
    (frame,), _ = read_frames(frames.reset(5, fault))
    assert (frame.kind, frame.stream_id, frame.number) == (Kind.RST_STREAM, 5, fault)


def test_a_goaway_says_the_last_stream_and_why():
    (frame,), _ = read_frames(frames.go_away(9, Fault.PROTOCOL_ERROR, "a reason"))
    assert frame.stream_id == 0
    assert go_away(frame) == (9, Fault.PROTOCOL_ERROR, "a reason")


@given(st.binary(max_size=300), st.integers(0, 255))
def test_padding_is_taken_off(content, padding):
    assert frames.unpadded(struct.pack("B", padding) + content + bytes(padding)) == content


@given(st.binary(max_size=254))
def test_more_padding_than_there_are_bytes_is_a_fault(content):
    too_much = struct.pack("B", len(content) + 1) + content
    for payload in (too_much, b""):
        with pytest.raises(ConnectionFault) as caught:
            frames.unpadded(payload)
        assert caught.value.fault is Fault.PROTOCOL_ERROR
