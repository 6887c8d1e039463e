"""What a hot statement touches is in proportion to its answer, however large the catalog is.

Each statement runs in two catalogs, of which one has ten times the history, and has the same answer
in both. `DUCKMESH_TEST_CATALOG_SCALE=1` makes the larger one a million snapshots, a million files
and ten million events.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import psycopg
import pytest

from tests.plans import hot_bus, hot_catalog, hot_upkeep
from tests.plans.cold import COLD
from tests.plans.hot import (
    Cost,
    Grows,
    Hot,
    Place,
    cost_of,
    place_in,
    statement_files,
    statements_of,
)
from tests.plans.synthetic_catalog import Size, build
from tests.postgres_fixtures import _temporary_database, dsn_of

HOT: Final = [*hot_bus.HOT, *hot_catalog.HOT, *hot_upkeep.HOT]
SCALE: Final = float(os.environ.get("DUCKMESH_TEST_CATALOG_SCALE", "0.02"))
RATIO: Final = 10
ROWS_FREE: Final = 500
"""A small table may be read whole: that is as cheap as its index."""
INDEX_GROWTH: Final = 1.7
"""An index of ten times the rows is one level deeper, here and there."""
PLANNED_ANEW: Final = 5
"""So often Postgres plans a prepared statement with its values before it tries a generic plan."""
GROWING: Final = frozenset(
    {
        *("snapshot", "snapshot_file", "snapshot_table_watermark"),
        *("data_file", "data_file_content", "ingest_event", "idempotency_key"),
        *("ingest_claim_batch", "query_audit", "incident_audit"),
        *("client_session", "client_transaction", "compaction_run", "gc_run"),
    }
)
"""Tables that grow with use. No hot statement reads one from end to end."""

pytestmark = pytest.mark.timeout(max(120, 5_000 * SCALE))


@dataclass(frozen=True)
class Synthetic:
    """A built catalog, and a connection for each way of planning."""

    connections: dict[str, psycopg.Connection[Any]]
    place: Place


@contextmanager
def synthetic(server: str, template: str, scale: float) -> Iterator[Synthetic]:
    size = Size.of(scale)
    with _temporary_database(server, template=template) as name:
        dsn = dsn_of(server, name)
        with (
            psycopg.connect(dsn, autocommit=True) as custom,
            psycopg.connect(dsn, autocommit=True) as generic,
            psycopg.connect(dsn, autocommit=True) as chosen,
        ):
            build(custom, size)
            custom.execute("SET plan_cache_mode = force_custom_plan")
            generic.execute("SET plan_cache_mode = force_generic_plan")
            connections = {"custom": custom, "generic": generic, "chosen": chosen}
            yield Synthetic(connections, place_in(custom, size))


@pytest.fixture(scope="module")
def small(postgres_server: str, template_database: str) -> Iterator[Synthetic]:
    with synthetic(postgres_server, template_database, SCALE / RATIO) as built:
        yield built


@pytest.fixture(scope="module")
def large(postgres_server: str, template_database: str) -> Iterator[Synthetic]:
    with synthetic(postgres_server, template_database, SCALE) as built:
        yield built


def growth_of(hot: Hot, before: Size, after: Size) -> float:
    """By how much more a statement may cost."""
    match hot.grows_with:
        case Grows.ANSWER:
            return 1.0
        case Grows.TENANTS:
            return after.tenants / before.tenants
        case Grows.ENDED_FILES:
            return after.newest / before.newest


def cases() -> Iterator[Any]:
    """Each statement with the values before the planner, and with the plan that needs none.

    Where the latter is not good, with what Postgres chooses itself once it has planned a few times.
    """
    for hot in HOT:
        yield pytest.param(hot, "custom", id=f"{hot.label}-custom")
        plan = "generic" if hot.generic else "chosen"
        yield pytest.param(hot, plan, id=f"{hot.label}-{plan}")


@pytest.mark.parametrize(("hot", "plan"), [*cases()])
def test_a_hot_statement_costs_what_its_answer_costs_however_large_the_catalog(
    small: Synthetic, large: Synthetic, hot: Hot, plan: str
) -> None:
    runs = PLANNED_ANEW + 2 if plan == "chosen" else 2
    before, after = (
        cost_of(each.connections[plan], hot, each.place, runs=runs) for each in (small, large)
    )
    growth = growth_of(hot, small.place.size, large.place.size)
    assert not after.scanned & GROWING
    assert after.blocks <= before.blocks * growth * INDEX_GROWTH + hot.blocks_free, (before, after)
    assert after.rows <= before.rows * growth * 1.3 + ROWS_FREE, (before, after)


def test_a_hot_statement_reads_no_growing_table_from_end_to_end(large: Synthetic) -> None:
    custom = large.connections["custom"]
    scanned = {hot.label: cost_of(custom, hot, large.place, runs=1).scanned for hot in HOT}
    assert {label: found & GROWING for label, found in scanned.items() if found & GROWING} == {}


def test_a_statement_that_reads_its_history_is_seen(small: Synthetic, large: Synthetic) -> None:
    """What the test above measures does grow, where a statement reads what it does not answer."""
    reads_all = Hot("catalog/retention", "plan", lambda p: {"tenant_id": 1, "horizon": p.middle})
    before, after = (
        cost_of(each.connections["custom"], reads_all, each.place) for each in (small, large)
    )
    assert after.blocks > before.blocks * INDEX_GROWTH + reads_all.blocks_free
    assert after.rows > before.rows * 1.3 + ROWS_FREE


def test_a_scan_from_end_to_end_is_seen(large: Synthetic) -> None:
    oldest = Hot(
        "catalog/sessions", "forget_old", lambda _: {"older_than": timedelta(days=400), "limit": 1}
    )
    found = cost_of(large.connections["custom"], oldest, large.place)
    assert isinstance(found, Cost)
    assert "client_session" in found.scanned


@pytest.mark.parametrize("plan", ["custom", "generic"])
@pytest.mark.parametrize("name", ["crowded_tables", "small_files"])
def test_small_files_are_found_without_the_large_ones_around_them(
    large: Synthetic, name: str, plan: str
) -> None:
    values = {"small_bytes": 2**26, "table_id": 1, "limit": 1_000}
    hot = Hot("catalog/compaction", name, lambda _: values)
    connection = large.connections[plan]
    with connection.transaction(force_rollback=True):
        connection.execute("ANALYZE data_file")
        before = cost_of(connection, hot, large.place)
        connection.execute(
            "INSERT INTO data_file (file_id, tenant_id, table_id, path, schema_version,"
            " record_count, file_size_bytes, min_token, max_token, begin_snapshot)"
            " SELECT gen_random_uuid(), 1, 1, 'large-' || n, 1, 1, 128 * 1048576, 1, 1, 1"
            " FROM generate_series(1, 10000) n"
        )
        connection.execute("ANALYZE data_file")
        after = cost_of(connection, hot, large.place)
    assert after.rows <= before.rows + ROWS_FREE, (before, after)
    assert after.blocks <= before.blocks * INDEX_GROWTH + 100, (before, after)


@pytest.fixture(scope="module")
def scattered(large: Synthetic) -> Iterator[psycopg.Connection[Any]]:
    """Events of one tenant that lie in no order, as they do when vacuum has made room often."""
    connection = large.connections["chosen"]
    with connection.transaction(force_rollback=True):
        for statement in (
            "CREATE TEMP TABLE kept ON COMMIT DROP AS SELECT * FROM ingest_event",
            "CREATE TEMP SEQUENCE place",
            "UPDATE kept SET tenant_id = 1, visibility_token = nextval('place')",
            "UPDATE kept SET state = 'committed'",
            "DELETE FROM ingest_event",
            "INSERT INTO ingest_event SELECT * FROM kept ORDER BY random()",
            "ANALYZE ingest_event",
        ):
            connection.execute(statement.encode())
        yield connection


def with_numbers(statement: str) -> str:
    """A statement with $1, $2: as the server has it once it is prepared."""
    names: list[str] = []

    def number(found: re.Match[str]) -> str:
        if found[1] is None or found[1] not in names:
            names.append(found[1] or "")
        return f"${len(names) if found[1] is None else names.index(found[1]) + 1}"

    return re.sub(r"%\((\w+)\)s|%s", number, statement)


@pytest.mark.parametrize("name", ["backlog", "pending_tables", "lag", "expire_events"])
def test_events_that_wait_are_found_without_those_that_are_kept(
    scattered: psycopg.Connection[Any], name: str
) -> None:
    # Prepared once, planned without the values: a process asks them for days.
    statement = with_numbers(statements_of("ingest_bus/postgres")[name])
    explained = scattered.execute(
        f"EXPLAIN (GENERIC_PLAN, FORMAT JSON) {statement}".encode(), prepare=False
    ).fetchone()
    assert explained is not None
    scanned = {
        n["Relation Name"] for n in nodes(explained[0][0]["Plan"]) if n["Node Type"] == "Seq Scan"
    }
    assert scanned & GROWING == set()


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes(child)


def test_every_statement_is_hot_or_cold() -> None:
    """A new one comes among the hot ones, or among the cold ones with the reason."""
    hot: dict[str, set[str]] = {file: set() for file in statement_files()}
    for each in HOT:
        hot[each.file].add(each.name)
    for file, names in hot.items():
        cold = set(COLD.get(file, {}))
        assert names & cold == set()
        assert names | cold == set(statements_of(file)), file
    assert set(COLD) <= set(hot)
