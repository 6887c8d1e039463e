"""Transactions: held durable, accepted as one at COMMIT exactly once, or dropped traceless."""

from datetime import timedelta
from functools import partial
from pathlib import Path

import pyarrow as pa
import pytest

from catalog import sessions
from coordinator import duties
from duckmesh.errors import Conflict, ErrorCode, Invalid, NotFound, Unavailable
from duckmesh.identifiers import SnapshotId, TransactionId, new_session_id, new_transaction_id
from gateway.identity import Identity
from gateway.ingest_modes import IngestMode
from gateway.transactions import Transactions
from ingest_bus.envelope import EventState
from tests.bus_worlds import together
from tests.rooms import Rooms, open_rooms, rows

APPEND = IngestMode.APPEND
LARGE = rows(*range(200_000))


@pytest.fixture
def prepared(rooms: Rooms) -> Rooms:
    """Rooms with the empty tables t and u, both visible."""
    rooms.write("t", rows())
    rooms.write("u", rows())
    rooms.publish_all()
    return rooms


def begin(rooms: Rooms) -> TransactionId:
    return rooms.transactions.begin(rooms.acme, None)


def values(rooms: Rooms, table: str = "t") -> list[int]:
    found = rooms.query(f"SELECT v FROM {table} ORDER BY v")["v"]
    return [int(value) for value in found.to_pylist()]


def objects(rooms: Rooms) -> list[Path]:
    root = Path(rooms.folder) / "objects"
    return sorted(path for path in root.rglob("*.parquet") if path.is_file())


def elsewhere(rooms: Rooms) -> Transactions:
    """The same transactions as another serving process sees them."""
    return Transactions(rooms.catalog, rooms.bus, rooms.store)


def test_what_a_transaction_holds_is_nobodys_until_it_is_committed(prepared: Rooms) -> None:
    before = prepared.bus.last_token(prepared.acme.tenant_id)
    transaction = begin(prepared)
    receipt = prepared.write("t", rows(1, 2), mode=APPEND, transaction=transaction)
    assert receipt.is_held
    assert receipt.row_count == 2
    prepared.write("u", rows(3), mode=APPEND, transaction=transaction)
    prepared.publish_all()
    assert prepared.bus.last_token(prepared.acme.tenant_id) == before
    assert (values(prepared, "t"), values(prepared, "u")) == ([], [])
    done = elsewhere(prepared).commit(prepared.acme, transaction)
    assert (done.visibility_token, done.write_count, done.row_count) == (before + 2, 2, 3)
    prepared.publish_all()
    assert (values(prepared, "t"), values(prepared, "u")) == ([1, 2], [3])


def test_a_repeated_commit_returns_the_same_receipt_and_adds_nothing(prepared: Rooms) -> None:
    transaction = begin(prepared)
    prepared.write("t", rows(1), mode=APPEND, transaction=transaction)
    first = prepared.transactions.commit(prepared.acme, transaction)
    assert elsewhere(prepared).commit(prepared.acme, transaction) == first
    prepared.transactions.roll_back(prepared.acme, transaction)
    assert prepared.transactions.commit(prepared.acme, transaction) == first
    prepared.publish_all()
    assert values(prepared) == [1]


def test_concurrent_commits_of_one_transaction_are_one(prepared: Rooms) -> None:
    transaction = begin(prepared)
    prepared.write("t", rows(1), mode=APPEND, transaction=transaction)
    commit = partial(elsewhere(prepared).commit, prepared.acme, transaction)
    answers = together(*[commit] * 4)
    assert not any(isinstance(answer, Exception) for answer in answers)
    assert len(set(answers)) == 1
    prepared.publish_all()
    assert values(prepared) == [1]


def test_a_commit_and_a_roll_back_at_once_agree(prepared: Rooms) -> None:
    kept = 0
    for number in range(10):
        transaction = begin(prepared)
        prepared.write("t", rows(number), mode=APPEND, transaction=transaction)
        answer, _ = together(
            partial(prepared.transactions.commit, prepared.acme, transaction),
            partial(prepared.transactions.roll_back, prepared.acme, transaction),
        )
        assert not isinstance(answer, Exception)
        kept += answer is not None and answer.visibility_token is not None
    prepared.publish_all()
    assert len(values(prepared)) == kept


def test_a_rolled_back_transaction_leaves_nothing(prepared: Rooms) -> None:
    transaction = begin(prepared)
    prepared.write("t", rows(1), mode=APPEND, transaction=transaction)
    prepared.write("t", LARGE, mode=APPEND, transaction=transaction)
    assert len(objects(prepared)) == 1
    prepared.transactions.roll_back(prepared.acme, transaction)
    assert objects(prepared) == []
    done = prepared.transactions.commit(prepared.acme, transaction)
    assert done.visibility_token is None, "a spare COMMIT does nothing"
    prepared.publish_all()
    assert values(prepared) == []


def test_a_write_after_the_end_is_refused(prepared: Rooms) -> None:
    transaction = begin(prepared)
    found = prepared.transactions.find(prepared.acme, transaction)
    assert found is not None
    pending = prepared.writes.begin(
        prepared.acme, "t", rows(1).schema, mode=APPEND, transaction=found
    )
    pending.append(rows(1).to_batches()[0])
    prepared.transactions.commit(prepared.acme, transaction)
    with pytest.raises(Conflict) as refused:
        pending.commit()
    assert refused.value.code is ErrorCode.TRANSACTION_ENDED


def test_a_large_write_is_staged_and_published_by_its_commit(prepared: Rooms) -> None:
    transaction = begin(prepared)
    prepared.write("t", LARGE, mode=APPEND, transaction=transaction)
    prepared.transactions.commit(prepared.acme, transaction)
    prepared.publish_all()
    assert prepared.query("SELECT count(*) AS n FROM t")["n"].to_pylist() == [LARGE.num_rows]


def test_writes_beyond_the_inline_bound_are_staged(database_dsn: str, tmp_path: Path) -> None:
    """What a transaction leaves in the catalog is bounded, however many writes it has."""
    with open_rooms(database_dsn, tmp_path, transaction_inline_max_bytes=9_000) as rooms:
        rooms.write("t", rows())
        transaction = begin(rooms)
        for _ in range(6):
            rooms.write("t", rows(*range(1_000)), mode=APPEND, transaction=transaction)
        found = rooms.transactions.find(rooms.acme, transaction)
        assert found is not None
        assert 0 < found.record.inline_bytes <= 9_000
        assert objects(rooms)
        rooms.transactions.commit(rooms.acme, transaction)
        rooms.publish_all()
        assert rooms.query("SELECT count(*) AS n FROM t")["n"].to_pylist() == [6_000]


def test_a_transaction_holds_so_many_writes_and_no_more(database_dsn: str, tmp_path: Path) -> None:
    with open_rooms(database_dsn, tmp_path, writes_max=3) as rooms:
        rooms.write("t", rows())
        transaction = begin(rooms)
        for number in range(3):
            rooms.write("t", rows(number), mode=APPEND, transaction=transaction)
        with pytest.raises(Invalid) as refused:
            rooms.write("t", rows(9), mode=APPEND, transaction=transaction)
        assert refused.value.code is ErrorCode.PAYLOAD_TOO_LARGE
        rooms.transactions.commit(rooms.acme, transaction)
        rooms.publish_all()
        assert values(rooms) == [0, 1, 2]


def test_no_snapshot_shows_a_part_of_a_transaction(prepared: Rooms) -> None:
    """Across two tables, however small the claims are and whatever else is written."""
    for number in range(6):
        prepared.write("t", rows(1_000 + number), mode=APPEND)
        transaction = begin(prepared)
        for table in ("t", "u", "t", "u"):
            prepared.write(table, rows(number), mode=APPEND, transaction=transaction)
        prepared.transactions.commit(prepared.acme, transaction)
    materializer = prepared.materializer(claim_limit=1)
    sizes = set()
    while (published := materializer.publish_next()) is not None:
        here = published.snapshot.snapshot_id
        seen = {
            table: prepared.query_at(f"SELECT v FROM {table} WHERE v < 1000", here)["v"].to_pylist()
            for table in ("t", "u")
        }
        assert sorted(seen["t"]) == sorted(seen["u"])
        assert all(seen["t"].count(value) == 2 for value in seen["t"])
        sizes.add(len(seen["t"]))
    assert len(sizes) == 7, "each transaction was published alone"


def test_keys_in_a_transaction_are_those_of_any_write(prepared: Rooms) -> None:
    prepared.write("t", rows(1), mode=APPEND, key="one")
    transaction = begin(prepared)
    for _ in range(2):
        prepared.write("t", rows(1), mode=APPEND, key="one", transaction=transaction)
        prepared.write("t", rows(2), mode=APPEND, key="two", transaction=transaction)
    prepared.transactions.commit(prepared.acme, transaction)
    prepared.write("t", rows(2), mode=APPEND, key="two")
    prepared.publish_all()
    assert values(prepared) == [1, 2]


def test_a_staged_duplicate_leaves_no_object(prepared: Rooms) -> None:
    prepared.write("t", LARGE, mode=APPEND, key="one")
    transaction = begin(prepared)
    prepared.write("t", LARGE, mode=APPEND, key="one", transaction=transaction)
    assert len(objects(prepared)) == 2
    prepared.transactions.commit(prepared.acme, transaction)
    assert len(objects(prepared)) == 1
    prepared.publish_all()
    assert prepared.query("SELECT count(*) AS n FROM t")["n"].to_pylist() == [LARGE.num_rows]


def test_a_conflict_at_commit_rolls_the_whole_transaction_back(prepared: Rooms) -> None:
    prepared.write("t", rows(1), mode=APPEND, key="one")
    transaction = begin(prepared)
    prepared.write("u", rows(5), mode=APPEND, transaction=transaction)
    prepared.write("t", rows(2), mode=APPEND, key="one", transaction=transaction)
    with pytest.raises(Conflict) as refused:
        prepared.transactions.commit(prepared.acme, transaction)
    assert refused.value.code is ErrorCode.IDEMPOTENCY_CONFLICT
    with pytest.raises(Conflict) as told:
        prepared.transactions.commit(prepared.acme, transaction)
    assert told.value.code is ErrorCode.TRANSACTION_ENDED
    prepared.publish_all()
    assert (values(prepared, "t"), values(prepared, "u")) == ([1], [])


def test_a_table_replaced_meanwhile_sends_the_commit_back(prepared: Rooms) -> None:
    transaction = begin(prepared)
    prepared.write("t", rows(1), mode=APPEND, transaction=transaction)
    prepared.write("t", pa.table({"w": ["x"]}), mode=IngestMode.REPLACE)
    with pytest.raises(Conflict) as refused:
        prepared.transactions.commit(prepared.acme, transaction)
    assert refused.value.code is ErrorCode.SCHEMA_INCOMPATIBLE


@pytest.mark.parametrize("other", [rows(7), pa.table({"w": ["x"]})], ids=["same", "other columns"])
def test_a_replacement_joins_and_what_follows_has_its_columns(
    prepared: Rooms, other: pa.Table
) -> None:
    prepared.write("t", rows(1), mode=APPEND)
    prepared.publish_all()
    transaction = begin(prepared)
    prepared.write("t", rows(2), mode=APPEND, transaction=transaction)
    prepared.write("t", LARGE, mode=APPEND, transaction=transaction)
    prepared.write("t", other, mode=IngestMode.REPLACE, transaction=transaction)
    prepared.write("t", other, mode=APPEND, transaction=transaction)
    assert objects(prepared) == [], "the replacement drops what was held for the table"
    prepared.publish_all()
    assert values(prepared) == [1]
    done = prepared.transactions.commit(prepared.acme, transaction)
    assert done.row_count == 2
    prepared.publish_all()
    assert prepared.query("SELECT * FROM t").to_pylist() == other.to_pylist() * 2
    prepared.write("t", other, mode=APPEND)
    prepared.publish_all()
    assert prepared.query("SELECT * FROM t").num_rows == 3


def test_create_makes_the_table_at_once_and_its_rows_at_commit(prepared: Rooms) -> None:
    transaction = begin(prepared)
    prepared.write("born", rows(1), mode=IngestMode.CREATE, transaction=transaction)
    assert values(prepared, "born") == []
    prepared.transactions.roll_back(prepared.acme, transaction)
    assert values(prepared, "born") == []
    other = begin(prepared)
    prepared.write("born", rows(2), mode=APPEND, transaction=other)
    prepared.transactions.commit(prepared.acme, other)
    prepared.publish_all()
    assert values(prepared, "born") == [2]


def test_the_first_snapshot_pinned_is_the_transactions(prepared: Rooms) -> None:
    found = prepared.transactions.find(prepared.acme, begin(prepared))
    assert found is not None
    assert found.pin(SnapshotId(5)) == 5
    assert found.pin(SnapshotId(9)) == 5


def test_a_transaction_belongs_to_who_began_it(prepared: Rooms) -> None:
    transaction = begin(prepared)
    prepared.write("t", rows(1), mode=APPEND, transaction=transaction)
    ours = prepared.acme
    same_tenant = Identity(ours.tenant_id, ours.tenant, "another", None, ours.roles)
    for stranger in (prepared.identity("other"), same_tenant):
        assert prepared.transactions.find(stranger, transaction) is None
        prepared.transactions.roll_back(stranger, transaction)
        with pytest.raises(NotFound):
            prepared.transactions.commit(stranger, transaction)
    with pytest.raises(NotFound):
        prepared.transactions.commit(ours, new_transaction_id())
    assert prepared.transactions.commit(ours, transaction).write_count == 1


def end_idle(rooms: Rooms, *, idle: timedelta, kept: timedelta = timedelta(days=7)) -> None:
    duties.end_transactions(rooms.catalog, rooms.store, idle=idle, kept=kept).act()


def test_an_idle_transaction_is_rolled_back_and_its_client_told(prepared: Rooms) -> None:
    idle = timedelta(minutes=15)
    quiet, used = begin(prepared), begin(prepared)
    for transaction in (quiet, used):
        prepared.write("t", rows(1), mode=APPEND, transaction=transaction)
        prepared.write("t", LARGE, mode=APPEND, transaction=transaction)
    prepared.advance(timedelta(minutes=10))
    assert prepared.transactions.find(prepared.acme, used) is not None
    prepared.advance(timedelta(minutes=10))
    end_idle(prepared, idle=idle)
    assert len(objects(prepared)) == 1
    for _ in range(2):
        with pytest.raises(Conflict) as refused:
            prepared.transactions.commit(prepared.acme, quiet)
        assert refused.value.code is ErrorCode.TRANSACTION_ENDED
    prepared.transactions.roll_back(prepared.acme, quiet)
    assert prepared.transactions.commit(prepared.acme, quiet).visibility_token is None
    assert prepared.transactions.commit(prepared.acme, used).write_count == 2


def test_sessions_and_ended_transactions_are_forgotten_in_time(prepared: Rooms) -> None:
    session_id = new_session_id()
    over = prepared.transactions.begin(prepared.acme, session_id)
    prepared.transactions.roll_back(prepared.acme, over)
    kept = timedelta(days=2)
    end_idle(prepared, idle=timedelta(minutes=15), kept=kept)
    assert prepared.transactions.find(prepared.acme, over) is not None
    prepared.advance(timedelta(days=3))
    end_idle(prepared, idle=timedelta(minutes=15), kept=kept)
    assert prepared.transactions.find(prepared.acme, over) is None
    with prepared.catalog.connect() as connection:
        assert sessions.find(connection, prepared.acme.tenant_id, session_id).record is None


def test_a_committed_transaction_moves_its_session(prepared: Rooms) -> None:
    session_id = new_session_id()
    transaction = prepared.transactions.begin(prepared.acme, session_id)
    prepared.write("t", rows(1), mode=APPEND, transaction=transaction)

    def record() -> sessions.SessionRecord | None:
        with prepared.catalog.connect() as connection:
            return sessions.find(connection, prepared.acme.tenant_id, session_id).record

    open_record = record()
    assert open_record is not None
    assert (open_record.last_token, open_record.transaction_id) == (0, transaction)
    done = prepared.transactions.commit(prepared.acme, transaction)
    ended_record = record()
    assert ended_record is not None
    assert ended_record.last_token == done.visibility_token
    assert ended_record.transaction_id is None


class Broken(Transactions):
    """The connection breaks around the commit of the database: `after` says on which side."""

    after = True

    def commit(self, identity: Identity, transaction_id: TransactionId):  # type: ignore[no-untyped-def]
        if self.after:
            super().commit(identity, transaction_id)
        raise Unavailable(ErrorCode.CATALOG_UNAVAILABLE, "the connection broke")


@pytest.mark.parametrize("after", [True, False], ids=["accepted", "not accepted"])
def test_a_commit_of_unknown_outcome_is_repeated_exactly_once(prepared: Rooms, after: bool) -> None:
    transaction = begin(prepared)
    prepared.write("t", rows(1), mode=APPEND, transaction=transaction)
    broken = Broken(prepared.catalog, prepared.bus, prepared.store)
    broken.after = after
    with pytest.raises(Unavailable):
        broken.commit(prepared.acme, transaction)
    done = prepared.transactions.commit(prepared.acme, transaction)
    assert done.write_count == 1
    assert prepared.transactions.commit(prepared.acme, transaction) == done
    prepared.publish_all()
    assert values(prepared) == [1]
    states = [e.state for e in prepared.bus.recent_events(prepared.acme.tenant_id, limit=1)]
    assert states == [EventState.COMMITTED]
