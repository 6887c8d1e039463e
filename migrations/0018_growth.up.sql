-- What statements read grows with their answer, and not with what lies around it.

-- Space that expiry gives back is used again: then every block range of a BRIN index spans all times,
-- and looking for old keys reads the whole table.
DROP INDEX idempotency_key_by_age;
CREATE INDEX idempotency_key_by_age ON idempotency_key (created_at);

-- Snapshots are deleted a thousand at a time, and each was looked for in every head. The newest one
-- of a tenant never expires.
ALTER TABLE publication_head DROP CONSTRAINT publication_head_snapshot_id_fkey;

-- What a snapshot has: what is live, or ended after it.
DROP INDEX table_def_of_tenant;
CREATE INDEX table_def_of_tenant ON table_def (tenant_id, end_snapshot);
DROP INDEX view_def_of_tenant;
CREATE INDEX view_def_of_tenant ON view_def (tenant_id, end_snapshot);

-- Who is no administrator sees the own statements and acts alone, among those of everybody.
CREATE INDEX query_audit_of_principal ON query_audit (tenant_id, principal, started_at DESC);
CREATE INDEX incident_audit_of_principal ON incident_audit (tenant_id, principal, noted_at DESC);

CREATE INDEX compaction_run_running ON compaction_run (table_id) WHERE state = 'running';
CREATE INDEX compaction_run_by_start ON compaction_run (started_at);
CREATE INDEX client_transaction_ended ON client_transaction (ended_at) WHERE state <> 'open';
