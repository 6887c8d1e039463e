"""How large arrays become as a table stores them, found without making them.

A few bytes may stand for many values: a null type has no bytes at all, a run or a dictionary says
once what is there a million times, views may overlap, and an array of fixed length is there in full
where it is null.
"""

from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pat

_VALUE_BYTES: Final = 16
"""No value takes more, beside its text and what is inside it."""


def plain_bytes(values: pa.Array, target: pa.DataType) -> int:
    """At most so many bytes the values take in a column of the target's type.

    They convert to it, and their buffers were checked (`validate(full=True)`).
    """
    kind = values.type
    if not len(values):
        return 0
    if isinstance(values, pa.ExtensionArray):
        return plain_bytes(values.storage, target)
    if pat.is_dictionary(kind):
        return _of_dictionary(values, target)
    if pat.is_run_end_encoded(kind):
        runs = values.values.slice(values.find_physical_offset(), values.find_physical_length())
        return len(values) * _largest(runs, target)
    fixed = len(values) * _fixed_bytes(target)
    if _is_text(kind):
        return fixed + int(pc.sum(_lengths(values)).as_py() or 0)
    if pat.is_map(kind):
        entries = _inside(values)
        return (
            fixed
            + plain_bytes(entries.field(0), target.key_type)
            + plain_bytes(entries.field(1), target.item_type)
        )
    if pat.is_struct(kind):
        return fixed + sum(
            plain_bytes(values.field(at), target.field(at).type) for at in range(kind.num_fields)
        )
    if pat.is_list_view(kind) or pat.is_large_list_view(kind):
        return fixed + _of_views(values, target.value_type)
    if pat.is_nested(kind):
        return fixed + plain_bytes(_inside(values), target.value_type)
    return fixed


def _fixed_bytes(target: pa.DataType) -> int:
    """What each value takes of the type, whatever it is."""
    if pat.is_fixed_size_list(target):
        return _VALUE_BYTES + int(target.list_size) * _fixed_bytes(target.value_type)
    if pat.is_struct(target):
        return _VALUE_BYTES + sum(_fixed_bytes(field.type) for field in target)
    return _VALUE_BYTES


def _is_text(kind: pa.DataType) -> bool:
    return bool(
        pat.is_string(kind)
        or pat.is_binary(kind)
        or pat.is_large_string(kind)
        or pat.is_large_binary(kind)
        or pat.is_string_view(kind)
        or pat.is_binary_view(kind)
        or pat.is_fixed_size_binary(kind)
    )


def _lengths(texts: pa.Array) -> pa.Array:
    """How many bytes each of them has."""
    if not (pat.is_string_view(texts.type) or pat.is_binary_view(texts.type)):
        return pc.binary_length(texts)
    # Four numbers each, the first of which is the length.
    words = pa.Array.from_buffers(
        pa.int32(), 4 * len(texts), [None, texts.buffers()[1]], offset=4 * texts.offset
    )
    return pc.list_element(pa.FixedSizeListArray.from_arrays(words, 4), 0)


def _largest(values: pa.Array, target: pa.DataType) -> int:
    """At most so many bytes any one of them takes."""
    if _is_text(values.type):
        return _fixed_bytes(target) + int(pc.max(_lengths(values)).as_py() or 0)
    return plain_bytes(values, target) if pat.is_nested(values.type) else _fixed_bytes(target)


def _of_dictionary(values: pa.Array, target: pa.DataType) -> int:
    dictionary = values.dictionary
    if not _is_text(dictionary.type):
        return len(values) * _largest(dictionary, target)
    lengths = _lengths(dictionary).take(values.indices)
    return len(values) * _fixed_bytes(target) + int(pc.sum(lengths).as_py() or 0)


def _inside(values: pa.Array) -> pa.Array:
    """The inner values of lists, maps or arrays of fixed length, those of their nulls too."""
    if pat.is_fixed_size_list(values.type):
        size = values.type.list_size
        return values.values.slice(values.offset * size, len(values) * size)
    offsets = values.offsets
    first, last = offsets[0].as_py(), offsets[-1].as_py()
    return values.values.slice(first, last - first)


def _of_views(values: pa.Array, item: pa.DataType) -> int:
    """The inner values of list views: as often as they are seen, if any may be twice."""
    seen = pc.greater(values.sizes, 0)
    offsets = values.offsets.filter(seen).cast(pa.int64())
    ends = pc.add(offsets, values.sizes.filter(seen).cast(pa.int64()))
    if not len(offsets):
        return 0
    first, last = pc.min(offsets).as_py(), pc.max(ends).as_py()
    inner = plain_bytes(values.values.slice(first, last - first), item)
    apart = pc.all(pc.less_equal(ends.slice(0, len(ends) - 1), offsets.slice(1))).as_py()
    return inner if apart else len(offsets) * inner
