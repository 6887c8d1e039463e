DROP TABLE view_def;
-- The snapshots stay, under the nearest name that the older schema knows.
UPDATE snapshot SET operation = 'restore'
WHERE operation IN ('alter_table', 'create_view', 'drop_view');
ALTER TABLE snapshot DROP CONSTRAINT snapshot_operation_check;
ALTER TABLE snapshot ADD CONSTRAINT snapshot_operation_check
    CHECK (operation IN ('create_tenant', 'publish', 'create_table', 'drop_table', 'compact',
                         'restore'));
