"""Publication, the commit point: atomic, fenced, ordered, and never undone."""

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import psycopg
import pytest

from catalog import files, snapshots, tables, tenants
from catalog.connection import Catalog, Connection
from catalog.notifications import PUBLISHED_CHANNEL
from catalog.snapshots import Publication, Snapshot
from catalog.tables import Table
from catalog.tenants import Tenant
from duckmesh.errors import Corrupt, ErrorCode, Fenced, NotFound
from duckmesh.identifiers import SnapshotId, TenantId
from duckmesh.tokens import VisibilityToken
from tests.bus_worlds import together
from tests.catalog.publications import (
    COLUMNS,
    PATIENCE_SECONDS,
    a_file,
    everything,
    new_table,
    publish,
    publish_files,
    up_to,
)

Seen = tuple[Snapshot, list[files.DataFile], list[tables.TableAt]]


class Cut(Exception):
    """The process dies here, as far as Postgres can tell."""


class FragileConnection(psycopg.Connection[tuple[Any, ...]]):
    """A connection that raises before its statement number `statements_left` + 1."""

    statements_left = 0

    def execute(self, *args: Any, **kwargs: Any) -> psycopg.Cursor[tuple[Any, ...]]:
        if self.statements_left == 0:
            raise Cut
        self.statements_left -= 1
        return super().execute(*args, **kwargs)


def cut_at_every_statement(dsn: str, act: Callable[[Connection], object]) -> int:
    """Run the act with every number of statements until it passes; check that each cut leaves
    nothing. Returns how many cuts there were."""
    with psycopg.connect(dsn, autocommit=True) as observer:
        before = everything(observer)
        for statements in itertools.count():
            with FragileConnection.connect(dsn, autocommit=True) as connection:
                connection.statements_left = statements
                try:
                    act(connection)
                except Cut:
                    assert everything(observer) == before
                else:
                    assert everything(observer) != before
                    return statements
    raise AssertionError("never reached")


def test_publication_is_atomic_whichever_statement_is_the_last(
    database_dsn: str, connection: Connection, acme: Tenant, events: Table
) -> None:
    emptied = new_table(connection, acme, "emptied")
    folded = a_file(events, 1, inline=True)
    publish_files(connection, events, 1, folded)
    publish_files(connection, emptied, 2, a_file(emptied, 2))
    proposed = tables.propose_schema(connection, emptied, COLUMNS)
    large = up_to(
        acme.tenant_id,
        3,
        files=[a_file(events, 3), a_file(emptied, 3, inline=True)],
        table_watermarks={t.table_id: VisibilityToken(3) for t in (events, emptied)},
        emptied_tables=[emptied.table_id],
        new_schemas={emptied.table_id: proposed.version},
        folded_files=[folded.file_id],
    )
    # lock, publish, empty, fold, schemas
    assert cut_at_every_statement(database_dsn, partial(publish, publication=large)) == 5


def test_creating_and_dropping_a_table_are_atomic(
    database_dsn: str, connection: Connection, acme: Tenant, events: Table
) -> None:
    publish_files(connection, events, 1, a_file(events, 1))
    cut_at_every_statement(database_dsn, lambda c: new_table(c, acme, "second"))
    cut_at_every_statement(database_dsn, lambda c: tables.drop_table(c, events, created_by="test"))


def test_what_is_not_committed_is_invisible(
    catalog: Catalog, connection: Connection, acme: Tenant, events: Table
) -> None:
    file = a_file(events, 1)
    with connection.transaction():
        born = snapshots.commit_snapshot(connection, up_to(acme.tenant_id, 1, files=[file]))
        with catalog.connect() as reader:
            assert snapshots.newest(reader, acme.tenant_id).snapshot_id < born.snapshot_id
            with pytest.raises(NotFound):
                files.manifest(reader, born.snapshot_id, [events.table_id])
            with pytest.raises(NotFound):
                snapshots.by_id(reader, acme.tenant_id, born.snapshot_id)
    assert snapshots.newest(connection, acme.tenant_id) == born


def test_snapshot_order_is_commit_order_with_concurrent_publishers(
    catalog: Catalog, acme: Tenant, events: Table
) -> None:
    commits: list[Snapshot] = []

    def publish_some() -> int:
        lost = 0
        for _ in range(12):
            with catalog.connect() as connection:
                head = snapshots.newest(connection, acme.tenant_id)
                token = head.max_visibility_token + 1
                try:
                    with connection.transaction():
                        born = snapshots.commit_snapshot(
                            connection,
                            up_to(acme.tenant_id, token, files=[a_file(events, token)]),
                        )
                        # Under the head's lock still: this list is in the order of commits.
                        commits.append(born)
                except Fenced:
                    lost += 1
        return lost

    answers = together(*[publish_some] * 4)
    lost = sum(answer for answer in answers if isinstance(answer, int))
    assert len(commits) == 48 - lost
    ids = [born.snapshot_id for born in commits]
    times = [born.created_at for born in commits]
    tokens = [born.max_visibility_token for born in commits]
    assert ids == sorted(set(ids))
    assert times == sorted(set(times))
    assert tokens == list(range(1, len(tokens) + 1))


def test_created_at_is_strictly_increasing_even_when_the_clock_stands_behind(
    connection: Connection, acme: Tenant, events: Table
) -> None:
    ahead = datetime.now(UTC) + timedelta(days=1)
    connection.execute("UPDATE publication_head SET created_at = %s", (ahead,))
    times = [publish(connection, up_to(acme.tenant_id, n)).created_at for n in (1, 2, 3)]
    assert times == [ahead + timedelta(microseconds=n) for n in (1, 2, 3)]


def assert_fenced(connection: Connection, publication: Publication) -> None:
    before = everything(connection)
    with pytest.raises(Fenced):
        publish(connection, publication)
    assert everything(connection) == before


def test_a_publisher_of_an_older_epoch_changes_nothing(
    connection: Connection, acme: Tenant, events: Table
) -> None:
    publish(connection, up_to(acme.tenant_id, 1, epoch=5))
    assert_fenced(connection, up_to(acme.tenant_id, 2, epoch=4, files=[a_file(events, 2)]))
    publish(connection, up_to(acme.tenant_id, 2, epoch=5))


def test_a_redelivered_publication_changes_nothing(
    connection: Connection, acme: Tenant, events: Table
) -> None:
    once = up_to(acme.tenant_id, 3, after=0, files=[a_file(events, 1)])
    publish(connection, once)
    assert_fenced(connection, replace(once, files=[a_file(events, 1)]))


@pytest.mark.parametrize(("after", "watermark"), [(0, 9), (4, 9), (5, 4), (9, 4), (5, 0)])
def test_the_watermark_never_moves_back(
    connection: Connection, acme: Tenant, after: int, watermark: int
) -> None:
    publish(connection, up_to(acme.tenant_id, 5, after=0))
    assert_fenced(connection, up_to(acme.tenant_id, watermark, after=after))
    assert snapshots.newest(connection, acme.tenant_id).max_visibility_token == 5


def test_a_publication_may_begin_above_the_watermark_when_what_lies_between_is_dead(
    connection: Connection, acme: Tenant
) -> None:
    publish(connection, up_to(acme.tenant_id, 5, after=0))
    assert publish(connection, up_to(acme.tenant_id, 9, after=7)).max_visibility_token == 9


def test_a_folded_file_must_be_live(connection: Connection, acme: Tenant, events: Table) -> None:
    small = [a_file(events, n, inline=True) for n in (1, 2)]
    publish_files(connection, events, 1, *small)
    merged = a_file(events, 2, min_token=VisibilityToken(1))
    fold = up_to(
        acme.tenant_id, 1, after=1, files=[merged], folded_files=[f.file_id for f in small]
    )
    published = publish(connection, fold)
    live = files.manifest(connection, published.snapshot_id, [events.table_id])
    assert [f.file_id for f in live] == [merged.file_id]
    # Of two compactions of the same files only the first is published.
    assert_fenced(connection, replace(fold, files=[a_file(events, 2)]))


def test_of_concurrent_folds_of_one_file_one_is_published(
    catalog: Catalog, connection: Connection, acme: Tenant, events: Table
) -> None:
    small = a_file(events, 1, inline=True)
    publish_files(connection, events, 1, small)

    def fold() -> Snapshot:
        with catalog.connect() as own:
            return publish(
                own,
                up_to(
                    acme.tenant_id,
                    1,
                    after=1,
                    files=[a_file(events, 1)],
                    folded_files=[small.file_id],
                ),
            )

    answers = together(*[fold] * 6)
    assert sum(isinstance(answer, Snapshot) for answer in answers) == 1
    assert sum(isinstance(answer, Fenced) for answer in answers) == 5
    newest = snapshots.newest(connection, acme.tenant_id)
    assert len(files.manifest(connection, newest.snapshot_id, [events.table_id])) == 1


def test_a_published_snapshot_never_changes(
    connection: Connection, acme: Tenant, events: Table
) -> None:
    def look(snapshot_id: SnapshotId) -> Seen:
        return (
            snapshots.by_id(connection, acme.tenant_id, snapshot_id),
            files.manifest(connection, snapshot_id, [events.table_id]),
            tables.tables_at(connection, acme.tenant_id, snapshot_id),
        )

    seen: dict[SnapshotId, Seen] = {}

    def remember(born: Snapshot) -> None:
        seen[born.snapshot_id] = look(born.snapshot_id)

    small = [a_file(events, n, inline=True) for n in (1, 2, 3)]
    for token, file in enumerate(small, 1):
        remember(publish_files(connection, events, token, file))
    merged = a_file(events, 3, min_token=VisibilityToken(1))
    remember(
        publish(
            connection,
            up_to(
                acme.tenant_id, 3, after=3, files=[merged], folded_files=[f.file_id for f in small]
            ),
        )
    )
    proposed = tables.propose_schema(connection, events, COLUMNS)
    remember(
        publish(
            connection,
            up_to(
                acme.tenant_id,
                4,
                files=[a_file(events, 4, schema_version=proposed.version)],
                emptied_tables=[events.table_id],
                new_schemas={events.table_id: proposed.version},
                table_watermarks={events.table_id: VisibilityToken(4)},
            ),
        )
    )
    remember(tables.drop_table(connection, events, created_by="test"))
    new_table(connection, acme, "events")
    assert [len(manifest) for _, manifest, _ in seen.values()] == [1, 2, 3, 1, 1, 0]
    for snapshot_id, then in seen.items():
        assert look(snapshot_id) == then


def test_an_overwrite_empties_its_table_and_keeps_its_own_files(
    connection: Connection, acme: Tenant, events: Table
) -> None:
    other = new_table(connection, acme, "other")
    publish_files(connection, events, 1, a_file(events, 1))
    publish_files(connection, other, 2, a_file(other, 2))
    fresh = a_file(events, 3)
    born = publish(
        connection,
        up_to(acme.tenant_id, 3, files=[fresh], emptied_tables=[events.table_id]),
    )
    left = files.manifest(connection, born.snapshot_id, [events.table_id, other.table_id])
    assert [(f.table_id, f.min_token) for f in left] == [(events.table_id, 3), (other.table_id, 2)]


def test_the_log_of_a_snapshot_names_what_it_added_and_removed(
    connection: Connection, acme: Tenant, events: Table
) -> None:
    first, second = a_file(events, 1), a_file(events, 2)
    publish_files(connection, events, 1, first)
    born = publish(
        connection,
        up_to(acme.tenant_id, 2, files=[second], emptied_tables=[events.table_id]),
    )
    log = connection.execute(
        "SELECT change_type, file_id FROM snapshot_file WHERE snapshot_id = %s ORDER BY 1",
        (born.snapshot_id,),
    ).fetchall()
    assert log == [("add", second.file_id), ("remove", first.file_id)]


def test_another_tenants_snapshot_id_is_not_found(connection: Connection, acme: Tenant) -> None:
    other = tenants.ensure_tenant(connection, "other", created_by="test")
    theirs = snapshots.newest(connection, other.tenant_id)
    with pytest.raises(NotFound) as raised:
        snapshots.by_id(connection, acme.tenant_id, theirs.snapshot_id)
    assert raised.value.code is ErrorCode.SNAPSHOT_NOT_FOUND
    assert "other" not in str(raised.value)


def test_a_snapshot_is_found_by_any_moment_of_its_reign(
    connection: Connection, acme: Tenant
) -> None:
    first = snapshots.newest(connection, acme.tenant_id)
    second = publish(connection, up_to(acme.tenant_id, 1))
    tick = timedelta(microseconds=1)

    def at(moment: datetime) -> Snapshot:
        return snapshots.by_time(connection, acme.tenant_id, moment)

    assert at(first.created_at) == first
    assert at(second.created_at - tick) == first
    assert at(second.created_at) == second
    assert at(second.created_at + timedelta(days=1)) == second
    with pytest.raises(NotFound):
        at(first.created_at - tick)


def test_recent_snapshots_come_newest_first_with_their_operation_and_author(
    connection: Connection, acme: Tenant, events: Table
) -> None:
    published = publish(connection, up_to(acme.tenant_id, 1, created_by="coordinator-1"))
    publish(connection, up_to(acme.tenant_id, 2))
    listed = snapshots.recent(connection, acme.tenant_id, through=published.snapshot_id, limit=2)
    assert [(operation, author) for _, operation, author in listed] == [
        ("publish", "coordinator-1"),
        ("create_table", "test"),
    ]
    assert listed[0][0] == published


def test_a_publication_tells_its_listeners_when_it_commits(
    database_dsn: str, connection: Connection, acme: Tenant
) -> None:
    with psycopg.connect(database_dsn, autocommit=True) as listener:
        listener.execute(f"LISTEN {PUBLISHED_CHANNEL}")
        with connection.transaction():
            snapshots.commit_snapshot(connection, up_to(acme.tenant_id, 1))
            raise psycopg.Rollback
        born = publish(connection, up_to(acme.tenant_id, 1))
        note = next(listener.notifies(timeout=PATIENCE_SECONDS))
    expected = {"tenant_id": acme.tenant_id, "snapshot_id": born.snapshot_id, "watermark": 1}
    assert json.loads(note.payload) == expected


def test_a_tenant_without_a_head_is_corrupt(connection: Connection) -> None:
    with pytest.raises(Corrupt):
        snapshots.newest(connection, TenantId(404))
    with pytest.raises(Corrupt), connection.transaction():
        snapshots.lock_head(connection, TenantId(404))
