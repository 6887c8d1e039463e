"""The gate: what may run, what is refused, and that a refusal tells no path."""

import pyarrow as pa
import pytest

from duckmesh.errors import DuckMeshError, ErrorCode, Invalid, NotFound, NotSupported
from query_engine.engine import QueryEngine
from query_engine.relations import Relation, RelationSet, TableRelation
from query_engine.statements import DropTable, StatementKind, parse_drop_table

HARMLESS = [
    "SELECT 1",
    "WITH x AS (SELECT a FROM t) SELECT * FROM x",
    "WITH t AS (SELECT * FROM t WHERE a = 1) SELECT * FROM t",
    "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r WHERE n < 5) SELECT * FROM r",
    "VALUES (1), (2)",
    "FROM t SELECT a",
    "FROM t",
    "TABLE t",
    "SHOW TABLES",
    "SHOW ALL TABLES",
    "SHOW DATABASES",
    "DESCRIBE t",
    "DESCRIBE SELECT * FROM t",
    "SUMMARIZE t",
    "PIVOT t ON b IN ('x', 'y') USING sum(a)",
    "UNPIVOT (SELECT a, a + 1 AS c FROM t) ON a, c",
    "EXPLAIN SELECT * FROM t WHERE a = 1",
    "/* a comment */ EXPLAIN -- another\n SELECT * FROM t",
    "SELECT * FROM range(3), unnest([1, 2])",
    "SELECT * FROM generate_series(1, 3)",
    "SELECT * FROM information_schema.tables",
    "SELECT * FROM information_schema.columns",
    "SELECT * FROM pg_catalog.pg_class",
    "SELECT * FROM duckdb_tables()",
    "SELECT * FROM duckdb_views()",
    "SELECT * FROM sqlite_master",
    "SELECT * FROM duckdb_databases()",
    "SELECT current_database(), current_schema(), version()",
    "SELECT a FROM t UNION ALL SELECT a FROM nothing",
    "SELECT (SELECT max(a) FROM t)",
    "SELECT * FROM t TABLESAMPLE 10 ROWS;",
]

HOSTILE = [
    "SELECT * FROM read_parquet('{dir}/part-00001.parquet')",
    "SELECT * FROM read_parquet('{dir}/*.parquet', filename = true)",
    "SELECT * FROM parquet_scan(['{dir}/part-00001.parquet'])",
    "SELECT * FROM parquet_metadata('{dir}/part-00001.parquet')",
    "SELECT * FROM parquet_schema('{dir}/part-00001.parquet')",
    "SELECT * FROM parquet_file_metadata('{dir}/part-00001.parquet')",
    "SELECT * FROM '{dir}/part-00001.parquet'",
    'SELECT * FROM "{dir}/part-00001.parquet"',
    "DESCRIBE '{dir}/part-00001.parquet'",
    "SUMMARIZE '{dir}/part-00001.parquet'",
    "SELECT (SELECT count(*) FROM '{dir}/part-00001.parquet')",
    "WITH x AS (FROM '{dir}/part-00001.parquet') SELECT * FROM x",
    "SELECT * FROM glob('{dir}/*')",
    "SELECT * FROM '/etc/passwd'",
    "SELECT * FROM '/proc/self/environ'",
    "SELECT * FROM 's3://bucket/x.parquet'",
    "SELECT * FROM 'https://example.org/x.csv'",
    "SELECT * FROM read_csv('/etc/passwd')",
    "SELECT * FROM READ_CSV_AUTO('/etc/passwd')",
    "SELECT * FROM system.main.read_csv('/etc/passwd')",
    "SELECT * FROM read_text('/etc/passwd')",
    "SELECT * FROM read_blob('{dir}/*')",
    "SELECT * FROM read_json('/etc/passwd')",
    "SELECT * FROM read_duckdb('x.db')",
    "SELECT * FROM sniff_csv('/etc/passwd')",
    "SELECT * FROM query('SELECT * FROM read_text(''/etc/passwd'')')",
    "SELECT * FROM query_table('{dir}/part-00001.parquet')",
    "SELECT * FROM histogram('{dir}/part-00001.parquet', a)",
    "SELECT * FROM json_execute_serialized_sql(json_serialize_sql('SELECT 1'))",
    "SELECT json_serialize_plan('SELECT * FROM t')",
    "SELECT * FROM duckdb_settings()",
    "SELECT * FROM duckdb_variables()",
    "SELECT * FROM duckdb_secrets()",
    "SELECT * FROM duckdb_logs()",
    "SELECT * FROM duckdb_extensions()",
    "SELECT * FROM duckdb_temporary_files()",
    "SELECT * FROM duckdb_external_file_cache()",
    "SELECT * FROM pg_settings",
    "SELECT * FROM pg_catalog.pg_settings",
    "SELECT * FROM pragma_storage_info('t')",
    "SELECT * FROM arrow_scan(1, 2, 3)",
    "SELECT * FROM pandas_scan(1)",
    "SELECT * FROM python_map_function(1)",
    "SELECT * FROM postgres_scan('host=x', 'public', 't')",
    "SELECT * FROM sqlite_scan('x.db', 't')",
    "SELECT getvariable('duckmesh_files_74')",
    "SELECT 'duckmesh_files_74'.getvariable()",
    "SELECT list_transform([1], x -> getvariable('duckmesh_files_74'))",
    "SELECT * FROM t ORDER BY getvariable('duckmesh_files_74')",
    "SELECT current_setting('temp_directory')",
    "SELECT getenv('HOME')",
    "SELECT write_log('x')",
    "SHOW VARIABLES",
    "SHOW SETTINGS",
    "SHOW memory_limit",
    "SELECT * FROM (SHOW VARIABLES)",
    "WITH x AS (INSERT INTO t VALUES (1, 'x') RETURNING *) SELECT * FROM x",
    "WITH x AS (DELETE FROM t RETURNING *) SELECT * FROM x",
    "EXPLAIN ANALYZE COPY (SELECT 1) TO '{dir}/x.parquet'",
    "EXPLAIN COPY t TO '{dir}/x.csv'",
    "EXPLAIN (FORMAT json) SELECT 1",
    "EXPLAIN ANALYZE SELECT * FROM t",
    "EXPLAIN /**/ analyse SELECT * FROM t",
    "EXPLAIN EXPLAIN SELECT 1",
    "EXPLAIN ANALYZE SELECT * FROM read_text('/etc/passwd')",
    "COPY (SELECT 1) TO '{dir}/part-00001.parquet'",
    "COPY t FROM '/etc/passwd'",
    "COPY (SELECT 1) TO PROGRAM 'id'",
    "ATTACH '{dir}/x.db'",
    "ATTACH ':memory:' AS other",
    "DETACH duckmesh",
    "INSTALL httpfs",
    "LOAD httpfs",
    "LOAD '/tmp/x.duckdb_extension'",
    "SET memory_limit = '100GB'",
    "SET VARIABLE duckmesh_files_74 = ['/etc/passwd']",
    "RESET memory_limit",
    "PRAGMA enable_profiling",
    "PRAGMA database_list",
    "CALL enable_logging(storage = 'file', storage_path = '{dir}/log')",
    "CALL pragma_version()",
    "USE memory",
    "CREATE VIEW v AS SELECT 1",
    "CREATE MACRO m() AS getvariable('x')",
    "CREATE SECRET s (TYPE s3)",
    "CREATE TABLE x AS SELECT 1",
    "DROP VIEW t",
    "DROP TABLE t",
    "ALTER TABLE t ADD COLUMN c INT",
    "INSERT INTO t VALUES (1, 'x')",
    "UPDATE t SET a = 1",
    "DELETE FROM t",
    "TRUNCATE t",
    "MERGE INTO t USING t AS s ON t.a = s.a WHEN MATCHED THEN DELETE",
    "EXPORT DATABASE '{dir}/x'",
    "IMPORT DATABASE '{dir}/x'",
    "VACUUM",
    "CHECKPOINT",
    "BEGIN",
    "COMMIT",
    "PREPARE p AS SELECT 1",
    "EXECUTE p",
    "SELECT 1; DROP TABLE t",
    "SELECT 1; SELECT 2",
    "SELECT * FROM other.main.t",
    "SELECT * FROM temp.main.t",
    "SELECT * FROM system.main.duckdb_logs",
    "SELECT filename FROM t",
    "SELECT t.filename, file_row_number FROM t",
    "SELECT * FROM numbers",
    "SELECT * FROM engine",
    "PIVOT t ON b USING sum(a)",
    "SELECT * FROM t AT (VERSION => 1)",
    "",
    "  ; -- nothing",
    "SELEC 1",
]


@pytest.mark.parametrize("sql", HARMLESS)
def test_a_query_of_ones_own_tables_runs_and_tells_no_path(sql, numbers, ask, lake) -> None:
    rows = ask.rows(sql, numbers)
    assert str(lake.directory.parent) not in repr(rows)
    assert "part-0" not in repr(rows)


@pytest.mark.parametrize("sql", HOSTILE)
def test_everything_else_is_refused_typed_and_tells_no_path(sql, numbers, engine, lake) -> None:
    before = sorted(lake.directory.iterdir())
    with pytest.raises((Invalid, NotFound, NotSupported)) as refusal:
        engine.run(sql.replace("{dir}", str(lake.directory)), numbers).close()
    answer = refusal.value.as_contract()
    if "{dir}" not in sql:
        assert str(lake.directory.parent) not in repr(answer)
    assert "part-0" not in repr(answer) or "part-0" in sql
    assert "Traceback" not in repr(answer)
    assert sorted(lake.directory.iterdir()) == before


@pytest.mark.parametrize(
    ("sql", "code"),
    [
        ("", ErrorCode.SQL_REQUIRED),
        ("SELECT 1; SELECT 2", ErrorCode.SQL_NOT_ALLOWED),
        ("SELEC 1", ErrorCode.QUERY_EXECUTION_FAILED),
        ("DROP TABLE t", ErrorCode.SQL_NOT_ALLOWED),
        ("SELECT * FROM read_csv('x')", ErrorCode.SQL_NOT_ALLOWED),
        ("SELECT * FROM tt", ErrorCode.TABLE_NOT_FOUND),
        ("SELECT * FROM duckmesh_system.nothing", ErrorCode.TABLE_NOT_FOUND),
        ("SELECT nosuch FROM t", ErrorCode.QUERY_EXECUTION_FAILED),
        ("SELECT CAST(b AS INTEGER) FROM t", ErrorCode.QUERY_EXECUTION_FAILED),
        ("PIVOT t ON b USING sum(a)", ErrorCode.NOT_SUPPORTED),
        ("SELECT * FROM t AT (VERSION => 1)", ErrorCode.NOT_SUPPORTED),
    ],
)
def test_a_refusal_carries_its_code(sql, code, numbers, ask) -> None:
    with pytest.raises(DuckMeshError) as refusal:
        ask.rows(sql, numbers)
    assert refusal.value.code is code


def test_an_unknown_table_suggests_a_known_one(numbers: RelationSet, ask) -> None:
    with pytest.raises(NotFound, match='Did you mean "nothing"') as missing:
        ask.rows("SELECT * FROM nothin", numbers)
    assert missing.value.context == {"table": "nothin"}


@pytest.mark.parametrize(
    ("sql", "kind"),
    [
        ("SELECT 1", StatementKind.QUERY),
        ("EXPLAIN SELECT 1", StatementKind.EXPLAIN),
        ("CREATE TABLE x (a INT)", StatementKind.CREATE_TABLE),
        ("/* c */ create or replace temp table x as select 1", StatementKind.CREATE_TABLE),
        ("CREATE VIEW x AS SELECT 1", StatementKind.CREATE_VIEW),
        ("DROP TABLE IF EXISTS x", StatementKind.DROP_TABLE),
        ("DROP VIEW x", StatementKind.DROP_VIEW),
        ("ALTER TABLE x ADD COLUMN a INT", StatementKind.ALTER),
        ("INSERT INTO x VALUES (1)", StatementKind.INSERT),
        ("UPDATE x SET a = 1", StatementKind.UPDATE),
        ("DELETE FROM x", StatementKind.DELETE),
        ("COPY x TO 'y'", StatementKind.COPY),
        ("BEGIN", StatementKind.TRANSACTION),
        ("ROLLBACK", StatementKind.TRANSACTION),
        ("SET x = 1", StatementKind.SET),
        ("USE x", StatementKind.SET),
        ("VACUUM", StatementKind.OTHER),
    ],
)
def test_statements_are_classified(sql: str, kind: StatementKind, engine: QueryEngine) -> None:
    assert engine.classify(sql).kind is kind


@pytest.mark.parametrize(
    ("sql", "parts"),
    [
        ("DROP TABLE t", DropTable("t", None, None, if_exists=False)),
        ("drop table if exists main.t;", DropTable("t", "main", None, if_exists=True)),
        ('DROP TABLE "a""b".c CASCADE', DropTable("c", 'a"b', None, if_exists=False)),
        ("-- x\nDROP /* y */ TABLE d.m.t ;", DropTable("t", "m", "d", if_exists=False)),
    ],
)
def test_drop_table_is_taken_apart(sql: str, parts: DropTable) -> None:
    assert parse_drop_table(sql) == parts


@pytest.mark.parametrize("sql", ["DROP TABLE a, b", "DROP VIEW v", "DROP TABLE t; SELECT 1"])
def test_any_other_drop_is_refused(sql: str) -> None:
    with pytest.raises(Invalid):
        parse_drop_table(sql)


@pytest.mark.parametrize(
    ("sql", "tables"),
    [
        ("SELECT 1", set()),
        ("SELECT * FROM T JOIN main.u USING (a)", {"T", "u"}),
        ("SELECT (SELECT max(a) FROM duckmesh.main.v) WHERE EXISTS (FROM w)", {"v", "w"}),
        ("WITH x AS (FROM t) FROM x", {"t", "x"}),
        ("SUMMARIZE t", {"t"}),
        ("EXPLAIN SELECT * FROM t", {"t"}),
        ("SELECT * FROM duckmesh_system.receipts", set()),
        ("SHOW TABLES", None),
        ("SELECT * FROM information_schema.tables", None),
        ("PIVOT t ON b USING sum(a)", None),
        ("INSERT INTO t VALUES (1)", None),
    ],
)
def test_the_tables_a_statement_names_are_known(sql, tables, engine: QueryEngine) -> None:
    assert engine.tables_read(sql) == tables


@pytest.mark.parametrize(
    "name", ["t", "T", "main.t", "duckmesh.t", "duckmesh.main.t", '"t"', '"main"."t"']
)
def test_a_table_is_found_by_each_of_its_names(name: str, numbers, ask) -> None:
    assert ask.rows(f"SELECT sum(a) FROM {name}", numbers) == [(6,)]


@pytest.mark.parametrize("name", ["duckmesh_system.receipts", "duckmesh.duckmesh_system.receipts"])
def test_a_table_in_memory_is_found_by_its_schema(name: str, numbers, ask) -> None:
    assert ask.rows(f"SELECT token FROM {name}", numbers) == [(7,), (8,)]


def test_a_table_in_memory_is_read_as_given_with_each_query(lake, ask) -> None:
    for token in (1, 2):
        table = TableRelation("duckmesh_system", "receipts", pa.table({"token": [token]}))
        rows = ask.rows("SELECT token FROM duckmesh_system.receipts", lake.snapshot(tables=[table]))
        assert rows == [(token,)]


def test_a_listing_shows_the_snapshots_tables_and_no_other(numbers, lake, ask) -> None:
    assert ask.rows("SHOW TABLES", numbers) == [("nothing",), ("t",)]
    smaller = lake.snapshot(numbers.relations[0])
    assert ask.rows("SHOW TABLES", smaller) == [("t",)]
    assert ask.rows("SHOW TABLES", numbers) == [("nothing",), ("t",)]


def test_names_with_quotes_spaces_and_accents_are_tables_like_any_other(lake, ask) -> None:
    schema = lake.schema(**{"c \"o'l": (1, pa.int32())})
    name = 'o\'dd "täble".parquet'
    path = lake.write(schema, {"c \"o'l": [1, 2]})
    relations = lake.snapshot(Relation(name, schema, (path,)))
    quoted = '"' + name.replace('"', '""') + '"'
    assert ask.rows(f'SELECT "c ""o\'l" FROM {quoted}', relations) == [(1,), (2,)]


def test_the_last_token_is_a_function_of_the_request(numbers, ask) -> None:
    sql = "SELECT last_visibility_token(), duckmesh_last_token()"
    values = {"last_visibility_token": 2**40, "duckmesh_last_token": 3}
    assert ask.rows(sql, numbers, session_values=values) == [(2**40, 3)]
    assert ask.rows(sql, numbers) == [(None, None)]


def test_a_hostile_text_is_parsed_in_linear_time() -> None:
    for filler in ("/**/" * 50_000, " " * 200_000, "-- x\n" * 40_000):
        with pytest.raises(Invalid):
            parse_drop_table(f"DROP TABLE t{filler}, u")


@pytest.mark.parametrize(
    ("sql", "literal"),
    [
        ("SELECT 1", True),
        ("select 1;", True),
        ("SELECT -1.5 AS a, 'x', NULL, true", True),
        ("SELECT 1 + 1", False),
        ("SELECT abs(-1)", False),
        ("SELECT ?", False),
        ("SELECT DATE '2020-01-01'", False),
        ("SELECT DISTINCT 1", False),
        ("SELECT 1 LIMIT 1", False),
        ("SELECT 1 WHERE true", False),
        ("SELECT 1 UNION ALL SELECT 2", False),
        ("WITH a AS (SELECT 1) SELECT 1", False),
        ("SELECT (SELECT 1)", False),
        ("SELECT 1 FROM range(1)", False),
        ("VALUES (1)", False),
    ],
)
def test_a_select_of_literals_and_nothing_else_is_known(sql, literal, engine: QueryEngine) -> None:
    names = engine.classify(sql).names
    assert names is not None
    assert names.only_literals is literal
