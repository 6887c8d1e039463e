"""Metadata tables: exact schemas, the asked rows, the union's exact children."""

import time

import duckdb
import pyarrow as pa
import pytest

from flight_server import metadata, sql_info, type_info
from flight_server.commands import GetDbSchemas, GetPrimaryKeys, GetTables
from flight_server.like import like
from flight_server.metadata import TableDescriptor, sql_type_name

FLIGHTS = TableDescriptor(
    "flights",
    pa.schema(
        [
            pa.field("id", pa.int64(), nullable=False),
            pa.field("fare", pa.decimal128(9, 2), metadata={"unit": "EUR"}),
            pa.field("note", pa.large_utf8()),
        ]
    ),
    primary_key=("id",),
    properties={"duckmesh.visibility_token": "12"},
)
AIRLINES = TableDescriptor("airlines", pa.schema([("code", pa.utf8())]))
RECENT = TableDescriptor("recent", pa.schema([("id", pa.int64())]), kind=metadata.VIEW)
ALL = [FLIGHTS, RECENT, AIRLINES]


def names(command):
    return metadata.tables(command, ALL).column("table_name").to_pylist()


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (GetTables(), ["airlines", "flights", "recent"]),
        (
            GetTables(catalog="duckmesh", db_schema_filter_pattern="ma%"),
            ["airlines", "flights", "recent"],
        ),
        (GetTables(catalog=""), []),
        (GetTables(catalog="other"), []),
        (GetTables(db_schema_filter_pattern=""), []),
        (GetTables(table_name_filter_pattern="fl_ghts"), ["flights"]),
        (GetTables(table_name_filter_pattern="FLIGHTS"), []),
        (GetTables(table_types=("VIEW",)), ["recent"]),
        (GetTables(table_types=("BASE TABLE", "table")), ["airlines", "flights"]),
        (GetTables(table_types=("SYSTEM TABLE",)), []),
        (GetTables(table_name_filter_pattern="SELECT * FROM t WHERE a LIKE '%x_\\%'"), []),
    ],
)
def test_tables_are_selected_and_ordered(command, expected):
    assert names(command) == expected


def test_a_tables_schema_comes_with_its_nullability_and_metadata():
    table = metadata.tables(
        GetTables(include_schema=True, table_name_filter_pattern="flights"), ALL
    )
    assert table.schema.equals(metadata.TABLES_WITH_SCHEMA_SCHEMA)
    schema = pa.ipc.read_schema(pa.py_buffer(table.column("table_schema")[0].as_py()))
    assert schema.equals(FLIGHTS.schema)
    assert schema.metadata == {b"duckmesh.visibility_token": b"12"}
    assert not schema.field("id").nullable
    fare = schema.field("fare").metadata
    assert fare[b"ARROW:FLIGHT:SQL:PRECISION"] == b"9"
    assert fare[b"ARROW:FLIGHT:SQL:SCALE"] == b"2"
    assert fare[b"ARROW:FLIGHT:SQL:TYPE_NAME"] == b"DECIMAL(9,2)"
    assert fare[b"unit"] == b"EUR"


@pytest.mark.parametrize(
    ("command", "rows"),
    [
        (GetDbSchemas(), 1),
        (GetDbSchemas("duckmesh", "main"), 1),
        (GetDbSchemas("duckmesh", "m_n"), 0),
        (GetDbSchemas("", None), 0),
    ],
)
def test_schemas_are_selected(command, rows):
    table = metadata.db_schemas(command)
    assert table.num_rows == rows
    assert table.schema.equals(metadata.DB_SCHEMAS_SCHEMA)


def test_primary_keys_are_numbered_from_one():
    keys = metadata.primary_keys(GetPrimaryKeys("flights"), ALL).to_pylist()
    assert [(row["column_name"], row["key_sequence"]) for row in keys] == [("id", 1)]
    assert metadata.primary_keys(GetPrimaryKeys("airlines"), ALL).num_rows == 0


@pytest.mark.parametrize(
    ("table", "not_null"),
    [
        (metadata.catalogs(), {"catalog_name"}),
        (metadata.table_types(), {"table_type"}),
        (metadata.tables(GetTables(), ALL), {"table_name", "table_type"}),
        (metadata.db_schemas(GetDbSchemas()), {"db_schema_name"}),
        (
            metadata.foreign_keys(),
            {
                "pk_table_name",
                "pk_column_name",
                "fk_table_name",
                "fk_column_name",
                "key_sequence",
                "update_rule",
                "delete_rule",
            },
        ),
        (
            metadata.primary_keys(GetPrimaryKeys("flights"), ALL),
            {"table_name", "column_name", "key_sequence"},
        ),
        (
            type_info.xdbc_type_info(),
            {
                "type_name",
                "data_type",
                "nullable",
                "case_sensitive",
                "searchable",
                "fixed_prec_scale",
                "sql_data_type",
            },
        ),
        (sql_info.sql_info(), {"info_name", "value"}),
    ],
)
def test_nullability_is_the_references(table, not_null):
    table.validate(full=True)
    assert {field.name for field in table.schema if not field.nullable} == not_null


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        (None, "x", True),
        ("%", "", True),
        ("", "", True),
        ("", "x", False),
        ("a%c", "abcbc", True),
        ("a%c", "abcb", False),
        ("_", "", False),
        ("a\\_b", "a_b", True),
        ("a\\_b", "axb", False),
        ("100\\%", "100%", True),
        ("\\", "\\", True),
        ("%\n%", "a\nb", True),
        ("[a]", "a", False),
    ],
)
def test_like(pattern, name, matches):
    assert like(pattern)(name) is matches


def test_a_hostile_pattern_is_quick():
    started = time.process_time()
    assert not like("%a" * 500 + "b")("a" * 200)
    assert time.process_time() - started < 1.0


# ---- SqlInfo


def children():
    table = sql_info.sql_info()
    codes = table.column("value").chunk(0).type_codes.to_pylist()
    return dict(zip(table.column("info_name").to_pylist(), codes, strict=True))


def test_each_number_is_answered_in_the_union_child_that_drivers_cast_to():
    by_number = children()
    strings = {0, 1, 2, 504, 513, 514, 529, 530, 531}
    lists = {508, 509, 510, 511, 512}
    bigints = {503, 505, 507, 562, *range(541, 556), *range(557, 562)}
    bitmasks = {8, 100, 101, 522, 525, 526, 528, 533, 534, 535, 538, 540, 564, *range(567, 572)}
    assert {n for n, code in by_number.items() if code == 0} == strings
    assert {n for n, code in by_number.items() if code == 2} == bigints
    assert {n for n, code in by_number.items() if code == 3} == bitmasks
    assert {n for n, code in by_number.items() if code == 4} == lists
    assert {n for n, code in by_number.items() if code == 5} == {517}


def test_every_number_of_the_syntax_range_is_answered():
    assert set(range(500, 577)) <= set(children())


def test_unknown_numbers_are_left_out_and_the_order_is_the_callers():
    assert sql_info.sql_info([8, 424242, 0]).to_pylist() == [
        {"info_name": 8, "value": 0},
        {"info_name": 0, "value": "duckmesh"},
    ]
    assert sql_info.sql_info([424242]).num_rows == 0


def test_the_version_begins_as_duckdb_dialects_ask():
    (row,) = sql_info.sql_info([1]).to_pylist()
    assert row["value"].startswith(f"duckdb v{duckdb.__version__}")


def test_transactions_are_told_in_every_number_that_speaks_of_them():
    numbers = [8, 562, 563, 564]
    assert [r["value"] for r in sql_info.sql_info(numbers).to_pylist()] == [0, 0, False, 1]
    supported = sql_info.TransactionSupport.TRANSACTION
    table = sql_info.sql_info(numbers, transactions=supported)
    assert [r["value"] for r in table.to_pylist()] == [1, 4, True, 16]


def test_the_listed_functions_and_keywords_are_duckdbs():
    connection = duckdb.connect()
    rows = connection.execute("SELECT DISTINCT function_name FROM duckdb_functions()").fetchall()
    groups = (
        sql_info.NUMERIC_FUNCTIONS,
        sql_info.STRING_FUNCTIONS,
        sql_info.SYSTEM_FUNCTIONS,
        sql_info.DATETIME_FUNCTIONS,
    )
    listed = [name for group in groups for name in group.split()]
    # Those three are syntax of the parser, not entries of the function catalog.
    assert set(listed) - {name for (name,) in rows} == {"coalesce", "ifnull", "extract"}
    words = connection.execute(
        "SELECT upper(keyword_name) FROM duckdb_keywords() WHERE keyword_category = 'reserved'"
    ).fetchall()
    assert set(sql_info.KEYWORDS.split()) <= {word for (word,) in words}


def test_type_names_are_duckdbs():
    for kind in (
        pa.int8(),
        pa.uint64(),
        pa.float32(),
        pa.string_view(),
        pa.binary(),
        pa.date32(),
        pa.timestamp("ns"),
        pa.timestamp("us", tz="UTC"),
        pa.decimal128(9, 2),
        pa.list_(pa.int32()),
        pa.list_(pa.int32(), 3),
        pa.struct([('a "b"', pa.utf8())]),
        pa.map_(pa.utf8(), pa.float64()),
        pa.dictionary(pa.int8(), pa.utf8()),
    ):
        cast = f"SELECT CAST(NULL AS {sql_type_name(kind)})"
        assert duckdb.connect().sql(cast).fetchall() == [(None,)]
