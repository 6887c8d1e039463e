"""A tenant's files on disk, and engines over them."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from query_engine.engine import QueryEngine, WorkerSettings
from query_engine.relations import Relation, RelationSet, TableRelation


class Lake:
    """Writes Parquet files with field ids, and names them as relations."""

    def __init__(self, directory: Path, tenant: str = "acme", root: Path | None = None) -> None:
        self.directory = directory
        self.tenant = tenant
        self._root = root or directory
        self._written = 0
        self._snapshot = 0
        directory.mkdir(parents=True, exist_ok=True)

    @staticmethod
    def schema(**columns: tuple[int, pa.DataType]) -> pa.Schema:
        return pa.schema(
            pa.field(name, kind, metadata={b"PARQUET:field_id": str(field_id).encode()})
            for name, (field_id, kind) in columns.items()
        )

    def write(self, schema: pa.Schema, columns: Mapping[str, Sequence[Any] | pa.Array]) -> Path:
        self._written += 1
        path = self.directory / f"part-{self._written:05}.parquet"
        arrays = [
            values
            if isinstance(values := columns[field.name], pa.Array)
            else pa.array(values, field.type)
            for field in schema
        ]
        pq.write_table(pa.table(arrays, schema=schema), path)
        return path

    def snapshot(self, *relations: Relation, tables: Sequence[TableRelation] = ()) -> RelationSet:
        self._snapshot += 1
        return RelationSet(self.tenant, self._snapshot, relations, (self._root,), tuple(tables))


NUMBERS = Lake.schema(a=(1, pa.int64()), b=(2, pa.string()))


@pytest.fixture(scope="session")
def lakes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The one directory that a worker of the tenant sees, so that tests share the worker."""
    return tmp_path_factory.mktemp("acme")


@pytest.fixture
def lake(lakes: Path, tmp_path: Path) -> Lake:
    return Lake(lakes / tmp_path.name, root=lakes)


HERE_AND_WORKERS = [
    pytest.param(None, id="here"),
    pytest.param(WorkerSettings(workers=3), id="workers"),
]


@pytest.fixture(scope="session")
def worker_engine() -> Iterator[QueryEngine]:
    with QueryEngine(
        threads=2,
        memory_limit_bytes=512 * 2**20,
        temp_directory=None,
        workers=WorkerSettings(workers=3),
    ) as engine:
        yield engine


@pytest.fixture
def local_engine() -> Iterator[QueryEngine]:
    with QueryEngine(
        threads=2, memory_limit_bytes=512 * 2**20, temp_directory=None, instances_max=4
    ) as engine:
        yield engine


@pytest.fixture(params=["here", "workers"])
def engine(request: pytest.FixtureRequest) -> QueryEngine:
    """DuckDB in this process, and in workers: the same promises hold."""
    name = "local_engine" if request.param == "here" else "worker_engine"
    engine: QueryEngine = request.getfixturevalue(name)
    return engine


@pytest.fixture
def numbers(lake: Lake) -> RelationSet:
    """`t`: three rows in two files; `nothing`: no file."""
    first = lake.write(NUMBERS, {"a": [1, 2], "b": ["x", "y"]})
    second = lake.write(NUMBERS, {"a": [3], "b": [None]})
    return lake.snapshot(
        Relation("t", NUMBERS, (first, second)),
        Relation("nothing", NUMBERS, ()),
        tables=[TableRelation("duckmesh_system", "receipts", pa.table({"token": [7, 8]}))],
    )


class Asking:
    """Runs a query to its end."""

    def __init__(self, engine: QueryEngine) -> None:
        self._engine = engine

    def table(self, sql: str, relations: RelationSet, **options: Any) -> pa.Table:
        with self._engine.run(sql, relations, **options) as running:
            return running.reader.read_all()

    def rows(self, sql: str, relations: RelationSet, **options: Any) -> list[tuple[Any, ...]]:
        table = self.table(sql, relations, **options)
        columns = [column.to_pylist() for column in table.columns]
        return list(zip(*columns, strict=True))


@pytest.fixture
def ask(engine: QueryEngine) -> Asking:
    return Asking(engine)


@pytest.fixture
def ask_here(local_engine: QueryEngine) -> Asking:
    return Asking(local_engine)
