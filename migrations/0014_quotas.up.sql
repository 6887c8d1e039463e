-- Quotas of tenants and of API keys, and how many bytes a tenant's newest snapshot holds.

-- A quota that has no row here is the setting's default.
CREATE TABLE tenant_quota (
    tenant_id  bigint NOT NULL REFERENCES tenant,
    quota      text NOT NULL,
    value      bigint NOT NULL CHECK (value >= 0),
    changed_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, quota)
);

-- Smaller than the tenant's; a quota that has no row here is the tenant's.
CREATE TABLE api_key_quota (
    key_id text NOT NULL REFERENCES api_key,
    quota  text NOT NULL,
    value  bigint NOT NULL CHECK (value >= 0),
    PRIMARY KEY (key_id, quota)
);

-- What the live files take. The row is locked by every publication before it touches a file, so
-- the trigger below takes no new lock.
ALTER TABLE publication_head ADD COLUMN live_bytes bigint NOT NULL DEFAULT 0;

UPDATE publication_head h
SET live_bytes = f.live_bytes
FROM (SELECT tenant_id, sum(file_size_bytes) AS live_bytes FROM data_file
      WHERE end_snapshot IS NULL GROUP BY tenant_id) f
WHERE f.tenant_id = h.tenant_id;

CREATE FUNCTION count_added_bytes() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE publication_head h SET live_bytes = h.live_bytes + a.size_bytes
    FROM (SELECT tenant_id, sum(file_size_bytes) AS size_bytes FROM added
          WHERE end_snapshot IS NULL GROUP BY tenant_id) a
    WHERE h.tenant_id = a.tenant_id;
    RETURN NULL;
END $$;

CREATE FUNCTION count_changed_bytes() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE publication_head h SET live_bytes = h.live_bytes + c.size_bytes
    FROM (SELECT tenant_id, sum(size_bytes) AS size_bytes
          FROM (SELECT tenant_id, file_size_bytes AS size_bytes FROM after
                WHERE end_snapshot IS NULL
                UNION ALL
                SELECT tenant_id, -file_size_bytes FROM before WHERE end_snapshot IS NULL) f
          GROUP BY tenant_id HAVING sum(size_bytes) <> 0) c
    WHERE h.tenant_id = c.tenant_id;
    RETURN NULL;
END $$;

CREATE TRIGGER data_file_adds_bytes AFTER INSERT ON data_file
    REFERENCING NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION count_added_bytes();
CREATE TRIGGER data_file_changes_bytes AFTER UPDATE ON data_file
    REFERENCING OLD TABLE AS before NEW TABLE AS after
    FOR EACH STATEMENT EXECUTE FUNCTION count_changed_bytes();
