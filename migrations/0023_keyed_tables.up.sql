-- Tables with a primary key keep one row for each key: a file supersedes older files by its keys.

ALTER TABLE ingest_event DROP CONSTRAINT ingest_event_operation_check;
ALTER TABLE ingest_event ADD CONSTRAINT ingest_event_operation_check
    CHECK (operation IN ('insert', 'overwrite', 'delete'));
ALTER TABLE table_schema_version ADD COLUMN primary_key_cols text[] NOT NULL DEFAULT '{}';
ALTER TABLE data_file ADD COLUMN delete_count bigint NOT NULL DEFAULT 0;

UPDATE table_schema_version v SET primary_key_cols = t.primary_key_cols
FROM table_def t
WHERE t.table_id = v.table_id AND t.primary_key_cols <> '{}'
  AND NOT EXISTS (
      SELECT FROM unnest(t.primary_key_cols) k
      WHERE NOT EXISTS (SELECT FROM jsonb_array_elements(v.columns) c WHERE c ->> 'name' = k));

-- The tables whose files are in layers.
CREATE INDEX table_def_keyed ON table_def (table_id)
    WHERE primary_key_cols <> '{}' AND end_snapshot IS NULL;
