"""What the ADBC driver does with SQL that writes. Run with 1.13 and with 1.9."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from adbc_cases import LAST_TOKEN, ask, connected, new_table, refused, version

__all__ = ["version"]


@contextmanager
def table_of(connection: Any) -> Iterator[str]:
    table = new_table()
    run(connection, f"CREATE TABLE {table} (id BIGINT NOT NULL, name VARCHAR)")
    yield table
    run(connection, f"DROP TABLE {table}")


def run(connection: Any, sql: str, parameters: Any = None) -> None:
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters)


def case_create_insert_select_drop(place: Any) -> None:
    with connected(place) as connection, table_of(connection) as table:
        run(connection, f"INSERT INTO {table} VALUES (1, 'a'), (2, NULL)")
        found = ask(connection, f"SELECT id, name FROM {table} ORDER BY id")
        assert found == [(1, "a"), (2, None)]


def case_insert_runs_once_and_counts(place: Any) -> None:
    with connected(place) as connection, table_of(connection) as table:
        with connection.cursor() as cursor:
            cursor.execute(f"INSERT INTO {table} SELECT i, 'n' || i FROM range(10) r(i)")
            assert cursor.rowcount == 10
        assert ask(connection, f"SELECT count(*) FROM {table}") == [(10,)]


def case_insert_with_parameters(place: Any) -> None:
    with connected(place) as connection, table_of(connection) as table:
        run(connection, f"INSERT INTO {table} VALUES (?, ?)", (7, "ü"))
        assert ask(connection, f"SELECT * FROM {table} WHERE id = ?", (7,)) == [(7, "ü")]


def case_executemany_is_one_write(place: Any) -> None:
    last = "SELECT last_visibility_token()"
    with connected(place) as connection, table_of(connection) as table:
        run(connection, f"INSERT INTO {table} VALUES (0, 'first')")
        ((before,),) = ask(connection, last)
        with connection.cursor() as cursor:
            rows = [(i, f"n{i}") for i in range(1, 500)]
            cursor.executemany(f"INSERT INTO {table} VALUES (?, ?)", rows)
        assert ask(connection, f"SELECT count(*) FROM {table}") == [(500,)]
        assert ask(connection, last) == [(before + 1,)]


def case_create_table_as(place: Any) -> None:
    target = new_table()
    with connected(place) as connection, table_of(connection) as table:
        run(connection, f"INSERT INTO {table} VALUES (1, 'a'), (2, 'b')")
        run(connection, f"CREATE TABLE {target} AS SELECT id * 2 AS twice FROM {table}")
        assert ask(connection, f"SELECT sum(twice) FROM {target}") == [(6,)]
        run(connection, f"DROP TABLE {target}")


def case_writes_that_do_not_fit_are_refused(place: Any) -> None:
    with connected(place) as connection, table_of(connection) as table:
        refused(lambda: run(connection, f"INSERT INTO {table} VALUES (NULL, 'x')"), "INVALID")
        refused(lambda: run(connection, f"INSERT INTO {table} VALUES ('x', 'x')"), "INVALID")
        assert ask(connection, f"SELECT count(*) FROM {table}") == [(0,)]


def case_metadata_of_a_table_made_by_sql(place: Any) -> None:
    with connected(place) as connection, table_of(connection) as table:
        schema = connection.adbc_get_table_schema(table)
        assert schema.names == ["id", "name"]
        assert [field.nullable for field in schema] == [False, True]
        found = connection.adbc_get_objects(depth="all", table_name_filter=table)
        assert table in str(found.read_all().to_pylist())


def case_transactions_with_autocommit_off(place: Any) -> None:
    """The DB-API's own way: nothing is seen before commit, all of it after, none after rollback."""
    with connected(place) as outside, table_of(outside) as table:
        count = f"SELECT count(*) FROM {table}"
        with connected(place, autocommit=False) as inside:
            run(inside, f"INSERT INTO {table} VALUES (1, 'a')")
            run(inside, f"INSERT INTO {table} VALUES (2, 'b')")
            assert ask(outside, count) == [(0,)]
            inside.commit()
            assert ask(inside, count) == [(2,)]
            inside.commit()
            run(inside, f"INSERT INTO {table} VALUES (3, 'c')")
            inside.rollback()
            assert ask(inside, count) == [(2,)]
            assert inside.adbc_connection.get_option_int(LAST_TOKEN) > 0
