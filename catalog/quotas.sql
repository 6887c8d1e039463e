-- name: quotas_in_force
-- Everything that a process needs to know of one caller's quotas, in one look.
SELECT h.live_bytes,
       (SELECT coalesce(jsonb_object_agg(quota, value), '{}') FROM tenant_quota
        WHERE tenant_id = %(tenant_id)s),
       (SELECT coalesce(jsonb_object_agg(quota, value), '{}') FROM api_key_quota
        WHERE key_id = %(key_id)s)
FROM publication_head h WHERE h.tenant_id = %(tenant_id)s

-- name: set_quotas
INSERT INTO tenant_quota (tenant_id, quota, value)
SELECT %(tenant_id)s, quota, value
FROM unnest(%(quotas)s::text[], %(values)s::bigint[]) AS q (quota, value)
ON CONFLICT (tenant_id, quota) DO UPDATE SET value = excluded.value, changed_at = now()

-- name: reset_quotas
-- Without names, all of them.
DELETE FROM tenant_quota
WHERE tenant_id = %(tenant_id)s
  AND (%(quotas)s::text[] IS NULL OR quota = ANY (%(quotas)s))

-- name: set_key_quotas
INSERT INTO api_key_quota (key_id, quota, value)
SELECT %(key_id)s, quota, value
FROM unnest(%(quotas)s::text[], %(values)s::bigint[]) AS q (quota, value)

-- name: copy_key_quotas
INSERT INTO api_key_quota (key_id, quota, value)
SELECT %(to)s, quota, value FROM api_key_quota WHERE key_id = %(from)s

-- name: key_quotas
SELECT q.key_id, jsonb_object_agg(q.quota, q.value)
FROM api_key_quota q JOIN api_key k USING (key_id)
WHERE k.tenant_id = %s
GROUP BY q.key_id

-- name: announce_quotas
-- Sent with the commit of what it is about. Rare enough for the lock that a NOTIFY takes.
SELECT pg_notify(%s, '')

-- name: usages
SELECT h.tenant_id, h.live_bytes,
       (SELECT count(*) FROM table_def t
        WHERE t.tenant_id = h.tenant_id AND t.end_snapshot IS NULL)
FROM publication_head h
WHERE h.tenant_id = ANY (%s)
