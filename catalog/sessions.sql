-- name: find
SELECT session_id, tenant_id, principal, last_token, options, transaction_id, opened_at, last_seen
FROM client_session WHERE session_id = %s

-- name: change_options
-- Only the options named change; a null erases one.
INSERT INTO client_session AS s (session_id, tenant_id, principal, options)
VALUES (%(session_id)s, %(tenant_id)s, %(principal)s, jsonb_strip_nulls(%(options)s))
ON CONFLICT (session_id) DO UPDATE
SET options = jsonb_strip_nulls(s.options || %(options)s), last_seen = duckmesh_now()
WHERE s.tenant_id = excluded.tenant_id

-- name: forget
DELETE FROM client_session WHERE session_id = %s AND tenant_id = %s

-- name: list_of_tenant
SELECT session_id, tenant_id, principal, last_token, options, transaction_id, opened_at, last_seen
FROM client_session WHERE tenant_id = %s
ORDER BY last_seen DESC LIMIT %s

-- name: forget_old
-- A token is good for one lifetime after it was last sent, and a session in use is sent a new one
-- in its second half: what rests this long has no client.
DELETE FROM client_session
WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM client_session
    WHERE last_seen < duckmesh_now() - %(older_than)s LIMIT %(limit)s))

-- name: touch
UPDATE client_session SET last_seen = duckmesh_now() WHERE session_id = %s
