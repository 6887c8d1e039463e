"""A published snapshot never changes: its answer is the same bytes for ever."""

import hashlib

import pyarrow as pa
import pytest

from gateway.ingest_modes import IngestMode
from tests.rooms import Rooms, rows

PUBLICATIONS = 200


def answer_hash(rooms: Rooms, sql: str, snapshot_id: int) -> str:
    answer = rooms.query_at(sql, snapshot_id)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, answer.schema) as writer:
        writer.write_table(answer)
    return hashlib.sha256(sink.getvalue()).hexdigest()


QUERIES = (
    "SELECT * FROM t",
    "SELECT count(*), sum(v), min(name) FROM t",
    "SELECT t.v, u.v FROM t JOIN u USING (v) ORDER BY ALL",
    "SELECT table_name, row_count, file_count FROM duckmesh_system.tables",
)


@pytest.mark.load
@pytest.mark.timeout(300)
def test_a_query_by_snapshot_is_byte_identical_after_200_further_publications(
    rooms: Rooms,
) -> None:
    names = ["a", None, "ü", "x" * 100]
    for number in range(5):
        table = rows(*range(number, number + 4), name=names)
        rooms.write("t", table)
        rooms.write("u", rows(number))
        rooms.publish_all()
    pinned = rooms.visibility.newest(rooms.acme.tenant_id)
    before = [answer_hash(rooms, sql, pinned.snapshot_id) for sql in QUERIES]
    for number in range(PUBLICATIONS):
        mode = IngestMode.REPLACE if number % 50 == 49 else IngestMode.APPEND
        rooms.write("t", rows(number, name=["later"]), mode=mode)
        if number == 120:
            rooms.writes.definitions.drop_table(rooms.acme, "u")
        if number == 150:
            rooms.write("u", pa.table({"other": ["columns"]}))
        rooms.publish_all()
    newest = rooms.visibility.newest(rooms.acme.tenant_id)
    assert newest.snapshot_id - pinned.snapshot_id >= PUBLICATIONS
    assert [answer_hash(rooms, sql, pinned.snapshot_id) for sql in QUERIES] == before
    assert answer_hash(rooms, QUERIES[0], newest.snapshot_id) != before[0]
