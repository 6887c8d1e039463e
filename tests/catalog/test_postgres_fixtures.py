"""The fixtures that every room's tests stand on."""

import psycopg

from catalog.migrate import migration_status


def test_each_test_has_a_migrated_database_of_its_own(database_dsn: str) -> None:
    assert all(state.applied_at is not None for state in migration_status(database_dsn))
    with psycopg.connect(database_dsn) as connection:
        found = connection.execute("SELECT count(*) FROM tenant").fetchone()
    assert found == (0,)


def test_an_empty_database_has_no_tables(empty_database_dsn: str) -> None:
    with psycopg.connect(empty_database_dsn) as connection:
        found = connection.execute(
            "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
        ).fetchone()
    assert found == (0,)
