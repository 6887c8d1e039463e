-- Older snapshots show each table under its last name from here on.
DROP TABLE table_former_name;
-- The snapshots stay, under the nearest name that the older schema knows.
UPDATE snapshot SET operation = 'restore' WHERE operation = 'alter_view';
ALTER TABLE snapshot DROP CONSTRAINT snapshot_operation_check;
ALTER TABLE snapshot ADD CONSTRAINT snapshot_operation_check
    CHECK (operation IN ('create_tenant', 'publish', 'create_table', 'alter_table', 'drop_table',
                         'create_view', 'drop_view', 'compact', 'restore'));
