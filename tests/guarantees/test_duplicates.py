"""A key never writes twice, and never lies about what it wrote."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest
from adbc_driver_flightsql import dbapi

from tests.guarantees.test_no_holes import create_over_adbc, one_row, rows_of
from tests.processes import PlainClient, service


@pytest.mark.timeout(120)
def test_one_key_from_eight_clients_at_once_is_one_write_with_eight_equal_receipts(
    database_dsn: str, tmp_path: Path
) -> None:
    with service(database_dsn, tmp_path) as running:
        uris = [running.serve()[1] for _ in range(2)]
        running.coordinate("c1")
        create_over_adbc(uris[0])
        clients = [PlainClient(uris[number % 2]) for number in range(8)]
        with ThreadPoolExecutor(8) as pool:
            for turn in range(20):
                row = one_row((7, turn))

                def put(client: PlainClient, batch=row, key=f"key-{turn}"):
                    return client.put("t", batch, key=key)

                receipts = list(pool.map(put, clients))
                assert len({receipt["visibility_token"] for receipt in receipts}) == 1
                assert [receipt["duplicate"] for receipt in receipts].count(False) == 1
        token = receipts[0]["visibility_token"]
        found = rows_of(clients[0].query("SELECT writer, number FROM t", token=token))
        assert sorted(found) == [(7, turn) for turn in range(20)]

        with pytest.raises(Exception, match="IDEMPOTENCY_CONFLICT"):
            clients[0].put("t", one_row((7, 999)), key="key-0")
        again = clients[1].put("t", one_row((7, 0)), key="key-0")
        assert again["duplicate"]
        found = rows_of(clients[0].query("SELECT writer, number FROM t", token=token))
        assert sorted(found) == [(7, turn) for turn in range(20)]


@pytest.mark.timeout(120)
def test_a_key_survives_the_restart_of_every_process(database_dsn: str, tmp_path: Path) -> None:
    with service(database_dsn, tmp_path) as running:
        process, uri = running.serve()
        coordinator = running.coordinate("c1")
        create_over_adbc(uri)
        first = PlainClient(uri).put("t", one_row((1, 1)), key="k")
        process.kill()
        coordinator.kill()
        _, uri = running.serve()
        running.coordinate("c2")
        client = PlainClient(uri)
        again = client.put("t", one_row((1, 1)), key="k")
        assert again["visibility_token"] == first["visibility_token"]
        assert again["duplicate"]
        found = client.query("SELECT writer, number FROM t", token=first["visibility_token"])
        assert rows_of(found) == [(1, 1)]


@pytest.mark.timeout(120)
def test_a_bulk_ingest_with_a_key_is_one_write_however_it_is_cut(
    database_dsn: str, tmp_path: Path
) -> None:
    rows = pa.table({"v": pa.array(range(400_000), pa.int64())})
    with service(database_dsn, tmp_path) as running:
        _, uri = running.serve()
        running.coordinate("c1")
        with dbapi.connect(uri, autocommit=True) as connection, connection.cursor() as cursor:
            keyed = rows.replace_schema_metadata({"idempotency_key": "load-1"})
            for chunk in (400_000, 65_536, 10_000):
                cut = pa.Table.from_batches(keyed.to_batches(max_chunksize=chunk))
                assert cursor.adbc_ingest("bulk", cut, mode="create") == 400_000
            cursor.execute("SELECT count(*), sum(v) FROM bulk")
            assert cursor.fetchone() == (400_000, sum(range(400_000)))
