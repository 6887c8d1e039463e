-- name: insert_pin
INSERT INTO snapshot_pin (tenant_id, snapshot_id, tag, created_by, expires_at)
VALUES (%(tenant_id)s, %(snapshot_id)s, %(tag)s, %(created_by)s,
        duckmesh_now() + %(lasting)s::interval)
RETURNING snapshot_id, tag, created_by, created_at, expires_at

-- name: unpin
-- A tag wherever it is, or the one pin of a snapshot that has no tag.
DELETE FROM snapshot_pin
WHERE tenant_id = %(tenant_id)s
  AND (tag = %(tag)s::text
       OR (%(tag)s::text IS NULL AND tag IS NULL AND snapshot_id = %(snapshot_id)s))
RETURNING snapshot_id

-- name: by_tag
SELECT s.snapshot_id, s.tenant_id, s.created_at, s.max_visibility_token
FROM snapshot_pin p JOIN snapshot s ON s.snapshot_id = p.snapshot_id
WHERE p.tenant_id = %s AND p.tag = %s AND (p.expires_at IS NULL OR p.expires_at > duckmesh_now())

-- name: pins_of
SELECT snapshot_id, tag, created_by, created_at, expires_at
FROM snapshot_pin
WHERE tenant_id = %s AND (expires_at IS NULL OR expires_at > duckmesh_now())
ORDER BY snapshot_id DESC, tag NULLS FIRST
LIMIT %s

-- name: held
SELECT DISTINCT snapshot_id FROM snapshot_pin
WHERE tenant_id = %s AND (expires_at IS NULL OR expires_at > duckmesh_now())

-- name: tags_of
SELECT snapshot_id, tag FROM snapshot_pin
WHERE tenant_id = %s AND snapshot_id = ANY (%s)
  AND (expires_at IS NULL OR expires_at > duckmesh_now())
ORDER BY snapshot_id, tag NULLS FIRST

-- name: forget_expired
DELETE FROM snapshot_pin WHERE tenant_id = %s AND expires_at <= duckmesh_now()
