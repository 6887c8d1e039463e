"""`POST /v1/ingest/{table}` with files: NDJSON, CSV, Arrow streams and Parquet."""

import gzip
import io
import json
import zlib
from collections.abc import Iterator

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.http_shim.conftest import OpenHttp
from tests.rooms import Rooms

NDJSON = "application/x-ndjson"
CSV = "text/csv"
ARROW = "application/vnd.apache.arrow.stream"
PARQUET = "application/vnd.apache.parquet"

TABLE = pa.table(
    {
        "id": pa.array([1, 2, 3], pa.int64()),
        "word": pa.array(["a", None, 'c,"\nd'], pa.string()),
        "price": pa.array([1.5, None, -0.25], pa.float64()),
        "day": pa.array([0, None, 19_000], pa.int32()).cast(pa.date32()),
        "tags": pa.array([["x", None], None, []], pa.list_(pa.string())),
    }
)


def as_arrow(rows: pa.Table, **options: object) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema, **options) as writer:
        writer.write_table(rows)
    return bytes(sink.getvalue())


def as_parquet(rows: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(rows, sink)
    return sink.getvalue()


def as_ndjson(rows: pa.Table) -> bytes:
    return b"\n".join(json.dumps(row, default=str).encode() for row in rows.to_pylist())


CSV_TEXT = (
    b"id,WORD,price,day,tags\r\n"
    b'1,a,1.5,1970-01-01,"[""x"",null]"\r\n'
    b"2,,,,\r\n"
    b'3,"c,""\nd",-0.25,2022-01-08,[]\r\n'
)
FILES = {
    NDJSON: as_ndjson(TABLE),
    CSV: CSV_TEXT,
    ARROW: as_arrow(TABLE),
    PARQUET: as_parquet(TABLE),
}


def send(client: httpx.Client, kind: str, body: object, query: str = "", **headers: str):
    headers = {"content-type": kind, **{k.replace("_", "-"): v for k, v in headers.items()}}
    return client.post(f"/v1/ingest/t{query}", content=body, headers=headers)


@pytest.fixture
def table(rooms: Rooms) -> None:
    rooms.write("t", TABLE.schema.empty_table())
    rooms.publish_all()


def stored(rooms: Rooms) -> pa.Table:
    rooms.publish_all()
    return rooms.query("SELECT * FROM t ORDER BY id")


@pytest.mark.parametrize("kind", FILES)
def test_a_file_is_one_write_of_all_its_rows(http, rooms, table, kind) -> None:
    answer = send(http, kind, FILES[kind])
    assert answer.status_code == 200, answer.text
    assert answer.json() == {
        "accepted_count": 3,
        "duplicate_count": 0,
        "max_visibility_token": 2,
        "visible_snapshot_id": None,
        "status": "accepted",
    }
    assert stored(rooms).to_pylist() == TABLE.to_pylist()


@pytest.mark.parametrize("packing", ["gzip", "zstd"])
@pytest.mark.parametrize("kind", FILES)
def test_a_file_may_be_packed(http, rooms, table, kind, packing) -> None:
    if packing == "gzip":
        body = gzip.compress(FILES[kind])
    else:
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, "zstd") as packed:
            packed.write(FILES[kind])
        body = bytes(sink.getvalue())
    answer = send(http, kind, body, content_encoding=packing)
    assert answer.status_code == 200, answer.text
    assert stored(rooms).to_pylist() == TABLE.to_pylist()


@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_is_sent_in_small_parts_is_the_same_file(http, rooms, table, kind) -> None:
    body = FILES[kind]

    def parts() -> Iterator[bytes]:
        for start in range(0, len(body), 7):
            yield body[start : start + 7]

    assert send(http, kind, parts()).status_code == 200
    assert stored(rooms).to_pylist() == TABLE.to_pylist()


@pytest.mark.parametrize("kind", FILES)
def test_a_repeated_file_is_a_duplicate_by_its_key(http, rooms, table, kind) -> None:
    first = send(http, kind, FILES[kind], idempotency_key='"load-1"').json()
    again = send(http, kind, FILES[kind], idempotency_key="load-1").json()
    assert (again["accepted_count"], again["duplicate_count"]) == (0, 3)
    assert again["max_visibility_token"] == first["max_visibility_token"]
    assert again["status"] == "partial_duplicate"
    assert stored(rooms).num_rows == 3


@pytest.mark.parametrize("kind", [ARROW, PARQUET])
def test_a_file_with_types_may_create_its_table(http, rooms, kind) -> None:
    assert send(http, kind, FILES[kind]).status_code == 404
    assert send(http, kind, FILES[kind], "?mode=create").status_code == 200
    taken = send(http, kind, FILES[kind], "?mode=create")
    assert (taken.status_code, taken.json()["error_code"]) == (409, "TABLE_EXISTS")
    assert send(http, kind, FILES[kind], "?mode=replace").status_code == 200
    assert stored(rooms).to_pylist() == TABLE.to_pylist()


def test_a_large_file_is_staged_and_whole(http, rooms) -> None:
    rows = pa.table({"id": pa.array(range(400_000), pa.int64()), "s": ["x" * 20] * 400_000})
    for kind, body in ((ARROW, as_arrow(rows)), (PARQUET, as_parquet(rows))):
        answer = send(http, kind, body, "?mode=create_append")
        assert answer.json()["accepted_count"] == 400_000, answer.text
    lines = b"".join(b'{"id":%d,"s":"y"}\n' % n for n in range(100_000))
    assert send(http, NDJSON, lines).json()["accepted_count"] == 100_000
    text = "s,id\n" + "".join(f"z,{n}\n" for n in range(100_000))
    assert send(http, CSV, text.encode()).json()["accepted_count"] == 100_000
    rooms.publish_all()
    (found,) = rooms.query("SELECT count(*) n, sum(id)::BIGINT s FROM t").to_pylist()
    sums = [sum(range(400_000))] * 2 + [sum(range(100_000))] * 2
    assert found == {"n": 1_000_000, "s": sum(sums)}


def test_a_file_can_be_waited_for(http, rooms, table, coordinator) -> None:
    query = "?wait_for_visibility=true&visibility_timeout_ms=30000&results=records"
    answer = send(http, ARROW, FILES[ARROW], query).json()
    assert answer["status"] == "visible"
    assert answer["results"] == [{"record": None, "visibility_token": 2, "duplicate": False}]
    assert rooms.query_at("SELECT id FROM t", answer["visible_snapshot_id"]).num_rows == 3


BAD_FILES = {
    "ndjson no object": (NDJSON, b'{"id":1}\n[1]\n', "INVALID_JSON", {"record": 1}),
    "ndjson broken": (NDJSON, b'{"id":1}\n\n{"id":\n', "INVALID_JSON", {"record": 1}),
    "ndjson value": (NDJSON, b'{"id":1}\n{"id":"x"}\n', "INVALID_PAYLOAD", {"record": 1}),
    "ndjson column": (NDJSON, b'{"id":1}\n{"di":2}\n', "INVALID_PAYLOAD", {"column": "di"}),
    "ndjson nesting": (NDJSON, b"[" * 100_000, "INVALID_JSON", {}),
    "ndjson empty": (NDJSON, b"\n \n", "RECORDS_REQUIRED", {}),
    "csv value": (CSV, b"id\n1\nx\n", "INVALID_PAYLOAD", {"record": 1, "column": "id"}),
    "csv column": (CSV, b"id,nope\n1,2\n", "SCHEMA_INCOMPATIBLE", {"columns": ["nope"]}),
    "csv twice": (CSV, b"id,ID\n1,2\n", "SCHEMA_INCOMPATIBLE", {}),
    "csv fields": (CSV, b"id,word\n1,a\n2\n", "INVALID_PAYLOAD", {}),
    "csv no utf-8": (CSV, b"id,word\n1,\xff\n", "INVALID_PAYLOAD", {}),
    "csv header alone": (CSV, b"id\n", "RECORDS_REQUIRED", {}),
    "csv empty": (CSV, b"", "INVALID_PAYLOAD", {}),
    "arrow none": (ARROW, b"no arrow at all", "INVALID_PAYLOAD", {}),
    "arrow empty": (ARROW, b"", "INVALID_PAYLOAD", {}),
    "arrow cut": (ARROW, FILES[ARROW][:-60], "INVALID_PAYLOAD", {}),
    "arrow columns": (ARROW, as_arrow(pa.table({"x": [1]})), "SCHEMA_INCOMPATIBLE", {}),
    "parquet none": (PARQUET, b"PAR1 no parquet PAR1", "INVALID_PAYLOAD", {}),
    "parquet cut": (PARQUET, FILES[PARQUET][:-9], "INVALID_PAYLOAD", {}),
    "parquet empty": (PARQUET, b"", "INVALID_PAYLOAD", {}),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_refused_and_nothing_is_accepted(http, rooms, table, case) -> None:
    kind, body, code, context = BAD_FILES[case]
    answer = send(http, kind, body)
    said = answer.json()
    assert (answer.status_code, said["error_code"]) == (400, code), said
    assert context.items() <= said["context"].items(), said
    assert stored(rooms).num_rows == 0


def test_a_bad_value_far_inside_a_file_is_named_by_its_record(http, rooms, table) -> None:
    lines = b"".join(b'{"id":%d}\n' % n for n in range(200_000)) + b'{"id":1.5}\n'
    said = send(http, NDJSON, lines).json()
    assert (said["context"]["record"], said["context"]["column"]) == (200_000, "id")
    rows = pa.table({"id": pa.array([*range(100_000), None], pa.int64())})
    strict = pa.schema([pa.field("id", pa.int64(), nullable=False)])
    rooms.write("strict", strict.empty_table())
    answer = http.post(
        "/v1/ingest/strict", content=as_parquet(rows), headers={"content-type": PARQUET}
    )
    assert answer.json()["context"]["record"] == 100_000
    assert stored(rooms).num_rows == 0


def test_a_bomb_is_refused_where_it_passes_the_limit(open_http: OpenHttp, rooms, table) -> None:
    door = open_http(body_max_bytes=2**20, json_max_bytes=2**20)
    line = b'{"id":1,"word":"' + b"a" * 2**16 + b'"}\n'
    bomb = gzip.compress(line * 1000)
    assert len(bomb) < 2**20
    with httpx.Client(base_url=door.uri) as client:
        for kind, body in ((NDJSON, bomb), ("application/json", gzip.compress(b" " * 2**24))):
            answer = send(client, kind, body, content_encoding="gzip")
            assert (answer.status_code, answer.json()["error_code"]) == (413, "PAYLOAD_TOO_LARGE")
        one_line = send(client, NDJSON, b'{"word":"' + b"a" * 2**21)
        assert one_line.status_code == 413
    assert stored(rooms).num_rows == 0


def test_a_parquet_file_of_a_repeated_text_is_decoded_piece_by_piece(http, rooms) -> None:
    rows = pa.table({"id": pa.array(range(5000), pa.int64()), "word": ["w" * 50_000] * 5000})
    body = as_parquet(rows)
    assert len(body) < 2**20
    answer = send(http, PARQUET, body, "?mode=create")
    assert answer.json()["accepted_count"] == 5000, answer.text


@pytest.mark.parametrize("packing", ["br", "gzip, gzip", "deflate"])
def test_an_unknown_packing_or_type_is_415(http, table, packing) -> None:
    assert send(http, NDJSON, b"{}", content_encoding=packing).status_code == 415
    assert send(http, "text/plain", b"{}").status_code == 415
    assert send(http, "application/json; charset=latin-1", b"{}").status_code == 415


def test_damaged_packing_is_refused(http, rooms, table) -> None:
    whole = gzip.compress(FILES[NDJSON])
    for body in (whole[:-6], b"no gzip", whole[:20] + b"\x00" * 20):
        answer = send(http, NDJSON, body, content_encoding="gzip")
        assert (answer.status_code, answer.json()["error_code"]) == (400, "INVALID_PAYLOAD")
    assert zlib.decompress(whole, wbits=31) == FILES[NDJSON]
    assert stored(rooms).num_rows == 0


def test_a_sender_that_leaves_midway_leaves_nothing(http, rooms, table) -> None:
    def parts() -> Iterator[bytes]:
        yield FILES[NDJSON] + b"\n"
        raise ConnectionAbortedError

    with pytest.raises(ConnectionAbortedError):
        send(http, NDJSON, parts())
    assert http.get("/v1/health").status_code == 200
    assert stored(rooms).num_rows == 0


KEYS = pa.table({"id": pa.array([1, 3, 99], pa.int64())})
KEY_FILES: dict[str, bytes] = {
    NDJSON: as_ndjson(KEYS),
    CSV: b"id\r\n1\r\n3\r\n99\r\n",
    ARROW: as_arrow(KEYS),
    PARQUET: as_parquet(KEYS),
}


@pytest.mark.parametrize("kind", KEY_FILES)
def test_a_file_of_keys_deletes_their_rows(http, rooms: Rooms, kind) -> None:
    rooms.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, name VARCHAR)")
    rooms.execute("INSERT INTO t VALUES (1, 'a'), (2, 'b'), (3, 'c')")
    body = KEY_FILES[kind]
    answer = send(http, kind, body, "?op=delete", idempotency_key="gone")
    assert (answer.status_code, answer.json()["accepted_count"]) == (200, 3)
    assert stored(rooms).to_pylist() == [{"id": 2, "name": "b"}]
    rooms.execute("INSERT INTO t VALUES (1, 'again')")
    repeated = send(http, kind, body, "?op=delete", idempotency_key="gone")
    assert (repeated.json()["accepted_count"], repeated.json()["duplicate_count"]) == (0, 3)
    assert stored(rooms).to_pylist() == [{"id": 1, "name": "again"}, {"id": 2, "name": "b"}]


def test_a_file_of_keys_is_refused_where_it_means_nothing(http, rooms: Rooms, table) -> None:
    answer = send(http, ARROW, KEY_FILES[ARROW], "?op=delete")
    assert (answer.status_code, answer.json()["error_code"]) == (400, "INVALID_OP")
    rooms.execute("CREATE TABLE k (id BIGINT PRIMARY KEY, name VARCHAR)")
    for kind, query in ((ARROW, "?op=delete&mode=replace"), ("application/json", "?op=delete")):
        headers = {"content-type": kind}
        refused = http.post(f"/v1/ingest/k{query}", content=KEY_FILES[ARROW], headers=headers)
        assert (refused.status_code, refused.json()["error_code"]) == (400, "INVALID_OP")
