"""Which partition each row belongs to, by the spec of its table. Pure: no I/O."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from datetime import date, timedelta
from decimal import Decimal
from itertools import groupby
from operator import itemgetter
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from data_files import transforms
from duckmesh.errors import ErrorCode, Invalid
from duckmesh.identifiers import FIELD_ID
from duckmesh.partitions import (
    MANY,
    Partition,
    PartitionField,
    PartitionSpec,
    PartitionTerm,
    Transform,
    field_of,
    is_many,
    spec_invalid,
)

_TEXT_MAX_CHARS: Final = 128
_BYTES_MAX: Final = 64
_HASH_SHOWN_CHARS: Final = 16
_EPOCH: Final = date(1970, 1, 1)
_YEAR_ZERO: Final = 1970


def bound_spec(terms: Sequence[PartitionTerm], schema: pa.Schema) -> PartitionSpec:
    """The terms with the field ids of a table's columns; names compare without case.

    Raises Invalid (PARTITION_SPEC_INVALID) for a column that the table has not, a transform that
    its type does not take, and a field that comes twice.
    """
    columns = {field.name.lower(): field for field in schema}
    spec: list[PartitionField] = []
    for term in terms:
        column = columns.get(term.column.lower())
        if column is None:
            raise spec_invalid(
                f"the table has no column {term.column[:80]!r} to be partitioned by: correct the "
                "name, or add the column",
                column=term.column[:80],
            )
        check_type(term.transform, column)
        bound = PartitionField(term.transform, int(column.metadata[FIELD_ID]))
        if bound in spec:
            raise spec_invalid(f"{term} comes twice: leave one out", field=str(term))
        spec.append(bound)
    return tuple(spec)


def check_type(transform: Transform, column: pa.Field) -> None:
    """Raise Invalid (PARTITION_SPEC_INVALID) when the transform is not of the column's type."""
    if not transforms.takes(transform, column.type):
        raise spec_invalid(
            f"{transform.name} does not take column {column.name!r} of type {column.type}: choose "
            "another transform, or another column",
            column=column.name,
            type=str(column.type),
        )


def terms_of(spec: PartitionSpec, schema: pa.Schema) -> tuple[PartitionTerm, ...]:
    """The spec as people write it; without what is of columns that the schema has not."""
    names = _names(schema)
    return tuple(
        PartitionTerm(each.transform, names[each.source_id])
        for each in spec
        if each.source_id in names
    )


def spec_texts(spec: PartitionSpec, schema: pa.Schema) -> tuple[str, ...]:
    """`terms_of` as text."""
    return tuple(str(term) for term in terms_of(spec, schema)) if spec else ()


def folders_of(partition: Partition, schema: pa.Schema) -> tuple[tuple[str, str], ...]:
    """A partition as names and values for people; none for that of several partitions."""
    if is_many(partition):
        return ()
    names = _names(schema)
    fields = [(field_of(key), value) for key, value in partition.items()]
    return tuple(
        (
            f"{names.get(field.source_id, field.source_id)}_{field.transform.name}",
            _shown(field.transform, value),
        )
        for field, value in fields
    )


def partition_text(partition: Partition, schema: pa.Schema) -> str | None:
    """A file's partition for people; None for a file that was written without a spec."""
    if not partition:
        return None
    if is_many(partition):
        return "several"
    return ", ".join(f"{name}={value}" for name, value in folders_of(partition, schema))


def _names(schema: pa.Schema) -> dict[int, str]:
    """The columns' names by field id."""
    return {int(field.metadata[FIELD_ID]): field.name for field in schema}


def _shown(transform: Transform, value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, dict):
        return str(value["sha256"])[:_HASH_SHOWN_CHARS]
    try:
        match transform.name:
            case "year":
                return str(_YEAR_ZERO + value)
            case "month":
                return f"{_YEAR_ZERO + value // 12:04}-{value % 12 + 1:02}"
            case "day":
                return str(_EPOCH + timedelta(days=value))
            case "hour":
                day, hour = divmod(value, 24)
                return f"{_EPOCH + timedelta(days=day)}-{hour:02}"
    except OverflowError:
        pass
    return str(value)


class Partitioner:
    """Numbers the partitions of rows as they come. Used by one thread.

    A column that the rows have not is null in all of them. With `limit`, raises Invalid
    (TOO_MANY_PARTITIONS) for more partitions than that. With `keep`, rows of partitions beyond the
    first so many have that number all, and their partition is MANY.
    """

    def __init__(
        self,
        spec: PartitionSpec,
        schema: pa.Schema,
        *,
        limit: int | None = None,
        keep: int | None = None,
    ) -> None:
        names = _names(schema)
        self._spec = spec
        self._sources = [names.get(each.source_id) for each in spec]
        self._limit = limit
        self._keep = keep
        self._known: dict[tuple[Any, ...], int] = {}
        self.partitions: list[Partition] = []
        """Those met so far; a row's number is a place in it."""

    def numbers(self, rows: pa.RecordBatch) -> pa.Array:
        """The number of each row's partition, int64."""
        found = [self._encoded(rows, at) for at in range(len(self._spec))]
        codes: pa.Array = pa.repeat(pa.scalar(0, pa.int64()), rows.num_rows)
        for each in found:
            codes = pc.add(pc.multiply(codes, len(each.dictionary)), each.indices.cast(pa.int64()))
        distinct = pc.dictionary_encode(codes)
        values = [each.dictionary.to_pylist() for each in found]
        numbers = [self._number(_split(code, values)) for code in distinct.dictionary.to_pylist()]
        return pa.array(numbers, pa.int64()).take(distinct.indices)

    def partition_of(self, rows: pa.RecordBatch) -> Partition:
        """The partition of all the rows together: MANY when they have several."""
        if not rows.num_rows:
            return {}
        ends = pc.min_max(self.numbers(rows)).as_py()
        return self.partitions[ends["min"]] if ends["min"] == ends["max"] else MANY

    def _encoded(self, rows: pa.RecordBatch, at: int) -> pa.DictionaryArray:
        source = self._sources[at]
        if source is None:
            values = pa.nulls(rows.num_rows, pa.int64())
        else:
            values = transforms.apply(self._spec[at].transform, rows.column(source))
        return pc.dictionary_encode(values, null_encoding="encode")

    def _number(self, values: tuple[Any, ...]) -> int:
        known = self._known.get(values)
        if known is None:
            if self._keep is not None and len(self._known) >= self._keep:
                if len(self.partitions) == self._keep:
                    self.partitions.append(MANY)
                return self._keep
            if self._limit is not None and len(self._known) >= self._limit:
                raise _too_many(self._limit)
            known = self._known[values] = len(self.partitions)
            keys = [each.key for each in self._spec]
            self.partitions.append(
                {key: json_value(value) for key, value in zip(keys, values, strict=True)}
            )
        return known


NUMBER: Final = ""
"""The column of numbered rows that has their partition's; no column of a table is called so."""


def numbered_schema(schema: pa.Schema) -> pa.Schema:
    """The schema of rows with the number of their partition."""
    return schema.append(pa.field(NUMBER, pa.int64(), nullable=False))


def with_numbers(
    rows: Iterable[pa.RecordBatch], partitioner: Partitioner, schema: pa.Schema
) -> Iterator[pa.RecordBatch]:
    """The rows, each with the number of its partition."""
    wide = numbered_schema(schema)
    for batch in rows:
        columns = [*batch.columns, partitioner.numbers(batch)]
        yield pa.RecordBatch.from_arrays(columns, schema=wide)


def by_number(
    rows: Iterable[pa.RecordBatch], schema: pa.Schema
) -> Iterator[tuple[int, Iterator[pa.RecordBatch]]]:
    """Rows that are in the order of their numbers, as one stream for each; without the numbers.

    A stream is read to its end before the next one is asked for.
    """
    pieces = _pieces(rows, schema)
    for number, of_one in groupby(pieces, key=itemgetter(0)):
        yield number, (batch for _, batch in of_one)


def _pieces(
    rows: Iterable[pa.RecordBatch], schema: pa.Schema
) -> Iterator[tuple[int, pa.RecordBatch]]:
    for batch in rows:
        plain = pa.RecordBatch.from_arrays(batch.columns[:-1], schema=schema)
        begin = 0
        for each in pc.value_counts(batch.column(len(schema))).to_pylist():
            yield each["values"], plain.slice(begin, each["counts"])
            begin += each["counts"]


def _split(code: int, dictionaries: Sequence[Sequence[Any]]) -> tuple[Any, ...]:
    """The values whose places in the dictionaries a code is made of."""
    values = []
    for each in reversed(dictionaries):
        code, place = divmod(code, len(each))
        values.append(each[place])
    return tuple(reversed(values))


def json_value(value: Any) -> Any:
    """A transformed value as a file's partition has it; of one too long, its hash."""
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, bytes):
        return value.hex() if len(value) <= _BYTES_MAX else _hashed(value)
    if isinstance(value, str) and (len(value) > _TEXT_MAX_CHARS or "\x00" in value):
        # Postgres holds no NUL in JSON, and a key of an object is short.
        return _hashed(value.encode())
    return value


def _hashed(value: bytes) -> dict[str, str]:
    return {"sha256": hashlib.sha256(value).hexdigest()}


def _too_many(limit: int) -> Invalid:
    return Invalid(
        ErrorCode.TOO_MANY_PARTITIONS,
        f"one write has rows of at most {limit} partitions of its table: send it as several "
        "writes, or partition the table by less",
        limit=limit,
    )
