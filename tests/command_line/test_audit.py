"""`duckmesh audit`, on a real catalog."""

from datetime import timedelta

import pytest

from catalog import queries
from catalog.connection import Catalog
from catalog.tenants import find_tenant
from duckmesh.telemetry import bind_trace
from gateway.audit_buffer import AuditBuffer
from gateway.identity import EVERY_ROLE, Identity
from gateway.query_audit import QueryAudit
from tests.command_line.conftest import document


@pytest.fixture
def asked(on_catalog, database_dsn: str) -> None:
    """Two tenants that asked one question each."""
    with Catalog(database_dsn) as catalog:
        buffer = AuditBuffer(catalog, rows_max=10)
        for tenant in ("acme", "zeta"):
            assert on_catalog("tenants", "create", tenant).exit_code == 0
            with catalog.connect() as connection:
                owner = find_tenant(connection, tenant)
            identity = Identity(owner.tenant_id, tenant, "loader", None, EVERY_ROLE)
            with bind_trace(f"trace-of-{tenant}"):
                record = QueryAudit(buffer).begin(identity, f"SELECT\n\x1b[31m'{tenant}'")
            assert record is not None
            record.ended("QUERY_TIMEOUT")
        buffer.close(timedelta(seconds=20))


@pytest.mark.usefixtures("asked")
def test_queries_are_listed_newest_first_and_by_tenant(on_catalog) -> None:
    both = document(on_catalog("audit", "queries", "--json"))
    assert [each["tenant"] for each in both] == ["zeta", "acme"]
    (only,) = document(on_catalog("audit", "queries", "--tenant", "acme", "--json"))
    assert only["sql"] == "SELECT\n\x1b[31m'acme'"
    assert (only["trace_id"], only["outcome"]) == ("trace-of-acme", "QUERY_TIMEOUT")
    assert len(document(on_catalog("audit", "queries", "--limit", "1", "--json"))) == 1
    shown = on_catalog("audit", "queries").stdout
    assert "SELECT [31m'acme'" in shown
    assert "\x1b" not in shown


@pytest.mark.usefixtures("asked")
def test_since_is_a_span_or_a_time(on_catalog, database_dsn: str) -> None:
    with Catalog(database_dsn) as catalog, catalog.connect() as connection:
        newest, oldest = queries.recent(connection, limit=2)
    assert newest.query.started_at > oldest.query.started_at

    def tenants(since: str) -> list[str]:
        found = document(on_catalog("audit", "queries", "--since", since, "--json"))
        return [each["tenant"] for each in found]

    assert tenants("1d") == ["zeta", "acme"]
    assert tenants(newest.query.started_at.isoformat()) == ["zeta"]
    assert tenants("2999-01-01") == []
    assert on_catalog("audit", "queries", "--since", "yesterday").exit_code == 2


@pytest.mark.usefixtures("asked")
def test_acts_are_listed_with_who_did_them(on_catalog) -> None:
    made = on_catalog(
        *("keys", "create", "--tenant", "acme", "--name", "ci", "--role", "query_reader", "--json")
    )
    key = document(made)["key_id"]
    found = document(on_catalog("audit", "acts", "--tenant", "acme", "--json"))
    assert [(each["act"], each["target"]) for each in found] == [
        ("create_key", key),
        ("create_tenant", "acme"),
    ]
    assert {each["principal"] for each in found} == {"operator"}
    assert document(made)["secret"] not in str(found)
    assert key in on_catalog("audit", "acts").stdout
    assert on_catalog("audit", "acts", "--tenant", "nobody").exit_code != 0
