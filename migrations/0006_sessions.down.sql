ALTER TABLE ingest_event DROP COLUMN group_last_token;
DROP TABLE client_session;
