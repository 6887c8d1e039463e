"""Administrative acts: done ones leave a row with the act, refused ones leave one of their own."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pyarrow as pa
import pytest

from catalog import acts
from catalog.acts import Act
from catalog.connection import Catalog
from duckmesh.errors import Conflict, Denied, ErrorCode, NotFound
from duckmesh.telemetry import bind_trace
from gateway import tenancy
from gateway.acts import administrative_act
from gateway.api_keys import ApiKeys
from gateway.identity import Identity, Role
from gateway.tables import ColumnChange, TableAdministration
from tests.rooms import Rooms, rows


@pytest.fixture
def recorded(rooms: Rooms) -> Callable[[], list[Act]]:
    """The acts since the test began, the first one first."""
    with rooms.catalog.connect() as connection:
        known = {act.act_id for act in acts.recent(connection, limit=100)}

    def read() -> list[Act]:
        with rooms.catalog.connect() as connection:
            found = acts.recent(connection, limit=1000)
        return sorted((a for a in found if a.act_id not in known), key=lambda a: a.act_id)

    return read


def told(found: list[Act]) -> list[tuple[str, str, str]]:
    return [(act.act, act.target, act.outcome) for act in found]


def test_each_definition_by_sql_is_one_act(rooms: Rooms, recorded: Callable[[], list[Act]]) -> None:
    statements = {
        "CREATE TABLE t (v BIGINT)": ("create_table", "t"),
        "ALTER TABLE t ADD COLUMN w BIGINT": ("alter_table", "t"),
        "ALTER TABLE t RENAME TO u": ("rename_table", "t"),
        "CREATE OR REPLACE TABLE u (v BIGINT)": ("replace_table", "u"),
        "CREATE VIEW few AS SELECT v FROM u": ("create_view", "few"),
        "ALTER VIEW few RENAME TO fewer": ("rename_view", "few"),
        "DROP VIEW fewer": ("drop_view", "fewer"),
        "DROP TABLE u": ("drop_table", "u"),
    }
    with bind_trace("trace-of-the-caller"):
        for sql in statements:
            rooms.execute(sql)
    found = recorded()
    assert told(found) == [(*each, "OK") for each in statements.values()]
    assert {(act.tenant, act.principal) for act in found} == {("acme", "test")}
    assert {act.trace_id for act in found} == {"trace-of-the-caller"}
    assert found[2].detail == {"new_name": "u"}


def test_what_changes_nothing_is_no_act(rooms: Rooms, recorded: Callable[[], list[Act]]) -> None:
    rooms.execute("CREATE TABLE t (v BIGINT)")
    rooms.execute("CREATE TABLE IF NOT EXISTS t (v BIGINT)")
    rooms.execute("DROP TABLE IF EXISTS nothing")
    with pytest.raises(Conflict):
        rooms.execute("CREATE TABLE t (v BIGINT)")
    with pytest.raises(NotFound):
        rooms.execute("DROP TABLE nothing")
    assert told(recorded()) == [("create_table", "t", "OK")]


def test_a_table_that_an_ingest_makes_is_an_act(
    rooms: Rooms, recorded: Callable[[], list[Act]]
) -> None:
    rooms.write("t", rows(1))
    rooms.write("t", rows(2))
    assert told(recorded()) == [("create_table", "t", "OK")]


def test_a_refused_act_is_written_down_once(
    rooms: Rooms, recorded: Callable[[], list[Act]]
) -> None:
    rooms.execute("CREATE TABLE t (v BIGINT)")
    reader = replace(rooms.acme, principal="reader", roles=frozenset({Role.QUERY_READER}))
    administration = TableAdministration(rooms.reads, rooms.writes, rooms.sql_writes)
    keys = ApiKeys(rooms.catalog)
    columns = pa.schema([("v", pa.int64())])
    refused: list[tuple[Callable[[], object], tuple[str, str]]] = [
        (lambda: rooms.execute("DROP TABLE t", identity=reader), ("drop_table", "t")),
        (lambda: rooms.execute("CREATE TABLE u (v INT)", identity=reader), ("create_table", "u")),
        (
            lambda: rooms.execute("ALTER TABLE t ADD COLUMN w INT", identity=reader),
            ("alter_table", "t"),
        ),
        (
            lambda: rooms.execute("ALTER TABLE t RENAME TO u", identity=reader),
            ("rename_table", "t"),
        ),
        (
            lambda: rooms.execute("CREATE VIEW w AS SELECT 'secret' AS s", identity=reader),
            ("create_view", "w"),
        ),
        (lambda: rooms.execute("DROP VIEW w", identity=reader), ("drop_view", "w")),
        (lambda: rooms.execute("TRUNCATE t", identity=reader), ("truncate_table", "t")),
        (lambda: administration.create(reader, "u", columns), ("create_table", "u")),
        (
            lambda: administration.change(reader, "t", ColumnChange.drop("v")),
            ("alter_table", "t"),
        ),
        (lambda: administration.drop(reader, "t"), ("drop_table", "t")),
        (
            lambda: keys.create(reader, name="mine", roles=[Role.QUERY_READER]),
            ("create_key", "mine"),
        ),
        (lambda: keys.revoke(reader, tenancy.KeyId("ab12")), ("revoke_key", "ab12")),
        (lambda: keys.rotate(reader, tenancy.KeyId("ab12")), ("rotate_key", "ab12")),
    ]
    for attempt, _ in refused:
        with pytest.raises(Denied):
            attempt()
    found = recorded()[1:]
    assert told(found) == [(*what, "FORBIDDEN") for _, what in refused]
    assert {act.principal for act in found} == {"reader"}


def test_refusals_are_bounded(rooms: Rooms, recorded: Callable[[], list[Act]]) -> None:
    nobody = replace(rooms.identity("noisy"), roles=frozenset())
    for _ in range(200):
        with pytest.raises(Denied):
            rooms.writes.definitions.drop_table(nobody, "t")
    # The minute may turn once meanwhile.
    assert 60 <= len(told(recorded())) - 1 <= 120


def test_keys_and_tenants_of_an_operator_are_acts(
    rooms: Rooms, recorded: Callable[[], list[Act]]
) -> None:
    catalog = rooms.catalog
    tenancy.ensure_tenant(catalog, "zeta", principal=acts.OPERATOR)
    tenancy.ensure_tenant(catalog, "zeta", principal=acts.OPERATOR)
    key_id, secret = tenancy.create_key(catalog, "zeta", name="ci", roles=["ops_admin"])
    new_id, new_secret = tenancy.rotate_key(catalog, "zeta", key_id)
    tenancy.revoke_key(catalog, "zeta", new_id)
    tenancy.switch_tenant(catalog, "zeta", disabled=True)
    tenancy.switch_tenant(catalog, "zeta", disabled=False)
    found = recorded()
    assert told(found) == [
        ("create_tenant", "zeta", "OK"),
        ("create_key", key_id, "OK"),
        ("rotate_key", key_id, "OK"),
        ("revoke_key", new_id, "OK"),
        ("disable_tenant", "zeta", "OK"),
        ("enable_tenant", "zeta", "OK"),
    ]
    assert {act.principal for act in found} == {"operator"}
    assert found[1].detail["name"] == "ci"
    assert found[1].detail["roles"] == ["ops_admin"]
    assert secret not in str(found)
    assert new_secret not in str(found)


def test_a_key_is_named_by_its_id(rooms: Rooms, recorded: Callable[[], list[Act]]) -> None:
    who = replace(rooms.acme, principal="loader", key_id=tenancy.KeyId("0123456789ab"))
    made, _ = ApiKeys(rooms.catalog).create(who, name="ci", roles=[Role.QUERY_READER])
    (act,) = recorded()
    assert (act.principal, act.target) == ("0123456789ab", made)


def test_the_act_and_its_row_are_one_transaction(
    rooms: Rooms, recorded: Callable[[], list[Act]]
) -> None:
    def begin_and_fail() -> None:
        with (
            administrative_act(rooms.catalog, rooms.acme, "pin_snapshot", "7") as act,
            rooms.catalog.connect() as connection,
            connection.transaction(),
        ):
            act.done(connection, why="a test")
            raise NotFound(ErrorCode.SNAPSHOT_NOT_FOUND, "there is no such snapshot")

    with pytest.raises(NotFound):
        begin_and_fail()
    assert recorded() == []


def test_a_refusal_stays_a_refusal_when_the_catalog_is_away(rooms: Rooms) -> None:
    identity = Identity(rooms.acme.tenant_id, "acme", "reader", None, frozenset())

    def attempt(away: Catalog) -> None:
        with administrative_act(away, identity, "drop_table", "t"):
            identity.require(Role.TABLE_ADMIN)

    nowhere = Catalog("host=/nonexistent", pool_min=0, connect_timeout=timedelta(milliseconds=200))
    with nowhere as away, pytest.raises(Denied) as raised:
        attempt(away)
    assert raised.value.code is ErrorCode.FORBIDDEN


def test_texts_that_postgres_cannot_hold_are_stored_as_near_as_it_can(
    rooms: Rooms, recorded: Callable[[], list[Act]]
) -> None:
    with rooms.catalog.connect() as connection:
        acts.record(
            connection,
            "revoke_key",
            "a\x00b\ud800" + "x" * 5000,
            tenant_id=None,
            principal="jwt:\x00",
            detail={"names": {"\x00": [1, None]}, "many": list(range(1000))},
        )
    (act,) = recorded()
    assert act.target.startswith("a\ufffdb?x")
    assert len(act.target) == 500
    assert act.tenant is None
    assert act.detail["names"] == {"\ufffd": [1, None]}
    assert len(act.detail["many"]) == 100
