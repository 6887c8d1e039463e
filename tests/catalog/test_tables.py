"""Tables and their schema versions, by snapshot."""

import pyarrow as pa
import pytest

from catalog import files, snapshots, tables, tenants
from catalog.connection import Catalog, Connection
from catalog.table_schema import TableSchema
from catalog.tables import Table
from catalog.tenants import Tenant
from duckmesh.errors import ErrorCode, NotFound
from duckmesh.identifiers import SchemaVersion, SnapshotId
from tests.bus_worlds import together
from tests.catalog.publications import (
    COLUMNS,
    a_file,
    everything,
    new_table,
    publish,
    publish_files,
    up_to,
)

OTHER_COLUMNS = pa.schema([("id", pa.int64()), ("price", pa.float64())])


def names_at(connection: Connection, tenant: Tenant, snapshot_id: SnapshotId) -> list[str]:
    return [table.name for table in tables.tables_at(connection, tenant.tenant_id, snapshot_id)]


def test_a_table_is_created_with_the_snapshot_that_has_it(
    connection: Connection, acme: Tenant
) -> None:
    before = snapshots.newest(connection, acme.tenant_id)
    created = new_table(connection, acme, "events")
    after = snapshots.newest(connection, acme.tenant_id)
    assert after.snapshot_id > before.snapshot_id
    assert after.max_visibility_token == before.max_visibility_token
    assert names_at(connection, acme, before.snapshot_id) == []
    assert names_at(connection, acme, after.snapshot_id) == ["events"]
    assert tables.find_table(connection, acme.tenant_id, "events") == created


def test_a_taken_name_creates_nothing(connection: Connection, acme: Tenant, events: Table) -> None:
    before = everything(connection)
    again = tables.create_table(
        connection,
        acme.tenant_id,
        "events",
        TableSchema.first(OTHER_COLUMNS),
        creation_key="k",
        created_by="test",
    )
    assert again is None
    assert everything(connection) == before


def test_of_concurrent_creations_of_one_name_one_wins(catalog: Catalog, acme: Tenant) -> None:
    def create() -> Table | None:
        with catalog.connect() as connection:
            return tables.create_table(
                connection,
                acme.tenant_id,
                "events",
                TableSchema.first(COLUMNS),
                creation_key=None,
                created_by="test",
            )

    answers = together(*[create] * 8)
    assert sum(isinstance(answer, Table) for answer in answers) == 1
    assert answers.count(None) == 7


def test_the_creation_key_is_kept_for_the_retry(connection: Connection, acme: Tenant) -> None:
    schema = TableSchema.first(COLUMNS)
    tables.create_table(
        connection, acme.tenant_id, "t", schema, creation_key="stream-1", created_by="test"
    )
    found = tables.find_table(connection, acme.tenant_id, "t")
    assert found is not None
    assert (found.creation_key, found.schema) == ("stream-1", schema)


def test_a_table_of_one_tenant_is_not_found_by_another(
    connection: Connection, acme: Tenant, events: Table
) -> None:
    other = tenants.ensure_tenant(connection, "other", created_by="test")
    assert tables.find_table(connection, other.tenant_id, "events") is None
    newest = snapshots.newest(connection, acme.tenant_id)
    assert names_at(connection, other, newest.snapshot_id) == []
    foreign = Table(events.table_id, other.tenant_id, "events", events.schema)
    with pytest.raises(NotFound):
        tables.drop_table(connection, foreign, created_by="test")
    with pytest.raises(NotFound):
        tables.propose_schema(connection, foreign, OTHER_COLUMNS)


def test_a_drop_keeps_history_and_frees_the_name(
    connection: Connection, acme: Tenant, events: Table
) -> None:
    file = a_file(events, 1)
    full = publish_files(connection, events, 1, file)
    dropped = tables.drop_table(connection, events, created_by="test")
    assert tables.find_table(connection, acme.tenant_id, "events") is None
    assert names_at(connection, acme, dropped.snapshot_id) == []
    assert names_at(connection, acme, full.snapshot_id) == ["events"]
    kept = files.manifest(connection, full.snapshot_id, [events.table_id])
    assert [f.file_id for f in kept] == [file.file_id]
    assert files.manifest(connection, dropped.snapshot_id, [events.table_id]) == []
    assert tables.places(connection, acme.tenant_id, [events.table_id])[events.table_id].dropped
    again = new_table(connection, acme, "events")
    assert again.table_id != events.table_id
    assert not tables.places(connection, acme.tenant_id, [again.table_id])[again.table_id].dropped


def test_a_second_drop_is_not_found_and_leaves_no_snapshot(
    connection: Connection, acme: Tenant, events: Table
) -> None:
    tables.drop_table(connection, events, created_by="test")
    before = everything(connection)
    with pytest.raises(NotFound) as raised:
        tables.drop_table(connection, events, created_by="test")
    assert raised.value.code is ErrorCode.TABLE_NOT_FOUND
    assert everything(connection) == before


def test_a_drop_keeps_the_watermark(connection: Connection, events: Table) -> None:
    publish_files(connection, events, 1, a_file(events, 1))
    assert tables.drop_table(connection, events, created_by="test").max_visibility_token == 1


def test_a_proposed_schema_takes_effect_in_the_snapshot_that_publishes_it(
    connection: Connection, acme: Tenant, events: Table
) -> None:
    proposed = tables.propose_schema(connection, events, OTHER_COLUMNS)
    assert proposed.version == 2
    before = snapshots.newest(connection, acme.tenant_id)
    published = publish(
        connection,
        up_to(acme.tenant_id, 1, new_schemas={events.table_id: proposed.version}),
    )

    def schema_at(snapshot_id: SnapshotId) -> TableSchema:
        return tables.tables_at(connection, acme.tenant_id, snapshot_id)[0].schema

    assert schema_at(before.snapshot_id) == events.schema
    assert schema_at(published.snapshot_id) == proposed
    later = publish(connection, up_to(acme.tenant_id, 2))
    assert schema_at(later.snapshot_id) == proposed
    assert schema_at(before.snapshot_id) == events.schema


def test_an_older_version_that_is_published_late_does_not_come_back(
    connection: Connection, acme: Tenant, events: Table
) -> None:
    second = tables.propose_schema(connection, events, OTHER_COLUMNS)
    third = tables.propose_schema(connection, events, COLUMNS)
    for token, schema in ((1, third), (2, second)):
        newest = publish(
            connection,
            up_to(acme.tenant_id, token, new_schemas={events.table_id: schema.version}),
        )
    assert tables.tables_at(connection, acme.tenant_id, newest.snapshot_id)[0].schema == third


def test_new_writes_are_checked_against_the_adopted_version_and_never_an_older_one(
    connection: Connection, acme: Tenant, events: Table
) -> None:
    proposed = tables.propose_schema(connection, events, OTHER_COLUMNS)

    def checked_against() -> TableSchema:
        found = tables.find_table(connection, acme.tenant_id, "events")
        assert found is not None
        return found.schema

    assert checked_against() == events.schema
    tables.adopt_schema_version(connection, acme.tenant_id, events.table_id, proposed.version)
    assert checked_against() == proposed
    tables.adopt_schema_version(connection, acme.tenant_id, events.table_id, SchemaVersion(1))
    assert checked_against() == proposed


def test_field_ids_are_never_used_twice_also_by_versions_that_were_not_published(
    connection: Connection, events: Table
) -> None:
    versions = [events.schema] + [
        tables.propose_schema(connection, events, OTHER_COLUMNS) for _ in range(3)
    ]
    ids = [column["field_id"] for version in versions for column in version.as_columns()]
    assert ids == list(range(1, 9))


def test_concurrent_proposals_draw_different_versions(catalog: Catalog, events: Table) -> None:
    def propose() -> TableSchema:
        with catalog.connect() as connection:
            return tables.propose_schema(connection, events, OTHER_COLUMNS)

    answers = together(*[propose] * 8)
    versions = [answer.version for answer in answers if isinstance(answer, TableSchema)]
    assert sorted(versions) == list(range(2, 10))
    ids = [
        column["field_id"]
        for answer in answers
        if isinstance(answer, TableSchema)
        for column in answer.as_columns()
    ]
    assert len(set(ids)) == 16


def test_a_proposal_does_not_wait_for_a_publication(
    catalog: Catalog, connection: Connection, events: Table
) -> None:
    with connection.transaction():
        snapshots.commit_snapshot(connection, up_to(events.tenant_id, 1, files=[a_file(events, 1)]))
        with catalog.connect() as other:
            other.execute("SET lock_timeout = '2s'")
            assert tables.propose_schema(other, events, OTHER_COLUMNS).version == 2
            other.execute("RESET lock_timeout")


def test_a_proposal_for_a_dropped_table_is_not_found(connection: Connection, events: Table) -> None:
    tables.drop_table(connection, events, created_by="test")
    with pytest.raises(NotFound):
        tables.propose_schema(connection, events, OTHER_COLUMNS)


def test_schema_versions_are_found_by_number(connection: Connection, events: Table) -> None:
    proposed = tables.propose_schema(connection, events, OTHER_COLUMNS)
    asked = [SchemaVersion(1), SchemaVersion(2), SchemaVersion(9)]
    assert tables.schema_versions(connection, events.table_id, asked) == {
        1: events.schema,
        2: proposed,
    }


def test_the_tables_of_a_snapshot_come_by_name_with_the_watermark_they_had(
    connection: Connection, acme: Tenant, events: Table
) -> None:
    new_table(connection, acme, "accounts")
    first = publish_files(connection, events, 1, a_file(events, 1))
    second = publish_files(connection, events, 2, a_file(events, 2))

    def watermarks(snapshot_id: SnapshotId) -> list[tuple[str, int | None]]:
        found = tables.tables_at(connection, acme.tenant_id, snapshot_id)
        return [(table.name, table.watermark) for table in found]

    assert watermarks(first.snapshot_id) == [("accounts", None), ("events", 1)]
    assert watermarks(second.snapshot_id) == [("accounts", None), ("events", 2)]
