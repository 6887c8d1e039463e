"""What the door asks of the gateway, and the plain values that pass between them.

The door translates; these decide. Each call is one use case for one identity.
"""

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

import pyarrow as pa

from duckmesh.identifiers import SnapshotId
from duckmesh.tokens import VisibilityToken
from flight_server.commands import IfTableExists, IfTableMissing
from flight_server.metadata import TableDescriptor
from gateway.identity import Identity
from query_engine.describe import Description
from query_engine.engine import Interruption, RunningQuery


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadPoint:
    """Where in time a question is to be answered. At most one of the first three is set."""

    min_token: VisibilityToken | None = None
    snapshot_id: SnapshotId | None = None
    snapshot_time: datetime | None = None
    strong: bool = False
    timeout: timedelta | None = None
    """How long to wait for it; None is the setting's."""


@dataclass(frozen=True, slots=True)
class Pinned:
    """The snapshot that a question is answered from."""

    snapshot_id: SnapshotId
    max_visibility_token: VisibilityToken


@dataclass(frozen=True, slots=True)
class WriteReceipt:
    """The answer to an accepted write."""

    visibility_token: VisibilityToken
    row_count: int
    duplicate: bool = False
    visible_snapshot_id: SnapshotId | None = None


@dataclass(frozen=True, slots=True)
class Executed:
    """The outcome of a statement that is no query. `row_count` is None when it has none (DDL)."""

    row_count: int | None
    visibility_token: VisibilityToken | None


class Write(Protocol):
    """One write in the making, all or nothing. Used by one thread; `accept` or `abort` ends it."""

    def add(self, batch: pa.RecordBatch) -> None:
        """Take rows. Raises Invalid for rows that do not fit the table."""

    def accept(self) -> WriteReceipt:
        """Publish the write. On return it is durable."""

    def abort(self) -> None:
        """Forget a write that `accept` was not called for, and what it staged."""


class WriteStream(Protocol):
    """Many writes of one sender into one table, in order."""

    def submit(self, batch: pa.RecordBatch, *, idempotency_key: str | None) -> Future[WriteReceipt]:
        """Begin one write of these rows. Raises Invalid at once for rows that do not fit."""


class Writes(Protocol):
    """Accepting rows."""

    def begin(
        self,
        identity: Identity,
        table: str,
        schema: pa.Schema,
        *,
        if_missing: IfTableMissing,
        if_exists: IfTableExists,
        idempotency_key: str | None,
    ) -> Write:
        """Begin a write. Raises before any row is taken when table or schema do not fit."""

    def stream(self, identity: Identity, table: str, schema: pa.Schema) -> WriteStream:
        """Begin a stream of writes into a table that exists."""

    def wait_until_visible(
        self, identity: Identity, token: VisibilityToken, *, timeout: timedelta | None
    ) -> SnapshotId:
        """Block until the token is visible. Raises NotYetVisible, the write stays accepted."""


class Reads(Protocol):
    """Answering questions."""

    def is_query(self, sql: str) -> bool:
        """Whether the statement yields rows. Raises Invalid for what is not one statement."""

    def pin(self, identity: Identity, sql: str | None, point: ReadPoint) -> Pinned:
        """Wait at the barrier for the tables that `sql` names (None: all); choose the snapshot."""

    def describe(self, identity: Identity, sql: str, pinned: Pinned) -> Description:
        """The schemas of a statement, without running it."""

    def run(
        self,
        identity: Identity,
        sql: str,
        snapshot_id: SnapshotId,
        *,
        parameters: pa.RecordBatch | None,
        last_token: VisibilityToken,
        interruption: Interruption,
    ) -> RunningQuery:
        """Start a query on exactly that snapshot."""

    def execute(self, identity: Identity, sql: str, *, idempotency_key: str | None) -> Executed:
        """Run a statement that is no query, once."""

    def tables(self, identity: Identity) -> Sequence[TableDescriptor]:
        """The tenant's tables in the newest snapshot."""
