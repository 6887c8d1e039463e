"""Migrations on a real Postgres: up, down, up; edited, too new, concurrent, interrupted."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pytest

from catalog import tables, tenants
from catalog.connection import Catalog
from catalog.migrate import (
    MigrationState,
    known_migrations,
    migrate_down,
    migrate_up,
    migration_status,
    migrations_folder,
)
from catalog.table_schema import TableSchema
from duckmesh.errors import Corrupt, ErrorCode, Invalid, Unavailable
from duckmesh.statements import Statements
from tests.bus_worlds import together

VERSIONS = [migration.version for migration in known_migrations()]
NEWEST = VERSIONS[-1]
BOOKKEEPING = "duckmesh_schema_migrations"

_SQL = Statements("tests.migrations", "describe_schema.sql")

Description = dict[str, list[tuple[Any, ...]]]


def describe(dsn: str) -> Description:
    """Everything in the database's schema, as Postgres's own catalog has it."""
    with psycopg.connect(dsn) as connection:
        return {name: connection.execute(_SQL[name]).fetchall() for name in _SQL}


def run(dsn: str, statement: Any, *values: Any) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(statement, values or None)


def applied(dsn: str) -> list[int]:
    return [state.version for state in migration_status(dsn) if state.applied_at is not None]


def test_up_applies_every_migration_once(empty_database_dsn: str) -> None:
    assert applied(empty_database_dsn) == []
    done = migrate_up(empty_database_dsn)
    assert [state.version for state in done] == VERSIONS
    assert migration_status(empty_database_dsn) == done
    assert migrate_up(empty_database_dsn) == []


def test_up_down_up_ends_where_up_ends(empty_database_dsn: str) -> None:
    migrate_up(empty_database_dsn)
    first = describe(empty_database_dsn)
    assert migrate_down(empty_database_dsn, to_version=0) == VERSIONS[::-1]
    migrate_up(empty_database_dsn)
    assert describe(empty_database_dsn) == first


@pytest.mark.parametrize("version", VERSIONS)
def test_each_down_undoes_exactly_its_own_up(empty_database_dsn: str, version: int) -> None:
    migrate_up(empty_database_dsn)
    whole = describe(empty_database_dsn)
    migrate_down(empty_database_dsn, to_version=version)
    before = describe(empty_database_dsn)
    migrate_down(empty_database_dsn, to_version=version - 1)
    assert applied(empty_database_dsn) == VERSIONS[: version - 1]
    assert describe(empty_database_dsn) != before
    migrate_up(empty_database_dsn)
    assert describe(empty_database_dsn) == whole


def test_down_leaves_nothing_behind(empty_database_dsn: str) -> None:
    migrate_up(empty_database_dsn)
    migrate_down(empty_database_dsn, to_version=0)
    left = describe(empty_database_dsn)
    assert [row for row in left["relations"] if BOOKKEEPING not in row[0]] == []
    assert (left["functions"], left["sequences"], left["triggers_and_types"]) == ([], [], [])


def test_down_with_rows_in_every_table_works(database_dsn: str) -> None:
    from catalog.tenants import ensure_tenant

    with psycopg.connect(database_dsn, autocommit=True) as connection:
        ensure_tenant(connection, "acme", created_by="test")
    assert migrate_down(database_dsn, to_version=0) == VERSIONS[::-1]


def test_the_readable_sum_is_the_sum_of_the_migrations(
    empty_database_dsn: str, database_dsn: str
) -> None:
    text = (migrations_folder() / "schema.sql").read_text(encoding="utf-8")
    run(empty_database_dsn, text)
    assert describe(empty_database_dsn) == describe(database_dsn)


CALLS: dict[str, Callable[[str], object]] = {
    "up": migrate_up,
    "down": partial(migrate_down, to_version=0),
    "status": migration_status,
}


@pytest.mark.parametrize("call", CALLS)
def test_a_migration_that_was_edited_after_it_was_applied_is_refused(
    database_dsn: str, call: str
) -> None:
    run(
        database_dsn,
        "UPDATE duckmesh_schema_migrations SET checksum = 'edited' WHERE version = 2",
    )
    before = describe(database_dsn)
    with pytest.raises(Corrupt, match="migration 2"):
        CALLS[call](database_dsn)
    assert describe(database_dsn) == before


@pytest.mark.parametrize("call", CALLS)
def test_a_catalog_newer_than_this_release_is_refused(database_dsn: str, call: str) -> None:
    run(
        database_dsn,
        "INSERT INTO duckmesh_schema_migrations (version, name, checksum) "
        "VALUES (%s, 'later', 'c')",
        NEWEST + 1,
    )
    before = describe(database_dsn)
    with pytest.raises(Invalid, match="newer release") as raised:
        CALLS[call](database_dsn)
    assert raised.value.code is ErrorCode.NOT_READY
    assert describe(database_dsn) == before


def test_of_concurrent_migrators_each_migration_is_applied_by_one(
    empty_database_dsn: str, database_dsn: str
) -> None:
    answers = together(*[lambda: migrate_up(empty_database_dsn)] * 4)
    done: list[MigrationState] = []
    for answer in answers:
        assert isinstance(answer, list)
        done += answer
    assert [state.version for state in done] == VERSIONS
    assert describe(empty_database_dsn) == describe(database_dsn)


def test_a_migration_that_fails_leaves_nothing_and_the_next_run_goes_on(
    empty_database_dsn: str, database_dsn: str
) -> None:
    run(empty_database_dsn, "CREATE TABLE data_file (mine integer)")
    with pytest.raises(psycopg.errors.DuplicateTable):
        migrate_up(empty_database_dsn)
    assert applied(empty_database_dsn) == [1, 2, 3]
    relations = [row[0] for row in describe(empty_database_dsn)["relations"]]
    assert "snapshot" not in relations
    run(empty_database_dsn, "DROP TABLE data_file")
    assert [state.version for state in migrate_up(empty_database_dsn)] == VERSIONS[3:]
    assert describe(empty_database_dsn) == describe(database_dsn)


@pytest.mark.parametrize("call", CALLS)
def test_a_postgres_that_cannot_be_reached_is_unavailable(database_dsn: str, call: str) -> None:
    nowhere = psycopg.conninfo.make_conninfo(database_dsn, host="/nonexistent")
    with pytest.raises(Unavailable):
        CALLS[call](nowhere)


def test_every_up_file_has_its_down_file_and_says_what_it_is_for() -> None:
    folder = Path(str(migrations_folder()))
    ups = sorted(folder.glob("*.up.sql"))
    assert [int(up.name[:4]) for up in ups] == VERSIONS
    for up in ups:
        assert up.with_name(up.name.replace(".up.", ".down.")).is_file()
        assert up.read_text(encoding="utf-8").startswith("-- ")
        outside_functions = re.sub(
            r"\$\$.*?\$\$", "", up.read_text(encoding="utf-8"), flags=re.DOTALL
        )
        assert not re.search(r"\b(BEGIN|COMMIT|CONCURRENTLY)\b", outside_functions)


def test_a_table_made_with_a_primary_key_before_keys_counted_has_it_afterwards(
    database_dsn: str,
) -> None:
    """Not one of floats, which was taken then: it stays a table of every row."""
    made = {"k": pa.int64(), "floats": pa.float64()}
    with Catalog(database_dsn, pool_max=2) as catalog:
        with catalog.connect() as connection:
            tenant = tenants.ensure_tenant(connection, "acme", created_by="test")
            for name in made:
                columns = pa.schema([pa.field("id", pa.int64(), nullable=False)])
                tables.create_table(
                    connection,
                    tenant.tenant_id,
                    name,
                    TableSchema.first(columns),
                    creation_key=None,
                    created_by="test",
                    primary_key=["id"],
                )
        migrate_down(database_dsn, to_version=22)
        for name, kind in made.items():
            older = pa.schema([pa.field("id", kind, nullable=False)])
            run(
                database_dsn,
                "UPDATE table_schema_version v SET arrow_schema = %s FROM table_def t"
                " WHERE t.table_id = v.table_id AND t.name = %s",
                TableSchema.first(older).to_bytes(),
                name,
            )
        migrate_up(database_dsn)
        with catalog.connect() as connection:
            found = {n: tables.find_table(connection, tenant.tenant_id, n) for n in made}
    assert {n: t and t.schema.primary_key for n, t in found.items()} == {"k": ("id",), "floats": ()}
