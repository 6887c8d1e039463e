"""What an expiry leaves of the watermarks: whatever a kept snapshot reads, and nothing else."""

import random
from datetime import timedelta

import pytest

from catalog import pins, retention, snapshots, tables
from catalog.connection import Connection
from catalog.retention import Retention
from catalog.tables import Table
from catalog.tenants import Tenant, ensure_tenant
from duckmesh.identifiers import SnapshotId
from tests.catalog.publications import a_file, new_table, publish_files

ALL_OLD = Retention(kept_for=timedelta(0), kept_at_least=3)
_Read = dict[SnapshotId, list[tuple[str, int | None]]]


class History:
    """A tenant that publishes to a few tables, and makes and drops others."""

    def __init__(self, connection: Connection, tenant: Tenant, seed: int) -> None:
        self._connection = connection
        self._tenant = tenant
        self._random = random.Random(seed)  # noqa: S311 - a repeatable history
        self._token = 0
        self._made = 0
        self._live: list[Table] = []

    def grow(self, steps: int) -> None:
        for _ in range(steps):
            choice = self._random.random()
            if choice < 0.2 or not self._live:
                self._made += 1
                self._live.append(
                    new_table(self._connection, self._tenant, f"{self._tenant.name}_{self._made}")
                )
            elif choice < 0.3 and len(self._live) > 1:
                dropped = self._live.pop(self._random.randrange(len(self._live)))
                tables.drop_table(self._connection, dropped, created_by="test")
            else:
                self._token += 1
                table = self._random.choice(self._live)
                publish_files(self._connection, table, self._token, a_file(table, self._token))

    def pin_some(self) -> list[str]:
        """Pin a fifth of what no pin holds; return the tags."""
        held = pins.held(self._connection, self._tenant.tenant_id)
        free = [each for each in snapshot_ids(self._connection, self._tenant) if each not in held]
        chosen = self._random.sample(free, len(free) // 5)
        for snapshot_id in chosen:
            pins.pin(
                self._connection,
                self._tenant.tenant_id,
                snapshot_id,
                tag=f"at_{snapshot_id}",
                lasting=None,
                created_by="test",
            )
        return [f"at_{snapshot_id}" for snapshot_id in chosen]

    def expire(self) -> None:
        """In turns of a few, until nothing is left to do."""
        while retention.expire(
            self._connection, self._tenant.tenant_id, ALL_OLD, limit=self._random.randint(1, 7)
        ).snapshots:
            pass


def snapshot_ids(connection: Connection, tenant: Tenant) -> list[SnapshotId]:
    rows = connection.execute(
        "SELECT snapshot_id FROM snapshot WHERE tenant_id = %s ORDER BY 1", (tenant.tenant_id,)
    )
    return [SnapshotId(row[0]) for row in rows]


def reads(connection: Connection, tenant: Tenant) -> _Read:
    """The tables of each snapshot that is there, with their watermarks."""
    return {
        snapshot_id: [
            (table.name, table.watermark)
            for table in tables.tables_at(connection, tenant.tenant_id, snapshot_id)
        ]
        for snapshot_id in snapshot_ids(connection, tenant)
    }


def unread_watermarks(connection: Connection, tenant: Tenant) -> list[tuple[int, int]]:
    """Those that are not the newest of their table at any snapshot that is there."""
    return connection.execute(
        """
        SELECT w.table_id, w.snapshot_id
        FROM (SELECT w.table_id, w.snapshot_id,
                     lead(w.snapshot_id, 1, t.end_snapshot)
                         OVER (PARTITION BY w.table_id ORDER BY w.snapshot_id) AS next
              FROM snapshot_table_watermark w JOIN table_def t USING (table_id)
              WHERE t.tenant_id = %(tenant_id)s) w
        WHERE NOT EXISTS (SELECT 1 FROM snapshot s
                          WHERE s.tenant_id = %(tenant_id)s AND s.snapshot_id >= w.snapshot_id
                            AND (w.next IS NULL OR s.snapshot_id < w.next))
        """,
        {"tenant_id": tenant.tenant_id},
    ).fetchall()


@pytest.mark.parametrize("seed", range(4))
def test_an_expiry_keeps_the_newest_watermark_of_each_table_at_every_kept_snapshot_and_no_other(
    connection: Connection, acme: Tenant, seed: int
) -> None:
    neighbour = ensure_tenant(connection, "neighbour", created_by="test")
    history, beside = History(connection, acme, seed), History(connection, neighbour, seed + 100)
    tags: list[str] = []
    for _ in range(4):
        for _ in range(8):
            history.grow(3)
            beside.grow(2)
        tags += history.pin_some()
        before, of_neighbour = reads(connection, acme), reads(connection, neighbour)
        history.expire()
        after = reads(connection, acme)
        assert len(after) < len(before)
        assert after == {snapshot_id: before[snapshot_id] for snapshot_id in after}
        assert unread_watermarks(connection, acme) == []
        assert reads(connection, neighbour) == of_neighbour
        # Old pins go, and leave gaps among those that stay.
        for tag in tags[::2]:
            pins.unpin(connection, acme.tenant_id, tag=tag)
        tags = tags[1::2]
        history.expire()
        last = reads(connection, acme)
        assert last == {snapshot_id: before[snapshot_id] for snapshot_id in last}
        assert unread_watermarks(connection, acme) == []
        head = snapshots.newest(connection, acme.tenant_id)
        assert head.snapshot_id in last
