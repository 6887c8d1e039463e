"""Hostile SQL: what reaches for files, settings, other tenants or the process, and what explodes.

Each statement is tried twice: through the gate, and behind it, straight in a worker's DuckDB, as if
the gate had a hole. Refused or harmless are both right; a secret, a changed file, a lost serving
process or a tenant that waits are not.
"""

import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Final

import psutil
import pyarrow as pa
import pytest

from duckmesh.errors import DuckMeshError, ErrorCode, Internal
from query_engine.definitions import DefinitionReader
from query_engine.engine import Interruption, QueryEngine, WorkerSettings
from query_engine.question import Needs, Question
from query_engine.relations import Relation
from query_engine.scratch import Scratch
from query_engine.stream import QueryLimits
from tests.query_engine.conftest import NUMBERS, Lake

SECRET: Final = "the-secret-of-another"
LIMITS: Final = QueryLimits(wall_time=timedelta(seconds=1.5), rows=1_000_000, bytes=64 * 2**20)
MARGIN_BYTES: Final = 150 * 2**20
LONG_SECONDS: Final = 5.0

_READERS = (
    "read_csv",
    "read_csv_auto",
    "sniff_csv",
    "read_text",
    "read_blob",
    "read_json",
    "read_json_auto",
    "read_json_objects",
    "read_json_objects_auto",
    "read_ndjson",
    "read_ndjson_auto",
    "read_ndjson_objects",
    "read_parquet",
    "parquet_scan",
    "parquet_metadata",
    "parquet_schema",
    "parquet_file_metadata",
    "parquet_kv_metadata",
    "parquet_bloom_probe",
    "read_duckdb",
    "glob",
    "query_table",
)
READS = [
    *(f"SELECT * FROM {reader}('{{theirs}}')" for reader in _READERS),
    "SELECT * FROM '{theirs}'",
    'SELECT * FROM "{theirs}"',
    "FROM '{root}/**/*.parquet'",
    "SELECT * FROM read_parquet(['{own}', '{theirs}'])",
    "SELECT * FROM read_parquet('{own}/../other/*.parquet')",
    "SELECT * FROM read_text('{link}')",
    "SELECT * FROM read_blob('{own_directory}-2/secret.txt')",
    "SELECT * FROM read_text('/etc/passwd')",
    "SELECT * FROM read_text('/proc/self/environ')",
    "SELECT * FROM read_text('/proc/1/environ')",
    "SELECT * FROM read_text('/proc/self/cmdline')",
    "SELECT * FROM read_blob('/proc/self/mem')",
    "SELECT * FROM read_csv('/dev/stdin')",
    "SELECT * FROM read_csv('/dev/zero')",
    "SELECT * FROM glob('/*')",
    "SELECT * FROM glob('{root}/**')",
    "SELECT * FROM read_csv('http://127.0.0.1:1/x')",
    "SELECT * FROM read_parquet('s3://bucket/x')",
    "SELECT * FROM read_text('file://{theirs}')",
    "SELECT * FROM query('SELECT * FROM read_text(''{theirs}'')')",
    "SELECT * FROM query_table('{theirs}')",
    "SELECT * FROM query_table(['{theirs}', 't'])",
    "SELECT (SELECT content FROM read_text('{theirs}'))",
    "WITH s AS (FROM read_text('{theirs}')) FROM s",
    "SELECT * FROM t WHERE b IN (SELECT content FROM read_text('{theirs}'))",
    "SELECT * FROM t, LATERAL (SELECT * FROM read_text('{theirs}'))",
    "FROM t POSITIONAL JOIN read_text('{theirs}')",
    "PIVOT (FROM read_text('{theirs}')) ON content",
    "SUMMARIZE SELECT * FROM read_text('{theirs}')",
    "DESCRIBE SELECT * FROM read_text('{theirs}')",
    "EXPLAIN SELECT * FROM read_text('{theirs}')",
    "EXPLAIN ANALYZE SELECT * FROM read_text('{theirs}')",
    "VALUES ((SELECT content FROM read_text('{theirs}')))",
    "SELECT * FROM sqlite_scan('{theirs}', 'x')",
    "SELECT * FROM postgres_scan('host=127.0.0.1', 'public', 'x')",
    "SELECT * FROM mysql_scan('', '', '')",
    "SELECT * FROM iceberg_scan('{root}')",
    "SELECT * FROM delta_scan('{root}')",
    "SELECT * FROM st_read('{theirs}')",
    "SELECT * FROM read_xlsx('{theirs}')",
    "SELECT * FROM arrow_scan(1, 2, 3)",
    "SELECT * FROM arrow_scan_dumb(1, 2, 3)",
    "SELECT * FROM pandas_scan(140000000000)",
    "SELECT * FROM python_map_function(1)",
    "SELECT * FROM seq_scan('t')",
    "SELECT * FROM checkpoint()",
    "SELECT * FROM force_checkpoint()",
]
WRITES = [
    "COPY t TO '{own_directory}/out.parquet'",
    "COPY t TO '{own}' (USE_TMP_FILE false)",
    "COPY (SELECT 1) TO '{theirs}'",
    "COPY (SELECT 1) TO '{root}/made.csv'",
    "COPY t TO '/dev/null'",
    "COPY t TO '{root}/made' (PARTITION_BY (a))",
    "COPY t TO 'made.parquet'",
    "COPY t FROM '{theirs}'",
    "COPY t FROM PROGRAM 'cat /etc/passwd'",
    "COPY FROM DATABASE memory TO system",
    "EXPORT DATABASE '{root}/made'",
    "IMPORT DATABASE '{root}'",
    "EXPLAIN ANALYZE COPY t TO '{own_directory}/made.parquet'",
    "EXPLAIN COPY t TO '{own_directory}/made.parquet'",
    "ATTACH '{root}/made.db'",
    "ATTACH '{own_directory}/made.db' AS made",
    "ATTACH '{theirs}' AS theirs (READ_ONLY)",
    "ATTACH ':memory:' AS more",
    "ATTACH 'host=127.0.0.1' AS pg (TYPE postgres)",
    "DETACH duckmesh",
    "USE system",
    "CREATE TABLE made AS SELECT 1",
    "CREATE TEMP TABLE made AS SELECT 1",
    "CREATE VIEW made AS SELECT * FROM read_text('{theirs}')",
    "CREATE OR REPLACE VIEW t AS SELECT 1",
    "CREATE MACRO made() AS TABLE SELECT * FROM read_text('{theirs}')",
    "CREATE SECRET made (TYPE s3, KEY_ID 'a', SECRET 'b')",
    "CREATE PERSISTENT SECRET made (TYPE s3)",
    "CREATE TYPE made AS ENUM ('a')",
    "CREATE SEQUENCE made",
    "CREATE SCHEMA made",
    "CREATE INDEX made ON t (a)",
    "CREATE TRIGGER made AFTER INSERT ON t FOR EACH ROW SELECT 1",
    "DROP VIEW t",
    "DROP SCHEMA main CASCADE",
    "ALTER VIEW t RENAME TO u",
    "INSERT INTO t VALUES (1, 'x')",
    "UPDATE t SET a = 1",
    "DELETE FROM t",
    "TRUNCATE t",
    "MERGE INTO t USING t AS u ON t.a = u.a WHEN MATCHED THEN DELETE",
    "WITH made AS (INSERT INTO t VALUES (1, 'x') RETURNING a) SELECT * FROM made",
    "VACUUM",
    "ANALYZE",
    "CHECKPOINT",
    "FORCE CHECKPOINT",
    "BEGIN",
    "COMMIT",
    "PREPARE made AS SELECT 1",
    "EXECUTE made",
    "CALL enable_logging(storage = 'file', storage_path = '{root}/made')",
    "COMMENT ON VIEW t IS 'x'",
]
SETTINGS = [
    "SET enable_external_access = true",
    "RESET enable_external_access",
    "SET memory_limit = '100GB'",
    "SET threads = 1000",
    "SET GLOBAL lock_configuration = false",
    "SET lock_configuration = false",
    "SET allowed_directories = ['/']",
    "SET allowed_paths = ['{theirs}']",
    "SET temp_directory = '{root}'",
    "SET allow_unsigned_extensions = true",
    "SET custom_extension_repository = '{root}'",
    "SET python_enable_replacements = true",
    "SET enable_profiling = 'json'",
    "SET profiling_output = '{root}/made'",
    "SET log_query_path = '{root}/made'",
    "SET search_path = 'system'",
    "SET VARIABLE duckmesh_files_74 = ['{theirs}']",
    "RESET VARIABLE duckmesh_files_74",
    "PRAGMA enable_profiling",
    "PRAGMA profiling_output = '{root}/made'",
    "PRAGMA database_list",
    "PRAGMA disable_verification",
    "PRAGMA import_database('{root}')",
    "INSTALL httpfs",
    "FORCE INSTALL httpfs FROM '{root}'",
    "LOAD httpfs",
    "LOAD '{theirs}'",
    "UPDATE EXTENSIONS",
    "CALL pragma_version()",
    "CALL load_aws_credentials()",
    "SELECT * FROM duckdb_settings()",
    "SELECT * FROM duckdb_secrets()",
    "SELECT * FROM which_secret('s3://x', 's3')",
    "SELECT * FROM duckdb_variables()",
    "SELECT * FROM duckdb_extensions()",
    "SELECT * FROM duckdb_temporary_files()",
    "SELECT * FROM duckdb_memory()",
    "SELECT * FROM duckdb_logs()",
    "SELECT * FROM duckdb_log_contexts()",
    "SELECT * FROM duckdb_optimizers()",
    "SELECT * FROM duckdb_external_file_cache()",
    "SELECT * FROM duckdb_prepared_statements()",
    "SELECT * FROM duckdb_connections()",
    "SELECT current_setting('allowed_directories')",
    "SELECT getvariable('duckmesh_files_74')",
    "SELECT getenv('HOME')",
    "SELECT * FROM pg_settings",
    "SELECT * FROM pg_catalog.pg_settings",
    "SHOW VARIABLES",
    "SHOW SETTINGS",
    "SHOW allowed_directories",
    "SELECT * FROM df",
    "SELECT * FROM SECRET",
    "SELECT * FROM other.main.t",
    "SELECT * FROM system.main.duckdb_settings",
    "SELECT json_execute_serialized_sql(json_serialize_sql('SELECT 1'))",
    "FROM json_execute_serialized_sql(json_serialize_sql('FROM read_text(''{theirs}'')'))",
    "SELECT json_deserialize_sql(json_serialize_sql('SELECT 1'))",
    "SELECT json_serialize_plan('SELECT * FROM read_text(''{theirs}'')')",
    "SELECT write_log('x')",
    "SELECT * FROM histogram('t', 'a')",
    "SELECT * FROM test_all_types()",
    "SELECT * FROM sql_auto_complete('SEL')",
    "SELECT 1; SELECT * FROM read_text('{theirs}')",
    "SELECT 1; COPY t TO '{root}/made'",
]
BOMBS = [
    "SELECT repeat('x', 2000000000)",
    "SELECT len(repeat('x', 4000000000))",
    "SELECT repeat(repeat('x', 100000), 100000)",
    "SELECT lpad('x', 2147483647, 'y')",
    "SELECT rpad('x', 2147483647, 'y')",
    "SELECT len(range(2000000000))",
    "SELECT len(generate_series(1, 2000000000))",
    "SELECT unnest(range(2000000000))",
    "SELECT list_resize([1], 2000000000)",
    "SELECT repeat([1], 2000000000)",
    "SELECT format('{{:>2000000000}}', 'x')",
    "SELECT printf('%2000000000d', 1)",
    "SELECT string_agg(repeat('x', 10000), '') FROM range(10000000)",
    "SELECT list(range) FROM range(2000000000)",
    "SELECT list(list_value(a.range)) FROM range(100000) a, range(100000) b",
    "SELECT count(*) FROM range(10000000) a, range(10000000) b, range(10000000) c",
    "SELECT count(DISTINCT a.range * b.range) FROM range(100000) a, range(100000) b",
    "SELECT * FROM range(1000000000000) ORDER BY hash(range)",
    "SELECT range, row_number() OVER (ORDER BY hash(range)) FROM range(1000000000)",
    "SELECT histogram(range) FROM range(1000000000)",
    "SELECT max(levenshtein(repeat('ab', 50000), repeat('ba', 50000)))",
    "SELECT jaccard(repeat('ab', 100000000), repeat('ba', 100000000))",
    "SELECT regexp_replace(repeat('a', 100000000), '(a+)+$', 'b', 'g')",
    "SELECT string_split(repeat('a,', 200000000), ',')",
    "SELECT hex(repeat('x', 1000000000))",
    "SELECT md5(repeat('x', 2000000000))",
    "SELECT bitstring('1', 2147483647)",
    "SELECT factorial(100000)",
    "SELECT list_transform(range(100000), x -> list_transform(range(100000), y -> x * y))",
    "SELECT list_sort(list_transform(range(100000000), x -> -x))",
    "SELECT reduce(range(100000000), (x, y) -> x + y)",
    "SELECT array_cross_product(range(3)::INT[3], range(3)::INT[3]) FROM range(1000000000000)",
    "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r) SELECT count(*) FROM r",
    "WITH RECURSIVE r(s) AS (SELECT 'x' UNION ALL SELECT s || s FROM r) SELECT max(len(s)) FROM r",
    "WITH RECURSIVE r(l) AS (SELECT [1] UNION ALL SELECT l || l FROM r) SELECT count(*) FROM r",
    "SELECT " + "(" * 5000 + "1" + ")" * 5000,
    "SELECT " + "-" * 1 + " ".join(["1 +"] * 20000) + " 1",
    "SELECT " + "[" * 1000 + "1" + "]" * 1000,
    "SELECT " + "CASE WHEN true THEN " * 2000 + "1" + " END" * 2000,
    "SELECT 1 WHERE 1 IN (" + ", ".join(map(str, range(100_000))) + ")",
    "SELECT 1 " + "UNION ALL SELECT 1 " * 3000,
    "SELECT * FROM " + ", ".join(f"range(100) r{n}" for n in range(60)),
    "SELECT * FROM " + " JOIN ".join(f"range(3) r{n}" for n in range(16)),
    "FROM " + "(FROM " * 800 + "range(1)" + ")" * 800,
    "WITH c0 AS (SELECT 1 AS x)"
    + "".join(
        f", c{n} AS NOT MATERIALIZED (SELECT a.x FROM c{n - 1} a JOIN c{n - 1} b ON a.x = b.x)"
        for n in range(1, 26)
    )
    + " SELECT count(*) FROM c25",
    "SELECT * FROM repeat_row('x', num_rows = 2000000000000)",
    "SELECT * FROM generate_series(TIMESTAMP '0001-01-01', TIMESTAMP '9999-01-01', INTERVAL 1 us)",
    "SELECT json_group_array(range) FROM range(1000000000)",
    "SELECT repeat('[', 100000000)::JSON",
    "SELECT quantile_disc(range, 0.5) FROM range(1000000000)",
]


def told(rows: pa.Table) -> str:
    """Every byte of an answer, texts as they are."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    return sink.getvalue().to_pybytes().decode("latin-1")


class House:
    """Two tenants on one disk, one of them hostile."""

    def __init__(self, root: Path) -> None:
        spill = root / "spill"
        spill.mkdir()
        self.mine, theirs = Lake(root / "acme"), Lake(root / "other", "other")
        own = self.mine.write(NUMBERS, {"a": [1, 2], "b": ["x", "y"]})
        secret = theirs.write(NUMBERS, {"a": [3], "b": [SECRET]})
        (root / "other" / "secret.txt").write_text(SECRET)
        (root / "acme-2").mkdir()
        (root / "acme-2" / "secret.txt").write_text(SECRET)
        (root / "acme" / "link").symlink_to(root / "other" / "secret.txt")
        self.relations = self.mine.snapshot(Relation("t", NUMBERS, (own,)))
        self.others = theirs.snapshot(Relation("t", NUMBERS, (secret,)))
        self.places = {
            "own": own,
            "own_directory": root / "acme",
            "theirs": root / "other" / "secret.txt",
            "link": root / "acme" / "link",
            "root": root,
        }
        self.root = root
        self.engine = QueryEngine(
            threads=2,
            memory_limit_bytes=256 * 2**20,
            temp_directory=spill,
            temp_limit_bytes=64 * 2**20,
            workers=WorkerSettings(workers=3, kill_grace=timedelta(seconds=0.3)),
        )
        self.before = self.files()

    def files(self) -> dict[Path, bytes]:
        found = (each for each in self.root.rglob("*") if each.is_file())
        return {each: each.read_bytes() for each in found if "spill" not in each.parts}

    def through_the_gate(self, sql: str) -> str:
        self.engine.describe(sql, self.relations, limits=LIMITS)
        with self.engine.run(sql, self.relations, limits=LIMITS) as running:
            return told(running.reader.read_all())

    def behind_the_gate(self, sql: str) -> str:
        question = Question(
            tenant="acme",
            directories=self.relations.directories,
            sql=sql,
            places=(),
            needs=Needs(self.relations.relations, (), (), (), None),
            limits=LIMITS,
        )
        with self.engine._answers.run(question, Interruption()) as running:
            return told(running.reader.read_all())

    def other_is_answered(self) -> bool:
        with self.engine.run("SELECT b FROM t", self.others) as running:
            return running.reader.read_all().to_pylist() == [{"b": SECRET}]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    house = House(tmp_path_factory.mktemp("disk"))
    with house.engine:
        yield house


def test_there_are_many_of_them() -> None:
    assert len({*READS, *WRITES, *SETTINGS, *BOMBS}) >= 200


@pytest.mark.parametrize("group", [READS, WRITES, SETTINGS], ids=["reads", "writes", "settings"])
def test_nothing_is_reached_through_the_gate(house: House, group: list[str]) -> None:
    wrong = []
    for statement in group:
        sql = statement.format(**house.places)
        try:
            rows = house.through_the_gate(sql)
        except DuckMeshError as error:
            said = str(error.as_contract())
            if isinstance(error, Internal):
                wrong.append(f"an internal error: {sql}")
            # What the statement itself names, its sender knows.
            if SECRET in said or (str(house.root) in said and str(house.root) not in sql):
                wrong.append(f"{sql} was told {said}")
        else:
            if SECRET in rows or str(house.root) in rows:
                wrong.append(f"{sql} answered {rows[:200]}")
    assert wrong == []
    assert house.files() == house.before
    assert house.other_is_answered()


@pytest.mark.parametrize("group", [READS, WRITES, SETTINGS], ids=["reads", "writes", "settings"])
def test_nothing_of_others_is_reached_behind_the_gate_either(
    house: House, group: list[str]
) -> None:
    wrong = []
    for statement in group:
        sql = statement.format(**house.places)
        try:
            rows = house.behind_the_gate(sql)
        except DuckMeshError as error:
            if SECRET in str(error.as_contract()):
                wrong.append(f"{sql} was told {error}")
        else:
            if SECRET in rows:
                wrong.append(f"{sql} answered {rows[:200]}")
    assert wrong == []
    assert house.files() == house.before, "a data file was changed, or another made"
    assert house.other_is_answered()


def test_what_explodes_costs_itself_alone(house: House) -> None:
    """While one tenant sends bombs, the other is answered, and we grow by nothing."""
    assert house.other_is_answered()
    ours = psutil.Process()
    before = ours.memory_info().rss
    stop = threading.Event()
    answered: list[bool] = []

    def other() -> None:
        while not stop.wait(0.01):
            answered.append(house.other_is_answered())

    thread = threading.Thread(target=other)
    thread.start()
    wrong = []
    starved = []
    try:
        for statement in BOMBS:
            sql = statement.replace("{{", "{").replace("}}", "}")
            seen, began = len(answered), time.monotonic()
            try:
                house.through_the_gate(sql)
            except DuckMeshError as error:
                if isinstance(error, Internal):
                    wrong.append(f"an internal error: {sql[:100]}")
            if len(answered) == seen and time.monotonic() - began > LONG_SECONDS:
                starved.append(sql[:100])
    finally:
        stop.set()
        thread.join(60)
    assert not thread.is_alive()
    assert wrong == []
    assert starved == [], "the other tenant had no answer for as long as these ran"
    assert answered
    assert all(answered)
    assert ours.memory_info().rss - before < MARGIN_BYTES
    assert house.files() == house.before
    with house.engine.run("SELECT count(*) FROM t", house.relations) as running:
        assert running.reader.read_all()[0][0].as_py() == 2


@pytest.mark.parametrize(
    "sql",
    [
        "CREATE TABLE x (a VARCHAR DEFAULT repeat('x', 1000000000))",
        "CREATE TABLE x (a VARCHAR, b AS (repeat('x', 1000000000)))",
        "CREATE TABLE x (a VARCHAR, b VARCHAR GENERATED ALWAYS AS (repeat('x', 1000000000)))",
        "CREATE TABLE x (a VARCHAR CHECK (len(repeat('x', 1000000000)) > 1))",
        "CREATE TABLE x (a VARCHAR, CHECK/**/(len(repeat('x', 1000000000)) > 1))",
        "ALTER TABLE x ADD COLUMN z VARCHAR DEFAULT repeat('x', 1000000000)",
        "ALTER TABLE x ADD COLUMN z VARCHAR DEFAULT NULL || repeat('x', 1000000000)",
        "ALTER TABLE x ALTER a SET DEFAULT repeat('x', 1000000000)",
    ],
)
def test_a_definition_computes_nothing_in_the_serving_process(sql: str) -> None:
    """DuckDB folds constants when it reads a definition; no limit of a query holds there."""
    scratch = Scratch()
    reader = DefinitionReader(scratch)
    before = psutil.Process().memory_info().rss
    created = sql.startswith("CREATE")
    with pytest.raises(DuckMeshError) as refused:
        reader.columns(sql) if created else reader.altered(sql, "x", NUMBERS)
    assert refused.value.code is ErrorCode.NOT_SUPPORTED
    assert psutil.Process().memory_info().rss - before < MARGIN_BYTES
    scratch.close()
