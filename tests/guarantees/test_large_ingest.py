"""A large write is durable, visible and exact, and its size is not the server's to hold."""

from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from adbc_driver_flightsql import dbapi

from tests.processes import Service, service
from tests.s3_fixtures import S3Bucket

ROWS = 3_000_000
BATCH_ROWS = 50_000
MEMORY_LIMIT_BYTES = 500 * 2**20
SCHEMA = pa.schema([("id", pa.int64()), ("half", pa.float64()), ("name", pa.string())])


def batches(rows: int) -> pa.RecordBatchReader:
    """Rows 0 to `rows`, made as they are sent."""

    def made() -> Iterator[pa.RecordBatch]:
        for start in range(0, rows, BATCH_ROWS):
            ids = pa.array(range(start, min(start + BATCH_ROWS, rows)), pa.int64())
            halves = ids.cast(pa.float64())
            names = ids.cast(pa.string())
            yield pa.record_batch([ids, halves, names], schema=SCHEMA)

    return pa.RecordBatchReader.from_batches(SCHEMA, made())


class Peak:
    """The most memory that a process was seen to hold."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self.first_bytes = self._process.memory_info().rss
        self.most_bytes = self.first_bytes

    def look(self) -> None:
        self.most_bytes = max(self.most_bytes, self._process.memory_info().rss)

    def watched(self, reader: pa.RecordBatchReader) -> pa.RecordBatchReader:
        def looking() -> Iterator[pa.RecordBatch]:
            for batch in reader:
                self.look()
                yield batch

        return pa.RecordBatchReader.from_batches(reader.schema, looking())


def start(service: Service) -> tuple[int, str]:
    process, uri = service.serve()
    service.coordinate("c1")
    return process.pid, uri


@pytest.mark.load
@pytest.mark.timeout(300)
def test_large_writes_in_every_mode_are_exact_and_do_not_fill_the_memory(
    database_dsn: str, tmp_path: Path
) -> None:
    with service(database_dsn, tmp_path) as running:
        pid, uri = start(running)
        with dbapi.connect(uri, autocommit=True) as connection, connection.cursor() as cursor:
            cursor.adbc_ingest("warm", batches(100_000), mode="create")
            peak = Peak(pid)
            copies = 0
            for mode in ("create", "append", "create_append", "replace"):
                copies = 1 if mode == "replace" else copies + 1
                assert cursor.adbc_ingest("t", peak.watched(batches(ROWS)), mode=mode) == ROWS
                peak.look()
                cursor.execute("SELECT count(*), sum(id), count(DISTINCT id) FROM t")
                total = sum(range(ROWS)) * copies
                assert cursor.fetchone() == (ROWS * copies, total, ROWS)
        with psycopg.connect(database_dsn) as catalog:
            files = catalog.execute(
                "SELECT path, record_count FROM data_file f JOIN table_def t USING (table_id) "
                "WHERE t.name = 't' AND f.end_snapshot IS NULL"
            ).fetchall()
    grown = peak.most_bytes - peak.first_bytes
    print(f"{grown / 2**20:.0f} MiB more for 4 writes of {ROWS} rows")
    assert grown < MEMORY_LIMIT_BYTES
    assert sum(count for _, count in files) == ROWS
    for path, count in files:
        assert pq.read_metadata(tmp_path / "objects" / path).num_rows == count


@pytest.mark.timeout(300)
def test_a_large_write_to_s3_is_exact_and_read_back_through_the_cache(
    database_dsn: str, tmp_path: Path, s3_bucket: S3Bucket
) -> None:
    server = s3_bucket.server.options()
    settings = {
        "DUCKMESH_STORE_URL": s3_bucket.url,
        "DUCKMESH_STORE_ENDPOINT": str(server.endpoint),
        "DUCKMESH_STORE_REGION": str(server.region),
        "DUCKMESH_STORE_ACCESS_KEY_ID": str(server.access_key_id),
        "DUCKMESH_STORE_SECRET_ACCESS_KEY": str(server.secret_access_key),
        "DUCKMESH_STORE_ALLOW_HTTP": "true",
    }
    rows = 300_000
    with service(database_dsn, tmp_path, **settings) as running:
        _, uri = start(running)
        with dbapi.connect(uri, autocommit=True) as connection, connection.cursor() as cursor:
            assert cursor.adbc_ingest("t", batches(rows), mode="create") == rows
            cursor.execute("SELECT count(*), sum(id), max(name) FROM t")
            assert cursor.fetchone() == (rows, sum(range(rows)), "99999")
            assert not (tmp_path / "objects").exists()
