"""Envelopes as columns for `unnest`, and rows as what the bus answers."""

from collections.abc import Sequence
from typing import Any

from duckmesh.errors import Conflict, ErrorCode
from duckmesh.identifiers import TenantId
from ingest_bus.envelope import (
    AcceptedEvent,
    Envelope,
    EventRecord,
    EventState,
    InlinePayload,
    Operation,
    Receipt,
    StagedPayload,
)


def envelope_columns(tenant_id: TenantId, envelopes: Sequence[Envelope]) -> dict[str, Any]:
    """The envelopes as one array per column, for `unnest`."""
    return {
        "tenant_id": tenant_id,
        "event_ids": [e.event_id for e in envelopes],
        "table_ids": [e.table_id for e in envelopes],
        "schema_versions": [e.schema_version for e in envelopes],
        "operations": [e.operation.value for e in envelopes],
        "keys": [e.idempotency_key for e in envelopes],
        "payload_hashes": [e.payload_hash for e in envelopes],
        "payload_kinds": [_kind(e) for e in envelopes],
        "payloads": [_payload_bytes(e) for e in envelopes],
        "row_counts": [e.row_count for e in envelopes],
        "byte_counts": [e.byte_count for e in envelopes],
        "raises_fence": [e.raises_fence for e in envelopes],
        "min_event_times": [e.min_event_time for e in envelopes],
        "max_event_times": [e.max_event_time for e in envelopes],
        "trace_ids": [e.trace_id for e in envelopes],
    }


def session_columns(tenant_id: TenantId, envelopes: Sequence[Envelope]) -> dict[str, Any] | None:
    """The writes of sessions, one array per column; None when there are none."""
    named = [(e, e.session) for e in envelopes if e.session is not None]
    if not named:
        return None
    return {
        "tenant_id": tenant_id,
        "event_ids": [e.event_id for e, _ in named],
        "table_ids": [e.table_id for e, _ in named],
        "keys": [e.idempotency_key for e, _ in named],
        "session_ids": [session.session_id for _, session in named],
        "principals": [session.principal for _, session in named],
    }


def _kind(envelope: Envelope) -> str:
    return "inline" if isinstance(envelope.payload, InlinePayload) else "staged"


def _payload_bytes(envelope: Envelope) -> bytes:
    payload = envelope.payload
    return payload.content if isinstance(payload, InlinePayload) else payload.to_bytes()


def receipt_of(envelope: Envelope, row: tuple[Any, ...]) -> Receipt:
    """Read one row of `receipts`; raise what makes the whole call fail, which rolls it back."""
    inserted, event_id, token, row_count, same_payload, min_schema_version = row
    if envelope.idempotency_key is not None and not same_payload:
        raise Conflict(
            ErrorCode.IDEMPOTENCY_CONFLICT,
            "this idempotency key was accepted with other rows: send the first rows again to get "
            "their receipt, or use a new key for new rows",
            idempotency_key=envelope.idempotency_key,
            visibility_token=token,
        )
    if inserted and min_schema_version and envelope.schema_version < min_schema_version:
        raise Conflict(
            ErrorCode.SCHEMA_INCOMPATIBLE,
            "the table was given other columns meanwhile: check the rows against them again",
            min_schema_version=min_schema_version,
        )
    return Receipt(event_id, token, row_count, inserted)


def event_of(tenant_id: TenantId, row: tuple[Any, ...]) -> AcceptedEvent:
    (
        token,
        event_id,
        table_id,
        schema_version,
        operation,
        key,
        kind,
        payload,
        row_count,
        byte_count,
        min_event_time,
        max_event_time,
        trace_id,
        ingested_at,
        attempts,
        group_last_token,
    ) = row
    content = bytes(payload)
    envelope = Envelope(
        event_id=event_id,
        tenant_id=tenant_id,
        table_id=table_id,
        schema_version=schema_version,
        payload=InlinePayload(content) if kind == "inline" else StagedPayload.from_bytes(content),
        row_count=row_count,
        byte_count=byte_count,
        operation=Operation(operation),
        idempotency_key=key,
        min_event_time=min_event_time,
        max_event_time=max_event_time,
        trace_id=trace_id,
    )
    return AcceptedEvent(token, envelope, ingested_at, attempts, group_last_token)


def record_of(row: tuple[Any, ...]) -> EventRecord:
    event_id, token, table_id, key, row_count, state, ingested_at, reason = row
    return EventRecord(
        event_id, token, table_id, key, row_count, EventState(state), ingested_at, reason
    )
