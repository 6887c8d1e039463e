-- What the audit adds: the outcome of acts, the bytes that a query scanned, and indexes for forgetting.

-- OK, or the error code that refused the act.
ALTER TABLE incident_audit ADD COLUMN outcome text NOT NULL DEFAULT 'OK';
CREATE INDEX incident_audit_by_time ON incident_audit (noted_at);

ALTER TABLE query_audit ADD COLUMN scanned_bytes bigint NOT NULL DEFAULT 0;
CREATE INDEX query_audit_by_start ON query_audit (started_at);
