DROP INDEX query_audit_by_start;
ALTER TABLE query_audit DROP COLUMN scanned_bytes;
DROP INDEX incident_audit_by_time;
ALTER TABLE incident_audit DROP COLUMN outcome;
