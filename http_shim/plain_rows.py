"""Rows of plain values as one batch, by few calls of Arrow.

`json_columns` reads each column by itself, and can say what is wrong with a value. Here all of them
are read at once, which costs a sixth for one record; but only rows of which every value is what its
column has. For others, whatever the reason, the answer is None, and `json_columns` is asked.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson
import pyarrow as pa
import pyarrow.types as pat

_BEGIN: Final = ord("{")
_END: Final = ord("}")
_KEPT: Final = 256
_UNFIT: Final = (pa.ArrowException, OverflowError, UnicodeEncodeError, ValueError)


class PlainRows:
    """How rows of one table are read. Thread-safe."""

    def __init__(self, schema: pa.Schema) -> None:
        self.schema = schema
        self.exact_decimals = any(holds_decimal(field.type) for field in schema)
        """Whether a column holds numbers of which a double would lose digits."""
        self._kinds = {field.name: kinds for field in schema if (kinds := _kinds_of(field.type))}
        self._reads_all = len(self._kinds) == len(schema)
        self._as_sent = pa.struct([pa.field(f.name, _sent_type(f.type)) for f in schema])
        self._casts = [i for i, f in enumerate(schema) if _sent_type(f.type) is not f.type]
        self._never_null = [i for i, f in enumerate(schema) if not f.nullable]

    def batch_of(self, payloads: Sequence[Mapping[str, Any]]) -> pa.RecordBatch | None:
        """Objects by column name as rows of the schema; None unless all values are plain ones."""
        if not self._reads_all or not self._fit(payloads):
            return None
        try:
            columns = pa.array(payloads, self._as_sent).flatten()
            for index in self._casts:
                columns[index] = columns[index].cast(self.schema.field(index).type)
        except _UNFIT:
            return None
        if any(columns[index].null_count for index in self._never_null):
            return None
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)

    def batch_of_lines(self, lines: Sequence[bytes]) -> pa.RecordBatch | None:
        """Lines that hold one object each, parsed as one text; None as `batch_of` says.

        Also when a line holds anything else. A line that begins and ends an object holds at least
        one, for no text reaches over a line's end and no object is within another, or the rows were
        no plain ones; and as many objects as lines are one for each.
        """
        if not self._reads_all or any(line[0] != _BEGIN or line[-1] != _END for line in lines):
            return None
        try:
            rows = orjson.loads(b"[" + b",\n".join(lines) + b"]")
        except (ValueError, RecursionError):
            return None
        if len(rows) != len(lines) or set(map(type, rows)) != {dict}:
            return None
        return self.batch_of(rows)

    def _fit(self, payloads: Sequence[Mapping[str, Any]]) -> bool:
        """Whether the columns are there, spelled as in the table, and the values of their kinds."""
        kinds = self._kinds
        for payload in payloads:
            for name, value in payload.items():
                allowed = kinds.get(name)
                if allowed is None or type(value) not in allowed:
                    return False
        return True


_known: dict[int, PlainRows] = {}


def plain_rows(schema: pa.Schema) -> PlainRows:
    """How rows of the schema are read, worked out once for each object."""
    known = _known.get(id(schema))
    if known is None or known.schema is not schema:
        if len(_known) >= _KEPT:
            _known.clear()
        # It holds the schema: no other object gets its id while it is known.
        known = _known[id(schema)] = PlainRows(schema)
    return known


def _kinds_of(kind: pa.DataType) -> frozenset[type] | None:
    """Python types whose values Arrow takes for the column's as they are; `True` is no number."""
    if pat.is_boolean(kind):
        return frozenset({bool, type(None)})
    if pat.is_integer(kind):
        return frozenset({int, type(None)})
    if pat.is_float64(kind):
        return frozenset({float, int, type(None)})
    if pat.is_string(kind) or pat.is_timestamp(kind) or pat.is_date(kind):
        return frozenset({str, type(None)})
    return None


def _sent_type(kind: pa.DataType) -> pa.DataType:
    return pa.string() if pat.is_timestamp(kind) or pat.is_date(kind) else kind


def holds_decimal(kind: pa.DataType) -> bool:
    """Whether values of the type are, or hold, decimals."""
    if pat.is_decimal(kind):
        return True
    if pat.is_map(kind):
        return holds_decimal(kind.key_type) or holds_decimal(kind.item_type)
    if pat.is_nested(kind):
        return any(holds_decimal(kind.field(i).type) for i in range(kind.num_fields))
    return False
