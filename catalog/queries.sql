-- name: write
-- A batch that was committed before its connection broke is sent again, and adds nothing.
INSERT INTO query_audit (query_id, tenant_id, principal, sql_text, snapshot_id,
                         min_visibility_token, trace_id, started_at, queue_seconds, run_seconds,
                         row_count, byte_count, scanned_files, scanned_bytes, pruned_files, outcome)
SELECT query_id, tenant_id, principal, sql_text, snapshot_id, min_visibility_token, trace_id,
       started_at, queue_seconds, run_seconds, row_count, byte_count, scanned_files, scanned_bytes,
       pruned_files, outcome
FROM unnest(%(query_id)s::uuid[], %(tenant_id)s::bigint[], %(principal)s::text[],
            %(sql)s::text[], %(snapshot_id)s::bigint[], %(asked_token)s::bigint[],
            %(trace_id)s::text[], %(started_at)s::timestamptz[],
            %(queue_seconds)s::double precision[], %(run_seconds)s::double precision[],
            %(row_count)s::bigint[], %(byte_count)s::bigint[], %(scanned_files)s::integer[],
            %(scanned_bytes)s::bigint[], %(pruned_files)s::integer[], %(outcome)s::text[])
     AS sent (query_id, tenant_id, principal, sql_text, snapshot_id, min_visibility_token, trace_id,
              started_at, queue_seconds, run_seconds, row_count, byte_count, scanned_files,
              scanned_bytes, pruned_files, outcome)
ON CONFLICT (query_id) DO NOTHING

-- name: recent
-- Of all tenants.
SELECT q.query_id, q.tenant_id, q.principal, q.sql_text, q.snapshot_id, q.min_visibility_token,
       q.trace_id, q.started_at, q.queue_seconds, q.run_seconds, q.row_count, q.byte_count,
       q.scanned_files, q.scanned_bytes, q.pruned_files, q.outcome, t.name
FROM query_audit q JOIN tenant t USING (tenant_id)
WHERE (%(principal)s::text IS NULL OR q.principal = %(principal)s)
  AND q.started_at >= coalesce(%(since)s::timestamptz, '-infinity')
ORDER BY q.started_at DESC, q.query_id DESC
LIMIT %(limit)s

-- name: recent_of_tenant
-- A statement of its own: a condition that may be absent has no index in a generic plan.
SELECT q.query_id, q.tenant_id, q.principal, q.sql_text, q.snapshot_id, q.min_visibility_token,
       q.trace_id, q.started_at, q.queue_seconds, q.run_seconds, q.row_count, q.byte_count,
       q.scanned_files, q.scanned_bytes, q.pruned_files, q.outcome, t.name
FROM query_audit q JOIN tenant t USING (tenant_id)
WHERE q.tenant_id = %(tenant_id)s
  AND q.started_at >= coalesce(%(since)s::timestamptz, '-infinity')
ORDER BY q.started_at DESC, q.query_id DESC
LIMIT %(limit)s

-- name: recent_of_principal
SELECT q.query_id, q.tenant_id, q.principal, q.sql_text, q.snapshot_id, q.min_visibility_token,
       q.trace_id, q.started_at, q.queue_seconds, q.run_seconds, q.row_count, q.byte_count,
       q.scanned_files, q.scanned_bytes, q.pruned_files, q.outcome, t.name
FROM query_audit q JOIN tenant t USING (tenant_id)
WHERE q.tenant_id = %(tenant_id)s AND q.principal = %(principal)s
  AND q.started_at >= coalesce(%(since)s::timestamptz, '-infinity')
ORDER BY q.started_at DESC, q.query_id DESC
LIMIT %(limit)s

-- name: forget
-- By their place: joined by key, the planner may read the whole table.
DELETE FROM query_audit WHERE ctid = ANY (ARRAY (
    SELECT ctid FROM query_audit
    WHERE started_at < duckmesh_now() - %(older_than)s::interval
    ORDER BY started_at LIMIT %(limit)s
    FOR UPDATE SKIP LOCKED
))
