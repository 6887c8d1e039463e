-- Which tenants have old events is known without a look at the events of each.

ALTER TABLE ingest_lease
    ADD COLUMN oldest_token bigint NOT NULL DEFAULT 0,
    ADD COLUMN oldest_at timestamptz NOT NULL DEFAULT '-infinity';
CREATE INDEX ingest_lease_by_oldest ON ingest_lease (oldest_at);
