-- Snapshots expire, and their rows are deleted; what refers to them by number outlives them.

ALTER TABLE snapshot DROP CONSTRAINT snapshot_parent_snapshot_id_fkey;
ALTER TABLE snapshot_table_watermark DROP CONSTRAINT snapshot_table_watermark_snapshot_id_fkey;
ALTER TABLE table_former_name DROP CONSTRAINT table_former_name_end_snapshot_fkey;
ALTER TABLE data_file DROP CONSTRAINT data_file_begin_snapshot_fkey;
ALTER TABLE data_file DROP CONSTRAINT data_file_end_snapshot_fkey;
ALTER TABLE snapshot_file DROP CONSTRAINT snapshot_file_snapshot_id_fkey;
ALTER TABLE compaction_run DROP CONSTRAINT compaction_run_snapshot_id_fkey;

-- When the next snapshot came, for one that a pin holds while the next one is gone.
ALTER TABLE snapshot ADD COLUMN replaced_at timestamptz;

-- Snapshots up to this one have expired, unless they are there.
ALTER TABLE publication_head ADD COLUMN expired_through bigint NOT NULL DEFAULT 0;

-- Since when no snapshot reads the file. It is deleted a while later.
ALTER TABLE data_file ADD COLUMN unreachable_since timestamptz;
CREATE INDEX data_file_ended ON data_file (tenant_id, end_snapshot)
    WHERE end_snapshot IS NOT NULL AND unreachable_since IS NULL;
CREATE INDEX data_file_unreachable ON data_file (tenant_id, unreachable_since)
    WHERE unreachable_since IS NOT NULL;

-- Objects that no snapshot has yet, and that the collection of orphans spares.
CREATE INDEX ingest_event_staged ON ingest_event (tenant_id)
    WHERE payload_kind = 'staged' AND payload IS NOT NULL;

ALTER TABLE gc_run ADD COLUMN snapshots_expired bigint NOT NULL DEFAULT 0;
ALTER TABLE gc_run ADD COLUMN orphans_deleted bigint NOT NULL DEFAULT 0;
