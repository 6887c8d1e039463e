"""Acknowledged with token T means: in every query that asks for T.

The proof that the check can fail: the same load over a bus whose tokens come from a sequence at
INSERT, as a plain identity column would give them. It must find holes.
"""

import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from duckmesh.errors import DuckMeshError
from ingest_bus.acceptance import Acceptance
from ingest_bus.envelope import Envelope, Receipt
from ingest_bus.postgres import PostgresIngestBus
from tests.guarantees.load import Load, Row
from tests.processes import PlainClient, service
from tests.rooms import Rooms, ShiftedCatalog

WRITERS = 32
SCHEMA = pa.schema([("writer", pa.int64()), ("number", pa.int64())])


def one_row(row: Row) -> pa.RecordBatch:
    return pa.record_batch([[row[0]], [row[1]]], schema=SCHEMA)


def rows_of(table: pa.Table) -> list[Row]:
    return list(zip(table["writer"].to_pylist(), table["number"].to_pylist(), strict=True))


def create_table(put: Callable[[pa.Table], object]) -> None:
    put(SCHEMA.empty_table())


@pytest.mark.load
@pytest.mark.timeout(600)
def test_a_query_with_a_token_has_every_write_acknowledged_up_to_it(
    database_dsn: str, tmp_path: Path
) -> None:
    with service(database_dsn, tmp_path) as running:
        uris = [running.serve()[1] for _ in range(2)]
        running.coordinate("c1")
        create_over_adbc(uris[0])
        clients = [PlainClient(uris[number % 2]) for number in range(WRITERS)]
        reader = PlainClient(uris[1])
        # A query's worker takes its time to start beside 32 writers: it starts before them.
        assert reader.query("SELECT 1 AS one").num_rows == 1

        def write(client: PlainClient, row: Row) -> int:
            return client.put("t", one_row(row))["visibility_token"]

        load = Load()
        load.run(
            [partial(write, client) for client in clients],
            lambda token: rows_of(reader.query("SELECT writer, number FROM t", token=token)),
        )
    print(f"{len(load.acknowledged)} writes, {load.reads} checked reads")
    assert not load.failures
    assert load.reads > 5
    assert len(load.acknowledged) > WRITERS
    assert not load.holes
    assert not load.doubles
    tokens = sorted(token for token, _ in load.acknowledged)
    first = tokens[0]
    assert tokens == list(range(first, first + len(tokens))), "tokens are not dense"


def create_over_adbc(uri: str) -> None:
    from adbc_driver_flightsql import dbapi

    with dbapi.connect(uri, autocommit=True) as connection, connection.cursor() as cursor:
        no_rows = pa.record_batch([[], []], schema=SCHEMA)
        cursor.adbc_ingest("t", no_rows, mode="create")


class SequenceTokensBus(PostgresIngestBus):
    """WRONG on purpose: each token is drawn when its row is inserted, not when it commits."""

    def publish(self, envelopes: Sequence[Envelope], **_: Any) -> list[Receipt]:
        (envelope,) = envelopes
        with self._database.connect() as connection:
            self._publisher._open_tenant(connection, envelope.tenant_id)
            with connection.transaction():
                row = connection.execute(
                    "INSERT INTO ingest_event (tenant_id, visibility_token, event_id, table_id, "
                    "schema_version, operation, payload_kind, payload, row_count, byte_count) "
                    "VALUES (%s, nextval('wrong_tokens'), %s, %s, %s, 'insert', 'inline', %s, %s, "
                    "%s) RETURNING visibility_token",
                    (
                        envelope.tenant_id,
                        envelope.event_id,
                        envelope.table_id,
                        envelope.schema_version,
                        envelope.payload.content,
                        envelope.row_count,
                        envelope.byte_count,
                    ),
                ).fetchone()
            token = row[0]
            connection.execute(
                "UPDATE token_counter SET last_token = greatest(last_token, %s) "
                "WHERE tenant_id = %s",
                (token, envelope.tenant_id),
            )
        return [Receipt(envelope.event_id, token, envelope.row_count)]

    def _settle(self, connection, claim, **_: object) -> None:
        # As a watermark over such tokens would: everything up to the last one seen is done.
        connection.execute(
            "UPDATE ingest_lease SET acked_token = %s, attempt = 0, batch_id = NULL, "
            "lease_until = NULL WHERE tenant_id = %s",
            (claim.last_token, claim.tenant_id),
        )

    def submit(self, envelopes: Sequence[Envelope]) -> Acceptance:
        return Acceptance.of(self.publish(envelopes))


def _run_in_rooms(rooms: Rooms, bus_class: type[PostgresIngestBus]) -> Load:
    """The same load and the same check, without processes: two buses, one coordinator, a reader."""
    create_table(lambda empty: rooms.write("t", empty))
    rooms.publish_all()
    rooms.bus = bus_class(rooms.catalog)
    catalogs = [ShiftedCatalog(rooms.dsn, pool_max=WRITERS) for _ in range(2)]
    doors = [_writes_over(rooms, bus_class(catalog)) for catalog in catalogs]

    def write(number: int, row: Row) -> int:
        writes = doors[number % 2]
        target = writes.open_stream(rooms.acme, "t", SCHEMA)
        accepted = writes.append_batch(rooms.acme, target, one_row(row), idempotency_key=None)
        return int(accepted.result()[0].visibility_token)

    stop = threading.Event()
    coordinator = threading.Thread(target=_coordinate, args=(rooms, stop))
    coordinator.start()
    load = Load()
    try:
        load.run(
            [partial(write, number) for number in range(WRITERS)],
            lambda token: rows_of(rooms.query("SELECT writer, number FROM t", min_token=token)),
        )
    finally:
        stop.set()
        coordinator.join()
        for catalog in catalogs:
            catalog.close()
    return load


def _writes_over(rooms: Rooms, bus: PostgresIngestBus):
    from gateway.limits import IngestLimits
    from gateway.staging import StagingLimits
    from gateway.writes import Writes

    return Writes(rooms.catalog, bus, rooms.store, limits=IngestLimits(), staging=StagingLimits())


def _coordinate(rooms: Rooms, stop: threading.Event) -> None:
    materializer = rooms.materializer()
    while not stop.is_set():
        try:
            if materializer.publish_next() is None:
                stop.wait(0.005)
        except DuckMeshError:
            stop.wait(0.005)


@pytest.mark.load
@pytest.mark.timeout(600)
def test_the_check_finds_no_holes_over_our_bus(rooms: Rooms) -> None:
    load = _run_in_rooms(rooms, PostgresIngestBus)
    assert not load.failures
    assert not load.holes
    assert not load.doubles


@pytest.mark.load
@pytest.mark.timeout(600)
def test_the_check_finds_the_holes_of_tokens_drawn_at_insert(rooms: Rooms) -> None:
    with rooms.catalog.connect() as connection:
        connection.execute("CREATE SEQUENCE wrong_tokens START 1000")
    load = _run_in_rooms(rooms, SequenceTokensBus)
    print(f"{len(load.holes)} holes in {load.reads} reads")
    assert load.holes, "the check cannot fail"
