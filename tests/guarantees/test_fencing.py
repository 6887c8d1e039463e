"""A coordinator that was stopped past its lease publishes nothing when it goes on."""

import signal
import threading
from functools import partial
from pathlib import Path
from uuid import UUID

import psycopg
import pytest

from tests.guarantees.load import Load, Row
from tests.guarantees.test_no_holes import create_over_adbc, one_row, rows_of
from tests.processes import PlainClient, ProductProcess, service, until


def _lease(connection: psycopg.Connection) -> tuple[str | None, UUID | None]:
    row = connection.execute("SELECT consumer_id, batch_id FROM ingest_lease").fetchone()
    return (None, None) if row is None else (row[0], row[1])


def _stop_while_it_holds_a_claim(
    coordinator: ProductProcess, name: str, connection: psycopg.Connection
) -> UUID:
    """SIGSTOP the coordinator in the middle of a claim; return the claim's batch."""
    held: list[UUID] = []

    def caught() -> bool:
        consumer, batch = _lease(connection)
        if consumer != name:
            return False
        coordinator.send(signal.SIGSTOP)
        # Only now is it sure: a claim that is still there cannot end by itself any more.
        if _lease(connection) == (name, batch) and batch is not None:
            held.append(batch)
            return True
        coordinator.send(signal.SIGCONT)
        return False

    until(caught)
    return held[0]


@pytest.mark.load
@pytest.mark.timeout(300)
def test_a_coordinator_stopped_past_its_lease_publishes_nothing(
    database_dsn: str, tmp_path: Path
) -> None:
    lease = {"DUCKMESH_COORDINATOR_LEASE_SECONDS": "1"}
    with (
        service(database_dsn, tmp_path, **lease) as running,
        psycopg.connect(database_dsn, autocommit=True) as connection,
    ):
        _, uri = running.serve()
        create_over_adbc(uri)
        sleeper = running.coordinate("sleeper")
        clients = [PlainClient(uri) for _ in range(8)]

        def write(client: PlainClient, row: Row) -> int:
            return client.put("t", one_row(row))["visibility_token"]

        reader = PlainClient(uri)

        def read(token: int) -> list[Row]:
            return rows_of(reader.query("SELECT writer, number FROM t", token=token))

        load = Load()
        writing = threading.Thread(
            target=partial(
                load.run, [partial(write, client) for client in clients], read, seconds=8
            )
        )
        writing.start()
        batch = _stop_while_it_holds_a_claim(sleeper, "sleeper", connection)
        running.coordinate("successor")
        until(lambda: _lease(connection)[0] == "successor")
        newest = "SELECT max(snapshot_id) FROM snapshot WHERE created_by = 'sleeper'"
        published_before = connection.execute(newest).fetchone()
        sleeper.send(signal.SIGCONT)
        until(lambda: sleeper.said("fenced") or sleeper.said("lease_lost"))
        writing.join()
        state = connection.execute(
            "SELECT state FROM ingest_claim_batch WHERE batch_id = %s", (batch,)
        ).fetchone()
        first_after = connection.execute(
            "SELECT min(s.snapshot_id) FROM snapshot s WHERE s.created_by = 'successor'"
        ).fetchone()
    assert state == ("expired",), "the sleeper's claim was published"
    assert published_before is not None
    assert first_after is not None
    assert not load.failures
    assert not load.holes
    assert not load.doubles
