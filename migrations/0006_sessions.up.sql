-- =================================================================================================
-- Sessions: what is known of a client's conversation beside its signed token.
-- =================================================================================================

-- Written by a session's first write, SET or transaction. The token that a client carries may be
-- behind, for clients lose headers; the row is not, for it moves in the write's own transaction.
CREATE TABLE client_session (
    session_id     uuid PRIMARY KEY,
    tenant_id      bigint NOT NULL REFERENCES tenant,
    principal      text NOT NULL,
    last_token     bigint NOT NULL DEFAULT 0,
    options        jsonb NOT NULL DEFAULT '{}',
    -- The transaction that statements without an id of their own belong to.
    transaction_id uuid,
    opened_at      timestamptz NOT NULL DEFAULT duckmesh_now(),
    last_seen      timestamptz NOT NULL DEFAULT duckmesh_now()
) WITH (fillfactor = 50);

CREATE INDEX client_session_of_tenant ON client_session (tenant_id);

-- Events of one group become visible together: the last token of the group, else NULL.
ALTER TABLE ingest_event ADD COLUMN group_last_token bigint;
