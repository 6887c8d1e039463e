"""How the files of a snapshot are read: as they are while their columns are the table's."""

import re

import pyarrow as pa

from tests.rooms import Rooms

ROWS = 4_000


def estimates(rooms: Rooms, sql: str) -> list[int]:
    """How many rows DuckDB expects of each step of the query."""
    plan = rooms.query(f"EXPLAIN {sql}").to_pylist()
    said = re.findall(
        r"~([\d,]+) rows?", "".join(str(cell) for row in plan for cell in row.values())
    )
    return [int(each.replace(",", "")) for each in said]


def test_joins_are_planned_by_the_rows_that_tables_have(rooms: Rooms) -> None:
    rooms.execute(f"CREATE TABLE large AS SELECT range AS n FROM range({ROWS})")
    rooms.publish_all()
    rooms.execute(f"INSERT INTO large SELECT range FROM range({ROWS})")
    rooms.execute("CREATE TABLE small AS SELECT 1::BIGINT AS n")
    rooms.publish_all()
    assert max(estimates(rooms, "FROM large")) == 2 * ROWS
    # The hash table is built of the small side, which is the right one.
    plan = str(rooms.query("EXPLAIN SELECT * FROM small JOIN large USING (n)").to_pylist())
    assert "HASH_JOIN" in plan.upper().replace(" ", "_")
    assert rooms.query("SELECT count(*) AS k FROM small JOIN large USING (n)").to_pylist() == [
        {"k": 2}
    ]


def test_files_older_than_the_columns_are_found_by_field_ids(rooms: Rooms) -> None:
    rooms.execute("CREATE TABLE t AS SELECT 1::BIGINT AS a, 'x' AS b")
    rooms.publish_all()
    for _ in range(2):
        assert rooms.query("FROM t").to_pylist() == [{"a": 1, "b": "x"}]
    rooms.execute("ALTER TABLE t RENAME COLUMN b TO c")
    rooms.execute("ALTER TABLE t ADD COLUMN b INTEGER")
    for _ in range(2):
        assert rooms.query("FROM t").to_pylist() == [{"a": 1, "c": "x", "b": None}]
    rooms.execute("INSERT INTO t VALUES (2, 'y', 7)")
    rooms.publish_all()
    wanted = [{"a": 1, "c": "x", "b": None}, {"a": 2, "c": "y", "b": 7}]
    for _ in range(2):
        answer = rooms.query("FROM t ORDER BY a")
        assert answer.to_pylist() == wanted
        assert answer.schema.types == [pa.int64(), pa.string(), pa.int32()]
