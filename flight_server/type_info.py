"""GetXdbcTypeInfo: the SQL types that a column may have, as ODBC and JDBC number them."""

from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

_NULLABLE: Final = 1
_SEARCHABLE_BASIC: Final = 2
_SEARCHABLE_FULL: Final = 3
_DATETIME: Final = 9
_INTERVAL_DIGITS: Final = 9

XDBC_TYPE_INFO_SCHEMA: Final = pa.schema(
    [
        pa.field("type_name", pa.utf8(), nullable=False),
        pa.field("data_type", pa.int32(), nullable=False),
        pa.field("column_size", pa.int32()),
        pa.field("literal_prefix", pa.utf8()),
        pa.field("literal_suffix", pa.utf8()),
        pa.field("create_params", pa.list_(pa.field("item", pa.utf8(), nullable=False))),
        pa.field("nullable", pa.int32(), nullable=False),
        pa.field("case_sensitive", pa.bool_(), nullable=False),
        pa.field("searchable", pa.int32(), nullable=False),
        pa.field("unsigned_attribute", pa.bool_()),
        pa.field("fixed_prec_scale", pa.bool_(), nullable=False),
        pa.field("auto_increment", pa.bool_()),
        pa.field("local_type_name", pa.utf8()),
        pa.field("minimum_scale", pa.int32()),
        pa.field("maximum_scale", pa.int32()),
        pa.field("sql_data_type", pa.int32(), nullable=False),
        pa.field("datetime_subcode", pa.int32()),
        pa.field("num_prec_radix", pa.int32()),
        pa.field("interval_precision", pa.int32()),
    ]
)


@dataclass(frozen=True, slots=True)
class _Type:
    name: str
    number: int
    size: int | None = None
    quote: tuple[str, str] | None = None
    parameters: tuple[str, ...] | None = None
    unsigned: bool | None = None
    radix: int | None = None
    scales: tuple[int, int] | None = None
    text: bool = False
    datetime_subcode: int | None = None
    interval: bool = False

    def row(self) -> dict[str, Any]:
        prefix, suffix = self.quote or (None, None)
        lowest, highest = self.scales or (None, None)
        is_datetime = self.datetime_subcode is not None
        return {
            "type_name": self.name,
            "data_type": self.number,
            "column_size": self.size,
            "literal_prefix": prefix,
            "literal_suffix": suffix,
            "create_params": self.parameters,
            "nullable": _NULLABLE,
            "case_sensitive": self.text,
            "searchable": _SEARCHABLE_FULL if self.text else _SEARCHABLE_BASIC,
            "unsigned_attribute": self.unsigned,
            "fixed_prec_scale": False,
            "auto_increment": None if self.radix is None else False,
            "local_type_name": self.name,
            "minimum_scale": lowest,
            "maximum_scale": highest,
            "sql_data_type": _DATETIME if is_datetime else self.number,
            "datetime_subcode": self.datetime_subcode,
            "num_prec_radix": self.radix,
            "interval_precision": _INTERVAL_DIGITS if self.interval else None,
        }


def _integer(name: str, number: int, digits: int, *, unsigned: bool = False) -> _Type:
    return _Type(name, number, digits, unsigned=unsigned, radix=10, scales=(0, 0))


def _timestamp(name: str, size: int, scale: int) -> _Type:
    quote = (f"{name} '", "'")
    return _Type(name, 93, size, quote=quote, scales=(scale, scale), datetime_subcode=3)


_TYPES: Final = (
    _Type("BOOLEAN", -7, 1),
    _integer("TINYINT", -6, 3),
    _integer("UTINYINT", 5, 3, unsigned=True),
    _integer("SMALLINT", 5, 5),
    _integer("USMALLINT", 4, 5, unsigned=True),
    _integer("INTEGER", 4, 10),
    _integer("UINTEGER", -5, 10, unsigned=True),
    _integer("BIGINT", -5, 19),
    _integer("UBIGINT", 2, 20, unsigned=True),
    _integer("HUGEINT", 2, 39),
    _integer("UHUGEINT", 2, 39, unsigned=True),
    _Type(
        "DECIMAL",
        3,
        38,
        parameters=("precision", "scale"),
        unsigned=False,
        radix=10,
        scales=(0, 38),
    ),
    _Type("FLOAT", 7, 24, unsigned=False, radix=2),
    _Type("DOUBLE", 8, 53, unsigned=False, radix=2),
    _Type("VARCHAR", 12, quote=("'", "'"), text=True),
    _Type("UUID", 1, 36, quote=("'", "'")),
    _Type("JSON", -1, quote=("'", "'"), text=True),
    _Type("BLOB", -3, quote=("'", "'")),
    _Type("DATE", 91, 10, quote=("DATE '", "'"), datetime_subcode=1),
    _Type("TIME", 92, 15, quote=("TIME '", "'"), scales=(6, 6), datetime_subcode=2),
    _Type("TIME_NS", 92, 18, quote=("TIME_NS '", "'"), scales=(9, 9), datetime_subcode=2),
    _timestamp("TIMESTAMP", 26, 6),
    _timestamp("TIMESTAMP_S", 19, 0),
    _timestamp("TIMESTAMP_MS", 23, 3),
    _timestamp("TIMESTAMP_NS", 29, 9),
    _Type(
        "TIMESTAMP WITH TIME ZONE",
        93,
        32,
        quote=("TIMESTAMPTZ '", "'"),
        scales=(6, 6),
        datetime_subcode=5,
    ),
    _Type("INTERVAL", 10, 60, quote=("INTERVAL '", "'"), scales=(6, 6), interval=True),
)


def xdbc_type_info(data_type: int | None = None) -> pa.Table:
    """The types, or those of one XDBC number, ordered by number and then by name."""
    selected = [each for each in _TYPES if data_type in (None, each.number)]
    selected.sort(key=lambda each: (each.number, each.name))
    return pa.Table.from_pylist([each.row() for each in selected], schema=XDBC_TYPE_INFO_SCHEMA)
