"""What a benchmark measures: the product's processes, and the limits beside them."""

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import httpx
import psycopg
import pyarrow as pa
from adbc_driver_flightsql import dbapi

from benchmarks.clients import PROCESSES, Crew, Way
from benchmarks.data import ROW_SCHEMA
from catalog import tenants
from catalog.connection import Catalog
from catalog.embedded_postgres import EmbeddedPostgres
from catalog.migrate import migrate_up
from command_line.children import ChildProcess
from command_line.up import temporary_directory
from gateway import tenancy
from gateway.identity import EVERY_ROLE

_AUTHORIZATION: Final = "adbc.flight.sql.authorization_header"
_FILES_SQL: Final = """
SELECT f.file_id, f.path, c.content FROM data_file f JOIN table_def t USING (table_id)
LEFT JOIN data_file_content c USING (file_id)
WHERE t.name = %s AND f.end_snapshot IS NULL ORDER BY f.file_id
"""
_SEGMENTS: Final = re.compile(r"^duckmesh_replica_segments (\S+)$", re.MULTILINE)
_BUILDS: Final = re.compile(r'^duckmesh_replica_builds_total\{code="OK"\} (\S+)$', re.MULTILINE)
ROOT: Final = Path(__file__).parents[1]
_READY_WITHIN: Final = timedelta(seconds=60)
_STOP_WITHIN: Final = timedelta(seconds=20)


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much each benchmark does."""

    repetitions: int
    seconds: float
    bulk_rows: int
    bulk_repetitions: int
    questions: int
    scan_files: int = 100
    rows_per_file: int = 50_000
    tpch_scale: float = 1.0
    recipe_batches: int = 30_000
    recipe_repetitions: int = 2
    recipe_peer_seconds: float = 60.0
    catalog_scale: float = 1.0
    write_repetitions: int = 15
    """A write waits for three processes and a disk in turn, and so feels more than others do of
    what else the machine does in these seconds."""


FULL: Final = Sizes(
    repetitions=3, seconds=2.0, bulk_rows=10_000_000, bulk_repetitions=2, questions=400
)
QUICK: Final = Sizes(
    repetitions=2,
    seconds=1.0,
    bulk_rows=200_000,
    bulk_repetitions=1,
    questions=20,
    scan_files=8,
    tpch_scale=0.01,
    recipe_batches=320,
    recipe_repetitions=1,
    recipe_peer_seconds=2.0,
    catalog_scale=0.002,
    write_repetitions=2,
)


@dataclass(frozen=True, slots=True)
class Serving:
    """A serving process: its Flight address, its page of metrics, and its pid."""

    uri: str
    metrics_uri: str
    pid: int

    @property
    def segments(self) -> int:
        """How many segments its native replicas have."""
        return self._count(_SEGMENTS)

    @property
    def builds(self) -> int:
        """How many segments it has built."""
        return self._count(_BUILDS)

    def _count(self, metric: re.Pattern[str]) -> int:
        return sum(int(float(said)) for said in metric.findall(httpx.get(self.metrics_uri).text))


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One Postgres, one serving process, one coordinator, a bare server, and clients."""

    sizes: Sizes
    uri: str
    http_uri: str
    """Of the same process."""
    inline_uri: str
    """Of a second serving process over the same catalog, which runs queries itself: no workers."""
    bare_uri: str
    pids: Mapping[str, int]
    """The process that answers at each of these addresses."""
    dsn: str
    directory: Path
    objects: Path
    serve: ChildProcess
    crew: Crew
    environment: Mapping[str, str]
    """Of the product's processes: for one more of them."""

    def connect(self, uri: str | None = None, *, secret: str | None = None) -> Any:
        """An ADBC connection to the product, as the open tenant or with an API key."""
        shown = {} if secret is None else {_AUTHORIZATION: f"Bearer {secret}"}
        return dbapi.connect(uri or self.uri, db_kwargs=shown, autocommit=True)

    def tenant(self, name: str) -> str:
        """The secret of a key with every role, of a tenant of its own."""
        with Catalog(self.dsn, pool_max=2) as catalog:
            with catalog.connect() as connection:
                tenants.ensure_tenant(connection, name, created_by="benchmark")
            made = tenancy.create_key(catalog, name, name="benchmark", roles=sorted(EVERY_ROLE))
        return made[1]

    def files_of(self, table: str) -> list[str]:
        """The data files that the newest snapshot reads of a table of the open tenant.

        Those that lie in the catalog are copied out of it.
        """
        copies = self.directory / "inline-files"
        copies.mkdir(exist_ok=True)
        files: list[str] = []
        with self.postgres() as connection:
            for file_id, path, content in connection.execute(_FILES_SQL, (table,)):
                if path is None:
                    (copies / f"{file_id}.parquet").write_bytes(content)
                files.append(str(self.objects / path if path else copies / f"{file_id}.parquet"))
        return files

    def compact(self, table: str) -> None:
        """Merge whatever is small in a table of the open tenant."""
        subprocess.run(
            [sys.executable, "-m", "command_line.main", "compact", "--table", table],
            env=dict(self.environment),
            check=True,
            stdout=subprocess.DEVNULL,
        )

    def one_more_serve(self, undo: ExitStack, name: str, **settings: str) -> "Serving":
        """A serving process of its own until `undo` is closed, with an empty cache."""
        own = {
            "DUCKMESH_CACHE_DIRECTORY": str(self.directory / f"cache-{name}"),
            "DUCKMESH_HTTP_PORT": "0",
            **settings,
        }
        serve = ChildProcess(["serve", "--grace-seconds", "3"], {**self.environment, **own})
        serve.start()
        undo.callback(serve.stop, _STOP_WITHIN)
        uri, http_uri = serve.await_ready(_READY_WITHIN, threading.Event()).split()
        return Serving(uri, f"{http_uri}/v1/metrics", serve.pid or 0)

    def create_table(self, name: str, schema: pa.Schema = ROW_SCHEMA) -> None:
        """Create an empty table, and wait until it is visible."""
        with self.connect() as connection, connection.cursor() as cursor:
            no_rows = pa.record_batch([pa.array([], each.type) for each in schema], schema=schema)
            cursor.adbc_ingest(name, no_rows, mode="create")
            cursor.execute(f'SELECT count(*) FROM "{name}"')  # noqa: S608 - a name of ours
            cursor.fetchall()

    def warm_up(self, table: str) -> None:
        """Let every client process and both servers do their first writes before the clock."""
        for uri in (self.uri, self.bare_uri):
            self.crew.write(Way.ONE_RPC_EACH, uri, table=table, clients=PROCESSES, seconds=0.5)

    def postgres(self) -> "psycopg.Connection[Any]":
        """A connection to the Postgres that holds the catalog, in autocommit."""
        return psycopg.connect(self.dsn, autocommit=True)


def started(
    undo: ExitStack, environment: Mapping[str, str], *, grace_seconds: int
) -> tuple[ChildProcess, ChildProcess, str, str]:
    """A coordinator and a serving process that are ready, and its addresses: Flight, HTTP.

    Both end with `undo`.
    """
    children = [
        ChildProcess([command, "--grace-seconds", str(grace_seconds)], environment)
        for command in ("coordinate", "serve")
    ]
    for child in children:
        child.start()
        undo.callback(child.stop, _STOP_WITHIN)
    coordinate, serve = children
    stop = threading.Event()
    # The HTTP door's address comes behind the Flight door's.
    uri, _, http_uri = serve.await_ready(_READY_WITHIN, stop).partition(" ")
    coordinate.await_ready(_READY_WITHIN, stop)
    return coordinate, serve, uri, http_uri


@contextmanager
def open_stage(sizes: Sizes) -> Iterator[Stage]:
    """Start everything in a temporary directory; all of it ends with the block."""
    with ExitStack() as undo:
        directory = undo.enter_context(temporary_directory())
        # Its defaults are production's: fsync and synchronous_commit are on.
        postgres = undo.enter_context(EmbeddedPostgres(directory / "postgres"))
        migrate_up(postgres.dsn)
        objects = directory / "objects"
        environment = process_environment(postgres.dsn, directory, objects)
        _, serve, uri, http_uri = started(undo, environment, grace_seconds=3)
        stop = threading.Event()
        inline = ChildProcess(["serve", "--grace-seconds", "3"], _inline(environment, directory))
        inline.start()
        undo.callback(inline.stop, _STOP_WITHIN)
        inline_uri = inline.await_ready(_READY_WITHIN, stop).partition(" ")[0]
        bare_uri, bare_pid = undo.enter_context(_bare_server())
        yield Stage(
            sizes=sizes,
            uri=uri,
            http_uri=http_uri,
            inline_uri=inline_uri,
            bare_uri=bare_uri,
            pids={uri: serve.pid or 0, inline_uri: inline.pid or 0, bare_uri: bare_pid},
            dsn=postgres.dsn,
            directory=directory,
            objects=objects,
            serve=serve,
            crew=undo.enter_context(Crew()),
            environment=environment,
        )


def process_environment(dsn: str, directory: Path, objects: Path) -> dict[str, str]:
    """The environment of the product's processes: open mode, free ports, no merges."""
    kept = {name: v for name, v in os.environ.items() if not name.startswith("DUCKMESH_")}
    return kept | {
        "DUCKMESH_CATALOG_DSN": dsn,
        "DUCKMESH_STORE_URL": objects.as_uri(),
        "DUCKMESH_CACHE_DIRECTORY": str(directory / "cache"),
        "DUCKMESH_AUTH_OPEN_MODE": "true",
        "DUCKMESH_FLIGHT_PORT": "0",
        "DUCKMESH_HTTP_PORT": "0",
        "DUCKMESH_LOGGING_LEVEL": "warning",
        # A merge in the middle of a run would be measured with it, and change what is read.
        "DUCKMESH_MAINTENANCE_IN_COORDINATOR": "false",
    }


def _inline(environment: dict[str, str], directory: Path) -> dict[str, str]:
    return environment | {
        "DUCKMESH_QUERY_WORKERS": "0",
        "DUCKMESH_CACHE_DIRECTORY": str(directory / "cache-inline"),
    }


@contextmanager
def _bare_server() -> Iterator[tuple[str, int]]:
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.bare_server"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield f"grpc://127.0.0.1:{int(process.stdout.readline())}", process.pid
        finally:
            process.stdin.close()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
