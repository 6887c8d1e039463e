-- Snapshots, data files, manifests and watermarks: what is visible.

CREATE SEQUENCE snapshot_id_sequence AS bigint;

CREATE TABLE snapshot (
    snapshot_id          bigint PRIMARY KEY,
    tenant_id            bigint NOT NULL REFERENCES tenant,
    parent_snapshot_id   bigint REFERENCES snapshot,
    -- Later than its parent's, always: time travel by time has one answer.
    created_at           timestamptz NOT NULL,
    created_by           text NOT NULL,
    operation            text NOT NULL
        CHECK (operation IN ('create_tenant', 'publish', 'create_table', 'drop_table', 'compact', 'restore')),
    -- Every token of the tenant up to this one is in the snapshot, or dead-lettered.
    max_visibility_token bigint NOT NULL
);

CREATE INDEX snapshot_latest ON snapshot (tenant_id, snapshot_id DESC) INCLUDE (max_visibility_token);
CREATE UNIQUE INDEX snapshot_by_time ON snapshot (tenant_id, created_at DESC) INCLUDE (snapshot_id);

-- The newest snapshot of each tenant. Its row lock orders publications; the publisher's epoch
-- fences one who woke too late.
CREATE TABLE publication_head (
    tenant_id            bigint PRIMARY KEY REFERENCES tenant,
    snapshot_id          bigint NOT NULL REFERENCES snapshot,
    created_at           timestamptz NOT NULL,
    max_visibility_token bigint NOT NULL,
    publisher_epoch      bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 10);

CREATE TABLE snapshot_table_watermark (
    table_id             bigint NOT NULL REFERENCES table_def,
    snapshot_id          bigint NOT NULL REFERENCES snapshot,
    max_visibility_token bigint NOT NULL,
    PRIMARY KEY (table_id, snapshot_id)
);

CREATE TABLE data_file (
    file_id         uuid PRIMARY KEY,
    tenant_id       bigint NOT NULL REFERENCES tenant,
    table_id        bigint NOT NULL REFERENCES table_def,
    -- The object's key; NULL for an inline file, whose bytes lie in data_file_content.
    path            text UNIQUE,
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
    begin_snapshot  bigint NOT NULL REFERENCES snapshot,
    end_snapshot    bigint REFERENCES snapshot,
    CHECK (end_snapshot > begin_snapshot)
);

-- "Which files at S" is one range of this index.
CREATE INDEX data_file_of_table ON data_file (table_id, end_snapshot, begin_snapshot);
CREATE INDEX data_file_live ON data_file (table_id) WHERE end_snapshot IS NULL;

CREATE TABLE data_file_content (
    file_id uuid PRIMARY KEY REFERENCES data_file ON DELETE CASCADE,
    content bytea NOT NULL
);

ALTER TABLE data_file_content ALTER COLUMN content SET STORAGE EXTERNAL;

-- The log of additions and removals: the manifest's history, and the change feed.
CREATE TABLE snapshot_file (
    snapshot_id bigint NOT NULL REFERENCES snapshot,
    file_id     uuid NOT NULL REFERENCES data_file,
    table_id    bigint NOT NULL,
    change_type text NOT NULL CHECK (change_type IN ('add', 'remove')),
    PRIMARY KEY (snapshot_id, file_id)
);

CREATE INDEX snapshot_file_of_file ON snapshot_file (file_id);
