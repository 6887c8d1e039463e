"""Every statement of either door leaves a row, also when the catalog dies or the process drains."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from adbc_driver_flightsql import dbapi

from catalog import acts, queries
from catalog.connection import Catalog
from catalog.embedded_postgres import EmbeddedPostgres
from catalog.migrate import migrate_up
from gateway import tenancy
from tests.processes import Service, service, until
from tests.scraping import scraped

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE}-00f067aa0ba902b7-01"


def keys_for(dsn: str, *roles: str) -> tuple[str, str]:
    """A new key's id and secret."""
    with Catalog(dsn) as catalog:
        tenancy.ensure_tenant(catalog, "acme", principal="test")
        key_id, secret = tenancy.create_key(catalog, "acme", name="ci", roles=roles)
    return key_id, secret


@contextmanager
def connected(uri: str, secret: str) -> Iterator[dbapi.Connection]:
    options = {
        "adbc.flight.sql.authorization_header": f"Bearer {secret}",
        "adbc.flight.sql.rpc.call_header.traceparent": TRACEPARENT,
    }
    with dbapi.connect(uri, db_kwargs=options, autocommit=True) as connection:
        yield connection


def ask(door: str, secret: str, sql: str) -> httpx.Response:
    headers = {"X-API-Key": secret, "traceparent": TRACEPARENT}
    return httpx.post(f"{door}/v1/query", json={"sql": sql}, headers=headers, timeout=60)


def audited(dsn: str) -> dict[str, queries.AuditedQuery]:
    with Catalog(dsn) as catalog, catalog.connect() as connection:
        return {each.query.sql: each.query for each in queries.recent(connection, limit=1000)}


def settings(**more: str) -> dict[str, str]:
    return {"DUCKMESH_QUERY_WORKERS": "0", "DUCKMESH_AUTH_OPEN_MODE": "false", **more}


@pytest.fixture
def patient(database_dsn: str, tmp_path: Path) -> Iterator[Service]:
    """A service that writes its audit once a minute."""
    slow = settings(DUCKMESH_AUDIT_FLUSH_INTERVAL_MS="60000")
    with service(database_dsn, tmp_path, **slow) as processes:
        yield processes


def test_a_process_that_drains_writes_what_both_doors_were_asked(
    patient: Service, database_dsn: str
) -> None:
    key_id, secret = keys_for(database_dsn, "query_reader", "ingest_writer", "table_admin")
    process, uri = patient.serve()
    with connected(uri, secret) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE t (v BIGINT)")
        cursor.execute("INSERT INTO t VALUES (1), (2)")
        cursor.execute("SELECT 'over Flight'")
        assert cursor.fetchall() == [("over Flight",)]
        with pytest.raises(dbapi.Error):
            cursor.execute("SELECT * FROM missing")
    assert ask(patient.http_of(uri), secret, "SELECT 'over HTTP'").status_code == 200
    assert ask(patient.http_of(uri), secret, "SELEKT").status_code == 400
    assert audited(database_dsn) == {}

    assert process.stop() == 0
    found = audited(database_dsn)
    assert {sql: (row.outcome, row.row_count) for sql, row in found.items()} == {
        "CREATE TABLE t (v BIGINT)": ("OK", 0),
        "INSERT INTO t VALUES (1), (2)": ("OK", 2),
        "SELECT 'over Flight'": ("OK", 1),
        "SELECT * FROM missing": ("TABLE_NOT_FOUND", 0),
        "SELECT 'over HTTP'": ("OK", 1),
        "SELEKT": ("QUERY_EXECUTION_FAILED", 0),
    }
    assert {(row.principal, row.trace_id) for row in found.values()} == {(key_id, TRACE)}


def test_rows_arrive_when_a_catalog_that_was_killed_is_back(tmp_path: Path) -> None:
    with EmbeddedPostgres(tmp_path / "postgres", settings={"fsync": "off"}) as server:
        migrate_up(server.dsn)
        _, secret = keys_for(server.dsn, "query_reader")
        quick = settings(DUCKMESH_AUDIT_FLUSH_INTERVAL_MS="2000")
        with service(server.dsn, tmp_path, **quick) as processes:
            _, uri = processes.serve()
            door = processes.http_of(uri)
            with connected(uri, secret) as connection, connection.cursor() as cursor:
                for number in range(20):
                    cursor.execute(f"SELECT {number}")
                    cursor.fetchall()
            for number in range(20, 40):
                assert ask(door, secret, f"SELECT {number}").status_code == 200
            killed_and_back(server)
            expected = {f"SELECT {number}" for number in range(40)}
            until(lambda: expected <= set(audited(server.dsn)))
            page = scraped(httpx.get(f"{door}/v1/metrics", timeout=60).text)
            assert page("duckmesh_query_audit_dropped_total") == 0


def killed_and_back(server: EmbeddedPostgres) -> None:
    os.kill(server.pid, signal.SIGKILL)
    until(lambda: not server.running)
    server.restart()


def test_literals_are_redacted_where_that_is_asked_for(database_dsn: str, tmp_path: Path) -> None:
    _, secret = keys_for(database_dsn, "query_reader")
    with service(
        database_dsn, tmp_path, **settings(DUCKMESH_AUDIT_REDACT_LITERALS="true")
    ) as processes:
        process, uri = processes.serve()
        with connected(uri, secret) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT 'very secret' AS word, 4711 AS number")
            cursor.fetchall()
        assert process.stop() == 0
    assert set(audited(database_dsn)) == {"SELECT ? AS word, ? AS number"}


def refusals(dsn: str) -> list[dict[str, Any]]:
    with Catalog(dsn) as catalog, catalog.connect() as connection:
        return [
            {"act": act.act, "target": act.target, "trace_id": act.trace_id}
            for act in acts.recent(connection, limit=100)
            if act.outcome == "FORBIDDEN"
        ]


def test_what_either_door_refuses_is_in_the_audit_and_admins_read_it(
    patient: Service, database_dsn: str
) -> None:
    _, reader = keys_for(database_dsn, "query_reader")
    _, admin = keys_for(database_dsn, "query_reader", "ops_admin")
    _, uri = patient.serve()
    with (
        connected(uri, reader) as connection,
        connection.cursor() as cursor,
        pytest.raises(dbapi.Error),
    ):
        cursor.execute("DROP TABLE t")
    refused = httpx.delete(
        f"{patient.http_of(uri)}/v1/tables/u", headers={"X-API-Key": reader}, timeout=60
    )
    assert refused.status_code == 403
    assert [(each["act"], each["target"]) for each in refusals(database_dsn)] == [
        ("drop_table", "u"),
        ("drop_table", "t"),
    ]
    assert refusals(database_dsn)[1]["trace_id"] == TRACE
    with connected(uri, admin) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT target FROM duckmesh_system.admin_audit WHERE outcome = 'FORBIDDEN' ORDER BY 1"
        )
        assert cursor.fetchall() == [("t",), ("u",)]
    with connected(uri, reader) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM duckmesh_system.admin_audit WHERE act = 'create_key'")
        assert cursor.fetchall() == [(0,)]


def test_the_coordinator_forgets_what_is_old(database_dsn: str, tmp_path: Path) -> None:
    keys_for(database_dsn, "query_reader")
    with psycopg.connect(database_dsn, autocommit=True) as connection:
        connection.execute("UPDATE incident_audit SET noted_at = now() - interval '2 days'")
    with service(
        database_dsn, tmp_path, **settings(DUCKMESH_AUDIT_ACT_RETENTION_DAYS="1")
    ) as processes:
        processes.coordinate("c1")

        def forgotten() -> bool:
            with Catalog(database_dsn) as catalog, catalog.connect() as connection:
                return acts.recent(connection, limit=10) == []

        until(forgotten, seconds=90)
