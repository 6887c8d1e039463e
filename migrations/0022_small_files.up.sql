-- What compaction looks for is found without the large files around it: most of a large lake.

DROP INDEX data_file_live;
CREATE INDEX data_file_live ON data_file (table_id, file_size_bytes) WHERE end_snapshot IS NULL;
CREATE INDEX data_file_uncut ON data_file (table_id)
    WHERE end_snapshot IS NULL AND partition @> '{"many": true}';
