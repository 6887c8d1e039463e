"""Queries under kill -9, slow readers, crowds and bombs. Over real processes.

`DUCKMESH_TEST_STORM_SECONDS` and `DUCKMESH_TEST_SLOW_ROWS` make the short runs long ones.
"""

import contextlib
import os
import random
import re
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import adbc_driver_flightsql.dbapi
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from pyarrow import flight

from benchmarks.clients import Crew
from benchmarks.figures import percentile
from catalog import tenants
from catalog.connection import Catalog
from flight_server import messages
from gateway import tenancy
from gateway.identity import EVERY_ROLE
from tests.processes import ProductProcess, Service, service, until

STORM_SECONDS = float(os.environ.get("DUCKMESH_TEST_STORM_SECONDS", "6"))
SLOW_ROWS = int(os.environ.get("DUCKMESH_TEST_SLOW_ROWS", "2000000"))
CLIENTS = 16
ROWS = 100_000
RETRYABLE = re.compile(r"\[(QUERY_WORKER_LOST|TOO_MANY_QUERIES)\]")
REFUSED = (flight.FlightError, pa.ArrowException)
OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1), ("grpc.http2.bdp_probe", 0)]
QUESTIONS = {
    "SELECT 7 AS n": 7,
    "SELECT sum(id) AS n FROM t": ROWS * (ROWS - 1) // 2,
    "SELECT range AS n FROM range(300000)": 300_000 * 299_999 // 2,
}
"""Each with the sum of its column `n`."""

GROUPS = "SELECT id % 100 AS g, count(*) AS n FROM t GROUP BY g"
BOMBS = "SELECT count(*) FROM range(20000000) a, range(2000000) b WHERE a.range + b.range < 0"


def ask(client: flight.FlightClient, sql: str) -> int:
    options = flight.FlightCallOptions(timeout=60)
    command = messages.wrap(messages.sql("CommandStatementQuery")(query=sql))
    info = client.get_flight_info(flight.FlightDescriptor.for_command(command), options)
    answer = client.do_get(info.endpoints[0].ticket, options).read_all()
    return int(pc.sum(answer["n"]).as_py())


def workers(process: ProductProcess) -> list[psutil.Process]:
    found = []
    for each in psutil.Process(process.pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if each.status() == psutil.STATUS_ZOMBIE or "query_engine.worker" in each.cmdline():
                found.append(each)
    return found


def descriptors(process: ProductProcess) -> int:
    return len(list(Path(f"/proc/{process.pid}/fd").iterdir()))


def resident(process: ProductProcess) -> int:
    every = [psutil.Process(process.pid), *workers(process)]
    return sum(each.memory_info().rss for each in every)


def fill(uri: str, secret: str | None = None) -> None:
    """Table t with its rows, visible."""
    shown = {} if secret is None else {"adbc.flight.sql.authorization_header": f"Bearer {secret}"}
    rows = pa.table({"id": pa.array(range(ROWS), pa.int64())})
    with (
        adbc_driver_flightsql.dbapi.connect(uri, db_kwargs=shown, autocommit=True) as connection,
        connection.cursor() as cursor,
    ):
        cursor.adbc_ingest("t", rows, mode="create")
        cursor.execute("SELECT count(*) FROM t")
        assert cursor.fetchall() == [(ROWS,)]


@pytest.fixture
def running(database_dsn: str, tmp_path: Path) -> Iterator[Service]:
    with service(
        database_dsn,
        tmp_path,
        DUCKMESH_QUERY_WORKERS="4",
        DUCKMESH_QUERY_WORKER_IDLE_SECONDS="1",
    ) as started:
        started.coordinate("c1")
        yield started


# ---- kill -9


@dataclass
class Storm:
    """Clients that ask for what they know the answer to."""

    uri: str
    right: int = 0
    refused: int = 0
    wrong: list[str] = field(default_factory=list)

    def ask_each(self, client: flight.FlightClient) -> None:
        for sql, expected in QUESTIONS.items():
            try:
                found = ask(client, sql)
            except REFUSED as error:
                self.refused += 1
                if not RETRYABLE.search(str(error)):
                    self.wrong.append(str(error))
            else:
                self.right += 1
                if found != expected:
                    self.wrong.append(f"{sql}: {found}")

    def rage(self, clients: list[flight.FlightClient], process: ProductProcess) -> int:
        """Kill workers while all clients ask; how many were killed."""
        until_when = time.monotonic() + STORM_SECONDS
        pause = threading.Event()
        drawn = random.Random(20_261_121)  # noqa: S311 - no secret
        killed = 0

        def loop(client: flight.FlightClient) -> None:
            while time.monotonic() < until_when:
                self.ask_each(client)

        with ThreadPoolExecutor(len(clients)) as pool:
            loops = [pool.submit(loop, client) for client in clients]
            while time.monotonic() < until_when:
                pause.wait(drawn.uniform(0.05, 0.4))
                if alive := workers(process):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(drawn.choice(alive).pid, signal.SIGKILL)
                        killed += 1
            for each in loops:
                each.result(timeout=120)
        return killed


@pytest.mark.timeout(300 + 2 * STORM_SECONDS)
def test_killed_workers_cost_an_answer_or_a_retryable_error_and_leave_nothing_behind(
    running: Service, tmp_path: Path
) -> None:
    process, uri = running.serve()
    fill(uri)
    storm = Storm(uri)
    with ExitStack() as held:
        clients = [
            held.enter_context(flight.connect(uri, generic_options=OWN_CONNECTION))
            for _ in range(CLIENTS)
        ]
        with ThreadPoolExecutor(CLIENTS) as pool:
            list(pool.map(storm.ask_each, clients))
        assert storm.wrong == []
        until(lambda: len(workers(process)) == 1)
        before = descriptors(process)
        killed = storm.rage(clients, process)
        assert storm.wrong == []
        assert killed > STORM_SECONDS
        assert storm.right > killed
        for client in clients:
            assert ask(client, "SELECT 7 AS n") == 7
        # The spare alone is left, with its directory; what was killed has taken its own along.
        until(lambda: len(workers(process)) == 1)
        (spare,) = workers(process)
        assert spare.status() != psutil.STATUS_ZOMBIE
        until(lambda: len(list(tmp_path.glob("cache-*-spill/worker-*"))) == 1)
        # The catalog's pool may have grown.
        until(lambda: descriptors(process) <= before + 8)
    print(f"\n{killed} killed: {storm.right} right answers, {storm.refused} refused")


# ---- slow readers


def test_the_memory_of_a_stream_is_flat_while_its_client_reads_slowly(running: Service) -> None:
    process, uri = running.serve()
    sql = f"SELECT range AS n, repeat('x', 100) AS wide FROM range({SLOW_ROWS})"
    command = messages.wrap(messages.sql("CommandStatementQuery")(query=sql))
    taken, sizes = 0, []
    pause = threading.Event()
    with flight.connect(uri, generic_options=OWN_CONNECTION) as client:
        info = client.get_flight_info(flight.FlightDescriptor.for_command(command))
        for chunk in client.do_get(info.endpoints[0].ticket):
            taken += chunk.data.num_rows
            pause.wait(0.01)
            sizes.append(resident(process))
    assert taken == SLOW_ROWS
    settled = max(sizes[: len(sizes) // 4])
    grown = max(sizes) - settled
    print(f"\n{taken:,} rows: {settled / 1e6:.0f} MB, and {grown / 1e6:.0f} MB more later")
    assert grown < 48e6


# ---- neighbours


@pytest.fixture
def two_tenants(running: Service, database_dsn: str) -> tuple[str, str, str]:
    """A serving process's URI, and the secrets of two tenants with a table each."""
    _, uri = running.serve()
    secrets = []
    with Catalog(database_dsn, pool_max=2) as catalog:
        for name in ("quiet", "greedy"):
            with catalog.connect() as connection:
                tenants.ensure_tenant(connection, name, created_by="test")
            made = tenancy.create_key(catalog, name, name="test", roles=sorted(EVERY_ROLE))
            secrets.append(made[1])
            fill(uri, made[1])
    return uri, secrets[0], secrets[1]


@pytest.mark.parametrize(
    ("sql", "clients", "times_at_most"),
    [
        # A queue that is first come, first served would make it some 60 times.
        pytest.param(GROUPS, 64, 20, id="64 greedy clients"),
        pytest.param(BOMBS, 4, 10, id="bombs"),
    ],
)
def test_one_client_is_answered_beside_another_tenants_crowd(
    two_tenants: tuple[str, str, str], sql: str, clients: int, times_at_most: float
) -> None:
    uri, quiet, greedy = two_tenants
    with Crew(processes=1) as one, Crew() as many, ThreadPoolExecutor(1) as beside:

        def p95(after: float = 0) -> float:
            return percentile(
                one.ask(uri, GROUPS, clients=1, seconds=3, secret=quiet, after=after), 95
            )

        alone = p95()
        crowd = beside.submit(
            many.ask, uri, sql, clients=clients, seconds=6, secret=greedy, give_up_seconds=2.0
        )
        crowded = p95(after=0.02 * clients + 0.5)
        crowd.result()
    print(f"\np95 alone {alone * 1000:.0f} ms, beside them {crowded * 1000:.0f} ms")
    assert crowded < times_at_most * max(alone, 0.02)
