-- name: find
-- Each statement of a session asks for both: one round trip, and one moment.
-- The transaction only while it matters to the session's statements.
SELECT h.snapshot_id, h.tenant_id, h.created_at, h.max_visibility_token,
       s.session_id, s.tenant_id, s.principal, s.last_token, s.options, t.transaction_id,
       s.opened_at, s.last_seen
FROM publication_head h
LEFT JOIN client_session s ON s.session_id = %(session_id)s AND s.tenant_id = h.tenant_id
LEFT JOIN client_transaction t
  ON t.transaction_id = s.transaction_id AND t.state IN ('open', 'expired')
WHERE h.tenant_id = %(tenant_id)s

-- name: change_options
-- Only the options named change; a null erases one.
INSERT INTO client_session AS s (session_id, tenant_id, principal, options)
VALUES (%(session_id)s, %(tenant_id)s, %(principal)s, jsonb_strip_nulls(%(options)s))
ON CONFLICT (session_id) DO UPDATE
SET options = jsonb_strip_nulls(s.options || %(options)s), last_seen = duckmesh_now()
WHERE s.tenant_id = excluded.tenant_id

-- name: close
-- The last token stays: another connection may go on in the session, and must not read behind it.
UPDATE client_session SET options = '{}', transaction_id = NULL
WHERE session_id = %s AND tenant_id = %s

-- name: list_of_tenant
SELECT s.session_id, s.tenant_id, s.principal, s.last_token, s.options, t.transaction_id,
       s.opened_at, s.last_seen
FROM client_session s
LEFT JOIN client_transaction t
  ON t.transaction_id = s.transaction_id AND t.state IN ('open', 'expired')
WHERE s.tenant_id = %s
ORDER BY s.last_seen DESC LIMIT %s

-- name: forget_old
-- A token is good for one lifetime after it was last sent, and a session in use is sent a new one
-- in its second half: what rests this long has no client.
DELETE FROM client_session
WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM client_session
    WHERE last_seen < duckmesh_now() - %(older_than)s LIMIT %(limit)s))

-- name: touch
UPDATE client_session SET last_seen = duckmesh_now() WHERE session_id = %s
