-- Views, and the snapshots that definitions draw. A view exists in the snapshots from
-- begin_snapshot on, up to, and not in, end_snapshot.

ALTER TABLE snapshot DROP CONSTRAINT snapshot_operation_check;
ALTER TABLE snapshot ADD CONSTRAINT snapshot_operation_check
    CHECK (operation IN ('create_tenant', 'publish', 'create_table', 'alter_table', 'drop_table',
                         'create_view', 'drop_view', 'compact', 'restore'));

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
CREATE INDEX view_def_of_tenant ON view_def (tenant_id, begin_snapshot);
