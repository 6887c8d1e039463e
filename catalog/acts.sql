-- name: record
INSERT INTO incident_audit (tenant_id, principal, act, subject, detail, trace_id, outcome)
VALUES (%(tenant_id)s, %(principal)s, %(act)s, %(subject)s, %(detail)s, %(trace_id)s, %(outcome)s)

-- name: recent
-- Of all tenants and of none. The identity breaks ties of one transaction's time.
SELECT a.incident_id, a.noted_at, t.name, a.principal, a.act, a.subject, a.outcome, a.detail,
       a.trace_id
FROM incident_audit a LEFT JOIN tenant t USING (tenant_id)
WHERE (%(principal)s::text IS NULL OR a.principal = %(principal)s)
  AND a.noted_at >= coalesce(%(since)s::timestamptz, '-infinity')
ORDER BY a.noted_at DESC, a.incident_id DESC
LIMIT %(limit)s

-- name: recent_of_tenant
-- A statement of its own: a condition that may be absent has no index in a generic plan.
SELECT a.incident_id, a.noted_at, t.name, a.principal, a.act, a.subject, a.outcome, a.detail,
       a.trace_id
FROM incident_audit a JOIN tenant t USING (tenant_id)
WHERE a.tenant_id = %(tenant_id)s
  AND a.noted_at >= coalesce(%(since)s::timestamptz, '-infinity')
ORDER BY a.noted_at DESC, a.incident_id DESC
LIMIT %(limit)s

-- name: recent_of_principal
SELECT a.incident_id, a.noted_at, t.name, a.principal, a.act, a.subject, a.outcome, a.detail,
       a.trace_id
FROM incident_audit a JOIN tenant t USING (tenant_id)
WHERE a.tenant_id = %(tenant_id)s AND a.principal = %(principal)s
  AND a.noted_at >= coalesce(%(since)s::timestamptz, '-infinity')
ORDER BY a.noted_at DESC, a.incident_id DESC
LIMIT %(limit)s

-- name: forget
-- By their place: joined by key, the planner may read the whole table.
DELETE FROM incident_audit WHERE ctid = ANY (ARRAY (
    SELECT ctid FROM incident_audit
    WHERE noted_at < duckmesh_now() - %(older_than)s::interval
    ORDER BY noted_at LIMIT %(limit)s
    FOR UPDATE SKIP LOCKED
))
