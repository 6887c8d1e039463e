-- name: create_tenant
INSERT INTO tenant (name) VALUES (%s)
ON CONFLICT (name) DO NOTHING
RETURNING tenant_id

-- name: first_snapshot
-- A tenant begins with an empty snapshot, so that "latest" always has an answer.
WITH born AS (
    INSERT INTO snapshot (snapshot_id, tenant_id, created_at, created_by, operation, max_visibility_token)
    VALUES (nextval('snapshot_id_sequence'), %(tenant_id)s, clock_timestamp(), %(created_by)s,
            'create_tenant', 0)
    RETURNING snapshot_id, tenant_id, created_at
)
INSERT INTO publication_head (tenant_id, snapshot_id, created_at, max_visibility_token)
SELECT tenant_id, snapshot_id, created_at, 0 FROM born

-- name: find_tenant
SELECT tenant_id, name, disabled_at IS NOT NULL FROM tenant WHERE name = %s

-- name: disable_tenant
UPDATE tenant SET disabled_at = coalesce(disabled_at, now()) WHERE name = %s

-- name: enable_tenant
UPDATE tenant SET disabled_at = NULL WHERE name = %s

-- name: list_tenants
SELECT tenant_id, name, disabled_at IS NOT NULL FROM tenant ORDER BY tenant_id LIMIT %s

-- name: create_key
INSERT INTO api_key (key_id, tenant_id, name, secret_hash, roles)
VALUES (%s, %s, %s, %s, %s)

-- name: find_holder
SELECT k.key_id, k.name, k.roles, k.secret_hash, t.tenant_id, t.name
FROM api_key k JOIN tenant t USING (tenant_id)
WHERE k.key_id = %s AND k.revoked_at IS NULL AND t.disabled_at IS NULL

-- name: note_use
UPDATE api_key SET last_used_at = now() WHERE key_id = %s

-- name: list_keys
SELECT key_id, name, roles, created_at, revoked_at, last_used_at
FROM api_key WHERE tenant_id = %s ORDER BY created_at LIMIT %s

-- name: revoke_key
UPDATE api_key SET revoked_at = now()
WHERE tenant_id = %s AND key_id = %s AND revoked_at IS NULL

-- name: announce_credentials
-- Sent with the commit of what it is about. Rare enough for the lock that a NOTIFY takes.
SELECT pg_notify(%s, '')

-- name: propose_secret
INSERT INTO sealing_secret (purpose, secret) VALUES (%s, %s) ON CONFLICT (purpose) DO NOTHING

-- name: sealing_secret
SELECT secret FROM sealing_secret WHERE purpose = %s
