"""What SQL says of the tenant's tables: the information schema, SHOW, DESCRIBE, pg_catalog."""

import pyarrow as pa
import pytest

from duckmesh.errors import ErrorCode, Invalid, NotFound
from query_engine.relations import Relation, TableRelation

FIELD_ID = b"PARQUET:field_id"


def column(number, name, kind, *, nullable=True):
    return pa.field(name, kind, nullable, metadata={FIELD_ID: str(number).encode()})


ORDERS = pa.schema(
    [
        column(1, "id", pa.int64(), nullable=False),
        column(2, "price", pa.decimal128(10, 2)),
        column(3, "at", pa.timestamp("us", tz="UTC"), nullable=False),
    ]
)
NAMES = pa.schema([column(1, "name", pa.string())])


@pytest.fixture
def shop(lake):
    path = lake.write(NAMES, {"name": ["a", "b"]})
    return lake.snapshot(
        Relation("orders", ORDERS, (), primary_key=("id",)),
        Relation("Names", NAMES, (path,)),
        tables=[TableRelation("duckmesh_system", "receipts", pa.table({"token": [7]}))],
    )


def test_tables_are_base_tables_in_their_catalog_and_schema(shop, ask) -> None:
    sql = "SELECT * FROM information_schema.tables WHERE table_schema = 'main' ORDER BY table_name"
    found = ask.table(sql, shop).select(range(4)).to_pylist()
    assert [tuple(row.values()) for row in found] == [
        ("duckmesh", "main", "Names", "BASE TABLE"),
        ("duckmesh", "main", "orders", "BASE TABLE"),
    ]


def test_columns_have_their_types_and_not_null(shop, ask) -> None:
    found = ask.rows(
        "SELECT column_name, ordinal_position, is_nullable, data_type, numeric_precision, "
        "numeric_scale FROM information_schema.columns WHERE table_name = 'orders' ORDER BY 2",
        shop,
    )
    assert found == [
        ("id", 1, "NO", "BIGINT", 64, 0),
        ("price", 2, "YES", "DECIMAL(10,2)", 10, 2),
        ("at", 3, "NO", "TIMESTAMP WITH TIME ZONE", None, None),
    ]


def test_show_lists_the_tenants_tables_alone(shop, ask) -> None:
    assert ask.rows("SHOW TABLES", shop) == [("Names",), ("orders",)]
    assert ask.rows("SHOW TABLES FROM main", shop) == [("Names",), ("orders",)]
    everything = ask.rows("SHOW ALL TABLES", shop)
    assert [row[:3] for row in everything] == [
        ("duckmesh", "duckmesh_system", "receipts"),
        ("duckmesh", "main", "Names"),
        ("duckmesh", "main", "orders"),
    ]
    assert ask.rows("SHOW DATABASES", shop) == [("duckmesh",)]


@pytest.mark.parametrize(
    "sql", ["SHOW orders", "DESCRIBE orders", "DESC main.Orders", "SHOW duckmesh.main.orders"]
)
def test_a_table_is_described_with_not_null_and_key(sql, shop, ask) -> None:
    assert [row[:4] for row in ask.rows(sql, shop)] == [
        ("id", "BIGINT", "NO", "PRI"),
        ("price", "DECIMAL(10,2)", "YES", None),
        ("at", "TIMESTAMP WITH TIME ZONE", "NO", None),
    ]


def test_a_query_is_described(shop, ask) -> None:
    found = ask.rows("DESCRIBE SELECT name || 'x' AS n, count(*) FROM Names GROUP BY 1", shop)
    assert [row[:2] for row in found] == [("n", "VARCHAR"), ("count_star()", "BIGINT")]


def test_a_table_is_summarized_over_its_rows(shop, ask) -> None:
    (row,) = ask.table("SUMMARIZE Names", shop).to_pylist()
    assert (row["column_name"], row["min"], row["max"], row["count"]) == ("name", "a", "b", 2)


def test_constraints_are_told(shop, ask) -> None:
    sql = (
        "SELECT constraint_type, constraint_column_names FROM duckdb_constraints() "
        "WHERE table_name = 'orders' ORDER BY ALL"
    )
    assert ask.rows(sql, shop) == [
        ("NOT NULL", ["at"]),
        ("NOT NULL", ["id"]),
        ("PRIMARY KEY", ["id"]),
    ]
    keys = "SELECT table_name, column_name FROM information_schema.key_column_usage"
    assert ask.rows(keys, shop) == [("orders", "id")]


@pytest.mark.parametrize(
    ("sql", "rows"),
    [
        ("SELECT table_name FROM duckdb_tables() ORDER BY 1", [("Names",), ("orders",)]),
        ("SELECT tablename FROM pg_catalog.pg_tables ORDER BY 1", [("Names",), ("orders",)]),
        ("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY 1", None),
        ("SELECT relname FROM pg_class WHERE relkind = 'r' ORDER BY 1", None),
        ("SELECT view_name FROM duckdb_views() WHERE NOT internal", [("receipts",)]),
        ("SELECT DISTINCT path FROM duckdb_databases()", [(None,)]),
        ("SELECT count(*) FROM duckdb_columns() WHERE table_name = 'orders'", [(3,)]),
        ("SELECT schema_name FROM information_schema.schemata ORDER BY ALL LIMIT 1",
         [("duckmesh_system",)]),
        ("WITH t AS (SHOW TABLES) SELECT * FROM t ORDER BY 1", [("Names",), ("orders",)]),
    ],
)  # fmt: skip
def test_the_catalogs_of_duckdb_and_postgres_agree(sql, rows, shop, ask) -> None:
    assert ask.rows(sql, shop) == ([("Names",), ("orders",)] if rows is None else rows)


def test_nothing_of_a_listing_tells_how_tables_are_kept(shop, lake, ask) -> None:
    for sql in (
        "SELECT sql FROM duckdb_tables()",
        "SELECT sql FROM duckdb_views()",
        "SELECT sql FROM sqlite_master",
        "SELECT view_definition FROM information_schema.views",
    ):
        told = str(ask.rows(sql, shop))
        assert "read_parquet" not in told
        assert "getvariable" not in told
        assert str(lake.directory) not in told


def test_rows_and_the_catalog_are_read_in_one_query(shop, ask) -> None:
    sql = (
        "WITH Names AS (SELECT name || '!' AS n FROM Names) SELECT max(n), "
        "(SELECT count(*) FROM information_schema.tables WHERE table_schema = 'main') FROM Names"
    )
    assert ask.rows(sql, shop) == [("b!", 2)]
    both = "SELECT (SELECT count(*) FROM Names), (SELECT count(*) FROM (DESCRIBE orders))"
    assert ask.rows(both, shop) == [(2, 3)]


def test_a_listing_follows_the_tables_of_its_snapshot(shop, lake, ask) -> None:
    assert len(ask.rows("SHOW TABLES", shop)) == 2
    fewer = lake.snapshot(Relation("orders", ORDERS, ()))
    assert ask.rows("SHOW TABLES", fewer) == [("orders",)]
    assert ask.rows("SHOW TABLES", lake.snapshot()) == []
    assert len(ask.rows("SHOW TABLES", shop)) == 2
    keyless = [row[3] for row in ask.rows("DESCRIBE orders", fewer)]
    assert keyless == [None, None, None]


def test_a_name_that_is_no_table_tells_no_setting(shop, ask) -> None:
    for sql in ("SHOW memory_limit", "SHOW SETTINGS", "DESCRIBE nothing"):
        with pytest.raises(NotFound) as missing:
            ask.rows(sql, shop)
        assert missing.value.code is ErrorCode.TABLE_NOT_FOUND
    with pytest.raises(Invalid):
        ask.rows("SHOW VARIABLES", shop)


def test_a_parameter_stands_in_a_listing(shop, ask) -> None:
    sql = "SELECT count(*) FROM information_schema.columns WHERE table_name = ?"
    assert ask.rows(sql, shop, parameters=pa.record_batch({"n": ["orders"]})) == [(3,)]
