"""Once, and for ever: every acknowledged write is there once, whatever is killed meanwhile.

Writers repeat a write with its key until it is acknowledged, as the documentation tells clients to.
"""

import contextlib
import itertools
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import flight

from catalog.embedded_postgres import EmbeddedPostgres
from catalog.migrate import migrate_up
from tests.guarantees.load import LOAD_SECONDS, Load, Row
from tests.guarantees.test_no_holes import create_over_adbc, one_row, rows_of
from tests.processes import PlainClient, ProductProcess, Service, service, wait_until_served

WRITERS = 16
RETRYABLE = (flight.FlightError, pa.ArrowException, OSError, AssertionError)


@pytest.fixture
def own_postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """A Postgres of this test's own, with its disk's safety on: it is killed under load."""
    with EmbeddedPostgres(tmp_path_factory.mktemp("own") / "data") as server:
        migrate_up(server.dsn)
        yield server


class PersistentWriter:
    """Writes each row with a key until it is acknowledged, at whichever process answers."""

    def __init__(self, uris: list[str], first: int) -> None:
        self._uris = itertools.cycle(uris[first % len(uris) :] + uris[: first % len(uris)])
        self._client = PlainClient(next(self._uris))
        self.retries = 0

    def __call__(self, row: Row) -> int:
        key = f"{row[0]}-{row[1]}"
        deadline = time.monotonic() + 120
        while True:
            try:
                return self._client.put("t", one_row(row), key=key)["visibility_token"]
            except RETRYABLE:
                self.retries += 1
                if time.monotonic() > deadline:
                    raise
                with contextlib.suppress(Exception):
                    self._client.close()
                time.sleep(0.05)
                self._client = PlainClient(next(self._uris))


@pytest.mark.load
@pytest.mark.timeout(900)
def test_every_acknowledged_write_is_there_once_whatever_is_killed(
    own_postgres: EmbeddedPostgres, tmp_path: Path
) -> None:
    seconds = max(LOAD_SECONDS, 12.0)
    with service(own_postgres.dsn, tmp_path, DUCKMESH_COORDINATOR_LEASE_SECONDS="1") as running:
        (first, first_uri), (_, second_uri) = running.serve(), running.serve()
        coordinators = [running.coordinate("c0")]
        create_over_adbc(first_uri)
        writers = [PersistentWriter([first_uri, second_uri], number) for number in range(WRITERS)]
        load = Load()
        stop = threading.Event()
        killer = threading.Thread(
            target=_kill_things,
            args=(running, first, coordinators, own_postgres),
            kwargs={"seconds": seconds, "stop": stop},
        )
        killer.start()
        try:
            load.run(writers, _persistent_reader([second_uri, first_uri]), seconds=seconds)
        finally:
            stop.set()
            killer.join()
        wait_until_served(first_uri)
        running.coordinate("last")
        token = max(token for token, _ in load.acknowledged)
        reader = PlainClient(first_uri)
        found = Counter(rows_of(reader.query("SELECT writer, number FROM t", token=token)))
    retries = sum(writer.retries for writer in writers)
    print(f"{len(load.acknowledged)} writes, {retries} retries, {len(coordinators)} coordinators")
    assert not load.failures
    assert len(coordinators) > 3
    assert retries > 0, "nothing was interrupted"
    assert not load.holes
    assert not load.doubles
    expected = Counter(row for _, row in load.acknowledged)
    assert found == expected
    assert len({token for token, _ in load.acknowledged}) == len(load.acknowledged)


def _persistent_reader(uris: list[str]):
    """Ask until somebody answers: a killed process is no wrong answer."""
    names = itertools.cycle(uris)

    def read(token: int) -> list[Row]:
        deadline = time.monotonic() + 120
        while True:
            try:
                client = PlainClient(next(names))
                return rows_of(client.query("SELECT writer, number FROM t", token=token))
            except RETRYABLE:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    return read


def _kill_things(
    running: Service,
    serving: ProductProcess,
    coordinators: list[ProductProcess],
    postgres: EmbeddedPostgres,
    *,
    seconds: float,
    stop: threading.Event,
) -> None:
    """kill -9 the coordinator every 2 s, one serving process twice, and restart Postgres once."""
    turns = int(seconds // 2)
    for turn in range(1, turns + 1):
        if stop.wait(2.0):
            return
        coordinators[-1].kill()
        coordinators.append(running.coordinate(f"c{turn}"))
        if turn in (turns // 3, 2 * turns // 3):
            serving.kill()
            serving.start()
        if turn == turns // 2:
            postgres.restart()


def test_a_killed_process_is_really_gone(tmp_path: Path, database_dsn: str) -> None:
    """The harness's own promise: what it kills runs no more."""
    with service(database_dsn, tmp_path) as running:
        process, _ = running.serve()
        pid = process.pid
        process.kill()
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
