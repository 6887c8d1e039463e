"""What a statement takes and gives, found by binding it and never by running it."""

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import duckdb
import pyarrow as pa

from duckmesh.statements import Statements
from query_engine.on_use import DatabaseOnUse
from query_engine.question import Description, Needs
from query_engine.quoting import identifier, sql_type
from query_engine.relations import MAIN_SCHEMA

__all__ = ["Description", "ParameterSketch"]

_SQL: Final = Statements("query_engine", "engine.sql")


class ParameterSketch:
    """Finds the types of parameters, over empty tables with the columns of the tenant's.

    DuckDB tells a parameter's type only in a serialised plan, and a plan that reads Parquet files
    cannot be serialised; one over tables can. One caller at a time; nothing outlasts a call.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._database = DatabaseOnUse(_sealed)

    def close(self) -> None:
        self._database.close()

    def types(self, sql: str, needs: Needs) -> Mapping[str, pa.DataType]:
        """The types that DuckDB can tell, by identifier; none when one of them is open."""
        with self._lock, self._tables(needs) as cursor:
            try:
                rows = cursor.execute(_SQL["parameter_types"], [sql]).fetchall()
            except duckdb.Error:
                return {}
        try:
            return _bound_parameters(json.loads(rows[0][0]))
        except RecursionError:
            return {}

    @contextmanager
    def _tables(self, needs: Needs) -> Iterator[duckdb.DuckDBPyConnection]:
        # The tables live in a transaction that is always rolled back.
        with self._database.cursor() as cursor:
            cursor.begin()
            try:
                for relation in needs.relations:
                    columns = {each.name: sql_type(each.type) for each in relation.schema}
                    _create(cursor, MAIN_SCHEMA, relation.name, columns)
                for table in needs.tables:
                    columns = {each.name: sql_type(each.type) for each in table.table.schema}
                    _create(cursor, table.schema_name, table.name, columns)
                yield cursor
            finally:
                cursor.rollback()


def _sealed() -> duckdb.DuckDBPyConnection:
    database = duckdb.connect(":memory:", config={"threads": 1})
    database.execute(_SQL["open"])
    database.execute(_SQL["seal_parser"])
    return database


def _create(
    cursor: duckdb.DuckDBPyConnection, schema: str, name: str, columns: Mapping[str, str]
) -> None:
    listed = ", ".join(f"{identifier(column)} {kind}" for column, kind in columns.items())
    cursor.execute(_SQL["create_schema"].format(schema=identifier(schema)))
    cursor.execute(
        _SQL["create_table"].format(
            schema=identifier(schema), table=identifier(name), columns=listed
        )
    )


def _bound_parameters(plan: Any) -> dict[str, pa.DataType]:
    types: dict[str, pa.DataType] = {}
    stack = [plan]
    while stack:
        node = stack.pop()
        if isinstance(node, list):
            stack.extend(node)
        elif isinstance(node, dict):
            if node.get("expression_class") == "BOUND_PARAMETER":
                types[str(node["identifier"])] = _arrow_type(node.get("return_type") or {})
            stack.extend(node.values())
    return types


def _arrow_type(described: Mapping[str, Any]) -> pa.DataType:
    kind = str(described.get("id", ""))
    info = described.get("type_info") or {}
    if kind == "DECIMAL":
        return pa.decimal128(int(info.get("width", 18)), int(info.get("scale", 3)))
    return _ARROW_BY_ID.get(kind, pa.string())


_ARROW_BY_ID: Final[dict[str, pa.DataType]] = {
    "BOOLEAN": pa.bool_(),
    "TINYINT": pa.int8(),
    "SMALLINT": pa.int16(),
    "INTEGER": pa.int32(),
    "BIGINT": pa.int64(),
    "UTINYINT": pa.uint8(),
    "USMALLINT": pa.uint16(),
    "UINTEGER": pa.uint32(),
    "UBIGINT": pa.uint64(),
    "HUGEINT": pa.decimal128(38, 0),
    "FLOAT": pa.float32(),
    "DOUBLE": pa.float64(),
    "BLOB": pa.binary(),
    "DATE": pa.date32(),
    "TIME": pa.time64("us"),
    "TIME_NS": pa.time64("ns"),
    "TIMESTAMP": pa.timestamp("us"),
    "TIMESTAMP_S": pa.timestamp("s"),
    "TIMESTAMP_MS": pa.timestamp("ms"),
    "TIMESTAMP_NS": pa.timestamp("ns"),
    "TIMESTAMP WITH TIME ZONE": pa.timestamp("us", "UTC"),
}
