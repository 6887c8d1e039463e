"""A value that the door takes comes back as it was, whatever Arrow type it has."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import adbc_driver_flightsql.dbapi as flightsql
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, Phase, given, settings

from catalog.table_schema import TableSchema
from data_files.parquet import decode_parquet, encode_parquet
from data_files.payload import decode_batches, encode_batches
from data_files.row_hash import hash_of
from gateway.conform import Conformer
from query_engine.engine import QueryEngine
from query_engine.relations import Relation, RelationSet
from tests.guarantees.arrow_values import Column, every_kind, tables, told
from tests.processes import service
from tests.rooms import Rooms, open_rooms

THOROUGH = settings(
    max_examples=400,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


FEW = settings(THOROUGH, max_examples=12, phases=[Phase.generate])

PATIENT = {"adbc.flight.sql.rpc.call_header.x-duckmesh-consistency-timeout-ms": "60000"}


@pytest.fixture(scope="module")
def world(module_database_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rooms]:
    with open_rooms(module_database_dsn, tmp_path_factory.mktemp("rooms")) as opened:
        yield opened


@pytest.fixture(scope="module")
def engine() -> Iterator[QueryEngine]:
    with QueryEngine(threads=1, memory_limit_bytes=2**29, temp_directory=None) as opened:
        yield opened


def offered(columns: list[Column]) -> pa.RecordBatch:
    arrays = [column.array for column in columns]
    return pa.RecordBatch.from_arrays(arrays, names=[f"c{at}" for at in range(len(arrays))])


def check(columns: list[Column], answered: pa.Table) -> None:
    for column, name in zip(columns, answered.schema.names, strict=True):
        values = answered.column(name)
        assert same_type(values.type, column.kind.answered), column.kind.offered
        found = [row for chunk in values.chunks for row in told(chunk)]
        assert found == column.expected, column.kind.offered


def same_type(left: pa.DataType, right: pa.DataType) -> bool:
    """Equal but for the names of the items of lists and maps."""
    if left.id != right.id or left.num_fields != right.num_fields:
        return False
    if left.num_fields == 0:
        return left.equals(right)
    return all(
        same_type(left.field(at).type, right.field(at).type) for at in range(left.num_fields)
    )


_numbers = itertools.count()


@THOROUGH
@given(columns=tables())
def test_every_value_comes_back_as_it_was(
    columns: list[Column], engine: QueryEngine, tmp_path: Path
) -> None:
    batch = offered(columns)
    schema = TableSchema.first(batch.schema)
    schema = TableSchema.from_bytes(schema.version, schema.to_bytes())
    conformer = Conformer.between(batch.schema, schema.arrow)
    # In two writes, cut where the slices have offsets, through the bus's payload and Parquet.
    half = batch.num_rows // 2
    parts = [conformer.conform(part) for part in (batch.slice(0, half), batch.slice(half))]
    assert hash_of(conformer.conform(batch).slice(half)) == hash_of(parts[1])
    carried = list(decode_batches(encode_batches(parts), schema.arrow))
    written = encode_parquet(carried, schema.arrow).content
    # Read and written once more, as a fold does.
    folded = encode_parquet(decode_parquet(written, schema.arrow), schema.arrow).content
    file = tmp_path / f"{next(_numbers)}.parquet"
    file.write_bytes(folded)
    relation = Relation(f"t{file.stem}", schema.arrow, (file,))
    lake = RelationSet("acme", 1, (relation,), (tmp_path,))
    with engine.run(f"SELECT * FROM t{file.stem}", lake) as running:
        check(columns, running.reader.read_all())
    file.unlink()


@FEW
@given(columns=tables(columns=6, rows=40))
def test_every_value_comes_back_through_the_bus_and_the_catalog(
    columns: list[Column], world: Rooms
) -> None:
    table = f"t{next(_numbers)}"
    batch = offered(columns)
    third = batch.num_rows // 3
    # Chunks of any length in one write, and a second write of the rest.
    world.write(table, pa.Table.from_batches([batch.slice(0, third), batch.slice(third, third)]))
    world.write(table, pa.Table.from_batches([batch.slice(2 * third)]))
    world.publish_all()
    check(columns, world.query(f"SELECT * FROM {table}"))


def test_every_type_passes_through_adbc_and_real_processes(
    module_database_dsn: str, tmp_path: Path
) -> None:
    with service(module_database_dsn, tmp_path) as running:
        _, uri = running.serve()
        running.coordinate("c1")
        with flightsql.connect(uri, db_kwargs=PATIENT, autocommit=True) as connection:

            @settings(THOROUGH, max_examples=2, phases=[Phase.generate])
            @given(columns=every_kind(rows=20))
            def round_trip(columns: list[Column]) -> None:
                table = f"adbc{next(_numbers)}"
                with connection.cursor() as cursor:
                    cursor.adbc_ingest(table, offered(columns), mode="create")
                    cursor.execute(f"SELECT * FROM {table}")
                    check(columns, cursor.fetch_arrow_table())

            round_trip()
