-- Tables and their schema versions. A table exists in the snapshots from begin_snapshot on,
-- up to, and not in, end_snapshot.

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
CREATE INDEX table_def_of_tenant ON table_def (tenant_id, begin_snapshot);

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
    PRIMARY KEY (table_id, schema_version)
);
