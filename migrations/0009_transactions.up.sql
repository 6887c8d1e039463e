-- =================================================================================================
-- Transactions of clients: writes that are durable here, and accepted together when they end.
-- =================================================================================================

CREATE TABLE client_transaction (
    transaction_id uuid PRIMARY KEY,
    tenant_id      bigint NOT NULL REFERENCES tenant,
    principal      text NOT NULL,
    session_id     uuid,
    -- Expired: rolled back because nobody spoke in it; its client has yet to learn so.
    state          text NOT NULL DEFAULT 'open'
        CHECK (state IN ('open', 'committed', 'rolled_back', 'expired')),
    -- What its queries read: chosen by the first of them.
    snapshot_id    bigint,
    write_count    integer NOT NULL DEFAULT 0,
    row_count      bigint NOT NULL DEFAULT 0,
    inline_bytes   bigint NOT NULL DEFAULT 0,
    -- Of its last write, when it is committed and has written.
    last_token     bigint,
    opened_at      timestamptz NOT NULL DEFAULT duckmesh_now(),
    last_seen      timestamptz NOT NULL DEFAULT duckmesh_now(),
    ended_at       timestamptz
) WITH (fillfactor = 70);

CREATE INDEX client_transaction_open ON client_transaction (transaction_id) WHERE state = 'open';

-- The envelopes of open transactions, as ingest_event will hold them.
CREATE TABLE transaction_write (
    transaction_id  uuid NOT NULL REFERENCES client_transaction ON DELETE CASCADE,
    position        integer NOT NULL,
    event_id        uuid NOT NULL,
    table_id        bigint NOT NULL,
    schema_version  integer NOT NULL,
    operation       text NOT NULL,
    idempotency_key text,
    payload_hash    bytea,
    payload_kind    text NOT NULL CHECK (payload_kind IN ('inline', 'staged')),
    payload         bytea STORAGE EXTERNAL NOT NULL,
    row_count       bigint NOT NULL,
    byte_count      bigint NOT NULL,
    raises_fence    boolean NOT NULL,
    min_event_time  timestamptz,
    max_event_time  timestamptz,
    trace_id        text,
    PRIMARY KEY (transaction_id, position)
);
