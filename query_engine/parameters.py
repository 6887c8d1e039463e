"""Parameters, from an Arrow batch into DuckDB, without loss.

Python's own types cannot carry them: its dates end at the year 9999 and its times at
microseconds. Numbers, texts and bytes pass as they are; every other type passes as the text that
DuckDB itself writes for it, tagged with its exact type, for DuckDB reads back what it wrote.
A value bound so keeps `cur.sql(...)`, and with it the stream: EXECUTE would materialise.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import duckdb
import pyarrow as pa

from duckmesh.errors import ErrorCode, Invalid, NotSupported
from duckmesh.statements import Statements
from query_engine.on_use import DatabaseOnUse
from query_engine.quoting import sql_type
from query_engine.syntax import Parameter

_SQL: Final = Statements("query_engine", "engine.sql")
Bound = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Bindings:
    """One row of parameters: values by identifier, and the SQL types of those that are NULL."""

    values: Bound
    null_types: Mapping[str, str]


NO_PARAMETERS: Final = Bindings({}, {})


class ParameterReader:
    """Turns batches of parameters into bindings. Safe from any thread; reads no tenant's data."""

    def __init__(self) -> None:
        self._texts = DatabaseOnUse(_texts)

    def close(self) -> None:
        self._texts.close()

    def bindings(
        self, batch: pa.RecordBatch | None, places: tuple[Parameter, ...]
    ) -> Iterator[Bindings]:
        """One row of bindings for each row of `batch`, converted when asked for.

        Raises Invalid at once for a wrong count or a missing name, NotSupported for a type
        that DuckDB does not have.
        """
        wanted = identifiers(places)
        given = 0 if batch is None else batch.num_columns
        columns = parameter_columns(wanted, [] if batch is None else batch.schema.names, given)
        if batch is None or not wanted:
            return iter((NO_PARAMETERS,))
        if batch.num_rows == 0:
            raise Invalid(
                ErrorCode.QUERY_EXECUTION_FAILED,
                f"the statement takes {len(wanted)} parameters and got no row of values",
                expected=len(wanted),
                got=0,
            )
        kinds = {name: sql_type(batch.schema.field(at).type) for name, at in columns.items()}
        return self._rows(batch, columns, kinds)

    def _rows(
        self, batch: pa.RecordBatch, columns: Mapping[str, int], kinds: Mapping[str, str]
    ) -> Iterator[Bindings]:
        for row in range(batch.num_rows):
            values: dict[str, Any] = {}
            null_types: dict[str, str] = {}
            for name, at in columns.items():
                cell = batch.column(at).slice(row, 1)
                if not cell[0].is_valid:
                    values[name] = None
                    null_types[name] = kinds[name]
                else:
                    values[name] = self._value(cell, kinds[name])
            yield Bindings(values, null_types)

    def _value(self, cell: pa.Array, kind: str) -> duckdb.Value:
        if isinstance(cell, pa.ExtensionArray):
            # A UUID's sixteen bytes become the text that DuckDB reads as one.
            value = cell[0].as_py()
            return duckdb.Value(str(value) if kind == "UUID" else value, duckdb.sqltype(kind))
        if isinstance(cell, pa.DictionaryArray):
            cell = cell.dictionary_decode()
        if _passes_as_it_is(cell.type):
            return duckdb.Value(cell[0].as_py(), duckdb.sqltype(kind))
        if pa.types.is_decimal(cell.type):
            return duckdb.Value(format(cell[0].as_py(), "f"), duckdb.sqltype(kind))
        return self._by_text(cell)

    def _by_text(self, cell: pa.Array) -> duckdb.Value:
        with self._texts.cursor() as cursor:
            cursor.register("parameter", pa.table({"v": cell}))
            try:
                ((kind, text),) = cursor.execute(_SQL["as_text"]).fetchall()
            except duckdb.Error:
                raise NotSupported(
                    ErrorCode.NOT_SUPPORTED,
                    f"parameters of type {cell.type} are not supported; send the value as text",
                ) from None
            return duckdb.Value(text, duckdb.sqltype(kind))


def _texts() -> duckdb.DuckDBPyConnection:
    database = duckdb.connect(":memory:", config={"threads": 1})
    database.execute(_SQL["use_utc"])
    return database


def _passes_as_it_is(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(
        types.is_boolean(kind)
        or types.is_integer(kind)
        or types.is_floating(kind)
        or types.is_string(kind)
        or types.is_large_string(kind)
        or types.is_string_view(kind)
        or types.is_binary(kind)
        or types.is_large_binary(kind)
        or types.is_binary_view(kind)
        or types.is_fixed_size_binary(kind)
    )


def identifiers(places: tuple[Parameter, ...]) -> tuple[str, ...]:
    """The distinct parameters: numbers in their order, names in the order of the text."""
    seen = dict.fromkeys(place.identifier for place in places)
    if all(name.isdigit() for name in seen):
        return tuple(sorted(seen, key=int))
    return tuple(seen)


def parameter_columns(wanted: tuple[str, ...], names: list[str], given: int) -> dict[str, int]:
    """Which column of the batch feeds which parameter."""
    numbered = all(name.isdigit() for name in wanted)
    expected = max(map(int, wanted), default=0) if numbered else len(wanted)
    if given != expected:
        raise Invalid(
            ErrorCode.QUERY_EXECUTION_FAILED,
            f"the statement takes {expected} parameters and got {given}",
            expected=expected,
            got=given,
        )
    if numbered:
        return {name: int(name) - 1 for name in wanted}
    places = {name.lower(): at for at, name in enumerate(names)}
    if all(name.lower() in places for name in wanted):
        return {name: places[name.lower()] for name in wanted}
    # Clients that cannot name parameters send them in the order in which they stand.
    return {name: at for at, name in enumerate(wanted)}


def with_typed_nulls(
    sql: str, places: tuple[Parameter, ...], bindings: Bindings
) -> tuple[str, Bound]:
    """The statement with its NULL parameters written out as typed NULLs, and the other values.

    A bound NULL loses its type on the way into DuckDB; `SELECT $1` would answer with a column of
    no type. Raises nothing: a place that does not hold a parameter leaves the statement as it is.
    """
    text = sql.encode()
    for place in sorted(places, key=lambda each: each.at, reverse=True):
        kind = bindings.null_types.get(place.identifier)
        if kind is None:
            continue
        token = text[place.at : place.at + place.length]
        if token[:1] not in (b"?", b"$"):
            return sql, bindings.values
        typed = f"CAST(NULL AS {kind})".encode()
        text = text[: place.at] + typed + text[place.at + place.length :]
    left = {k: v for k, v in bindings.values.items() if k not in bindings.null_types}
    return text.decode(), left


def plain_values(batch: pa.RecordBatch, places: tuple[Parameter, ...]) -> dict[str, Any]:
    """The first row's values in Python's types; without those that these cannot carry."""
    wanted = identifiers(places)
    values = {}
    for name, at in parameter_columns(wanted, batch.schema.names, batch.num_columns).items():
        with contextlib.suppress(ValueError, OverflowError, ArithmeticError):
            values[name] = batch.column(at)[0].as_py()
    return values
