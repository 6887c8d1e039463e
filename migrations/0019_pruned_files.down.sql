ALTER TABLE query_audit DROP COLUMN pruned_files;
