"""Thousands of damaged bodies against a real process: each is answered, none is a fault."""

import gzip
import io
import json
import os
import random
from pathlib import Path

import httpx
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from tests.processes import service

BODIES = int(os.environ.get("DUCKMESH_TEST_HTTP_BODIES", "300"))
ROWS = pa.table(
    {
        "id": pa.array(range(50), pa.int64()),
        "word": [None if n % 7 == 0 else f"w{n}é" for n in range(50)],
        "tags": pa.array([["x", None]] * 50, pa.list_(pa.string())),
        "seen": pa.array(range(50), pa.int64()).cast(pa.timestamp("us", "UTC")),
    }
)
ARROW = "application/vnd.apache.arrow.stream"
PARQUET = "application/vnd.apache.parquet"


def _arrow(**options: object) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, ROWS.schema, **options) as writer:
        writer.write_table(ROWS)
    return bytes(sink.getvalue())


def _parquet(**options: object) -> bytes:
    sink = io.BytesIO()
    pq.write_table(ROWS, sink, **options)
    return sink.getvalue()


RECORDS = [{"payload": row} for row in ROWS.select(["id", "word", "tags"]).to_pylist()]
LINES = b"\n".join(json.dumps(each["payload"]).encode() for each in RECORDS)
WHOLE = (
    ("/v1/ingest/t", "application/json", json.dumps({"records": RECORDS}).encode()),
    ("/v1/ingest/t", "application/x-ndjson", LINES),
    ("/v1/ingest/t", "text/csv", b"id,word\n" + b"".join(b'%d,"w"\n' % n for n in range(50))),
    ("/v1/ingest/t", ARROW, _arrow()),
    ("/v1/ingest/t", ARROW, _arrow(options=pa.ipc.IpcWriteOptions(compression="zstd"))),
    ("/v1/ingest/t", PARQUET, _parquet()),
    ("/v1/ingest/t", PARQUET, _parquet(compression="none", use_dictionary=False)),
    ("/v1/query", "application/json", b'{"sql":"SELECT * FROM t WHERE id > ?","params":[1]}'),
    ("/v1/tables", "application/json", b'{"name":"n","schema":[{"name":"a","type":"list"}]}'),
)
STRANGE = (
    b"[" * 5000,
    b'{"a":' * 5000,
    b"\x00",
    b"\xff\xfe",
    b'"\\ud800"',
    b"1e999999",
    b"\x1f\x8b",
)


def damaged(body: bytes, chance: random.Random) -> bytes:
    """The body with a few faults of one kind."""
    content = bytearray(body)
    match chance.randrange(6):
        case 0:
            return bytes(content[: chance.randrange(len(content))])
        case 1:
            for _ in range(chance.randint(1, 8)):
                content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        case 2:
            start = chance.randrange(len(content))
            del content[start : start + chance.randint(1, 64)]
        case 3:
            at = chance.randrange(len(content))
            content[at:at] = chance.choice(STRANGE)
        case 4:
            at = chance.randrange(len(content))
            content[at : at + 8] = chance.choice((b"\xff" * 8, b"\x00" * 8, b"\x7f" + b"\xff" * 7))
        case _:
            content += chance.choice(STRANGE)
    return bytes(content)


def test_damaged_bodies_are_answered_and_the_process_lives(
    database_dsn: str, tmp_path: Path
) -> None:
    chance = random.Random(20)  # noqa: S311 - damage, not secrets
    with service(database_dsn, tmp_path) as running:
        process, uri = running.serve()
        with httpx.Client(base_url=running.http_of(uri), timeout=60) as client:
            made = client.post(
                "/v1/ingest/t?mode=create", content=_arrow(), headers={"content-type": ARROW}
            )
            assert made.status_code == 200, made.text
            faults = []
            for number in range(BODIES):
                path, kind, body = chance.choice(WHOLE)
                content = damaged(body, chance)
                headers = {"content-type": kind}
                if chance.random() < 0.2:
                    headers["content-encoding"] = "gzip"
                    content = damaged(gzip.compress(content), chance) if number % 2 else content
                answer = client.post(path, content=content, headers=headers)
                if answer.status_code >= 500 and answer.status_code not in (501, 504):
                    faults.append((number, kind, answer.text))
            assert faults == []
            assert client.get("/v1/health").status_code == 200
        assert psutil.Process(process.pid).memory_info().rss < 2**30
