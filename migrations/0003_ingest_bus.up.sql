-- The Postgres bus: durable envelopes in token order, idempotency keys, claims under leases.

-- The counter row. It is the last thing a publish transaction locks, and it is held until commit,
-- so a token is never visible before a smaller one.
CREATE TABLE token_counter (
    tenant_id  bigint PRIMARY KEY REFERENCES tenant,
    last_token bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 10);

CREATE TABLE ingest_event (
    tenant_id        bigint NOT NULL,
    visibility_token bigint NOT NULL CHECK (visibility_token > 0),
    event_id         uuid NOT NULL,
    table_id         bigint NOT NULL,
    schema_version   integer NOT NULL,
    operation        text NOT NULL CHECK (operation IN ('insert', 'overwrite')),
    idempotency_key  text,
    -- Arrow record-batch messages for 'inline'; a JSON list of files for 'staged'.
    payload_kind     text NOT NULL CHECK (payload_kind IN ('inline', 'staged')),
    payload          bytea,
    row_count        bigint NOT NULL,
    byte_count       bigint NOT NULL,
    min_event_time   timestamptz,
    max_event_time   timestamptz,
    trace_id         text,
    ingested_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- A claimed event is an accepted one inside its tenant's lease: see ingest_lease.
    state            text NOT NULL DEFAULT 'accepted'
        CHECK (state IN ('accepted', 'committed', 'failed')),
    attempts         integer NOT NULL DEFAULT 0,
    failure_reason   text,
    PRIMARY KEY (tenant_id, visibility_token)
) WITH (fillfactor = 80);

-- Payloads are Arrow buffers, compressed where it pays: pglz would cost and gain nothing.
ALTER TABLE ingest_event ALTER COLUMN payload SET STORAGE EXTERNAL;

CREATE UNIQUE INDEX ingest_event_by_id ON ingest_event (event_id);
CREATE INDEX ingest_event_failed ON ingest_event (tenant_id, visibility_token)
    WHERE state = 'failed';

CREATE TABLE idempotency_key (
    tenant_id    bigint NOT NULL,
    table_id     bigint NOT NULL,
    key          text NOT NULL,
    payload_hash bytea NOT NULL,
    event_id     uuid NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, table_id, key)
);

CREATE INDEX idempotency_key_by_age ON idempotency_key USING brin (created_at);

-- Writes checked against an older schema version than this are sent back to be checked again.
CREATE TABLE schema_fence (
    tenant_id          bigint NOT NULL,
    table_id           bigint NOT NULL,
    min_schema_version integer NOT NULL,
    PRIMARY KEY (tenant_id, table_id)
);

-- One row per tenant: everything up to acked_token is resolved; the rest may be under a lease.
CREATE TABLE ingest_lease (
    tenant_id   bigint PRIMARY KEY REFERENCES tenant,
    acked_token bigint NOT NULL DEFAULT 0,
    epoch       bigint NOT NULL DEFAULT 0,
    consumer_id text,
    batch_id    uuid,
    lease_until timestamptz,
    claimed_at  timestamptz,
    -- How often the event at acked_token + 1 was claimed without progress: a poison event that
    -- kills its consumer is known by this number.
    attempt     integer NOT NULL DEFAULT 0,
    not_before  timestamptz
) WITH (fillfactor = 50);

CREATE TABLE ingest_claim_batch (
    batch_id    uuid PRIMARY KEY,
    tenant_id   bigint NOT NULL REFERENCES tenant,
    consumer_id text NOT NULL,
    epoch       bigint NOT NULL,
    attempt     integer NOT NULL,
    first_token bigint NOT NULL,
    last_token  bigint NOT NULL,
    claimed_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    ended_at    timestamptz,
    state       text NOT NULL DEFAULT 'active'
        CHECK (state IN ('active', 'acked', 'released', 'expired'))
);

CREATE INDEX ingest_claim_batch_active ON ingest_claim_batch (tenant_id) WHERE state = 'active';
CREATE INDEX ingest_claim_batch_ended ON ingest_claim_batch (ended_at) WHERE ended_at IS NOT NULL;

-- The exceptions of a claim: what was refused, and why. An ordinary event leaves no row here.
CREATE TABLE ingest_claim_item (
    batch_id         uuid NOT NULL REFERENCES ingest_claim_batch ON DELETE CASCADE,
    event_id         uuid NOT NULL,
    visibility_token bigint NOT NULL,
    attempt          integer NOT NULL,
    reason           text NOT NULL,
    dead_lettered    boolean NOT NULL,
    noted_at         timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (batch_id, event_id)
);
