"""Rows of a keyed table through both doors of real processes, whatever is killed in between."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import adbc_driver_flightsql.dbapi as flightsql
import adbc_driver_manager
import httpx
import pyarrow as pa
import pytest

from tests.processes import Service, service, until

ROUNDS = 12


@pytest.fixture
def running(database_dsn: str, tmp_path: Path) -> Iterator[Service]:
    with service(database_dsn, tmp_path, DUCKMESH_COORDINATOR_LEASE_SECONDS="1") as started:
        yield started


def test_what_both_doors_replaced_and_deleted_is_there_once_though_processes_die(
    running: Service,
) -> None:
    drawn = random.Random(6)  # noqa: S311 - a seeded test
    (serve, uri), (_, other) = running.serve(), running.serve()
    coordinator = running.coordinate("c0")
    until(lambda: coordinator.said("ready"))
    expected: dict[int, str] = {}
    with flightsql.connect(other, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE k (id BIGINT PRIMARY KEY, v VARCHAR)")
        for number in range(ROUNDS):
            uri_of_round = other if number == ROUNDS // 2 else uri
            with httpx.Client(base_url=running.http_of(uri_of_round), timeout=60) as http:
                token = _records(http, drawn, expected, number)
            _ingests(cursor, drawn, expected, number)
            if number % 4 == 2:
                coordinator.kill()
                coordinator = running.coordinate(f"c{number}")
            if number == ROUNDS // 2 - 1:
                serve.kill()
            if number == ROUNDS // 2:
                serve, uri = running.serve()
            cursor.execute("SELECT id, v FROM k ORDER BY id")
            assert dict(cursor.fetchall()) == expected, number
            assert token > 0
        cursor.execute("SELECT count(*) FROM k")
        assert cursor.fetchone() == (len(expected),)


def _records(
    http: httpx.Client, drawn: random.Random, expected: dict[int, str], number: int
) -> int:
    """One request of records that insert, upsert and delete, sent twice."""
    records: list[dict[str, Any]] = []
    for at in range(drawn.randint(1, 30)):
        key, op = drawn.randrange(60), drawn.choice(["insert", "upsert", "delete"])
        value = f"http-{number}-{at}"
        payload = {"id": key} if op == "delete" else {"id": key, "v": value}
        records.append({"op": op, "payload": payload, "idempotency_key": f"{number}-{at}"})
        if op == "delete":
            expected.pop(key, None)
        else:
            expected[key] = value
    answers = [http.post("/v1/ingest/k", json={"records": records}) for _ in range(2)]
    assert [each.status_code for each in answers] == [200, 200]
    first, again = (each.json() for each in answers)
    assert (first["accepted_count"], again["duplicate_count"]) == (len(records), len(records))
    return int(first["max_visibility_token"])


def _ingests(
    cursor: flightsql.Cursor, drawn: random.Random, expected: dict[int, str], number: int
) -> None:
    """Rows, and then keys to delete, as two ingests."""
    keys = [drawn.randrange(60) for _ in range(drawn.randint(1, 40))]
    values = [f"flight-{number}-{at}" for at in range(len(keys))]
    cursor.adbc_ingest("k", pa.table({"v": values, "id": keys}), mode="append")
    expected.update(zip(keys, values, strict=True))
    gone = [drawn.randrange(60) for _ in range(drawn.randint(1, 10))]
    rows = pa.table({"id": gone}).replace_schema_metadata({"duckmesh.op": "delete"})
    assert cursor.adbc_ingest("k", rows, mode="append") == len(gone)
    for key in gone:
        expected.pop(key, None)


def test_a_delete_is_refused_where_it_means_nothing(running: Service) -> None:
    _, uri = running.serve()
    keys = pa.table({"id": [1]}).replace_schema_metadata({"duckmesh.op": "delete"})
    with flightsql.connect(uri, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE k (id BIGINT PRIMARY KEY, v VARCHAR)")
        cursor.execute("CREATE TABLE plain (id BIGINT)")
        for table, rows, mode in (
            ("k", keys, "replace"),
            ("k", keys.replace_schema_metadata({"duckmesh.op": "merge"}), "append"),
            ("plain", keys, "append"),
        ):
            with pytest.raises(adbc_driver_manager.Error, match="INVALID_OP"):
                cursor.adbc_ingest(table, rows, mode=mode)
