"""Arrays without their encodings: dictionaries, runs, views and extension types undone.

Arrow casts few of these inside a list, a struct or a map, and takes none from a view. Values stay
what they are.
"""

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pat


def is_encoded(kind: pa.DataType) -> bool:
    """Whether a type has an encoding at any depth, so that `plain_array` changes its arrays."""
    if (
        isinstance(kind, pa.BaseExtensionType)
        or pat.is_dictionary(kind)
        or pat.is_run_end_encoded(kind)
        or pat.is_string_view(kind)
        or pat.is_binary_view(kind)
        or pat.is_list_view(kind)
        or pat.is_large_list_view(kind)
    ):
        return True
    return any(is_encoded(kind.field(at).type) for at in range(kind.num_fields))


def plain_array(values: pa.Array) -> pa.Array:
    """The same values, encoded in no way at any depth. Copies only what it must."""
    kind = values.type
    if not is_encoded(kind):
        return values
    if isinstance(values, pa.ExtensionArray):
        return plain_array(values.storage)
    if pat.is_string_view(kind) or pat.is_binary_view(kind):
        return values.cast(pa.large_string() if pat.is_string_view(kind) else pa.large_binary())
    if pat.is_dictionary(kind):
        return plain_array(values.dictionary).take(values.indices)
    if pat.is_run_end_encoded(kind):
        return _decoded_runs(values)
    if pat.is_struct(kind):
        return _struct(values)
    if pat.is_map(kind):
        return _map(values)
    if pat.is_fixed_size_list(kind):
        as_lists = values.cast(pa.list_(kind.value_field))
        inner = _list(as_lists)
        return inner.cast(pa.list_(inner.type.value_field, kind.list_size))
    return _list(values)


def _decoded_runs(values: pa.Array) -> pa.Array:
    """Every value of every run. By the number of its run, for Arrow decodes no run of lists."""
    # Those of the slice alone: of a long array cut into many, each would undo all of them.
    first, count = values.find_physical_offset(), values.find_physical_length()
    ends = values.run_ends.slice(first, count)
    ends = pc.subtract(ends, pa.scalar(values.offset, ends.type))
    ends = pc.min_element_wise(ends, pa.scalar(len(values), ends.type))
    runs = pa.RunEndEncodedArray.from_arrays(ends, pa.array(range(count), pa.int32()))
    return plain_array(values.values.slice(first, count)).take(pc.run_end_decode(runs))


def _offsets(values: pa.Array) -> pa.Array:
    lengths = pc.fill_null(pc.list_value_length(values), 0).cast(pa.int64())
    ends = pc.cumulative_sum(lengths)
    return pa.concat_arrays([pa.array([0], pa.int64()), ends]).cast(pa.int32())


def _list(values: pa.Array) -> pa.Array:
    field = values.type.value_field
    inner = plain_array(values.flatten())
    kind = pa.list_(field.with_type(inner.type))
    return pa.ListArray.from_arrays(_offsets(values), inner, kind, mask=values.is_null())


def _struct(values: pa.Array) -> pa.Array:
    children = [plain_array(child) for child in values.flatten()]
    fields = [
        field.with_type(child.type) for field, child in zip(values.type, children, strict=True)
    ]
    if not children:
        return values
    return pa.StructArray.from_arrays(children, fields=fields, mask=values.is_null())


def _map(values: pa.Array) -> pa.Array:
    kind = values.type
    entries = values.cast(pa.list_(pa.struct([kind.key_field, kind.item_field])))
    keys, items = (plain_array(part) for part in entries.flatten().flatten())
    return pa.MapArray.from_arrays(
        _offsets(entries),
        keys,
        items,
        pa.map_(keys.type, items.type),
        mask=values.is_null(),
    )
