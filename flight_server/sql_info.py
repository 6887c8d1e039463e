"""GetSqlInfo: what this server is and can do, by the numbers of the specification.

The child of the union is part of each answer: JDBC casts to a fixed Java type and ODBC reads the
memory unchecked. Case, null order, isolation and limits are int64; bitmasks are int32.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from importlib.metadata import version
from typing import Any, Final

import pyarrow as pa

from duckmesh import __version__
from duckmesh.identifiers import TABLE_NAME_MAX_CHARS


class Child(IntEnum):
    """The children of the value union, by their type codes."""

    STRING = 0
    BOOL = 1
    BIGINT = 2
    BITMASK = 3
    STRINGS = 4
    MAP = 5


_CHILDREN: Final = [
    pa.field("string_value", pa.utf8(), nullable=False),
    pa.field("bool_value", pa.bool_(), nullable=False),
    pa.field("bigint_value", pa.int64(), nullable=False),
    pa.field("int32_bitmask", pa.int32(), nullable=False),
    pa.field("string_list", pa.list_(pa.utf8()), nullable=False),
    pa.field("int32_to_int32_list_map", pa.map_(pa.int32(), pa.list_(pa.int32())), nullable=False),
]
SQL_INFO_SCHEMA: Final = pa.schema(
    [
        pa.field("info_name", pa.uint32(), nullable=False),
        pa.field("value", pa.dense_union(_CHILDREN), nullable=False),
    ]
)


class TransactionSupport(IntEnum):
    """The values of SqlInfo 8."""

    NONE = 0
    TRANSACTION = 1
    SAVEPOINT = 2


@dataclass(frozen=True, slots=True)
class Fact:
    """One answer: the child of the union that carries it, and the value."""

    child: Child
    value: Any


def _bits(*bits: int) -> Fact:
    return Fact(Child.BITMASK, sum(1 << bit for bit in bits))


def _number(value: int) -> Fact:
    return Fact(Child.BIGINT, value)


def _text(value: str) -> Fact:
    return Fact(Child.STRING, value)


def _words(words: str) -> Fact:
    return Fact(Child.STRINGS, words.split())


_YES: Final = Fact(Child.BOOL, True)
_NO: Final = Fact(Child.BOOL, False)
_CASE_INSENSITIVE: Final = 1
_UNLIMITED: Final = 0

# Words that are reserved in DuckDB and not in SQL:2003.
KEYWORDS: Final = (
    "ANALYSE ANALYZE ASC DEFERRABLE DESC DO INITIALLY LAMBDA LIMIT OFFSET PIVOT PIVOT_LONGER "
    "PIVOT_WIDER PLACING QUALIFY RETURNING SHOW SUMMARIZE UNPIVOT VARIADIC"
)
NUMERIC_FUNCTIONS: Final = (
    "abs acos asin atan atan2 ceil ceiling cos cot degrees exp floor ln log log10 log2 mod pi pow "
    "power radians random round sign sin sqrt tan trunc"
)
STRING_FUNCTIONS: Final = (
    "ascii chr concat concat_ws contains instr lcase left length lower lpad ltrim md5 position "
    "regexp_matches regexp_replace repeat replace reverse right rpad rtrim split_part starts_with "
    "strip_accents strpos substr substring trim ucase upper"
)
SYSTEM_FUNCTIONS: Final = "coalesce current_database current_schema ifnull nullif version"
DATETIME_FUNCTIONS: Final = (
    "age century current_date date_diff date_part date_trunc day dayname dayofmonth dayofweek "
    "dayofyear decade epoch extract hour last_day make_date make_timestamp minute month monthname "
    "now quarter second strftime strptime time_bucket today week year"
)

# SqlSupportsConvert of the specification: what CAST turns into what.
_NUMBERS: Final = (0, 5, 6, 7, 12, 13, 14, 17)
_TEXTS: Final = (3, 11, 19)
_BINARIES: Final = (1, 10, 18)
_DATE, _TIME, _TIMESTAMP, _BIT = 4, 15, 16, 2
_CONVERSIONS: Final[dict[int, Sequence[int]]] = {
    **dict.fromkeys(_NUMBERS, (*_NUMBERS, *_TEXTS, _BIT)),
    **dict.fromkeys(_TEXTS, (*_NUMBERS, *_TEXTS, *_BINARIES, _BIT, _DATE, _TIME, _TIMESTAMP)),
    **dict.fromkeys(_BINARIES, (*_BINARIES, *_TEXTS)),
    _BIT: (*_NUMBERS, *_TEXTS, _BIT),
    _DATE: (_DATE, _TIMESTAMP, *_TEXTS),
    _TIME: (_TIME, *_TEXTS),
    _TIMESTAMP: (_DATE, _TIME, _TIMESTAMP, *_TEXTS),
}


def _server(transactions: TransactionSupport) -> dict[int, Fact]:
    return {
        0: _text("duckmesh"),
        # SQLAlchemy, dbt and Ibis dialects for DuckDB servers ask that this begins with `duckdb `.
        1: _text(f"duckdb v{version('duckdb')} (duckmesh v{__version__})"),
        2: _text(pa.__version__),
        3: _NO,
        4: _YES,
        5: _NO,
        # 6 and 7, the Substrait versions, are left out: null is their value without Substrait,
        # and the union's text is not nullable.
        8: Fact(Child.BITMASK, int(transactions)),
        9: _NO,
        10: _YES,  # CommandStatementIngest
        11: _YES if transactions is not TransactionSupport.NONE else _NO,  # of ingest
        100: Fact(Child.BITMASK, 0),
        101: Fact(Child.BITMASK, 0),
    }


def _syntax() -> dict[int, Fact]:
    return {
        500: _NO,  # DDL on catalogs
        501: _NO,  # DDL on schemas
        502: _YES,  # DDL on tables
        503: _number(_CASE_INSENSITIVE),
        504: _text('"'),
        505: _number(_CASE_INSENSITIVE),
        506: _YES,  # all tables are selectable
        507: _number(3),  # nulls sort at the end
        508: _words(KEYWORDS),
        509: _words(NUMERIC_FUNCTIONS),
        510: _words(STRING_FUNCTIONS),
        511: _words(SYSTEM_FUNCTIONS),
        512: _words(DATETIME_FUNCTIONS),
        513: _text("\\"),
        514: _text(""),
        515: _YES,  # column aliases
        516: _YES,  # null || text is null
        517: Fact(Child.MAP, [(key, sorted(to)) for key, to in sorted(_CONVERSIONS.items())]),
        518: _YES,  # table aliases
        519: _NO,  # which must not differ from the tables' names
        520: _YES,  # expressions in ORDER BY
        521: _YES,  # ORDER BY a column that is not selected
        522: _bits(0, 1),  # GROUP BY
        523: _YES,  # LIKE ... ESCAPE
        524: _YES,  # NOT NULL columns
        525: _bits(0, 1),  # ODBC grammar: minimum and core
        526: _bits(0, 1),  # SQL-92: entry and intermediate
        527: _NO,  # integrity enhancement facility
        528: _bits(1, 2),  # outer joins: limited and full
        529: _text("schema"),
        530: _text("procedure"),
        531: _text("catalog"),
        532: _YES,  # catalog.schema.table
        533: _bits(),  # schemas in procedure calls, index definitions, privileges
        534: _bits(),  # the same for catalogs
        535: _bits(),  # positioned update and delete
        536: _NO,  # SELECT FOR UPDATE
        537: _NO,  # stored procedures
        538: _bits(0, 1, 2, 3),  # subqueries
        539: _YES,  # correlated subqueries
        540: _bits(0, 1),  # UNION, UNION ALL
    }


def _limits() -> dict[int, Fact]:
    unlimited = {number: _number(_UNLIMITED) for number in range(541, 562)}
    return unlimited | {
        556: _YES,  # the largest row includes blobs
        559: _number(TABLE_NAME_MAX_CHARS),
    }


def _behaviour(transactions: TransactionSupport) -> dict[int, Fact]:
    supported = transactions is not TransactionSupport.NONE
    isolation = 3 if supported else 0  # repeatable read: one snapshot a transaction
    return {
        562: _number(isolation),
        563: _YES if supported else _NO,
        564: _bits(isolation),
        565: _NO,  # DDL commits a transaction
        566: _NO,  # DDL in a transaction is ignored
        567: _bits(0, 1),  # result sets: unspecified and forward only
        568: _bits(0, 1),  # concurrency: unspecified and read only
        569: _bits(0, 1),
        570: _bits(),
        571: _bits(),
        572: _YES,  # batch updates
        573: _NO,  # savepoints
        574: _NO,  # named parameters of procedures
        575: _YES,  # updates of blobs are made on a copy
        576: _NO,  # functions in procedure call syntax
    }


@cache
def sql_facts(
    transactions: TransactionSupport = TransactionSupport.TRANSACTION,
) -> Mapping[int, Fact]:
    """All facts by number, in the order of their numbers."""
    groups = (_server(transactions), _syntax(), _limits(), _behaviour(transactions))
    facts = {number: fact for group in groups for number, fact in group.items()}
    return dict(sorted(facts.items()))


def sql_info(
    numbers: Iterable[int] = (),
    *,
    transactions: TransactionSupport = TransactionSupport.TRANSACTION,
) -> pa.Table:
    """The facts with these numbers, or all. A number nobody knows is left out, not an error."""
    facts = sql_facts(transactions)
    asked = list(dict.fromkeys(numbers)) or list(facts)
    known = [number for number in asked if number in facts]
    values = _union([facts[number] for number in known])
    return pa.Table.from_arrays(
        [pa.array(known, pa.uint32()), pa.chunked_array([values])], schema=SQL_INFO_SCHEMA
    )


def _union(facts: Sequence[Fact]) -> pa.Array:
    children: dict[Child, list[Any]] = {child: [] for child in Child}
    offsets: list[int] = []
    for fact in facts:
        offsets.append(len(children[fact.child]))
        children[fact.child].append(fact.value)
    arrays = [pa.array(children[Child(code)], kind.type) for code, kind in enumerate(_CHILDREN)]
    buffers = [
        pa.array([int(fact.child) for fact in facts], pa.int8()).buffers()[1],
        pa.array(offsets, pa.int32()).buffers()[1],
    ]
    kind = SQL_INFO_SCHEMA.field("value").type
    return pa.Array.from_buffers(kind, len(facts), [None, *buffers], children=arrays)
