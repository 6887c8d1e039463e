-- Fails, and changes nothing, once a snapshot has expired that a file or watermark still names.
ALTER TABLE gc_run DROP COLUMN orphans_deleted;
ALTER TABLE gc_run DROP COLUMN snapshots_expired;
DROP INDEX ingest_event_staged;
DROP INDEX data_file_unreachable;
DROP INDEX data_file_ended;
ALTER TABLE data_file DROP COLUMN unreachable_since;
ALTER TABLE publication_head DROP COLUMN expired_through;
ALTER TABLE snapshot DROP COLUMN replaced_at;
ALTER TABLE compaction_run ADD CONSTRAINT compaction_run_snapshot_id_fkey
    FOREIGN KEY (snapshot_id) REFERENCES snapshot;
ALTER TABLE snapshot_file ADD CONSTRAINT snapshot_file_snapshot_id_fkey
    FOREIGN KEY (snapshot_id) REFERENCES snapshot;
ALTER TABLE data_file ADD CONSTRAINT data_file_end_snapshot_fkey
    FOREIGN KEY (end_snapshot) REFERENCES snapshot;
ALTER TABLE data_file ADD CONSTRAINT data_file_begin_snapshot_fkey
    FOREIGN KEY (begin_snapshot) REFERENCES snapshot;
ALTER TABLE table_former_name ADD CONSTRAINT table_former_name_end_snapshot_fkey
    FOREIGN KEY (end_snapshot) REFERENCES snapshot;
ALTER TABLE snapshot_table_watermark ADD CONSTRAINT snapshot_table_watermark_snapshot_id_fkey
    FOREIGN KEY (snapshot_id) REFERENCES snapshot;
ALTER TABLE snapshot ADD CONSTRAINT snapshot_parent_snapshot_id_fkey
    FOREIGN KEY (parent_snapshot_id) REFERENCES snapshot;
