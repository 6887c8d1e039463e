"""Where the rows of a write lie before they are accepted."""

import time
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from catalog.table_schema import TableSchema
from data_files.row_hash import hash_of
from duckmesh.errors import ErrorCode, Invalid, Unavailable
from gateway.staging import Gathered, Staging, StagingLimits
from ingest_bus.envelope import InlinePayload, StagedPayload
from object_store import keys
from object_store.directory import DirectoryStore

SCHEMA = TableSchema.first(pa.schema([("v", pa.int64()), ("s", pa.string())])).arrow


def table_of(rows: int) -> pa.Table:
    numbers = pa.array(range(rows), pa.int64())
    return pa.table([numbers, numbers.cast(pa.string())], schema=SCHEMA)


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path)


def staging(store: DirectoryStore, *, hashed: bool = False, **limits: int) -> Staging:
    return Staging(
        SCHEMA,
        store,
        partial(keys.data_file_key, "acme", "t", 7),
        limits=StagingLimits(**limits),
        hashed=hashed,
    )


def gather(into: Staging, table: pa.Table, chunk: int = 65_536) -> Gathered:
    for batch in table.to_batches(max_chunksize=chunk):
        into.add(batch)
    return into.finish()


def objects(store: DirectoryStore) -> list[str]:
    return [each.key for each in store.list("acme/")]


def test_a_write_up_to_the_limit_is_inline_and_one_byte_more_is_staged(
    store: DirectoryStore,
) -> None:
    table = table_of(1000)
    inline = gather(staging(store, inline_max_bytes=table.nbytes), table)
    assert isinstance(inline.payload, InlinePayload)
    assert objects(store) == []
    staged = gather(staging(store, inline_max_bytes=table.nbytes - 1), table)
    assert isinstance(staged.payload, StagedPayload)
    assert objects(store) == [file.key for file in staged.payload.files]
    assert inline.row_count == staged.row_count == 1000


@pytest.mark.parametrize("clock", ["monotonic", "time"])
def test_a_write_that_took_so_long_that_it_may_be_taken_for_orphans_is_refused(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch, clock: str
) -> None:
    writing = staging(store, inline_max_bytes=0)
    writing.add(table_of(1_000_000).to_batches()[0])
    assert objects(store) == []
    now = getattr(time, clock)()
    limit = StagingLimits().write_max.total_seconds()
    monkeypatch.setattr(time, clock, lambda: now + limit + 60)
    with pytest.raises(Invalid) as refused:
        writing.finish()
    assert refused.value.code is ErrorCode.PAYLOAD_TOO_LARGE
    writing.abort()
    assert objects(store) == []


def test_a_write_without_rows_is_an_empty_inline_payload(store: DirectoryStore) -> None:
    nothing = gather(staging(store, inline_max_bytes=0), table_of(0))
    assert nothing.payload == InlinePayload(b"")
    assert nothing.row_count == 0


def test_staged_files_hold_the_rows_in_order_with_the_tables_field_ids(
    store: DirectoryStore, tmp_path: Path
) -> None:
    table = table_of(300_000)
    gathered = gather(staging(store, inline_max_bytes=1000), table, chunk=7_001)
    assert isinstance(gathered.payload, StagedPayload)
    (file,) = gathered.payload.files
    path = store.local_path(file.key)
    assert path is not None
    read = pq.read_table(path)
    assert read.equals(table)
    assert [f.metadata[b"PARQUET:field_id"] for f in pq.read_schema(path)] == [b"1", b"2"]
    assert (file.row_count, file.size_bytes) == (300_000, path.stat().st_size)
    assert gathered.byte_count == file.size_bytes


def test_a_file_is_begun_anew_at_its_target_size(store: DirectoryStore) -> None:
    table = table_of(1_000_000)
    into = staging(store, inline_max_bytes=1000, staged_file_target_bytes=2**20)
    gathered = gather(into, table)
    assert isinstance(gathered.payload, StagedPayload)
    assert len(gathered.payload.files) > 2
    assert sum(file.row_count for file in gathered.payload.files) == 1_000_000
    read = [pq.read_table(store.local_path(file.key)) for file in gathered.payload.files]
    assert pa.concat_tables(read).equals(table)


@pytest.mark.parametrize("limit", [1_000, 2**30], ids=["staged", "inline"])
def test_the_hash_is_of_the_rows_and_not_of_how_they_were_cut(
    store: DirectoryStore, limit: int
) -> None:
    table = table_of(200_000)
    cuts = [1_000, 65_536, 122_880, 200_000]
    hashes = {
        gather(staging(store, hashed=True, inline_max_bytes=limit), table, chunk).payload_hash
        for chunk in cuts
    }
    sliced = pa.concat_tables([table.slice(0, 3), table.slice(3)])
    hashes.add(gather(staging(store, hashed=True, inline_max_bytes=limit), sliced).payload_hash)
    assert len(hashes) == 1
    other = gather(staging(store, hashed=True, inline_max_bytes=limit), table.slice(1))
    assert other.payload_hash not in hashes


def test_rows_that_hold_the_same_hash_the_same_whatever_lies_behind_their_nulls(
    store: DirectoryStore,
) -> None:
    """A null's slot in a buffer may hold anything: another client leaves other bytes there."""
    valid = pa.py_buffer(b"\x05")
    made = [
        pa.Array.from_buffers(
            pa.int64(), 3, [valid, pa.array([1, hidden, 3], pa.int64()).buffers()[1]]
        )
        for hidden in (0, 99)
    ]
    assert made[0].equals(made[1])
    texts = pa.array(["a", "b", "c"])
    hashes = [
        gather(staging(store, hashed=True), pa.table([each, texts], schema=SCHEMA)).payload_hash
        for each in made
    ]
    assert hashes[0] == hashes[1]


def test_a_column_without_nulls_hashes_the_same_with_and_without_a_bitmap(
    store: DirectoryStore,
) -> None:
    numbers = pa.array([1, 2, 3], pa.int64())
    mapped = pa.Array.from_buffers(pa.int64(), 3, [pa.py_buffer(b"\xff"), numbers.buffers()[1]])
    assert mapped.equals(numbers)
    texts = pa.array(["a", "b", "c"])
    hashes = {
        gather(staging(store, hashed=True), pa.table([each, texts], schema=SCHEMA)).payload_hash
        for each in (numbers, mapped)
    }
    assert len(hashes) == 1


def test_an_abort_removes_what_was_staged(store: DirectoryStore, tmp_path: Path) -> None:
    into = staging(store, inline_max_bytes=1000, staged_file_target_bytes=2**20)
    for batch in table_of(1_000_000).to_batches(max_chunksize=65_536):
        into.add(batch)
    into.abort()
    into.abort()
    assert objects(store) == []
    assert [each for each in tmp_path.rglob("*") if each.is_file()] == []


def test_what_is_kept_survives_an_abort(store: DirectoryStore) -> None:
    into = staging(store, inline_max_bytes=1000)
    gather(into, table_of(10_000))
    into.keep()
    into.abort()
    assert len(objects(store)) == 1


class FullStore(DirectoryStore):
    """A store that takes nothing more."""

    def open_writer(self, key: str):  # noqa: ARG002 - the port's signature
        raise Unavailable(ErrorCode.STORE_UNAVAILABLE, "the object store is full: make room")


def test_a_store_that_fails_fails_the_write(tmp_path: Path) -> None:
    into = staging(FullStore(tmp_path), inline_max_bytes=1000)
    with pytest.raises(Unavailable, match="full"):
        gather(into, table_of(10_000))
    into.abort()


NESTED = pa.struct(
    [
        ("b", pa.bool_()),
        ("l", pa.list_(pa.string())),
        ("m", pa.map_(pa.string(), pa.decimal128(9, 2))),
    ]
)


def test_nested_rows_hash_by_their_values() -> None:
    values = [
        {"b": True, "l": ["x", None], "m": [("k", 1)]},
        None,
        {"b": None, "l": None, "m": []},
        {"b": False, "l": [], "m": None},
    ]
    whole = pa.array([*values, *values], NESTED)
    seen = [
        hash_of(pa.record_batch([each], names=["v"]))
        for each in (pa.array(values, NESTED), whole.slice(4), whole.slice(0, 4))
    ]
    assert len(set(seen)) == 1
    others = [
        [*values[:3], {"b": False, "l": None, "m": None}],
        [*values[:3], {"b": False, "l": [""], "m": None}],
        [values[1], values[0], *values[2:]],
        values[:3],
    ]
    for other in others:
        assert hash_of(pa.record_batch([pa.array(other, NESTED)], names=["v"])) not in seen


def test_texts_hash_by_where_they_are_cut() -> None:
    hashes = {
        hash_of(pa.record_batch([pa.array(texts, pa.string())], names=["v"]))
        for texts in (["ab", "c"], ["a", "bc"], ["", "abc"], ["abc"], ["abc", None])
    }
    assert len(hashes) == 5


@pytest.mark.parametrize("hashed", [False, True])
def test_wide_rows_are_not_gathered_into_a_whole_row_group(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch, *, hashed: bool
) -> None:
    monkeypatch.setattr("gateway.staging._GROUP_MAX_BYTES", 10_000)
    monkeypatch.setattr("gateway.staging._HASHED_GROUP_MAX_BYTES", 20_000)
    into, most = staging(store, hashed=hashed, inline_max_bytes=1_000), 0
    table = pa.table([range(1_000), ["x" * 100] * 1_000], schema=SCHEMA)
    for batch in table.to_batches(max_chunksize=10):
        into.add(batch)
        most = max(most, into._rechunker.waiting_bytes)
    assert most <= (20_000 if hashed else 10_000)
    gathered = into.finish()
    (file,) = gathered.payload.files
    read = pq.read_table(store.local_path(file.key))
    assert read.to_pydict() == table.to_pydict()
