"""`duckmesh bench` on a running service: figures of every kind, and nothing left behind."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.command_line.client_house import SETTINGS, duckmesh
from tests.processes import service, until

SMALL = ("--seconds", "0.4", "--clients", "2", "--streams", "2", "--rows", "5000")


@pytest.fixture(scope="module")
def doors(
    module_database_dsn: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, str]]:
    """The addresses of both doors of one serving process."""
    with service(module_database_dsn, tmp_path_factory.mktemp("bench"), **SETTINGS) as processes:
        uri = processes.serve()[1]
        processes.coordinate("bench")
        yield uri, processes.http_of(uri)


def tables_left(uri: str) -> list[str]:
    ran = duckmesh("sql", "--wait", "--json", "-c", "SHOW TABLES", uri=uri)
    assert ran.returncode == 0, ran.stderr
    return [str(row) for row in json.loads(ran.stdout)]


def test_every_kind_is_measured_through_both_doors(doors: tuple[str, str]) -> None:
    uri, http_uri = doors
    ran = duckmesh("bench", *SMALL, "--http-uri", http_uri, "--format", "json", uri=uri)
    assert ran.returncode == 0, ran.stderr
    written = json.loads(ran.stdout)
    assert written["clients"] == 2
    figures = {each["what"]: each for each in written["figures"]}
    assert list(figures) == [
        "SELECT 1 over ADBC, 1 client",
        "SELECT 1 over ADBC, 2 clients",
        "one-row writes over ADBC, 1 client",
        "one-row writes over ADBC, 2 clients",
        "one-row batches, pipelined, 1 stream",
        "one-row batches, pipelined, 2 streams",
        "write to the answer of a query with its token, 1 client",
        "5,000 rows by adbc_ingest, acknowledged",
        "5,000 rows by adbc_ingest, visible",
        "5,000 rows read over ADBC, 1 client",
        "SELECT 1 over HTTP, 1 client",
        "SELECT 1 over HTTP, 2 clients",
        "one-record writes over HTTP, 1 client",
        "one-record writes over HTTP, 2 clients",
    ]
    for each in figures.values():
        assert each["per_second"] > 0
        assert each["answers"] >= 1
        assert 0 < each["p50_ms"] <= each["p95_ms"]
    # Progress goes to standard error, a line for each measure where there is no terminal.
    assert "1/7 select-1" in ran.stderr
    assert tables_left(uri) == []


def test_a_table_for_people_has_what_was_asked_for(doors: tuple[str, str]) -> None:
    ran = duckmesh("bench", *SMALL, "--only", "read", uri=doors[0])
    assert ran.returncode == 0, ran.stderr
    assert "per second" in ran.stdout
    assert "5,000 rows read over ADBC" in ran.stdout
    assert "SELECT 1" not in ran.stdout
    assert tables_left(doors[0]) == []


def test_ctrl_c_stops_the_clients_and_drops_the_tables(doors: tuple[str, str]) -> None:
    arguments = ["bench", "--seconds", "60", "--only", "writes"]
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "command_line.main", *arguments],
        env={**os.environ, "DUCKMESH_URI": doors[0]},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline().strip() == "1/1 writes"
        until(lambda: len(tables_left(doors[0])) == 1)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in said
    assert tables_left(doors[0]) == []


def test_a_door_that_is_not_there_is_told(doors: tuple[str, str], tmp_path: Path) -> None:
    absent = duckmesh("bench", *SMALL, uri="grpc://127.0.0.1:1")
    assert absent.returncode == 6
    assert "the server does not answer" in absent.stderr
    ran = duckmesh("bench", *SMALL, "--only", "http", uri=doors[0])
    assert ran.returncode == 2
    assert "--http-uri" in ran.stderr
    ran = duckmesh(
        "bench", *SMALL, "--only", "http", "--http-uri", "http://127.0.0.1:1", uri=doors[0]
    )
    assert ran.returncode == 6
    assert "HTTP door does not answer" in ran.stderr
    assert tables_left(doors[0]) == []
