-- name: insert_view
INSERT INTO view_def (tenant_id, name, query, arrow_schema, begin_snapshot)
VALUES (%s, %s, %s, %s, %s)

-- name: find_live_view
-- SQL compares names without case.
SELECT view_id, name FROM view_def
WHERE tenant_id = %s AND lower(name) = lower(%s) AND end_snapshot IS NULL

-- name: end_view
UPDATE view_def SET end_snapshot = %(snapshot_id)s
WHERE tenant_id = %(tenant_id)s AND lower(name) = lower(%(name)s) AND end_snapshot IS NULL

-- name: end_view_returning
UPDATE view_def SET end_snapshot = %(snapshot_id)s
WHERE tenant_id = %(tenant_id)s AND lower(name) = lower(%(name)s) AND end_snapshot IS NULL
RETURNING query, arrow_schema

-- name: views_at
SELECT name, query, arrow_schema FROM view_def
WHERE int8range(tenant_id, tenant_id, '[]') = int8range(%(tenant_id)s, %(tenant_id)s, '[]')
  AND int8range(begin_snapshot, end_snapshot) @> %(snapshot_id)s::bigint
ORDER BY name
