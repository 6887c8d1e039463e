DROP TRIGGER data_file_changes_bytes ON data_file;
DROP TRIGGER data_file_adds_bytes ON data_file;
DROP FUNCTION count_changed_bytes();
DROP FUNCTION count_added_bytes();
ALTER TABLE publication_head DROP COLUMN live_bytes;
DROP TABLE api_key_quota;
DROP TABLE tenant_quota;
