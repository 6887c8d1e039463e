"""Where the conformance suite runs a bus: each world has a bus, a clock to move, and tenants."""

import contextlib
import hashlib
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from catalog import tenants
from catalog.connection import Catalog, Connection
from duckmesh.identifiers import (
    ConsumerId,
    EventId,
    SchemaVersion,
    TableId,
    TenantId,
    new_event_id,
)
from duckmesh.tokens import VisibilityToken
from ingest_bus.envelope import Claim, Envelope, InlinePayload
from ingest_bus.memory import MemoryIngestBus
from ingest_bus.port import IngestBus
from ingest_bus.postgres import PostgresIngestBus

T = TypeVar("T")

LEASE = timedelta(seconds=30)
PATIENCE_SECONDS = 20.0
MOMENT = timedelta(milliseconds=20)
EVERYTHING = VisibilityToken(10**9)


class World(ABC):
    """One bus, as one process sees it, and the means to test its promises."""

    bus: IngestBus

    @abstractmethod
    def another_bus(self) -> IngestBus:
        """The same bus as another process sees it."""

    @abstractmethod
    def tenant(self, name: str = "acme") -> TenantId: ...

    @abstractmethod
    def advance(self, span: timedelta) -> None:
        """Move the clock of leases, delays and ages."""

    @abstractmethod
    def close(self) -> None: ...


class MemoryWorld(World):
    def __init__(self) -> None:
        self._now = datetime.now(UTC)
        self._names: list[str] = []
        self.bus = MemoryIngestBus(now=lambda: self._now)

    def another_bus(self) -> IngestBus:
        return self.bus

    def tenant(self, name: str = "acme") -> TenantId:
        if name not in self._names:
            self._names.append(name)
        return TenantId(1 + self._names.index(name))

    def advance(self, span: timedelta) -> None:
        self._now += span

    def close(self) -> None:
        self.bus.close()


class PostgresWorld(World):
    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.offset = timedelta(0)
        self._opened: list[tuple[Catalog, PostgresIngestBus]] = []
        self.bus = self.another_bus()
        self.catalog = self._opened[0][0]

    def another_bus(self) -> IngestBus:
        catalog = Catalog(self.dsn, pool_max=12)
        bus = PostgresIngestBus(ShiftedDatabase(self, catalog))
        self._opened.append((catalog, bus))
        return bus

    def tenant(self, name: str = "acme") -> TenantId:
        with self.catalog.connect() as connection:
            return tenants.ensure_tenant(connection, name, created_by="test").tenant_id

    def advance(self, span: timedelta) -> None:
        self.offset += span

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Connection]:
        with self.catalog.connect() as connection, connection.transaction():
            yield connection

    def ask(self, statement: Any, *values: Any) -> list[tuple[Any, ...]]:
        with self.catalog.connect() as connection:
            return connection.execute(statement, values).fetchall()

    def close(self) -> None:
        for catalog, bus in self._opened:
            bus.close()
            catalog.close()


class ShiftedDatabase:
    """The catalog, with each connection's clock set to the world's before it is lent out."""

    def __init__(self, world: PostgresWorld, catalog: Catalog) -> None:
        self._world = world
        self._catalog = catalog
        self.announce = catalog.announce
        self.subscribe = catalog.subscribe

    @contextlib.contextmanager
    def connect(self) -> Iterator[Connection]:
        with self._catalog.connect() as connection:
            offset = f"{self._world.offset.total_seconds()} seconds"
            connection.execute("SELECT set_config('duckmesh.clock_offset', %s, false)", (offset,))
            yield connection

    def lend_at_once(self) -> None:
        """Nothing is at hand: one whose clock is not set would be another world's."""


# -- words for the tests


def write(
    tenant_id: TenantId,
    *,
    table: int = 1,
    key: str | None = None,
    content: bytes = b"rows",
    version: int = 1,
    **more: Any,
) -> Envelope:
    """An envelope of one inline row batch; its hash follows its content."""
    fields: dict[str, Any] = {
        "payload": InlinePayload(content),
        "row_count": 1,
        "byte_count": len(content),
        "idempotency_key": key,
        "payload_hash": None if key is None else hashlib.sha256(content).digest(),
    }
    return Envelope(
        new_event_id(), tenant_id, TableId(table), SchemaVersion(version), **(fields | more)
    )


def publish(bus: IngestBus, tenant_id: TenantId, count: int, **fields: Any) -> None:
    bus.publish([write(tenant_id, **fields) for _ in range(count)])


def claim(bus: IngestBus, *, limit: int = 100, max_bytes: int = 2**20) -> Claim | None:
    return bus.claim_batch(ConsumerId("consumer"), limit=limit, max_bytes=max_bytes, lease=LEASE)


def claimed(bus: IngestBus, *, limit: int = 100, max_bytes: int = 2**20) -> Claim:
    held = claim(bus, limit=limit, max_bytes=max_bytes)
    assert held is not None
    return held


def tokens_of(held: Claim) -> list[int]:
    return [event.visibility_token for event in held.events]


def together(*calls: Callable[[], T]) -> list[T | Exception]:
    """Run the calls at the same time; their results, or what they raised, in their order."""
    start = threading.Barrier(len(calls))

    def run(call: Callable[[], T]) -> T | Exception:
        start.wait(PATIENCE_SECONDS)
        try:
            return call()
        except Exception as error:  # noqa: BLE001 - the test looks at it
            return error

    with ThreadPoolExecutor(len(calls)) as threads:
        return list(threads.map(run, calls))


def until(condition: Callable[[], Any], *, seconds: float = PATIENCE_SECONDS) -> None:
    """Wait until the condition holds; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come to hold"
        pause.wait(0.01)


def ids(held: Claim, *tokens: int) -> list[EventId]:
    """The ids of the claim's events, or of those with the given tokens."""
    return [
        event.envelope.event_id
        for event in held.events
        if not tokens or event.visibility_token in tokens
    ]
