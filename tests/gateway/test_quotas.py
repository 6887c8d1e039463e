"""What a tenant may take, and what its keys may: heard of, held, and told by name."""

import threading
from dataclasses import replace

import pyarrow as pa
import pytest

from catalog import acts, quotas, tenants
from catalog.snapshots import lock_head
from duckmesh.errors import Cancelled, ErrorCode, Exceeded, Invalid, Overloaded
from duckmesh.identifiers import KeyId
from duckmesh.quotas import LEAST, Quota, Quotas
from gateway import tenant_quotas
from gateway.groups import KeyedRows
from gateway.identity import Identity
from gateway.ingest_modes import IngestMode
from gateway.known_quotas import KnownQuotas
from gateway.limits import IngestLimits
from gateway.rates import IngestRates
from gateway.reads import ReadPoint
from gateway.staging import StagingLimits
from gateway.tenant_quotas import TenantQuotas
from gateway.writes import Writes
from query_engine.engine import Interruption
from tests.processes import until
from tests.rooms import Rooms, rows


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def set_quotas(rooms: Rooms, **values: int) -> None:
    tenant_quotas.set_quotas(rooms.catalog, "acme", Quotas(**values))


def with_key(rooms: Rooms, **values: int) -> Identity:
    with rooms.catalog.connect() as connection:
        key_id, _ = tenants.create_key(
            connection,
            rooms.acme.tenant_id,
            name="k",
            roles=["ingest_writer", "query_reader"],
            own_quotas=Quotas(**values),
        )
    return replace(rooms.acme, key_id=key_id)


def test_a_quota_of_its_own_goes_before_the_default_and_a_key_only_narrows(rooms: Rooms) -> None:
    known = KnownQuotas(rooms.catalog, Quotas(tables=7, query_rows=100, query_bytes=50))
    assert known.of(rooms.acme).caller == Quotas(tables=7, query_rows=100, query_bytes=50)
    set_quotas(rooms, query_rows=1000, ingest_rows_per_second=5)
    narrow = with_key(rooms, query_rows=10, query_bytes=5000)
    known = KnownQuotas(rooms.catalog, known.defaults)
    assert known.of(rooms.acme).caller == Quotas(
        tables=7, query_rows=1000, query_bytes=50, ingest_rows_per_second=5
    )
    # Larger than its tenant's, a key's quota says nothing.
    assert known.of(narrow).caller == Quotas(
        tables=7, query_rows=10, query_bytes=50, ingest_rows_per_second=5
    )
    tenant_quotas.reset_quotas(rooms.catalog, "acme", [Quota.QUERY_ROWS])
    assert KnownQuotas(rooms.catalog, known.defaults).of(rooms.acme).caller.query_rows == 100


def test_a_change_is_heard_of_by_those_who_know_the_old_value(rooms: Rooms) -> None:
    clock = Clock()
    heard = KnownQuotas(rooms.catalog, monotonic=clock)
    assert heard.of(rooms.acme).caller.tables is None
    # The clock stands: only the notification can tell. It may be sent before it is listened for.
    until(lambda: _tells(rooms, heard))


def _tells(rooms: Rooms, heard: KnownQuotas) -> bool:
    set_quotas(rooms, tables=3)
    return heard.of(rooms.acme).caller.tables == 3


def test_a_change_whose_notification_is_lost_is_known_within_a_second(rooms: Rooms) -> None:
    clock = Clock()
    known = KnownQuotas(rooms.catalog, monotonic=clock)
    known._subscribed = True
    assert known.of(rooms.acme).caller.tables is None
    set_quotas(rooms, tables=3)
    assert known.of(rooms.acme).caller.tables is None
    clock.now += 1.0
    assert known.of(rooms.acme).caller.tables == 3


def test_values_out_of_bounds_are_refused(rooms: Rooms) -> None:
    for quota, least in LEAST.items():
        with pytest.raises(Invalid, match=quota.value):
            set_quotas(rooms, **{quota.value: least - 1})
    with pytest.raises(Invalid, match="tables"):
        tenant_quotas.check_values(Quotas(tables=1), allowed=[Quota.QUERY_ROWS])


# -- ingest rates


@pytest.fixture
def paced(rooms: Rooms) -> tuple[IngestRates, Clock]:
    clock = Clock()
    known = KnownQuotas(rooms.catalog, monotonic=clock)
    return IngestRates(known, monotonic=clock, waiting_max=2), clock


def test_what_one_second_allows_is_taken_at_once_and_a_debt_is_paid_in_time(
    rooms: Rooms, paced: tuple[IngestRates, Clock]
) -> None:
    rates, clock = paced
    set_quotas(rooms, ingest_rows_per_second=100)
    for _ in range(9):
        rates.pace(rooms.acme, 10, 1)
    # A batch larger than the quota passes, and leaves a debt.
    rates.pace(rooms.acme, 260, 1)
    with pytest.raises(Overloaded) as caught:
        rates.check(rooms.acme)
    assert caught.value.code is ErrorCode.RATE_LIMITED
    assert caught.value.context == {
        "quota": "ingest_rows_per_second",
        "used": 350,
        "limit": 100,
        "retry_after_ms": 2500,
        "retry_after_seconds": 3,
    }
    clock.now += 2.4
    with pytest.raises(Overloaded):
        rates.check(rooms.acme)
    clock.now += 0.11
    rates.check(rooms.acme)


def test_a_keys_rate_holds_for_the_key_alone(
    rooms: Rooms, paced: tuple[IngestRates, Clock]
) -> None:
    rates, _ = paced
    narrow = with_key(rooms, ingest_bytes_per_second=1000)
    other = with_key(rooms)
    rates.pace(narrow, 1, 5000)
    with pytest.raises(Overloaded, match="the API key may send 1000 bytes a second") as caught:
        rates.check(narrow)
    assert caught.value.context["quota"] == "ingest_bytes_per_second"
    rates.check(other)
    rates.check(rooms.acme)


def test_a_slowed_stream_goes_on_when_its_quota_is_raised(rooms: Rooms) -> None:
    rates = IngestRates(KnownQuotas(rooms.catalog))
    set_quotas(rooms, ingest_rows_per_second=1)
    rates.pace(rooms.acme, 100_000, 1)
    done = threading.Event()

    def go_on() -> None:
        rates.pace(rooms.acme, 1, 1)
        done.set()

    waiting = threading.Thread(target=go_on)
    waiting.start()
    assert not done.wait(0.3)
    set_quotas(rooms, ingest_rows_per_second=10_000_000)
    assert done.wait(10)
    waiting.join()


def test_a_slowed_stream_ends_with_its_sender_and_too_many_are_refused(rooms: Rooms) -> None:
    rates = IngestRates(KnownQuotas(rooms.catalog), waiting_max=2)
    set_quotas(rooms, ingest_rows_per_second=1)
    rates.pace(rooms.acme, 100_000, 1)
    stops = [Interruption(), Interruption()]
    ended: list[Cancelled] = []

    def wait(stop: Interruption) -> None:
        try:
            rates.pace(rooms.acme, 1, 1, stop)
        except Cancelled as error:
            ended.append(error)

    threads = [threading.Thread(target=wait, args=(stop,)) for stop in stops]
    for thread in threads:
        thread.start()
    until(lambda: rates._waiting.get(rooms.acme.tenant_id) == 2)
    with pytest.raises(Overloaded) as caught:
        rates.pace(rooms.acme, 1, 1)
    assert caught.value.context["retry_after_ms"] > 60_000
    for stop in stops:
        stop.interrupt()
    for thread in threads:
        thread.join(10)
    assert [error.code for error in ended] == [ErrorCode.INGEST_CANCELLED] * 2
    assert rates._waiting == {}


def test_buckets_nobody_uses_are_forgotten(rooms: Rooms, paced: tuple[IngestRates, Clock]) -> None:
    rates, clock = paced
    for number in range(10_000):
        rates._bucket((KeyId(str(number)), Quota.INGEST_ROWS_PER_SECOND), 10, clock.now)
    clock.now += 5
    rates._bucket((KeyId("new"), Quota.INGEST_ROWS_PER_SECOND), 10, clock.now)
    assert len(rates._buckets) == 1


def test_records_are_refused_and_streams_are_slowed_down(rooms: Rooms) -> None:
    rooms.write("t", rows(1))
    set_quotas(rooms, ingest_rows_per_second=50)
    writes = Writes(
        rooms.catalog, rooms.bus, rooms.store, limits=IngestLimits(), staging=StagingLimits()
    )
    target = writes.target(rooms.acme, "t")
    (batch,) = rows(*range(100)).to_batches()
    assert writes.append_group(rooms.acme, target, [KeyedRows(batch, None)])[0].row_count == 100
    with pytest.raises(Overloaded) as caught:
        writes.append_group(rooms.acme, target, [KeyedRows(batch, None)])
    assert caught.value.code is ErrorCode.RATE_LIMITED
    with pytest.raises(Overloaded):
        writes.begin(rooms.acme, "t", batch.schema, mode=IngestMode.APPEND, slows=False)
    # Blocks until the debt of the records is paid, and is taken then.
    pending = writes.begin(rooms.acme, "t", batch.schema, mode=IngestMode.APPEND)
    pending.append(batch)
    assert pending.commit().row_count == 100


# -- what is held


def test_storage_counts_live_files_and_nothing_else(rooms: Rooms) -> None:
    def held() -> int:
        found = tenant_quotas.held_by(rooms.catalog, [rooms.acme.tenant_id])
        return found[rooms.acme.tenant_id].live_bytes

    def counted() -> int:
        with rooms.catalog.connect() as connection:
            row = connection.execute(
                "SELECT coalesce(sum(file_size_bytes), 0) FROM data_file"
                " WHERE tenant_id = %s AND end_snapshot IS NULL",
                (rooms.acme.tenant_id,),
            ).fetchone()
        assert row is not None
        return int(row[0])

    assert held() == 0
    for number in range(40):
        rooms.write("t", rows(number))
        rooms.publish_all()
        assert held() == counted() > 0
    rooms.write("u", rows(*range(1000)))
    rooms.write("t", rows(1), mode=IngestMode.REPLACE)
    rooms.publish_all()
    assert held() == counted() > 0
    for name in ("t", "u"):
        rooms.writes.definitions.drop_table(rooms.acme, name)
    assert held() == counted() == 0


def test_a_tenant_without_room_may_replace_and_drop_but_not_add(rooms: Rooms) -> None:
    rooms.write("t", rows(*range(1000)))
    rooms.publish_all()
    set_quotas(rooms, storage_bytes=1)
    writes = Writes(
        rooms.catalog, rooms.bus, rooms.store, limits=IngestLimits(), staging=StagingLimits()
    )
    with pytest.raises(Exceeded) as caught:
        writes.begin(rooms.acme, "t", rows(1).schema, mode=IngestMode.APPEND)
    assert caught.value.code is ErrorCode.QUOTA_EXCEEDED
    context = caught.value.context
    assert (context["quota"], context["limit"]) == ("storage_bytes", 1)
    assert (
        context["used"]
        == tenant_quotas.held_by(rooms.catalog, [rooms.acme.tenant_id])[
            rooms.acme.tenant_id
        ].live_bytes
    )
    target = writes.target(rooms.acme, "t")
    with pytest.raises(Exceeded):
        writes.append_batch(rooms.acme, target, rows(1).to_batches()[0], idempotency_key=None)
    replaced = writes.begin(rooms.acme, "t", rows(1).schema, mode=IngestMode.REPLACE)
    replaced.append(rows(1).to_batches()[0])
    assert replaced.commit().row_count == 1
    assert writes.definitions.drop_table(rooms.acme, "t")
    until(lambda: _may_add(writes, rooms))


def _may_add(writes: Writes, rooms: Rooms) -> bool:
    try:
        writes.begin(rooms.acme, "u", rows(1).schema, mode=IngestMode.CREATE_APPEND).abort()
    except Exceeded:
        return False
    return True


def test_tables_are_counted_exactly_also_when_many_are_created_at_once(rooms: Rooms) -> None:
    set_quotas(rooms, tables=3)
    outcomes: list[str] = []
    contexts: list[dict[str, object]] = []

    def create(number: int) -> None:
        try:
            rooms.execute(f"CREATE TABLE t{number} (v BIGINT)")
            outcomes.append("made")
        except Exceeded as error:
            contexts.append(error.context)
            outcomes.append(error.code.value)

    threads = [threading.Thread(target=create, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert contexts == [{"quota": "tables", "used": 3, "limit": 3}] * 5
    assert sorted(outcomes) == ["QUOTA_EXCEEDED"] * 5 + ["made"] * 3
    # One that is replaced is none more.
    name = rooms.reads.tables(rooms.acme)[0].name
    rooms.execute(f"CREATE OR REPLACE TABLE {name} (w BIGINT)")
    rooms.execute(f"DROP TABLE {name}")
    rooms.execute("CREATE TABLE again (v BIGINT)")


def test_pending_writes_are_capped_for_each_tenant_by_its_own_quota(rooms: Rooms) -> None:
    set_quotas(rooms, pending_events=2)
    other = rooms.identity("other")
    refusals: list[Overloaded] = []

    def refused() -> bool:
        try:
            rooms.write("t", rows(1))
        except Overloaded as error:
            refusals.append(error)
        rooms.write("t", rows(1), identity=other)
        return bool(refusals)

    until(refused)
    context = refusals[0].context
    assert (context["quota"], context["limit"]) == ("pending_events", 2)
    assert context["used"] > 2
    assert (context["retry_after_ms"], context["retry_after_seconds"]) == (1000, 1)


# -- queries


def test_answers_and_times_are_limited_for_the_caller(rooms: Rooms) -> None:
    set_quotas(rooms, query_rows=10)
    narrow = with_key(rooms, query_rows=5, query_time_ms=200)
    snapshot = rooms.reads.pin(rooms.acme, None, ReadPoint())

    def run(identity: Identity, sql: str) -> pa.Table:
        return rooms.query_at(sql, snapshot.snapshot_id, identity=identity)

    assert run(rooms.acme, "SELECT * FROM range(10)").num_rows == 10
    with pytest.raises(Exceeded) as rows_of_tenant:
        run(rooms.acme, "SELECT * FROM range(11)")
    assert rows_of_tenant.value.context["limit"] == 10
    with pytest.raises(Exceeded) as rows_of_key:
        run(narrow, "SELECT * FROM range(6)")
    assert rows_of_key.value.context == {
        "quota": "query_rows",
        "limit": 5,
        "used": 6,
        "unit": "rows",
    }
    with pytest.raises(Exceeded) as late:
        run(narrow, "SELECT count(*) FROM range(1000000000) a, range(1000000000) b")
    assert late.value.code is ErrorCode.QUERY_TIMEOUT
    assert late.value.context["limit"] == 200
    assert late.value.context["used"] >= 200


def test_operators_see_their_quotas_and_what_is_used(rooms: Rooms) -> None:
    rooms.write("t", rows(1))
    rooms.publish_all()
    rooms.write("t", rows(2))
    set_quotas(rooms, tables=9)
    found = {
        each.quota: each
        for each in TenantQuotas(rooms.catalog, rooms.bus, Quotas(pending_events=5)).of_caller(
            rooms.acme
        )
    }
    assert list(found) == list(Quota)
    assert (found[Quota.TABLES].used, found[Quota.TABLES].limit) == (1, 9)
    assert found[Quota.TABLES].is_own
    assert (found[Quota.PENDING_EVENTS].used, found[Quota.PENDING_EVENTS].limit) == (1, 5)
    assert found[Quota.STORAGE_BYTES].used is not None
    listed = rooms.query("SELECT * FROM duckmesh_system.quotas WHERE quota = 'tables'").to_pylist()
    assert listed == [{"quota": "tables", "quota_limit": 9, "used": 1, "is_own": True}]
    reader = replace(rooms.acme, roles=frozenset({"query_reader"}))
    assert rooms.query("SELECT * FROM duckmesh_system.quotas", identity=reader).num_rows == 0


def test_a_rotated_key_keeps_its_quotas(rooms: Rooms) -> None:
    narrow = with_key(rooms, query_rows=5)
    assert narrow.key_id is not None
    with rooms.catalog.connect() as connection:
        made, _ = tenants.rotate_key(connection, rooms.acme.tenant_id, narrow.key_id)
        assert quotas.in_force(connection, rooms.acme.tenant_id, made).key == Quotas(query_rows=5)


def test_the_count_of_bytes_takes_no_lock_that_a_publication_has_not(rooms: Rooms) -> None:
    """Two tenants publish at once; each waits for its own head alone."""
    other = rooms.identity("other")
    rooms.write("t", rows(1))
    with rooms.catalog.connect() as connection, connection.transaction():
        lock_head(connection, other.tenant_id)
        rooms.publish_all()
    assert rooms.query("SELECT count(*) AS n FROM t")["n"].to_pylist() == [1]


def test_a_change_of_quotas_is_an_act_in_the_audit(rooms: Rooms) -> None:
    set_quotas(rooms, tables=4)
    tenant_quotas.reset_quotas(rooms.catalog, "acme", [Quota.TABLES])
    with rooms.catalog.connect() as connection:
        done = acts.recent(connection, tenant_id=rooms.acme.tenant_id, limit=2)
    assert [(each.act, each.detail) for each in done] == [
        ("reset_quotas", {"quotas": ["tables"]}),
        ("set_quotas", {"tables": 4}),
    ]
