"""Murmur3, the x86 variant of 32 bits with seed 0, of whole Arrow arrays.

The algorithm is Austin Appleby's public-domain MurmurHash3_x86_32, which Iceberg's specification
chooses for the bucket transform. It is worked four bytes at a time, for all values at once.
"""

import struct
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

_C1: Final = 0xCC9E2D51
_C2: Final = 0x1B873593
_N: Final = 0xE6546B64
_MIX1: Final = 0x85EBCA6B
_MIX2: Final = 0xC2B2AE35
_WORD: Final = 4
_LONG_BYTES: Final = 8
_TOGETHER_MAX_BYTES: Final = 256
"""Longer values are hashed one by one: else one of them costs all others a round for each word."""
_32_BITS: Final = 0xFFFFFFFF


def hash_longs(values: pa.Array) -> pa.Array:
    """The hashes, uint32, of int64 values, each as eight bytes, little end first. No nulls."""
    count = len(values)
    if count == 0:
        return pa.array([], pa.uint32())
    # A slice's buffer begins elsewhere: the concatenation of one array is a copy of its own.
    whole = pa.concat_arrays([values, values.slice(0, 0)]) if values.offset else values
    words = pa.Array.from_buffers(pa.uint32(), 2 * count, [None, whole.buffers()[1]])
    even = pa.array(range(0, 2 * count, 2), pa.int64())
    hashes = pa.repeat(_word(0), count)
    hashes = _with_word(hashes, words.take(even))
    hashes = _with_word(hashes, words.take(pc.add(even, 1)))
    return _finished(hashes, pa.repeat(_word(_LONG_BYTES), count))


def hash_bytes(values: pa.Array) -> pa.Array:
    """The hashes, uint32, of binary values. No nulls. Time follows the bytes hashed."""
    if (pc.max(pc.binary_length(values)).as_py() or 0) > _TOGETHER_MAX_BYTES:
        is_long = pc.greater(pc.binary_length(values), _TOGETHER_MAX_BYTES)
        hashes = pa.nulls(len(values), pa.uint32())
        short = _hash_together(values.filter(pc.invert(is_long)))
        long = pa.array([_hash_one(v.as_py()) for v in values.filter(is_long)], pa.uint32())
        hashes = pc.replace_with_mask(hashes, pc.invert(is_long), short)
        return pc.replace_with_mask(hashes, is_long, long)
    return _hash_together(values)


def _hash_together(values: pa.Array) -> pa.Array:
    lengths = pc.binary_length(values).cast(pa.uint32())
    hashes = pa.repeat(_word(0), len(values))
    at, longest = 0, pc.max(lengths).as_py() or 0
    while at + _WORD <= longest:
        has = pc.greater_equal(lengths, at + _WORD)
        words = _words(pc.binary_slice(values.filter(has), at, at + _WORD))
        hashes = pc.replace_with_mask(hashes, has, _with_word(hashes.filter(has), words))
        at += _WORD
    rest = pc.bit_wise_and(lengths, _WORD - 1)
    for left in range(1, _WORD):
        has = pc.equal(rest, left)
        ends = pc.binary_slice(values.filter(has), -left)
        padding = pa.scalar(bytes(_WORD - left), pa.binary())
        words = _words(pc.binary_join_element_wise(ends, padding, b""))
        mixed = pc.bit_wise_xor(hashes.filter(has), _scrambled(words))
        hashes = pc.replace_with_mask(hashes, has, mixed)
    return _finished(hashes, lengths)


def _hash_one(value: bytes) -> int:
    """The same in plain arithmetic."""
    whole = len(value) - len(value) % _WORD
    mixed = 0
    for (word,) in struct.iter_unpack("<I", value[:whole]):
        mixed ^= _scrambled_one(word)
        mixed = ((mixed << 13 & _32_BITS | mixed >> 19) * 5 + _N) & _32_BITS
    if whole < len(value):
        mixed ^= _scrambled_one(int.from_bytes(value[whole:], "little"))
    mixed ^= len(value)
    mixed = (mixed ^ mixed >> 16) * _MIX1 & _32_BITS
    mixed = (mixed ^ mixed >> 13) * _MIX2 & _32_BITS
    return mixed ^ mixed >> 16


def _scrambled_one(word: int) -> int:
    word = word * _C1 & _32_BITS
    return (word << 15 & _32_BITS | word >> 17) * _C2 & _32_BITS


def _words(fours: pa.Array) -> pa.Array:
    """Values of four bytes each as numbers, little end first."""
    whole = pa.concat_arrays([fours, fours.slice(0, 0)]) if fours.offset else fours
    return pa.Array.from_buffers(pa.uint32(), len(fours), [None, whole.buffers()[2]])


def _word(number: int) -> pa.Scalar:
    return pa.scalar(number, pa.uint32())


def _with_word(hashes: pa.Array, words: pa.Array) -> pa.Array:
    mixed = _rotated(pc.bit_wise_xor(hashes, _scrambled(words)), 13)
    return pc.add(pc.multiply(mixed, _word(5)), _word(_N))


def _scrambled(words: pa.Array) -> pa.Array:
    return pc.multiply(_rotated(pc.multiply(words, _word(_C1)), 15), _word(_C2))


def _rotated(words: pa.Array, bits: int) -> pa.Array:
    left = pc.shift_left(words, _word(bits))
    return pc.bit_wise_or(left, pc.shift_right(words, _word(32 - bits)))


def _finished(hashes: pa.Array, lengths: pa.Array) -> pa.Array:
    mixed = pc.bit_wise_xor(hashes, lengths)
    mixed = pc.multiply(_without_low(mixed, 16), _word(_MIX1))
    mixed = pc.multiply(_without_low(mixed, 13), _word(_MIX2))
    return _without_low(mixed, 16)


def _without_low(words: pa.Array, bits: int) -> pa.Array:
    return pc.bit_wise_xor(words, pc.shift_right(words, _word(bits)))
