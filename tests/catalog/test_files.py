"""The manifest: which files a snapshot reads."""

from datetime import UTC, datetime

import pytest

from catalog import files, snapshots
from catalog.connection import Connection
from catalog.files import DataFile
from catalog.tables import Table
from catalog.tenants import Tenant
from duckmesh.errors import Corrupt
from duckmesh.identifiers import new_file_id
from duckmesh.tokens import VisibilityToken
from tests.catalog.publications import a_file, new_table, publish, publish_files, up_to


def test_the_manifest_names_the_files_as_they_were_published(
    connection: Connection, events: Table
) -> None:
    early, late = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 2, 1, tzinfo=UTC)
    new = a_file(
        events,
        7,
        min_event_time=early,
        max_event_time=late,
        record_count=3,
        stats={"id": {"min": 1, "max": 3, "nulls": 0}},
    )
    born = publish_files(connection, events, 7, new)
    assert files.manifest(connection, born.snapshot_id, [events.table_id]) == [
        DataFile(
            new.file_id,
            events.table_id,
            new.path,
            new.schema_version,
            3,
            100,
            early,
            late,
            VisibilityToken(7),
            VisibilityToken(7),
            born.snapshot_id,
        )
    ]
    stats = connection.execute("SELECT stats FROM data_file").fetchone()
    assert stats == ({"id": {"min": 1, "max": 3, "nulls": 0}},)


def test_the_manifest_comes_by_table_and_then_in_the_order_of_acceptance(
    connection: Connection, acme: Tenant, events: Table
) -> None:
    other = new_table(connection, acme, "other")
    unordered = [a_file(other, 2), a_file(events, 3), a_file(events, 1), a_file(other, 1)]
    born = publish(connection, up_to(acme.tenant_id, 3, files=unordered))
    found = files.manifest(connection, born.snapshot_id, [other.table_id, events.table_id])
    assert [(f.table_id, f.min_token) for f in found] == [
        (events.table_id, 1),
        (events.table_id, 3),
        (other.table_id, 1),
        (other.table_id, 2),
    ]


def test_the_manifest_has_only_the_tables_asked_for(
    connection: Connection, acme: Tenant, events: Table
) -> None:
    other = new_table(connection, acme, "other")
    born = publish(
        connection, up_to(acme.tenant_id, 1, files=[a_file(events, 1), a_file(other, 1)])
    )
    assert len(files.manifest(connection, born.snapshot_id, [other.table_id])) == 1
    assert files.manifest(connection, born.snapshot_id, []) == []


def test_the_bytes_of_an_inline_file_come_back(connection: Connection, events: Table) -> None:
    content = bytes(range(256)) * 100
    inline = a_file(events, 1, inline=True, content=content)
    publish_files(connection, events, 1, inline, a_file(events, 1))
    assert files.content(connection, inline.file_id) == content


def test_an_inline_file_without_content_is_corrupt(connection: Connection) -> None:
    with pytest.raises(Corrupt):
        files.content(connection, new_file_id())


def test_live_inline_files_are_those_to_be_flushed(
    connection: Connection, acme: Tenant, events: Table
) -> None:
    inline = [a_file(events, n, inline=True) for n in (1, 2)]
    publish_files(connection, events, 1, *inline, a_file(events, 1))
    live = files.live_inline_files(connection, [events.table_id])
    assert [f.file_id for f in live] == [f.file_id for f in inline]
    merged = a_file(events, 2)
    publish(
        connection,
        up_to(
            acme.tenant_id,
            1,
            after=1,
            files=[merged],
            folded_files=[f.file_id for f in inline],
        ),
    )
    assert files.live_inline_files(connection, [events.table_id]) == []


def test_known_paths_tell_published_objects_from_orphans(
    connection: Connection, acme: Tenant, events: Table
) -> None:
    kept, ended = a_file(events, 1), a_file(events, 1)
    publish_files(connection, events, 1, kept, ended)
    publish(connection, up_to(acme.tenant_id, 1, after=1, folded_files=[ended.file_id]))
    paths = [str(kept.path), str(ended.path), "acme/events/orphan"]
    assert files.known_paths(connection, paths) == {kept.path, ended.path}
    assert snapshots.newest(connection, acme.tenant_id).max_visibility_token == 1
