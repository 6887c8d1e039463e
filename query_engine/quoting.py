"""How names, texts and Arrow types are spelled in DuckDB's SQL."""

from collections.abc import Iterable
from typing import Final

import pyarrow as pa

from duckmesh.errors import ErrorCode, NotSupported

_DAY_MICROSECONDS: Final = 86_400_000_000

_PLAIN: Final[dict[pa.DataType, str]] = {
    pa.bool_(): "BOOLEAN",
    pa.int8(): "TINYINT",
    pa.int16(): "SMALLINT",
    pa.int32(): "INTEGER",
    pa.int64(): "BIGINT",
    pa.uint8(): "UTINYINT",
    pa.uint16(): "USMALLINT",
    pa.uint32(): "UINTEGER",
    pa.uint64(): "UBIGINT",
    pa.float16(): "FLOAT",
    pa.float32(): "FLOAT",
    pa.float64(): "DOUBLE",
    pa.string(): "VARCHAR",
    pa.large_string(): "VARCHAR",
    pa.string_view(): "VARCHAR",
    pa.binary(): "BLOB",
    pa.large_binary(): "BLOB",
    pa.binary_view(): "BLOB",
    pa.date32(): "DATE",
    pa.date64(): "DATE",
    pa.time32("s"): "TIME",
    pa.time32("ms"): "TIME",
    pa.time64("us"): "TIME",
    pa.time64("ns"): "TIME_NS",
    pa.timestamp("s"): "TIMESTAMP_S",
    pa.timestamp("ms"): "TIMESTAMP_MS",
    pa.timestamp("us"): "TIMESTAMP",
    pa.timestamp("ns"): "TIMESTAMP_NS",
    pa.month_day_nano_interval(): "INTERVAL",
    pa.null(): '"NULL"',
}


def literal(text: str) -> str:
    """`text` as a SQL string."""
    return "'" + text.replace("'", "''") + "'"


def identifier(name: str) -> str:
    """`name` as a quoted SQL name."""
    return '"' + name.replace('"', '""') + '"'


def literal_list(texts: Iterable[str]) -> str:
    """The texts as a SQL list of strings."""
    return "[" + ", ".join(map(literal, texts)) + "]"


def sql_type(arrow: pa.DataType) -> str:
    """The DuckDB type that holds every value of an Arrow type.

    Raises NotSupported for a type that DuckDB would narrow (decimals of more than 38 digits).
    """
    plain = _PLAIN.get(arrow)
    if plain is not None:
        return plain
    if pa.types.is_timestamp(arrow):
        return "TIMESTAMPTZ_NS" if arrow.unit == "ns" else "TIMESTAMP WITH TIME ZONE"
    if pa.types.is_decimal(arrow) and arrow.precision <= 38:
        return f"DECIMAL({arrow.precision},{arrow.scale})"
    if pa.types.is_fixed_size_binary(arrow):
        return "BLOB"
    if pa.types.is_duration(arrow):
        return "INTERVAL"
    return _nested_type(arrow)


def _nested_type(arrow: pa.DataType) -> str:
    if pa.types.is_dictionary(arrow):
        return sql_type(arrow.value_type)
    if pa.types.is_map(arrow):
        return f"MAP({sql_type(arrow.key_type)}, {sql_type(arrow.item_type)})"
    if pa.types.is_struct(arrow):
        parts = (f"{identifier(field.name)} {sql_type(field.type)}" for field in arrow)
        return "STRUCT(" + ", ".join(parts) + ")"
    if pa.types.is_fixed_size_list(arrow):
        return f"{sql_type(arrow.value_type)}[{arrow.list_size}]"
    if hasattr(arrow, "value_type"):
        return f"{sql_type(arrow.value_type)}[]"
    if isinstance(arrow, pa.BaseExtensionType):
        if arrow.extension_name == "arrow.uuid":
            return "UUID"
        return sql_type(arrow.storage_type)
    raise NotSupported(
        ErrorCode.NOT_SUPPORTED,
        f"columns of type {arrow} cannot be queried; store them as a type that DuckDB has",
        type=str(arrow),
    )


def file_type(arrow: pa.DataType) -> str:
    """The DuckDB type of a column as it lies in a Parquet file: Parquet knows no durations."""
    return "BIGINT" if pa.types.is_duration(arrow) else sql_type(arrow)


_SAME_IN_FILES: Final = frozenset(
    {
        *(pa.bool_(), pa.float32(), pa.float64(), pa.date32()),
        *(pa.int8(), pa.int16(), pa.int32(), pa.int64()),
        *(pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()),
        *(pa.string(), pa.large_string(), pa.binary(), pa.large_binary()),
    }
)


def same_in_files(arrow: pa.DataType) -> bool:
    """Whether DuckDB, left alone, reads a column of this type from Parquet as `file_type` says."""
    if pa.types.is_timestamp(arrow):
        return bool(arrow.unit == "us")
    return arrow in _SAME_IN_FILES or (pa.types.is_decimal128(arrow) and arrow.precision <= 38)


def value_of(column: str, arrow: pa.DataType) -> str | None:
    """How a query makes a column's values of what its file holds; None when they are the same.

    A duration lies in its file as microseconds. Its days are split off: DuckDB hands an interval
    on in nanoseconds, and those of 292 years and more would overflow there, silently.
    """
    if not pa.types.is_duration(arrow):
        return None
    name = identifier(column)
    return (
        f"to_days(CAST({name} // {_DAY_MICROSECONDS} AS INTEGER)) "
        f"+ to_microseconds({name} % {_DAY_MICROSECONDS})"
    )
