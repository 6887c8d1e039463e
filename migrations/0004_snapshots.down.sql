DROP TABLE snapshot_file;
DROP TABLE data_file_content;
DROP TABLE data_file;
DROP TABLE snapshot_table_watermark;
DROP TABLE publication_head;
DROP TABLE snapshot;
DROP SEQUENCE snapshot_id_sequence;
