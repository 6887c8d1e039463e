-- Former names of tables, and the snapshots that ALTER VIEW draws.

ALTER TABLE snapshot DROP CONSTRAINT snapshot_operation_check;
ALTER TABLE snapshot ADD CONSTRAINT snapshot_operation_check
    CHECK (operation IN ('create_tenant', 'publish', 'create_table', 'alter_table', 'drop_table',
                         'create_view', 'alter_view', 'drop_view', 'compact', 'restore'));

-- In a snapshot a table has the former name that ended first after it, else its name in table_def.
-- Tables that were never renamed have no row.
CREATE TABLE table_former_name (
    table_id     bigint NOT NULL REFERENCES table_def,
    name         text NOT NULL,
    -- The snapshot from which on the table has another name.
    end_snapshot bigint NOT NULL REFERENCES snapshot,
    PRIMARY KEY (table_id, end_snapshot)
);
