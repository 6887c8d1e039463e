DROP INDEX ingest_lease_by_oldest;
ALTER TABLE ingest_lease DROP COLUMN oldest_at, DROP COLUMN oldest_token;
