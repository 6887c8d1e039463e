"""tables, snapshots and dead-letters: looking at what is there, changing it, and going back."""

from datetime import timedelta
from pathlib import Path

import pytest

from duckmesh.identifiers import ConsumerId
from tests.command_line.conftest import document
from tests.rooms import Rooms, open_rooms, rows


@pytest.fixture
def rooms(database_dsn: str, tmp_path: Path):
    with open_rooms(database_dsn, tmp_path) as opened:
        yield opened


@pytest.fixture
def acme(on_catalog):
    """A command on the tenant acme; without --json when it is told so."""

    def run(*arguments: str):
        return on_catalog(*arguments, "--tenant", "acme")

    return run


def bury(rooms: Rooms) -> None:
    lease = timedelta(seconds=30)
    while held := rooms.bus.claim_batch(ConsumerId("c"), limit=100, max_bytes=2**20, lease=lease):
        ids = [event.envelope.event_id for event in held.events]
        rooms.bus.nack(held, ids, "cannot be read", dead=True)


def test_a_table_is_cut_by_its_partitions_and_by_others_later(acme, rooms: Rooms) -> None:
    made = acme(
        *("tables", "create", "t", "--column", "id BIGINT", "--column", "seen timestamptz"),
        *("--partition", "day(seen)", "--partition", "bucket(4, id)"),
    )
    assert made.stdout == "created t\n"
    assert "partitioned by day(seen), bucket(4, id)\n" in acme("tables", "show", "t").stdout
    changed = acme("tables", "partition", "t", "--partition", "month(seen)")
    assert changed.stdout == "t is partitioned by month(seen)\n"
    shown = document(acme("tables", "show", "t", "--json"))
    assert shown["partition_spec"] == ["month(seen)"]
    assert document(acme("tables", "partition", "t", "--json"))["partition_spec"] == []
    wrong = acme("tables", "partition", "t", "--partition", "hour(id)")
    assert "PARTITION_SPEC_INVALID" in wrong.stderr
    assert acme("tables", "partition", "u", "--partition", "id").exit_code == 3


def test_a_table_is_created_shown_listed_and_dropped(acme, rooms: Rooms) -> None:
    made = acme(
        *("tables", "create", "t", "--column", "id BIGINT", "--column", "price decimal(18,2)"),
        *("--column", "word VARCHAR NOT NULL", "--primary-key", "id"),
    )
    assert made.stdout == "created t\n"
    shown = document(acme("tables", "show", "t", "--json"))
    assert shown["primary_key"] == ["id"]
    assert [(c["name"], c["type"], c["nullable"]) for c in shown["columns"]] == [
        ("id", "bigint", False),
        ("price", "decimal(18,2)", True),
        ("word", "varchar", False),
    ]
    assert "decimal(18,2)" in acme("tables", "show", "t").stdout
    assert [t["name"] for t in document(acme("tables", "list", "--json"))["tables"]] == ["t"]
    assert document(acme("tables", "--json")) == document(acme("tables", "list", "--json"))
    rooms.execute("INSERT INTO t VALUES (1, 2.5, 'x')")
    again = acme("tables", "create", "t", "--column", "id BIGINT")
    assert "TABLE_EXISTS" in again.stderr
    for wrong in ("id", "id blub", " BIGINT"):
        assert acme("tables", "create", "u", "--column", wrong).exit_code != 0
    assert acme("tables", "drop", "t", "--dry-run").stdout == "would drop t\n"
    assert acme("tables", "drop", "t").stdout == "dropped t\n"
    assert acme("tables", "drop", "t").exit_code == 3
    assert acme("tables", "show", "t").exit_code == 3


def test_a_write_to_a_table_that_the_command_dropped_is_refused(acme, rooms: Rooms) -> None:
    rooms.write("t", rows(1))
    assert acme("tables", "drop", "t").exit_code == 0
    acme("tables", "create", "t", "--column", "v BIGINT")
    rooms.write("t", rows(2))
    rooms.publish_all()
    assert rooms.query("SELECT v FROM t").column(0).to_pylist() == [2]


def test_a_snapshot_is_tagged_pinned_restored_and_unpinned(acme, rooms: Rooms) -> None:
    rooms.write("t", rows(1))
    rooms.publish_all()
    tagged = document(acme("snapshots", "tag", "good", "--json"))
    first = tagged["snapshot_id"]
    assert (tagged["tag"], tagged["expires_at"]) == ("good", None)
    rooms.write("t", rows(2))
    rooms.write("u", rows(2))
    rooms.publish_all()
    kept = acme("snapshots", "pin", str(first), "--days", "7")
    assert kept.stdout.startswith(f"snapshot {first} is kept until ")
    listed = document(acme("snapshots", "pins", "--json"))
    assert [(each["snapshot_id"], each["tag"]) for each in listed] == [
        (first, None),
        (first, "good"),
    ]
    assert "good" in acme("snapshots", "pins").stdout

    planned = document(acme("snapshots", "restore", "good", "--dry-run", "--json"))
    assert (planned["snapshot_id"], planned["rewound_tables"]) == (None, ["t"])
    assert planned["ended_tables"] == ["u"]
    alone = acme("snapshots", "restore", str(first), "--table", "t")
    assert "rewound_tables: t" in alone.stdout
    assert rooms.query("SELECT v FROM t").column(0).to_pylist() == [1]
    assert rooms.query("SELECT v FROM u").column(0).to_pylist() == [2]
    done = document(acme("snapshots", "restore", "good", "--json"))
    assert done["snapshot_id"] > first
    newest = document(acme("snapshots", "list", "--limit", "1", "--json"))
    assert (newest[0]["operation"], newest[0]["created_by"]) == ("restore", "operator")

    assert acme("snapshots", "unpin", "good").stdout == f"unpinned good (snapshot {first})\n"
    assert acme("snapshots", "unpin", str(first)).exit_code == 0
    assert acme("snapshots", "unpin", "good").exit_code == 3
    assert acme("snapshots", "restore", "good").exit_code == 3
    assert acme("snapshots", "tag", "7up").exit_code == 2


def test_dead_letters_are_listed_shown_and_replayed(acme, rooms: Rooms) -> None:
    rooms.execute("CREATE TABLE t (v BIGINT)")
    rooms.execute("CREATE TABLE gone (v BIGINT)")
    assert acme("dead-letters", "list").stdout == "tenant acme has no dead letter\n"
    for value in range(3):
        rooms.write("t", rows(value), key=f"k{value}")
    rooms.write("gone", rows(9))
    bury(rooms)
    rooms.execute("DROP TABLE gone")
    listed = document(acme("dead-letters", "list", "--json"))
    assert [(each["visibility_token"], each["table"]) for each in listed] == [
        (1, "t"),
        (2, "t"),
        (3, "t"),
        (4, None),
    ]
    assert len(document(acme("dead-letters", "list", "--table", "t", "--json"))) == 3
    assert "cannot be read" in acme("dead-letters", "list").stdout
    shown = document(acme("dead-letters", "show", "2", "--json"))
    assert (shown["idempotency_key"], shown["failure_reason"]) == ("k1", "cannot be read")
    assert "idempotency_key: k1" in acme("dead-letters", "show", "2").stdout

    planned = document(acme("dead-letters", "replay", "--all", "--dry-run", "--json"))
    assert [each["dead_token"] for each in planned["replayed"]] == [1, 2, 3]
    done = document(acme("dead-letters", "replay", "2", "--json"))
    assert done["replayed"] == [
        {"dead_token": 2, "visibility_token": 5, "row_count": 1, "duplicate": False}
    ]
    rest = document(acme("dead-letters", "replay", "--all", "--table", "t", "--json"))
    assert [each["dead_token"] for each in rest["replayed"]] == [1, 3]
    rooms.publish_all()
    assert rooms.query("SELECT v FROM t ORDER BY v").column(0).to_pylist() == [0, 1, 2]
    assert len(document(acme("dead-letters", "list", "--json"))) == 1
    assert len(document(acme("dead-letters", "list", "--replayed", "--json"))) == 4
    assert acme("dead-letters", "replay", "4").exit_code == 3
    for wrong in ((), ("1", "--all"), ("1", "--table", "t")):
        assert acme("dead-letters", "replay", *wrong).exit_code == 2
