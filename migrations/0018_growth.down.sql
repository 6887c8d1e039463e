DROP INDEX client_transaction_ended;
DROP INDEX compaction_run_by_start;
DROP INDEX compaction_run_running;
DROP INDEX incident_audit_of_principal;
DROP INDEX query_audit_of_principal;
DROP INDEX view_def_of_tenant;
CREATE INDEX view_def_of_tenant ON view_def (tenant_id, begin_snapshot);
DROP INDEX table_def_of_tenant;
CREATE INDEX table_def_of_tenant ON table_def (tenant_id, begin_snapshot);
ALTER TABLE publication_head
    ADD CONSTRAINT publication_head_snapshot_id_fkey FOREIGN KEY (snapshot_id) REFERENCES snapshot;
DROP INDEX idempotency_key_by_age;
CREATE INDEX idempotency_key_by_age ON idempotency_key USING brin (created_at);
