-- The whole schema as the migrations leave it, for reading. Nothing runs this file but a test, which
-- holds it equal to the sum of the up files.

-- Which migrations were applied (catalog/migrate.sql creates this one).
CREATE TABLE duckmesh_schema_migrations (
    version    integer PRIMARY KEY,
    name       text NOT NULL,
    checksum   text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
);

-- =================================================================================================
-- Tenants, their API keys, and the secrets every serving process shares.
-- =================================================================================================

-- The one clock of leases and grace. Tests move it with `SET duckmesh.clock_offset`.
CREATE FUNCTION duckmesh_now() RETURNS timestamptz
LANGUAGE sql STABLE PARALLEL SAFE
RETURN clock_timestamp()
    + coalesce(nullif(current_setting('duckmesh.clock_offset', true), ''), '0')::interval;

CREATE TABLE tenant (
    tenant_id   bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name        text NOT NULL UNIQUE CHECK (name ~ '^[a-z0-9][a-z0-9_-]{0,62}$'),
    created_at  timestamptz NOT NULL DEFAULT now(),
    disabled_at timestamptz
);

CREATE TABLE api_key (
    key_id      text PRIMARY KEY,
    tenant_id   bigint NOT NULL REFERENCES tenant,
    name        text NOT NULL,
    secret_hash bytea NOT NULL UNIQUE CHECK (octet_length(secret_hash) = 32),
    roles       text[] NOT NULL CHECK (
        roles <@ ARRAY['ingest_writer', 'query_reader', 'table_admin', 'ops_admin']
        AND cardinality(roles) > 0
    ),
    created_at  timestamptz NOT NULL DEFAULT now(),
    revoked_at  timestamptz,
    last_used_at timestamptz
);

CREATE INDEX api_key_of_tenant ON api_key (tenant_id, created_at);

-- A quota that has no row here is the setting's default.
CREATE TABLE tenant_quota (
    tenant_id  bigint NOT NULL REFERENCES tenant,
    quota      text NOT NULL,
    value      bigint NOT NULL CHECK (value >= 0),
    changed_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, quota)
);

-- Smaller than the tenant's; a quota that has no row here is the tenant's.
CREATE TABLE api_key_quota (
    key_id text NOT NULL REFERENCES api_key,
    quota  text NOT NULL,
    value  bigint NOT NULL CHECK (value >= 0),
    PRIMARY KEY (key_id, quota)
);

-- Tickets and sessions are sealed with this, so that any serving process opens them.
CREATE TABLE sealing_secret (
    purpose    text PRIMARY KEY,
    secret     bytea NOT NULL CHECK (octet_length(secret) >= 32),
    created_at timestamptz NOT NULL DEFAULT now()
);

-- =================================================================================================
-- Tables and their schema versions. A table exists in the snapshots from begin_snapshot on,
-- up to, and not in, end_snapshot.
-- =================================================================================================

CREATE TABLE table_def (
    table_id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_id        bigint NOT NULL REFERENCES tenant,
    name             text NOT NULL,
    primary_key_cols text[] NOT NULL DEFAULT '{}',
    partition_spec   jsonb NOT NULL DEFAULT '[]',
    -- The version that new writes are checked against.
    schema_version   integer NOT NULL DEFAULT 1,
    -- The write that created the table, so that its retry is known as a retry.
    creation_key     text,
    created_at       timestamptz NOT NULL DEFAULT now(),
    begin_snapshot   bigint NOT NULL,
    end_snapshot     bigint
);

CREATE UNIQUE INDEX table_def_live_name ON table_def (tenant_id, name) WHERE end_snapshot IS NULL;
-- The tables whose files are in layers.
CREATE INDEX table_def_keyed ON table_def (table_id)
    WHERE primary_key_cols <> '{}' AND end_snapshot IS NULL;
-- The tables of a snapshot. GiST knows ranges and no plain numbers: the tenant is a range of one.
CREATE INDEX table_def_lifetime ON table_def USING gist (
    int8range(tenant_id, tenant_id, '[]'), int8range(begin_snapshot, end_snapshot));

CREATE TABLE table_schema_version (
    table_id           bigint NOT NULL REFERENCES table_def,
    schema_version     integer NOT NULL CHECK (schema_version > 0),
    -- The Arrow IPC schema message: exact types, field ids in each field's PARQUET:field_id.
    arrow_schema       bytea NOT NULL,
    -- The same for people: [{"field_id", "name", "type", "nullable"}].
    columns            jsonb NOT NULL,
    compatibility_mode text NOT NULL DEFAULT 'backward'
        CHECK (compatibility_mode IN ('none', 'backward', 'forward', 'full')),
    created_at         timestamptz NOT NULL DEFAULT now(),
    -- NULL until the write that brings the version is published.
    begin_snapshot     bigint,
    -- The columns of its primary key, as they are called in this version.
    primary_key_cols   text[] NOT NULL DEFAULT '{}',
    PRIMARY KEY (table_id, schema_version)
);

-- =================================================================================================
-- The Postgres bus: durable envelopes in token order, idempotency keys, claims under leases.
-- =================================================================================================

-- The counter row. It is the last thing a publish transaction locks, and it is held until commit,
-- so a token is never visible before a smaller one.
CREATE TABLE token_counter (
    tenant_id   bigint PRIMARY KEY REFERENCES tenant,
    last_token  bigint NOT NULL DEFAULT 0,
    -- Grows with every change of the tenant's schema fences. A publish names the one it knows, and
    -- so needs not read the fences. It is here because a publish locks this row, and then sees it
    -- as it is now.
    fence_epoch bigint NOT NULL DEFAULT 0,
    -- Quiet for a while: who looks for work passes over the tenant.
    idle        boolean NOT NULL DEFAULT false
) WITH (fillfactor = 10);

CREATE INDEX token_counter_busy ON token_counter (tenant_id) WHERE NOT idle;

CREATE FUNCTION wake_tenant() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.idle = false;
    RETURN NEW;
END
$$;

-- A trigger, so that no process, of no version, accepts a write that nobody then looks for. It runs
-- under the row's lock, and sees the row as it is now. Of a tenant that is not idle it costs a look.
CREATE TRIGGER token_counter_wakes BEFORE UPDATE OF last_token ON token_counter
    FOR EACH ROW WHEN (OLD.idle) EXECUTE FUNCTION wake_tenant();

CREATE TABLE ingest_event (
    tenant_id        bigint NOT NULL,
    visibility_token bigint NOT NULL CHECK (visibility_token > 0),
    event_id         uuid NOT NULL,
    table_id         bigint NOT NULL,
    schema_version   integer NOT NULL,
    operation        text NOT NULL CHECK (operation IN ('insert', 'overwrite', 'delete')),
    idempotency_key  text,
    -- Arrow record-batch messages for 'inline'; a JSON list of files for 'staged'. They are
    -- compressed where it pays: pglz would cost and gain nothing.
    payload_kind     text NOT NULL CHECK (payload_kind IN ('inline', 'staged')),
    payload          bytea STORAGE EXTERNAL,
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
    -- Events of one group become visible together: the last token of the group, else NULL.
    group_last_token bigint,
    -- A dead letter that was accepted again: the token of the new event, which has its payload.
    replay_token     bigint,
    PRIMARY KEY (tenant_id, visibility_token)
) WITH (fillfactor = 80);

CREATE UNIQUE INDEX ingest_event_by_id ON ingest_event (event_id);
CREATE INDEX ingest_event_failed ON ingest_event (tenant_id, visibility_token)
    WHERE state = 'failed';
-- Objects that no snapshot has yet, and that the collection of orphans spares.
CREATE INDEX ingest_event_staged ON ingest_event (tenant_id)
    WHERE payload_kind = 'staged' AND payload IS NOT NULL;

CREATE TABLE idempotency_key (
    tenant_id    bigint NOT NULL,
    table_id     bigint NOT NULL,
    key          text NOT NULL,
    payload_hash bytea NOT NULL,
    event_id     uuid NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, table_id, key)
);

CREATE INDEX idempotency_key_by_age ON idempotency_key (created_at);

-- Writes checked against an older schema version than this are sent back to be checked again.
CREATE TABLE schema_fence (
    tenant_id          bigint NOT NULL,
    table_id           bigint NOT NULL,
    min_schema_version integer NOT NULL,
    PRIMARY KEY (tenant_id, table_id)
);

CREATE FUNCTION move_fence_epoch() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE token_counter SET fence_epoch = fence_epoch + 1 WHERE tenant_id = NEW.tenant_id;
    RETURN NULL;
END
$$;

-- A trigger, so that no process, of no version, raises a fence and leaves the epoch. Fences are
-- raised under the counter row's lock: no new lock is taken here.
CREATE TRIGGER schema_fence_moves_epoch AFTER INSERT OR UPDATE ON schema_fence
    FOR EACH ROW EXECUTE FUNCTION move_fence_epoch();

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
    not_before  timestamptz,
    -- No event that waits or is committed has a smaller token, or is older. Expiry moves both; a
    -- claim moves neither, and its update touches no index.
    oldest_token bigint NOT NULL DEFAULT 0,
    oldest_at   timestamptz NOT NULL DEFAULT '-infinity'
) WITH (fillfactor = 50);

CREATE INDEX ingest_lease_by_oldest ON ingest_lease (oldest_at);

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

-- =================================================================================================
-- Snapshots, data files, manifests and watermarks: what is visible.
-- =================================================================================================

CREATE SEQUENCE snapshot_id_sequence AS bigint;

CREATE TABLE snapshot (
    snapshot_id          bigint PRIMARY KEY,
    tenant_id            bigint NOT NULL REFERENCES tenant,
    parent_snapshot_id   bigint,
    -- Later than its parent's, always: time travel by time has one answer.
    created_at           timestamptz NOT NULL,
    created_by           text NOT NULL,
    operation            text NOT NULL
        CHECK (operation IN ('create_tenant', 'publish', 'create_table', 'alter_table', 'drop_table',
                             'create_view', 'alter_view', 'drop_view', 'compact', 'restore')),
    -- Every token of the tenant up to this one is in the snapshot, or dead-lettered.
    max_visibility_token bigint NOT NULL,
    -- When the next snapshot came, for one that a pin holds while the next one is gone.
    replaced_at          timestamptz
);

CREATE INDEX snapshot_latest ON snapshot (tenant_id, snapshot_id DESC)
    INCLUDE (max_visibility_token);
CREATE UNIQUE INDEX snapshot_by_time ON snapshot (tenant_id, created_at DESC)
    INCLUDE (snapshot_id);

-- The newest snapshot of each tenant. Its row lock orders publications; the publisher's epoch
-- fences one who woke too late.
CREATE TABLE publication_head (
    tenant_id            bigint PRIMARY KEY REFERENCES tenant,
    -- No foreign key: each snapshot that expires would be looked for in every head.
    snapshot_id          bigint NOT NULL,
    created_at           timestamptz NOT NULL,
    max_visibility_token bigint NOT NULL,
    publisher_epoch      bigint NOT NULL DEFAULT 0,
    -- What the live files take.
    live_bytes           bigint NOT NULL DEFAULT 0,
    -- Snapshots up to this one have expired, unless they are there.
    expired_through      bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 10);

CREATE TABLE snapshot_table_watermark (
    table_id             bigint NOT NULL REFERENCES table_def,
    snapshot_id          bigint NOT NULL,
    max_visibility_token bigint NOT NULL,
    PRIMARY KEY (table_id, snapshot_id)
);

-- What holds a snapshot past retention. With a tag it is also a name that queries read by. A pin is
-- made under the lock of the tenant's head, and retention expires snapshots under that lock: so
-- neither misses the other.
CREATE TABLE snapshot_pin (
    pin_id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_id   bigint NOT NULL REFERENCES tenant,
    snapshot_id bigint NOT NULL REFERENCES snapshot,
    tag         text CHECK (tag ~ '^[A-Za-z_][A-Za-z0-9_.-]{0,62}$'),
    created_by  text NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT duckmesh_now(),
    -- From then on it holds and names nothing. NULL: it stands until it is taken away.
    expires_at  timestamptz
);

CREATE UNIQUE INDEX snapshot_pin_by_tag ON snapshot_pin (tenant_id, tag) WHERE tag IS NOT NULL;
CREATE UNIQUE INDEX snapshot_pin_untagged ON snapshot_pin (snapshot_id) WHERE tag IS NULL;
CREATE INDEX snapshot_pin_of_snapshot ON snapshot_pin (snapshot_id);

-- In a snapshot a table has the former name that ended first after it, else its name in table_def.
-- Tables that were never renamed have no row.
CREATE TABLE table_former_name (
    table_id     bigint NOT NULL REFERENCES table_def,
    name         text NOT NULL,
    -- The snapshot from which on the table has another name.
    end_snapshot bigint NOT NULL,
    PRIMARY KEY (table_id, end_snapshot)
);

CREATE TABLE data_file (
    file_id         uuid PRIMARY KEY,
    tenant_id       bigint NOT NULL REFERENCES tenant,
    table_id        bigint NOT NULL REFERENCES table_def,
    -- The object's key; NULL for an inline file, whose bytes lie in data_file_content.
    path            text,
    format          text NOT NULL DEFAULT 'parquet' CHECK (format = 'parquet'),
    schema_version  integer NOT NULL,
    partition       jsonb NOT NULL DEFAULT '{}',
    record_count    bigint NOT NULL CHECK (record_count >= 0),
    file_size_bytes bigint NOT NULL CHECK (file_size_bytes > 0),
    min_event_time  timestamptz,
    max_event_time  timestamptz,
    -- {"column": {"min", "max", "nulls"}} as the Parquet footer has them.
    stats           jsonb NOT NULL DEFAULT '{}',
    min_token       bigint NOT NULL,
    max_token       bigint NOT NULL,
    begin_snapshot  bigint NOT NULL,
    end_snapshot    bigint,
    -- Until when a compaction carries a live file on: publications leave it out of their folds.
    held_until      timestamptz,
    -- Since when no snapshot reads the file. It is deleted a while later.
    unreachable_since timestamptz,
    -- How many of its rows say that their key is deleted.
    delete_count    bigint NOT NULL DEFAULT 0,
    CHECK (end_snapshot > begin_snapshot)
);

-- "Which files at S" is one range of this index.
CREATE INDEX data_file_of_table ON data_file (table_id, end_snapshot, begin_snapshot);
CREATE INDEX data_file_live ON data_file (table_id, file_size_bytes) WHERE end_snapshot IS NULL;
-- Rows of several partitions, that compaction is to take apart. Most lakes have none.
CREATE INDEX data_file_uncut ON data_file (table_id)
    WHERE end_snapshot IS NULL AND partition @> '{"many": true}';
CREATE INDEX data_file_ended ON data_file (tenant_id, end_snapshot)
    WHERE end_snapshot IS NOT NULL AND unreachable_since IS NULL;
CREATE INDEX data_file_unreachable ON data_file (tenant_id, unreachable_since)
    WHERE unreachable_since IS NOT NULL;
-- A restore makes new rows of old files: several rows may name one object. It stays in the store
-- until no row names it.
CREATE INDEX data_file_by_path ON data_file (path) WHERE path IS NOT NULL;

-- Every publication locks the head row before it touches a file: these take no new lock.
CREATE FUNCTION count_added_bytes() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE publication_head h SET live_bytes = h.live_bytes + a.size_bytes
    FROM (SELECT tenant_id, sum(file_size_bytes) AS size_bytes FROM added
          WHERE end_snapshot IS NULL GROUP BY tenant_id) a
    WHERE h.tenant_id = a.tenant_id;
    RETURN NULL;
END $$;

CREATE FUNCTION count_changed_bytes() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE publication_head h SET live_bytes = h.live_bytes + c.size_bytes
    FROM (SELECT tenant_id, sum(size_bytes) AS size_bytes
          FROM (SELECT tenant_id, file_size_bytes AS size_bytes FROM after
                WHERE end_snapshot IS NULL
                UNION ALL
                SELECT tenant_id, -file_size_bytes FROM before WHERE end_snapshot IS NULL) f
          GROUP BY tenant_id HAVING sum(size_bytes) <> 0) c
    WHERE h.tenant_id = c.tenant_id;
    RETURN NULL;
END $$;

CREATE TRIGGER data_file_adds_bytes AFTER INSERT ON data_file
    REFERENCING NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION count_added_bytes();
CREATE TRIGGER data_file_changes_bytes AFTER UPDATE ON data_file
    REFERENCING OLD TABLE AS before NEW TABLE AS after
    FOR EACH STATEMENT EXECUTE FUNCTION count_changed_bytes();

CREATE TABLE data_file_content (
    file_id uuid PRIMARY KEY REFERENCES data_file ON DELETE CASCADE,
    content bytea STORAGE EXTERNAL NOT NULL
);

-- The log of additions and removals: the manifest's history, and the change feed.
CREATE TABLE snapshot_file (
    snapshot_id bigint NOT NULL,
    file_id     uuid NOT NULL REFERENCES data_file,
    table_id    bigint NOT NULL,
    change_type text NOT NULL CHECK (change_type IN ('add', 'remove')),
    PRIMARY KEY (snapshot_id, file_id)
);

CREATE INDEX snapshot_file_of_file ON snapshot_file (file_id);

-- =================================================================================================
-- Leases of periodic duties, and what was done: runs and audit.
-- =================================================================================================

CREATE TABLE lease (
    name        text PRIMARY KEY,
    holder      text NOT NULL,
    epoch       bigint NOT NULL,
    lease_until timestamptz NOT NULL
);

CREATE TABLE compaction_run (
    run_id       uuid PRIMARY KEY,
    tenant_id    bigint NOT NULL REFERENCES tenant,
    table_id     bigint NOT NULL REFERENCES table_def,
    snapshot_id  bigint,
    started_at   timestamptz NOT NULL DEFAULT now(),
    ended_at     timestamptz,
    state        text NOT NULL DEFAULT 'running'
        CHECK (state IN ('running', 'published', 'lost', 'failed')),
    files_in     integer NOT NULL DEFAULT 0,
    files_out    integer NOT NULL DEFAULT 0,
    bytes_in     bigint NOT NULL DEFAULT 0,
    bytes_out    bigint NOT NULL DEFAULT 0,
    failure      text
);

CREATE INDEX compaction_run_of_tenant ON compaction_run (tenant_id, started_at DESC);
CREATE INDEX compaction_run_running ON compaction_run (table_id) WHERE state = 'running';
CREATE INDEX compaction_run_by_start ON compaction_run (started_at);

CREATE TABLE gc_run (
    run_id        uuid PRIMARY KEY,
    tenant_id     bigint REFERENCES tenant,
    started_at    timestamptz NOT NULL DEFAULT now(),
    ended_at      timestamptz,
    state         text NOT NULL DEFAULT 'running' CHECK (state IN ('running', 'done', 'failed')),
    dry_run       boolean NOT NULL DEFAULT false,
    files_deleted bigint NOT NULL DEFAULT 0,
    bytes_deleted bigint NOT NULL DEFAULT 0,
    failure       text,
    snapshots_expired bigint NOT NULL DEFAULT 0,
    orphans_deleted   bigint NOT NULL DEFAULT 0
);

CREATE INDEX gc_run_by_start ON gc_run (started_at DESC);

CREATE TABLE query_audit (
    query_id             uuid PRIMARY KEY,
    tenant_id            bigint NOT NULL REFERENCES tenant,
    principal            text NOT NULL,
    sql_text             text NOT NULL,
    snapshot_id          bigint,
    min_visibility_token bigint,
    trace_id             text,
    started_at           timestamptz NOT NULL,
    queue_seconds        double precision NOT NULL DEFAULT 0,
    run_seconds          double precision NOT NULL DEFAULT 0,
    row_count            bigint NOT NULL DEFAULT 0,
    byte_count           bigint NOT NULL DEFAULT 0,
    scanned_files        integer NOT NULL DEFAULT 0,
    -- OK, or the error code.
    outcome              text NOT NULL,
    scanned_bytes        bigint NOT NULL DEFAULT 0,
    pruned_files         integer NOT NULL DEFAULT 0
);

CREATE INDEX query_audit_of_tenant ON query_audit (tenant_id, started_at DESC);
CREATE INDEX query_audit_by_start ON query_audit (started_at);
-- Who is no administrator sees the own statements alone.
CREATE INDEX query_audit_of_principal ON query_audit (tenant_id, principal, started_at DESC);

-- Administrative acts, done and refused. One that is done has its row in its own transaction.
CREATE TABLE incident_audit (
    incident_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_id   bigint REFERENCES tenant,
    principal   text NOT NULL,
    act         text NOT NULL,
    subject     text NOT NULL,
    detail      jsonb NOT NULL DEFAULT '{}',
    trace_id    text,
    noted_at    timestamptz NOT NULL DEFAULT now(),
    -- OK, or the error code that refused the act.
    outcome     text NOT NULL DEFAULT 'OK'
);

CREATE INDEX incident_audit_of_tenant ON incident_audit (tenant_id, noted_at DESC);
CREATE INDEX incident_audit_by_time ON incident_audit (noted_at);
CREATE INDEX incident_audit_of_principal ON incident_audit (tenant_id, principal, noted_at DESC);

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

-- =================================================================================================
-- Views. A view exists in the snapshots from begin_snapshot on, up to, and not in, end_snapshot.
-- =================================================================================================

CREATE TABLE view_def (
    view_id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_id      bigint NOT NULL REFERENCES tenant,
    name           text NOT NULL,
    -- The query that the view stands for.
    query          text NOT NULL,
    -- The Arrow IPC schema message of its columns when it was created.
    arrow_schema   bytea NOT NULL,
    created_at     timestamptz NOT NULL DEFAULT now(),
    begin_snapshot bigint NOT NULL,
    end_snapshot   bigint
);

CREATE UNIQUE INDEX view_def_live_name ON view_def (tenant_id, name) WHERE end_snapshot IS NULL;
CREATE INDEX view_def_lifetime ON view_def USING gist (
    int8range(tenant_id, tenant_id, '[]'), int8range(begin_snapshot, end_snapshot));

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
CREATE INDEX client_transaction_ended ON client_transaction (ended_at) WHERE state <> 'open';

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
