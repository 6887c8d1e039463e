"""Running a statement in DuckDB without making a relation of it.

A relation parses and binds its statement to know its types, and DuckDB does both once more to run
it: for a small statement a third of the time. What a relation calls then is called here. The name
is DuckDB's own affair; where it is missing, relations do.
"""

from collections.abc import Mapping
from typing import Any, Final

import duckdb
import pyarrow as pa

_SUBMIT: Final = getattr(duckdb.DuckDBPyConnection, "_submit", None)
_BATCH_ROWS: Final = 65_536


def relation_of(
    cursor: duckdb.DuckDBPyConnection, sql: str, values: Mapping[str, Any]
) -> duckdb.DuckDBPyRelation:
    """A query bound with its values and not run: its types are known. Raises DuckDB's errors."""
    return cursor.sql(sql, params=dict(values)) if values else cursor.sql(sql)


def streamed(
    cursor: duckdb.DuckDBPyConnection, sql: str, values: Mapping[str, Any], batch_rows: int
) -> pa.RecordBatchReader:
    """The rows of a query as they come, in batches of so many. Raises DuckDB's errors."""
    if _SUBMIT is not None:
        submitted = _SUBMIT(cursor, sql, dict(values) or None, "stream", batch_rows)
        return submitted.arrow_reader()
    return relation_of(cursor, sql, values).to_arrow_reader(batch_rows)


def whole(cursor: duckdb.DuckDBPyConnection, sql: str) -> pa.Table:
    """All rows of a query. Raises DuckDB's errors."""
    if _SUBMIT is not None:
        return _SUBMIT(cursor, sql, None, "arrow", _BATCH_ROWS).arrow_table()
    return cursor.sql(sql).to_arrow_table()
