DROP INDEX data_file_uncut;
DROP INDEX data_file_live;
CREATE INDEX data_file_live ON data_file (table_id) WHERE end_snapshot IS NULL;
