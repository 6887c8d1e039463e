DROP INDEX table_def_keyed;
ALTER TABLE data_file DROP COLUMN delete_count;
ALTER TABLE table_schema_version DROP COLUMN primary_key_cols;
ALTER TABLE ingest_event DROP CONSTRAINT ingest_event_operation_check;
ALTER TABLE ingest_event ADD CONSTRAINT ingest_event_operation_check
    CHECK (operation IN ('insert', 'overwrite'));
