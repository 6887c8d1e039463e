"""Publishing into Postgres: a group of envelopes becomes durable, nearly always by one statement.

Lock order of a publish: idempotency keys (sorted), then the tenant's counter row, which is held
until commit, then the rows of the sessions that wrote. So the commit order is the token order, and
two groups cannot deadlock.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Protocol

import psycopg
from psycopg import errors as pg
from psycopg.pq import TransactionStatus

from duckmesh.errors import Corrupt, ErrorCode, Unavailable
from duckmesh.identifiers import SchemaVersion, TableId, TenantId
from duckmesh.statements import Statements
from duckmesh.tokens import VisibilityToken
from ingest_bus.envelope import Envelope, InlinePayload, Receipt
from ingest_bus.postgres_rows import envelope_values, receipt_of
from ingest_bus.prepared import (
    BOOL,
    BYTEA,
    INT4,
    INT8,
    JSON,
    TEXT,
    TIMESTAMPTZ,
    UUID,
    PreparedStatement,
)

_SQL = Statements("ingest_bus", "postgres_publish.sql")
_PUBLISH_TRIES: Final = 3
_SENT_AT_ONCE_BYTES: Final = 96 * 1024
"""A socket takes so much, and nobody waits for it."""

_NEVER: Final = SchemaVersion(2**31 - 1)
"""Below this stands every version: a table whose fence is not known is looked at first."""

_ACCEPT_TYPES: Final = {
    "tenant_id": INT8,
    "count": INT8,
    "as_one": BOOL,
    "fence_epoch": INT8,
    "envelopes": JSON,
    "payloads": BYTEA,
}
_ACCEPT: Final = PreparedStatement("duckmesh_accept", _SQL["accept"], _ACCEPT_TYPES)
_ACCEPT_PLAIN: Final = PreparedStatement("duckmesh_plain", _SQL["accept_plain"], _ACCEPT_TYPES)
_ACCEPT_ONE: Final = PreparedStatement(
    "duckmesh_one",
    _SQL["accept_one"],
    {
        "tenant_id": INT8,
        "fence_epoch": INT8,
        "event_id": UUID,
        "table_id": INT8,
        "schema_version": INT4,
        "operation": TEXT,
        "payload": BYTEA,
        "row_count": INT8,
        "byte_count": INT8,
        "min_event_time": TIMESTAMPTZ,
        "max_event_time": TIMESTAMPTZ,
        "trace_id": TEXT,
    },
)

_SERVERS_FAULT: Final = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    # A server that only reads, or that finds itself broken.
    psycopg.InternalError,
    OSError,
    ValueError,
)

Connection = psycopg.Connection[tuple[Any, ...]]


class Borrowed(Protocol):
    """A connection that is used across calls (catalog.connection.Lent)."""

    @property
    def connection(self) -> Connection: ...

    @property
    def is_over(self) -> bool: ...

    def give_back(self) -> None: ...

    def lost(self, cause: Exception) -> Unavailable: ...


@dataclass(slots=True)
class _Fences:
    """The fences of a tenant's tables as they stand in one fence epoch. Zero stands for none."""

    epoch: int
    versions: dict[TableId, SchemaVersion] = field(default_factory=dict)


class Publisher:
    """Commits groups of envelopes, and fences tables. Thread-safe."""

    def __init__(
        self,
        connect: Callable[[], AbstractContextManager[Connection]],
        lend_at_once: Callable[[], "Borrowed | None"],
    ) -> None:
        self._connect = connect
        self._lend_at_once = lend_at_once
        self._known_tenants: set[TenantId] = set()
        self._fences: dict[TenantId, _Fences] = {}

    def commit_group(
        self, tenant_id: TenantId, envelopes: Sequence[Envelope], *, as_one: bool
    ) -> list[Receipt]:
        """Accept envelopes of one tenant, all or none. One round trip unless something is unusual.

        Died before its commit: nothing was accepted. Died after it, before the answer: the client
        repeats its key and gets these receipts. Raises Conflict.
        """
        with self._connect() as connection:
            receipts = self._accept_at_once(connection, tenant_id, envelopes, as_one=as_one)
        if receipts is not None:
            return receipts
        values = envelope_values(tenant_id, envelopes, as_one=as_one)
        for _ in range(_PUBLISH_TRIES):
            with self._connect() as connection:
                receipts = _accept(connection, envelopes, values)
            if receipts is not None:
                return receipts
        raise Corrupt("an idempotency key names an event that is gone", tenant_id=tenant_id)

    def accept_within(
        self,
        connection: Connection,
        tenant_id: TenantId,
        envelopes: Sequence[Envelope],
        *,
        as_one: bool,
    ) -> list[Receipt]:
        """Publish in the caller's transaction, which tells the coordinators when it commits."""
        self._open_tenant(connection, tenant_id)
        values = envelope_values(tenant_id, envelopes, as_one=as_one)
        receipts = _accept(connection, envelopes, values)
        if receipts is None:
            # Rolled back by the caller: the next try finds the key free.
            raise Unavailable(ErrorCode.CATALOG_UNAVAILABLE, "a key has just expired: try again")
        connection.execute(_SQL["tell_accepted"])
        return receipts

    def fence(
        self,
        tenant_id: TenantId,
        table_id: TableId,
        *,
        below: SchemaVersion,
        within: Connection | None,
    ) -> SchemaVersion:
        """Send back later envelopes of older versions, from the transaction's commit on.

        Returns the fence as it stands.
        """
        values = {"tenant_id": tenant_id, "table_id": table_id, "below": below}
        with self._transaction(within) as connection:
            self._open_tenant(connection, tenant_id)
            connection.execute(_SQL["lock_counter"], values)
            row = connection.execute(_SQL["set_fence"], values).fetchone()
        assert row is not None  # noqa: S101 - RETURNING of one row
        return SchemaVersion(row[0])

    def begin_group(
        self,
        tenant_id: TenantId,
        envelopes: Sequence[Envelope],
        *,
        accepted: Callable[[], None],
    ) -> "Begun | None":
        """Send the usual publish of a group and do not wait for it; `accepted` is called with it.

        None, with nothing sent, when memory does not know all that it takes, when no connection is
        at hand, or when the group is large: then `commit_group` is the way. Never blocks.
        """
        fences = self._fences.get(tenant_id)
        if tenant_id not in self._known_tenants or fences is None:
            return None
        known, size_bytes = fences.versions, 0
        for e in envelopes:
            if e.raises_fence or e.schema_version < known.get(e.table_id, _NEVER):
                return None
            size_bytes += e.byte_count
        if size_bytes > _SENT_AT_ONCE_BYTES:
            return None
        # Before anything is borrowed: it may fail.
        statement, values = _usual(tenant_id, envelopes, fences.epoch)
        lent = self._lend_at_once()
        if lent is None:
            return None
        begun = Begun(self, lent, statement, envelopes, accepted)
        return begun if begun.send(values) else None

    def forget_fences(self, tenant_id: TenantId) -> None:
        """Look at them again the next time."""
        self._fences.pop(tenant_id, None)

    def _accept_at_once(
        self,
        connection: Connection,
        tenant_id: TenantId,
        envelopes: Sequence[Envelope],
        *,
        as_one: bool,
    ) -> list[Receipt] | None:
        """The usual publish: one statement, which commits itself.

        None, with nothing accepted, when the group needs the transaction: it raises a fence or
        stands below one, has a key that was seen before, or a fence was raised meanwhile.
        """
        self._open_tenant(connection, tenant_id)
        fences = self._fences_of(connection, tenant_id, {e.table_id for e in envelopes})
        if any(e.raises_fence or e.schema_version < fences.versions[e.table_id] for e in envelopes):
            return None
        try:
            accept, values = _usual(tenant_id, envelopes, fences.epoch, as_one=as_one)
            before = accept.first_value(connection, values)
        except pg.NotNullViolation:
            self._fences.pop(tenant_id, None)
            return None
        except pg.UniqueViolation:
            return None
        if before is None:
            return None
        return _receipts(envelopes, before)

    def _fences_of(
        self, connection: Connection, tenant_id: TenantId, table_ids: Collection[TableId]
    ) -> _Fences:
        """The fences of these tables, by the last look. The statement that uses them checks it."""
        known = self._fences.get(tenant_id)
        if known is not None and known.versions.keys() >= set(table_ids):
            return known
        rows = connection.execute(
            _SQL["fences_of"], {"tenant_id": tenant_id, "table_ids": list(table_ids)}
        ).fetchall()
        versions = dict.fromkeys(table_ids, SchemaVersion(0))
        versions |= {table_id: version for _, table_id, version in rows if table_id is not None}
        if known is not None and rows[0][0] == known.epoch:
            versions = known.versions | versions
        # A new object each time: another tenant's thread may be reading the old one.
        fences = self._fences[tenant_id] = _Fences(rows[0][0], versions)
        return fences

    def _open_tenant(self, connection: Connection, tenant_id: TenantId) -> None:
        if tenant_id not in self._known_tenants:
            connection.execute(_SQL["open_tenant"], {"tenant_id": tenant_id})
            connection.execute(_SQL["open_lease"], {"tenant_id": tenant_id})
            # Inside a transaction the rows may still be rolled back: the next call looks again.
            if connection.info.transaction_status is TransactionStatus.IDLE:
                self._known_tenants.add(tenant_id)

    @contextmanager
    def _transaction(self, within: Connection | None) -> Iterator[Connection]:
        """The caller's transaction, or one of our own."""
        if within is not None:
            yield within
            return
        with self._connect() as connection, connection.transaction():
            yield connection


class Begun:
    """A publish under way. Used by one thread at a time, until it has an outcome."""

    def __init__(
        self,
        publisher: Publisher,
        lent: Borrowed,
        statement: PreparedStatement,
        envelopes: Sequence[Envelope],
        accepted: Callable[[], None],
    ) -> None:
        self._come = False
        self.is_sent = False
        """Whether all of it is on its way; else `receipts` sends the rest."""
        self._accepted = accepted
        self._publisher = publisher
        self._lent = lent
        self._statement = statement
        self._envelopes = envelopes

    @property
    def descriptor(self) -> int:
        """What has bytes to read when the answer comes."""
        return int(self._lent.connection.pgconn.socket)

    def send(self, values: dict[str, bytes | None]) -> bool:
        """Begin it; False when that takes more than a look, with nothing sent."""
        connection = self._lent.connection
        try:
            if self._statement.begin(connection, values):
                self.is_sent = self._statement.is_sent(connection)
                return True
        except psycopg.Error:
            # A connection that is gone: nothing of it was accepted, for nothing was sent whole.
            # Whoever waits for one finds one that lives.
            pass
        self._lent.give_back()
        return False

    @property
    def is_over(self) -> bool:
        """Whether it has its outcome. Its connection may be another's by then."""
        return self._lent.is_over

    def has_come(self) -> bool:
        """Whether `receipts` would not wait. Never blocks. Raises Unavailable."""
        self._check_open()
        try:
            self._come = self._statement.has_come(self._lent.connection)
        except psycopg.Error as cause:
            raise self._lent.lost(cause) from cause
        return self._come

    def receipts(self) -> list[Receipt] | None:
        """The receipts; None when the group takes the transaction, with nothing accepted.

        Blocks until the answer has come. Raises Unavailable: then they may have been accepted.
        """
        self._check_open()
        before: bytes | None = None
        try:
            if not self._come:
                self._statement.wait(self._lent.connection)
            before = self._statement.outcome(self._lent.connection)
        except pg.NotNullViolation:
            self._publisher.forget_fences(self._envelopes[0].tenant_id)
        except _SERVERS_FAULT as cause:
            raise self._lent.lost(cause) from cause
        except psycopg.Error:
            # Refused, for one of the group perhaps: the transaction finds out which.
            pass
        except BaseException:
            self._lent.give_back()
            raise
        self._lent.give_back()
        if before is None:
            return None
        self._accepted()
        return _receipts(self._envelopes, before)

    def give_up(self) -> Unavailable:
        """Wait for it no more, without blocking: as after a lost connection, it may be accepted."""
        return self._lent.lost(psycopg.OperationalError("nobody could wait for the answer"))

    def _check_open(self) -> None:
        if self.is_over:
            raise RuntimeError("a publish that is over was asked again")


def _usual(
    tenant_id: TenantId, envelopes: Sequence[Envelope], fence_epoch: int, *, as_one: bool = False
) -> tuple[PreparedStatement, dict[str, bytes | None]]:
    """The statement that accepts a usual group, and its parameters."""
    only = envelopes[0]
    plain = only.idempotency_key is None and only.session is None
    if (
        plain
        and len(envelopes) == 1
        and not as_one
        and isinstance(only.payload, InlinePayload)
        # A parameter ends at a NUL, and would be stored without its rest.
        and "\0" not in (only.trace_id or "")
    ):
        return _ACCEPT_ONE, _one_value(only, only.payload.content, fence_epoch)
    plain = plain and all(e.idempotency_key is None and e.session is None for e in envelopes)
    values = envelope_values(tenant_id, envelopes, as_one=as_one)
    return _ACCEPT_PLAIN if plain else _ACCEPT, _accept_values(values, fence_epoch)


def _one_value(e: Envelope, payload: bytes, fence_epoch: int) -> dict[str, bytes | None]:
    return {
        "tenant_id": b"%d" % e.tenant_id,
        "fence_epoch": b"%d" % fence_epoch,
        "event_id": e.event_id.bytes,
        "table_id": b"%d" % e.table_id,
        "schema_version": b"%d" % e.schema_version,
        "operation": e.operation.value.encode(),
        "payload": payload,
        "row_count": b"%d" % e.row_count,
        "byte_count": b"%d" % e.byte_count,
        "min_event_time": _moment(e.min_event_time),
        "max_event_time": _moment(e.max_event_time),
        "trace_id": None if e.trace_id is None else e.trace_id.encode(),
    }


def _moment(value: datetime | None) -> bytes | None:
    return None if value is None else value.isoformat().encode()


def _receipts(envelopes: Sequence[Envelope], before: bytes) -> list[Receipt]:
    """Those of a group that is all new, after the token `before`."""
    return [
        Receipt(e.event_id, VisibilityToken(token), e.row_count, schema_version=e.schema_version)
        for token, e in enumerate(envelopes, int(before) + 1)
    ]


def _accept_values(values: dict[str, Any], fence_epoch: int) -> dict[str, bytes | None]:
    return {
        "tenant_id": b"%d" % values["tenant_id"],
        "count": b"%d" % values["count"],
        "as_one": b"t" if values["as_one"] else b"f",
        "fence_epoch": b"%d" % fence_epoch,
        "envelopes": values["envelopes"].encode(),
        "payloads": values["payloads"],
    }


def _accept(
    connection: Connection, envelopes: Sequence[Envelope], values: dict[str, Any]
) -> list[Receipt] | None:
    """The publish transaction that can tell duplicates, and say which fence sent a write back.

    None, with nothing accepted, when a key of a duplicate expired between its first statement and
    its last: then the write is new, and is published again.
    """
    with connection.transaction():
        if any(e.idempotency_key is not None for e in envelopes):
            connection.execute(_SQL["insert_keys"], values)
        connection.execute(_SQL["take_tokens"], values)
        connection.execute(_SQL["insert_events"], values)
        if any(e.raises_fence for e in envelopes):
            connection.execute(_SQL["raise_fences"], values)
        if any(e.session is not None for e in envelopes):
            connection.execute(_SQL["note_sessions"], values)
        rows = connection.execute(_SQL["receipts"], values).fetchall()
        if len(rows) < len(envelopes):
            raise psycopg.Rollback
        return [receipt_of(envelope, row) for envelope, row in zip(envelopes, rows, strict=True)]
    return None
