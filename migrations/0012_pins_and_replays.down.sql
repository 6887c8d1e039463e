-- Fails, and changes nothing, while two files share one object: compact the restored tables first.
DROP INDEX data_file_by_path;
ALTER TABLE data_file ADD CONSTRAINT data_file_path_key UNIQUE (path);
ALTER TABLE ingest_event DROP COLUMN replay_token;
DROP TABLE snapshot_pin;
