"""The HTTP door beside the Flight door of one process: writes, bulk, and answers of many rows."""

import http.client
import json
import time
from collections.abc import Iterator
from typing import Final
from urllib.parse import urlsplit

import pyarrow as pa

from benchmarks.clients import PlainClient, Way
from benchmarks.data import BULK_SCHEMA, bulk_rows
from benchmarks.figures import Figure, Target
from benchmarks.stage import Stage

_CONNECTIONS: Final = (1, 8, 32)
_RECORD_TARGETS: Final = {32: Target(500, 2_000, of_ratio=False)}
_BULK_SHARE: Final = 20
"""NDJSON takes so much longer than Arrow: so much fewer rows."""
_ANSWERED_SHARE: Final = 10
_FORMS: Final = {
    "Arrow": "application/vnd.apache.arrow.stream",
    "JSON": "application/json",
    "NDJSON": "application/x-ndjson",
    "CSV": "text/csv",
}


def measure(stage: Stage) -> Iterator[Figure]:
    """Single records, lines in bulk, and the same answer in every form."""
    stage.create_table("http_records")
    stage.warm_up("http_records")
    for connections in _CONNECTIONS:
        yield _records(stage, connections)
    yield _lines(stage)
    yield from _answers(stage)


def _records(stage: Stage, connections: int) -> Figure:
    ours: list[float] = []
    beside: list[float] = []
    for _ in range(stage.sizes.repetitions):
        for way, address, runs in (
            (Way.HTTP_RECORD, stage.http_uri, ours),
            (Way.ONE_RPC_EACH, stage.uri, beside),
        ):
            seconds = stage.sizes.seconds
            done = stage.crew.write(
                way, address, table="http_records", clients=connections, seconds=seconds
            )
            runs.append(len(done) / seconds)
    counted = "1 connection" if connections == 1 else f"{connections} connections"
    return Figure(
        benchmark="http",
        what=f"single JSON records acknowledged, one request each, {counted}",
        unit="rows/s",
        runs=ours,
        limit="the same rows by DoPut, one RPC each",
        limit_runs=beside,
        target=_RECORD_TARGETS.get(connections, Target(None, None)),
    )


def _lines(stage: Stage) -> Figure:
    rows = bulk_rows(max(1000, stage.sizes.bulk_rows // _BULK_SHARE))
    body = _as_lines(rows)
    stage.create_table("http_bulk", BULK_SCHEMA)
    ours: list[float] = []
    beside: list[float] = []
    for _ in range(stage.sizes.bulk_repetitions):
        ours.append(rows.num_rows / _seconds_of_lines(stage, body))
        beside.append(rows.num_rows / _seconds_of_flight(stage, rows))
    return Figure(
        benchmark="http",
        what=f"{rows.num_rows:,} rows as NDJSON in one request, durable",
        unit="rows/s",
        runs=ours,
        limit="the same rows as Arrow by DoPut",
        limit_runs=beside,
    )


def _seconds_of_lines(stage: Stage, body: bytes) -> float:
    began = time.perf_counter()
    status, answer = _request(
        stage, "POST", "/v1/ingest/http_bulk", body, {"Content-Type": "application/x-ndjson"}
    )
    assert status == 200, answer[:500]
    return time.perf_counter() - began


def _seconds_of_flight(stage: Stage, rows: pa.Table) -> float:
    with stage.connect() as connection, connection.cursor() as cursor:
        began = time.perf_counter()
        cursor.adbc_ingest("http_bulk", rows, mode="append")
        return time.perf_counter() - began


def _answers(stage: Stage) -> Iterator[Figure]:
    """A table of plain columns, read whole, in each form."""
    rows = bulk_rows(max(1000, stage.sizes.bulk_rows // _ANSWERED_SHARE))
    stage.create_table("http_answers", BULK_SCHEMA)
    with stage.connect() as connection, connection.cursor() as cursor:
        cursor.adbc_ingest("http_answers", rows, mode="append")
        cursor.execute("SELECT count(*) FROM http_answers")
        assert cursor.fetchone() == (rows.num_rows,)
    client = PlainClient(stage.uri)
    question = "SELECT * FROM http_answers"
    for form, media_type in _FORMS.items():
        ours: list[float] = []
        beside: list[float] = []
        for _ in range(stage.sizes.repetitions):
            ours.append(rows.num_rows / _seconds_of_answer(stage, question, media_type))
            began = time.perf_counter()
            assert client.answer(question).num_rows == rows.num_rows
            beside.append(rows.num_rows / (time.perf_counter() - began))
        yield Figure(
            benchmark="http",
            what=f"answer of {rows.num_rows:,} rows of six columns as {form}",
            unit="rows/s",
            runs=ours,
            limit="the same answer over Flight",
            limit_runs=beside,
        )
    client.close()


def _seconds_of_answer(stage: Stage, question: str, media_type: str) -> float:
    body = json.dumps({"sql": question}).encode()
    headers = {"Content-Type": "application/json", "Accept": media_type}
    began = time.perf_counter()
    status, answer = _request(stage, "POST", "/v1/query", body, headers)
    assert status == 200, answer[:500]
    return time.perf_counter() - began


def _request(
    stage: Stage, method: str, path: str, body: bytes, headers: dict[str, str]
) -> tuple[int, bytes]:
    """One request on a connection of its own, its answer read to the end."""
    where = urlsplit(stage.http_uri)
    assert where.hostname is not None
    connection = http.client.HTTPConnection(where.hostname, where.port, timeout=300)
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def _as_lines(rows: pa.Table) -> bytes:
    """The rows as the door takes them: times as RFC 3339."""
    columns = {
        name: (
            [moment.isoformat() for moment in column.to_pylist()]
            if pa.types.is_timestamp(column.type)
            else column.to_pylist()
        )
        for name, column in zip(rows.column_names, rows.columns, strict=True)
    }
    return b"".join(
        json.dumps(dict(zip(columns, values, strict=True))).encode() + b"\n"
        for values in zip(*columns.values(), strict=True)
    )
