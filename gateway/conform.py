"""Check rows against a table's columns, before anything is accepted.

Columns are matched by name. A value may change its type only where it stays the same value: another
encoding of it, a wider number, a finer time unit. Everything else is refused with every fault of
the schema at once, or with the column and record of the first bad value.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pat

from catalog.table_schema import normal_type
from data_files.batch_size import bytes_of
from data_files.parquet import event_time_column
from duckmesh.errors import ErrorCode, Invalid
from gateway.plain_arrays import plain_array
from gateway.plain_sizes import plain_bytes

_DAY_MICROSECONDS: Final = 86_400_000_000

PIECE_BYTES: Final = 64 * 2**20
"""Rows that change their types are made anew in pieces of at most so much."""

_PIECE_ROWS: Final = 65_536
_VALUES_MAX: Final = 2**28
"""Of one batch, unless it has a bit for each of them."""

_GROWS_AT_MOST: Final = 4
"""A single row may take so many times the bytes that came, however many they are."""


@dataclass(frozen=True, slots=True)
class Conformer:
    """How batches of one offered schema become batches of one table schema."""

    target: pa.Schema
    positions: Sequence[int]
    never_null: Sequence[int] | None = None
    """Set when the offered columns are the table's already: then only these are looked at."""
    event_time: int | None = None
    """Where the target has its event time."""
    keeps_types: bool = False
    """Set when no value is made anew: what comes out is what came in."""

    @classmethod
    def between(cls, offered: pa.Schema, target: pa.Schema) -> "Conformer":
        """Plan the conversion. Raises Invalid (SCHEMA_INCOMPATIBLE) naming every fault."""
        positions = [_position(offered, field.name) for field in target]
        faults = _faults(offered, target, positions)
        if faults:
            raise Invalid(
                ErrorCode.SCHEMA_INCOMPATIBLE,
                "the rows do not fit the table: " + "; ".join(faults[:5]),
                faults=faults[:50],
            )
        return cls(
            target,
            [p for p in positions if p is not None],
            [n for n, field in enumerate(target) if not field.nullable]
            if positions == list(range(len(target))) and _same_flat_types(offered, target)
            else None,
            None if (name := event_time_column(target)) is None else target.get_field_index(name),
            all(
                offered.field(p).type.equals(field.type)
                for p, field in zip(positions, target, strict=True)
            ),
        )

    def conform(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The batch with the table's columns, types and order; its schema is `target`.

        Raises Invalid (INVALID_PAYLOAD) with column, record index and reason for a null where none
        may be, and for a value that its column's type cannot hold. Also for a batch whose buffers
        contradict themselves: nothing behind this line looks at them again. Raises Invalid
        (PAYLOAD_TOO_LARGE) for rows that take many times the bytes they came in.
        """
        check_batch(batch)
        self._check_growth(batch, self._size(batch), batch)
        return self._named(self.converted(batch))

    def converted(self, batch: pa.RecordBatch, first: int = 0) -> pa.RecordBatch:
        """What `conform` answers to a batch that `check_batch` took and that is not large.

        Its columns may go by the names that they came with. It begins with this record of another.
        """
        try:
            if self.never_null is not None:
                for position in self.never_null:
                    _check_nulls(batch.column(position), self.target.field(position))
                return batch
            columns = [
                _column(batch.column(position), field)
                for position, field in zip(self.positions, self.target, strict=True)
            ]
        except _BadValue as bad:
            raise bad.refusal(first) from bad.__cause__
        return pa.RecordBatch.from_arrays(columns, schema=self.target)

    def converted_up_to(self, batch: pa.RecordBatch, max_bytes: int) -> pa.RecordBatch | None:
        """The same, when it takes at most so many bytes; else None, and `pieces` makes it."""
        return None if self._size(batch) > max_bytes else self.converted(batch)

    def pieces(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        """What `conform` answers to a batch that `check_batch` took, in pieces made one by one.

        So a long batch of few bytes is never whole in memory. Rows that stay as they came are one.
        """
        if self.keeps_types:
            yield self._named(self.converted(batch))
            return
        at, rows = 0, _PIECE_ROWS
        while at < batch.num_rows:
            piece = batch.slice(at, rows)
            while (size := self._size(piece)) > PIECE_BYTES and piece.num_rows > 1:
                piece = piece.slice(0, piece.num_rows // 2)
            self._check_growth(piece, size, batch)
            yield self.converted(piece, at)
            at += piece.num_rows
            rows = min(_PIECE_ROWS, 2 * piece.num_rows)

    def _size(self, batch: pa.RecordBatch) -> int:
        """At most so many bytes the batch takes when its columns have the table's types."""
        if self.keeps_types:
            return bytes_of(batch)
        return sum(
            plain_bytes(batch.column(position), field.type)
            for position, field in zip(self.positions, self.target, strict=True)
        )

    def _check_growth(self, piece: pa.RecordBatch, size_bytes: int, batch: pa.RecordBatch) -> None:
        """Raise Invalid (PAYLOAD_TOO_LARGE) for a piece that is large and came in few bytes."""
        if size_bytes <= PIECE_BYTES or size_bytes <= _GROWS_AT_MOST * bytes_of(batch):
            return
        raise Invalid(
            ErrorCode.PAYLOAD_TOO_LARGE,
            f"{piece.num_rows} rows of the batch take {size_bytes} bytes as the table stores them, "
            "and came in far fewer: send fewer rows in a batch, and shorter values in a row",
            bytes=size_bytes,
            limit_bytes=PIECE_BYTES,
        )

    def _named(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        if self.never_null is None:
            return batch
        return pa.RecordBatch.from_arrays(batch.columns, schema=self.target)


def _same_flat_types(offered: pa.Schema, target: pa.Schema) -> bool:
    return offered.types == target.types and not any(pat.is_nested(t) for t in target.types)


def _position(offered: pa.Schema, name: str) -> int | None:
    exact = offered.get_field_index(name)
    if exact >= 0:
        return int(exact)
    alike = [i for i, other in enumerate(offered.names) if other.lower() == name.lower()]
    return alike[0] if len(alike) == 1 else None


def _faults(offered: pa.Schema, target: pa.Schema, positions: Sequence[int | None]) -> list[str]:
    faults = []
    missing = [f.name for f, p in zip(target, positions, strict=True) if p is None]
    unknown = [name for i, name in enumerate(offered.names) if i not in positions]
    if missing:
        faults.append(f"missing column{'s'[: len(missing) > 1]} {', '.join(missing)}")
    if unknown:
        faults.append(f"unknown column{'s'[: len(unknown) > 1]} {', '.join(unknown)}")
    for field, position in zip(target, positions, strict=True):
        if position is not None and not _converts(offered.field(position), field):
            offered_type = offered.field(position).type
            faults.append(f"column {field.name} is {field.type}, not {offered_type}")
    return faults


def _converts(offered: pa.Field, target: pa.Field) -> bool:
    """Whether values of the offered type can keep their value in the target's."""
    if pat.is_null(offered.type):
        return bool(target.nullable)
    if pat.is_interval(offered.type):
        # What SQL makes of a duration; no column has this type.
        return bool(pat.is_duration(target.type))
    try:
        plain = normal_type(offered.type, column=offered.name)
    except Invalid:
        return False
    return _keeps_values(plain, target.type)


def _keeps_values(offered: pa.DataType, target: pa.DataType) -> bool:
    """The same, of two types in normal form; inner types by the same rules."""
    if offered.equals(target):
        return True
    if _is_list(offered) and _is_list(target):
        # A list may become an array: each value's length is checked.
        return _keeps_values(offered.value_type, target.value_type)
    if pat.is_map(offered) and pat.is_map(target):
        return _keeps_values(offered.key_type, target.key_type) and _keeps_values(
            offered.item_type, target.item_type
        )
    if pat.is_struct(offered) and pat.is_struct(target):
        # Arrow's cast drops a field that the target lacks, and fills a missing one with nulls.
        names = [[field.name for field in each] for each in (offered, target)]
        return names[0] == names[1] and all(
            _keeps_values(mine.type, theirs.type)
            for mine, theirs in zip(offered, target, strict=True)
        )
    return any(of(offered) and to(target) for of, to in _LOSSLESS)


def _is_list(t: pa.DataType) -> bool:
    return bool(pat.is_list(t) or pat.is_fixed_size_list(t))


def _is_text(t: pa.DataType) -> bool:
    return bool(pat.is_string(t) or pat.is_large_string(t))


def _is_uuid(t: pa.DataType) -> bool:
    return bool(t == pa.uuid())


def _is_number(t: pa.DataType) -> bool:
    return bool(pat.is_integer(t) or pat.is_decimal(t))


def _is_zoned(t: pa.DataType) -> bool:
    return bool(pat.is_timestamp(t) and t.tz is not None)


def _is_wall_time(t: pa.DataType) -> bool:
    return bool(pat.is_timestamp(t) and t.tz is None)


_Test = Callable[[pa.DataType], bool]
# Each cast is checked value by value: what would change raises. A moment and a wall-clock time are
# never taken for one another: neither says which zone the other means.
_LOSSLESS: Sequence[tuple[_Test, _Test]] = (
    (pat.is_integer, _is_number),
    (pat.is_integer, pat.is_float64),
    (pat.is_decimal, pat.is_decimal),
    (pat.is_float32, pat.is_float64),
    (pat.is_date32, _is_wall_time),
    (_is_wall_time, _is_wall_time),
    (_is_zoned, _is_zoned),
    (pat.is_time, pat.is_time),
    (pat.is_binary, _is_uuid),
    (_is_uuid, pat.is_binary),
    (_is_text, _is_uuid),
)


def check_batch(batch: pa.RecordBatch) -> None:
    """Comes first, whatever is done with a batch from outside: even its size is read off its
    offsets, wherever they point.

    Raises Invalid: INVALID_PAYLOAD for what no writer makes, such as offsets out of bounds and text
    that is not UTF-8; PAYLOAD_TOO_LARGE for values without number that have no bytes.
    """
    values = batch.num_rows * batch.num_columns
    # Of whole buffers: which parts of them are in use is not to be trusted yet.
    if values > _VALUES_MAX and values > 8 * batch.get_total_buffer_size():
        raise Invalid(
            ErrorCode.PAYLOAD_TOO_LARGE,
            f"a batch holds at most {_VALUES_MAX} values that have no bytes of their own: "
            "send fewer rows in a batch",
            values=values,
            limit=_VALUES_MAX,
        )
    try:
        batch.validate(full=True)
    except pa.ArrowInvalid as cause:
        raise Invalid(
            ErrorCode.INVALID_PAYLOAD,
            "the batch is not valid Arrow data: check its offsets, and that texts are UTF-8",
        ) from cause


def _column(values: pa.Array, field: pa.Field) -> pa.Array:
    _check_nulls(values, field)
    if not values.type.equals(field.type):
        values = _cast(values, field)
    if pat.is_nested(field.type):
        _check_inner_nulls(values, field)
    return values


def _check_nulls(values: pa.Array, field: pa.Field) -> None:
    if not field.nullable and values.null_count:
        raise _BadValue(field, _first(pc.is_null(values)), "it is null, and the column is NOT NULL")


def _cast(values: pa.Array, field: pa.Field) -> pa.Array:
    values = plain_array(values)
    try:
        return _cast_to(values, field.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as cause:
        record = _first_uncastable(values, field.type)
        raise _BadValue(field, record, f"{field.type} cannot hold it") from cause


def _cast_to(values: pa.Array, target: pa.DataType) -> pa.Array:
    if pat.is_interval(values.type):
        return _durations(values).cast(target)
    if _is_text(values.type) and _is_uuid(target):
        return _uuids(values).cast(target)
    if pat.is_integer(values.type) and pat.is_decimal(target):
        # Straight from int64, Arrow wants room for all 19 digits, whatever the values are.
        values = values.cast(pa.decimal128(38, 0))
    return values.cast(target)


def _uuids(values: pa.Array) -> pa.Array:
    """The sixteen bytes of each text, as SQL and JSON write UUIDs. Raises ArrowInvalid."""
    try:
        found = [None if text is None else UUID(text).bytes for text in values.to_pylist()]
    except ValueError as cause:
        raise pa.ArrowInvalid("a text is no UUID") from cause
    return pa.array(found, pa.binary(16))


def _durations(values: pa.Array) -> pa.Array:
    """Intervals of days and nanoseconds as the microseconds that they last.

    Raises ArrowInvalid for months, which have no one length, and for parts of a microsecond.
    """
    found: list[int | None] = []
    for interval in values.to_pylist():
        if interval is None:
            found.append(None)
            continue
        months, days, nanoseconds = interval
        microseconds, rest = divmod(nanoseconds, 1000)
        if months or rest:
            raise pa.ArrowInvalid("an interval has months, or parts of a microsecond")
        found.append(days * _DAY_MICROSECONDS + microseconds)
    return pa.array(found, pa.int64()).cast(pa.duration("us"))


def _check_inner_nulls(values: pa.Array, field: pa.Field) -> None:
    """A null inside a nested value whose type forbids it: Parquet refuses it, and far too late."""
    if not _has_forbidden_null(values, field.type):
        return
    low, high = 0, len(values)
    while high - low > 1:
        middle = (low + high) // 2
        if _has_forbidden_null(values.slice(low, middle - low), field.type):
            high = middle
        else:
            low = middle
    raise _BadValue(field, low, f"it holds a null, and {field.type} forbids that")


def _has_forbidden_null(values: pa.Array, kind: pa.DataType) -> bool:
    return any(
        (not inner.nullable and part.null_count > 0)
        or (pat.is_nested(inner.type) and _has_forbidden_null(part, inner.type))
        for part, inner in _parts(values, kind)
    )


def _parts(values: pa.Array, kind: pa.DataType) -> list[tuple[pa.Array, pa.Field]]:
    """The inner values that are in use, with what their type says of them."""
    present = values.drop_null()
    if pat.is_struct(kind):
        return list(zip(present.flatten(), kind, strict=True))
    if pat.is_map(kind):
        whole = present.cast(pa.list_(pa.struct([kind.key_field, kind.item_field]))).flatten()
        return list(zip(whole.flatten(), (kind.key_field, kind.item_field), strict=True))
    return [(present.flatten(), kind.value_field)]


def _first(mask: pa.Array) -> int:
    return int(pc.index(mask, pa.scalar(True)).as_py())


def _first_uncastable(values: pa.Array, target: pa.DataType) -> int:
    """The index of the first value that does not cast, by halving."""
    low, high = 0, len(values)
    while high - low > 1:
        middle = (low + high) // 2
        try:
            # Taken, not sliced: a cast looks at all inner values of a sliced list.
            _cast_to(values.take(pa.array(range(low, middle))), target)
            low = middle
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            high = middle
    return low


class _BadValue(Exception):
    """A value that the table does not take, in a record of the piece that is looked at."""

    def __init__(self, field: pa.Field, record: int, reason: str) -> None:
        super().__init__(reason)
        self._name = field.name
        self._record = record
        self._reason = reason

    def refusal(self, first: int) -> Invalid:
        """What its sender is told, when the piece begins at this record of the batch."""
        record = first + self._record
        context: dict[str, Any] = {
            "column": self._name,
            "record": record,
            "reason": self._reason,
        }
        return Invalid(
            ErrorCode.INVALID_PAYLOAD,
            f"record {record} of the batch has a bad value in column {self._name!r}: "
            f"{self._reason}",
            **context,
        )
