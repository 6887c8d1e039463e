-- Tenants, their API keys, and the secrets every serving process shares.

-- The one clock of leases and grace. Tests move it with `SET duckmesh.clock_offset`.
CREATE FUNCTION duckmesh_now() RETURNS timestamptz
LANGUAGE sql STABLE PARALLEL SAFE
RETURN clock_timestamp()
    + coalesce(nullif(current_setting('duckmesh.clock_offset', true), ''), '0')::interval;

CREATE TABLE tenant (
    tenant_id   bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name        text NOT NULL UNIQUE CHECK (name ~ '^[a-z0-9][a-z0-9_-]{0,62}$'),
    created_at  timestamptz NOT NULL DEFAULT now(),
    disabled_at timestamptz
);

CREATE TABLE api_key (
    key_id      text PRIMARY KEY,
    tenant_id   bigint NOT NULL REFERENCES tenant,
    name        text NOT NULL,
    secret_hash bytea NOT NULL UNIQUE CHECK (octet_length(secret_hash) = 32),
    roles       text[] NOT NULL CHECK (
        roles <@ ARRAY['ingest_writer', 'query_reader', 'table_admin', 'ops_admin']
        AND cardinality(roles) > 0
    ),
    created_at  timestamptz NOT NULL DEFAULT now(),
    revoked_at  timestamptz
);

CREATE INDEX api_key_of_tenant ON api_key (tenant_id, created_at);

-- Tickets and sessions are sealed with this, so that any serving process opens them.
CREATE TABLE sealing_secret (
    purpose    text PRIMARY KEY,
    secret     bytea NOT NULL CHECK (octet_length(secret) >= 32),
    created_at timestamptz NOT NULL DEFAULT now()
);
