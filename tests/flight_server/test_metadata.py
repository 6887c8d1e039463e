"""Metadata tables: exact schemas, the asked rows, the union's exact children."""

import time

import duckdb
import pyarrow as pa
import pytest

from flight_server import discovery, metadata, sql_info, type_info
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
    for column in schema:
        for key in ("SCHEMA_NAME", "DB_SCHEMA_NAME"):
            assert column.metadata[f"ARROW:FLIGHT:SQL:{key}".encode()] == b"main"
        assert b"PARQUET:field_id" not in column.metadata
    assert schema.field("id").metadata[b"ARROW:FLIGHT:SQL:PRECISION"] == b"19"
    assert b"ARROW:FLIGHT:SQL:PRECISION" not in schema.field("note").metadata


@pytest.mark.parametrize(
    ("kind", "precision", "scale"),
    [
        (pa.bool_(), b"1", b"0"),
        (pa.uint64(), b"20", b"0"),
        (pa.decimal128(38, 10), b"38", b"10"),
        (pa.date32(), b"10", b"0"),
        (pa.time64("us"), b"15", b"6"),
        (pa.timestamp("us"), b"26", b"6"),
        (pa.timestamp("ns"), b"29", b"9"),
        (pa.timestamp("s"), b"19", b"0"),
    ],
)
def test_a_columns_size_is_told_as_odbc_counts_it(kind, precision, scale):
    described = metadata.described_schema(TableDescriptor("t", pa.schema([("c", kind)])))
    told = described.field("c").metadata
    assert told[b"ARROW:FLIGHT:SQL:PRECISION"] == precision
    assert told[b"ARROW:FLIGHT:SQL:SCALE"] == scale


def test_every_system_table_is_described():
    listed = metadata.tables(GetTables(table_types=("SYSTEM TABLE",)), discovery.SYSTEM_TABLES)
    assert set(listed.column("db_schema_name").to_pylist()) == {"duckmesh_system"}
    assert {"receipts", "snapshots", "tables", "data_files"} <= set(
        listed.column("table_name").to_pylist()
    )
    for table in discovery.SYSTEM_TABLES:
        read_only = {
            c.metadata[b"ARROW:FLIGHT:SQL:IS_READ_ONLY"] for c in metadata.described_schema(table)
        }
        assert read_only == {b"1"}


def test_a_name_alone_means_the_tenants_own_table():
    mine = TableDescriptor("receipts", pa.schema([("id", pa.int64())]))
    everything = [mine, *discovery.SYSTEM_TABLES]

    def found(**command):
        listed = metadata.tables(GetTables(**command), everything)
        return listed.column("db_schema_name").to_pylist()

    assert found(table_name_filter_pattern="receipts") == ["main"]
    assert found(table_name_filter_pattern="receipt%") == ["duckmesh_system", "main"]
    assert found(
        db_schema_filter_pattern="duckmesh_system", table_name_filter_pattern="receipts"
    ) == ["duckmesh_system"]


def test_type_info_is_ordered_and_names_types_of_duckdb():
    rows = type_info.xdbc_type_info().to_pylist()
    keys = [(row["data_type"], row["type_name"]) for row in rows]
    assert keys == sorted(keys)
    with duckdb.connect() as connection:
        for row in rows:
            connection.execute(f"SELECT CAST(NULL AS {row['type_name']})")
    for row in rows:
        assert (row["sql_data_type"] == 9) == (row["datetime_subcode"] is not None)
        assert (row["num_prec_radix"] == 2) == (row["data_type"] in (7, 8))
        assert (row["unsigned_attribute"] is None) == (row["num_prec_radix"] is None)


def test_every_type_that_a_table_has_is_in_the_type_info():
    listed = {row["type_name"] for row in type_info.xdbc_type_info().to_pylist()}
    for kind in (
        *(pa.bool_(), pa.int8(), pa.uint64(), pa.float32(), pa.float64(), pa.string()),
        *(pa.binary(), pa.date32(), pa.time64("us"), pa.time64("ns"), pa.timestamp("us")),
        *(pa.timestamp("ns"), pa.timestamp("us", "UTC"), pa.duration("us"), pa.uuid()),
    ):
        assert sql_type_name(kind) in listed


@pytest.mark.parametrize(
    ("command", "rows"),
    [
        (GetDbSchemas(), 2),
        (GetDbSchemas("duckmesh", "duckmesh%"), 1),
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
        {"info_name": 8, "value": 1},
        {"info_name": 0, "value": "duckmesh"},
    ]
    assert sql_info.sql_info([424242]).num_rows == 0


def test_the_version_begins_as_duckdb_dialects_ask():
    (row,) = sql_info.sql_info([1]).to_pylist()
    assert row["value"].startswith(f"duckdb v{duckdb.__version__}")


def test_transactions_are_told_in_every_number_that_speaks_of_them():
    numbers = [8, 562, 563, 564]
    assert [r["value"] for r in sql_info.sql_info(numbers).to_pylist()] == [1, 3, True, 8]
    without = sql_info.sql_info(numbers, transactions=sql_info.TransactionSupport.NONE)
    assert [r["value"] for r in without.to_pylist()] == [0, 0, False, 1]


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
