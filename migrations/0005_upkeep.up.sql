-- Leases of periodic duties, and what was done: runs and audit.

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
    snapshot_id  bigint REFERENCES snapshot,
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

CREATE TABLE gc_run (
    run_id        uuid PRIMARY KEY,
    tenant_id     bigint REFERENCES tenant,
    started_at    timestamptz NOT NULL DEFAULT now(),
    ended_at      timestamptz,
    state         text NOT NULL DEFAULT 'running' CHECK (state IN ('running', 'done', 'failed')),
    dry_run       boolean NOT NULL DEFAULT false,
    files_deleted bigint NOT NULL DEFAULT 0,
    bytes_deleted bigint NOT NULL DEFAULT 0,
    failure       text
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
    outcome              text NOT NULL
);

CREATE INDEX query_audit_of_tenant ON query_audit (tenant_id, started_at DESC);

CREATE TABLE incident_audit (
    incident_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_id   bigint REFERENCES tenant,
    principal   text NOT NULL,
    act         text NOT NULL,
    subject     text NOT NULL,
    detail      jsonb NOT NULL DEFAULT '{}',
    trace_id    text,
    noted_at    timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX incident_audit_of_tenant ON incident_audit (tenant_id, noted_at DESC);
