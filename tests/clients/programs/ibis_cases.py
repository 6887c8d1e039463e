"""What Ibis does with the GizmoSQL backend."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version as version_of
from typing import Any
from uuid import uuid4

import ibis
import pyarrow as pa

ROWS = pa.table({"id": pa.array([1, 2, 3], pa.int64()), "kind": ["a", "b", "a"]})


def version() -> str:
    return version_of("ibis-gizmosql")


@contextmanager
def connected(place: Any) -> Iterator[Any]:
    connection = ibis.gizmosql.connect(
        host=place.host,
        port=place.port,
        user="anyone",
        password=place.key,
        use_encryption=False,
    )
    try:
        yield connection
    finally:
        connection.disconnect()


def new_name() -> str:
    return f"t_{uuid4().hex[:12]}"


def case_connect_and_sql(place: Any) -> None:
    with connected(place) as connection:
        got = connection.sql("SELECT i, i * 2 AS twice FROM range(5) r(i)")
        assert got.twice.sum().execute() == 20


def case_current_catalog_and_lists(place: Any) -> None:
    with connected(place) as connection:
        assert connection.current_catalog == "duckmesh"
        assert connection.current_database == "main"
        assert "main" in connection.list_databases()
        assert isinstance(connection.list_tables(), list)


def case_create_table_from_arrow_and_aggregate(place: Any) -> None:
    name = new_name()
    with connected(place) as connection:
        connection.create_table(name, ROWS)
        assert name in connection.list_tables()
        table = connection.table(name)
        assert dict(table.schema().items()).keys() == {"id", "kind"}
        counted = table.group_by("kind").agg(n=table.count()).order_by("kind").to_pyarrow()
        assert counted.to_pydict() == {"kind": ["a", "b"], "n": [2, 1]}
        connection.drop_table(name)
        assert name not in connection.list_tables()


def case_memtable_joins_a_table(place: Any) -> None:
    name = new_name()
    with connected(place) as connection:
        connection.create_table(name, ROWS)
        names = ibis.memtable({"kind": ["a", "b"], "label": ["first", "second"]})
        joined = connection.table(name).join(names, "kind").order_by("id")
        got = connection.to_pyarrow(joined.select("id", "label"))
        assert got.to_pydict() == {"id": [1, 2, 3], "label": ["first", "second", "first"]}


def case_create_table_from_an_expression(place: Any) -> None:
    source, target = new_name(), new_name()
    with connected(place) as connection:
        connection.create_table(source, ROWS)
        table = connection.table(source)
        connection.create_table(target, table.filter(table.kind == "a"))
        assert connection.table(target).count().execute() == 2


def case_create_with_schema_then_insert(place: Any) -> None:
    name = new_name()
    with connected(place) as connection:
        connection.create_table(name, schema={"id": "int64", "kind": "string"})
        connection.insert(name, ROWS)
        assert connection.table(name).count().execute() == 3


def case_overwrite(place: Any) -> None:
    name = new_name()
    with connected(place) as connection:
        connection.create_table(name, ROWS)
        connection.create_table(name, ROWS.slice(1), overwrite=True)
        assert connection.table(name).count().execute() == 2


def case_view(place: Any) -> None:
    source, view = new_name(), new_name()
    with connected(place) as connection:
        connection.create_table(source, ROWS)
        table = connection.table(source)
        connection.create_view(view, table.filter(table.id > 1))
        assert connection.table(view).count().execute() == 2
        connection.drop_view(view)


def case_batches(place: Any) -> None:
    with connected(place) as connection:
        expression = connection.sql("SELECT i FROM range(200000) r(i)")
        with expression.to_pyarrow_batches(chunk_size=50_000) as reader:
            assert sum(batch.num_rows for batch in reader) == 200_000
