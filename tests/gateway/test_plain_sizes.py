"""How large arrays become: never less than it is, and near it for what clients send."""

import pyarrow as pa
import pytest

from gateway.plain_arrays import plain_array
from gateway.plain_sizes import plain_bytes

TEXTS = [None if n % 7 == 0 else "x" * (n % 50) for n in range(1000)]
LISTS = [None if n % 5 == 0 else ["ab"] * (n % 4) for n in range(1000)]
MAPS = [None if n % 5 == 0 else [("k", n)] * (n % 3) for n in range(1000)]


def views(lists):
    """The same lists as views; those that are empty or null lie anywhere."""
    whole = pa.array(lists, pa.list_(pa.utf8()))
    sizes = [len(each or []) for each in lists]
    offsets = [
        at if size else 0 for at, size in zip(whole.offsets.to_pylist(), sizes, strict=False)
    ]
    return pa.ListViewArray.from_arrays(
        pa.array(offsets, pa.int32()),
        pa.array(sizes, pa.int32()),
        whole.values,
        mask=whole.is_null(),
    )


def in_runs(values):
    return pa.RunEndEncodedArray.from_arrays(
        pa.array([3 * (n + 1) for n in range(len(values))], pa.int32()), pa.array(values)
    )


ENCODED = {
    "numbers": pa.array(range(1000), pa.int32()),
    "texts": pa.array(TEXTS),
    "large texts": pa.array(TEXTS, pa.large_utf8()),
    "views": pa.array(TEXTS, pa.string_view()),
    "bytes of one length": pa.array([b"abcd"] * 1000, pa.binary(4)),
    "dictionary": pa.array(TEXTS).dictionary_encode(),
    "dictionary of numbers": pa.array([1, 2, None] * 300).dictionary_encode(),
    "runs": in_runs(TEXTS),
    "runs of numbers": in_runs(range(1000)),
    "lists": pa.array(LISTS),
    "large lists": pa.array(LISTS, pa.large_list(pa.utf8())),
    "list views": views(LISTS),
    "arrays": pa.array([None, [1, 2, 3]] * 500, pa.list_(pa.int64(), 3)),
    "maps": pa.array(MAPS, pa.map_(pa.utf8(), pa.int64())),
    "structs": pa.array([{"a": t, "b": 1} for t in TEXTS]),
    "lists of dictionaries": pa.array(LISTS, pa.list_(pa.dictionary(pa.int32(), pa.utf8()))),
}


@pytest.mark.parametrize("name", ENCODED)
@pytest.mark.parametrize("part", [slice(None), slice(100, 200), slice(0, 0), slice(999, None)])
def test_what_clients_send_is_reckoned_closely(name: str, part: slice) -> None:
    values = ENCODED[name][part]
    plain = plain_array(values)
    said = plain_bytes(values, plain.type)
    assert plain.nbytes <= said
    assert said <= 8 * plain.nbytes + 64 * len(values) + 200


MANY = 10**9


@pytest.mark.parametrize(
    ("values", "target", "least"),
    [
        (pa.nulls(MANY), pa.int64(), 8 * MANY),
        (pa.nulls(1000), pa.list_(pa.float64(), 100_000), 8 * 1000 * 100_000),
        (
            pa.array([None] * 1000, pa.list_(pa.float64())),
            pa.list_(pa.float64(), 100_000),
            8 * 1000 * 100_000,
        ),
        (
            pa.RunEndEncodedArray.from_arrays(pa.array([MANY], pa.int64()), pa.array(["x" * 100])),
            pa.utf8(),
            100 * MANY,
        ),
        (
            pa.DictionaryArray.from_arrays(pa.array([0] * 10_000, pa.int8()), ["x" * 10**6]),
            pa.utf8(),
            10**10,
        ),
        (
            pa.ListViewArray.from_arrays([0] * 1000, [1000] * 1000, pa.array(["x" * 100] * 1000)),
            pa.list_(pa.utf8()),
            100 * 1000 * 1000,
        ),
    ],
    ids=["nulls", "null arrays", "null lists to arrays", "a run", "a dictionary", "views"],
)
def test_few_bytes_are_reckoned_as_what_they_become(
    values: pa.Array, target: pa.DataType, least: int
) -> None:
    before = pa.total_allocated_bytes()
    assert plain_bytes(values, target) >= least
    assert pa.total_allocated_bytes() - before < 2**20
