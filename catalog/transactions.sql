-- name: begin
INSERT INTO client_transaction (transaction_id, tenant_id, principal, session_id)
VALUES (%(transaction_id)s, %(tenant_id)s, %(principal)s, %(session_id)s)

-- name: enter
-- From now on the session's statements are the transaction's.
INSERT INTO client_session AS s (session_id, tenant_id, principal, transaction_id)
VALUES (%(session_id)s, %(tenant_id)s, %(principal)s, %(transaction_id)s)
ON CONFLICT (session_id) DO UPDATE
SET transaction_id = excluded.transaction_id, last_seen = duckmesh_now()
WHERE s.tenant_id = excluded.tenant_id

-- name: find
SELECT transaction_id, tenant_id, principal, session_id, state, snapshot_id, write_count, row_count,
       inline_bytes, last_token
FROM client_transaction WHERE transaction_id = %s

-- name: lock
SELECT transaction_id, tenant_id, principal, session_id, state, snapshot_id, write_count, row_count,
       inline_bytes, last_token
FROM client_transaction WHERE transaction_id = %s
FOR NO KEY UPDATE

-- name: pin
-- The first query's snapshot is every query's.
UPDATE client_transaction
SET snapshot_id = coalesce(snapshot_id, %(snapshot_id)s), last_seen = duckmesh_now()
WHERE transaction_id = %(transaction_id)s AND state = 'open'
RETURNING snapshot_id

-- name: touch
-- Not at every statement: an update a statement would be one too many.
UPDATE client_transaction SET last_seen = duckmesh_now()
WHERE transaction_id = %(transaction_id)s AND state = 'open'
  AND last_seen < duckmesh_now() - %(unless_within)s

-- name: hold
-- No row when the transaction has ended. The row lock gives concurrent writes their order.
WITH held AS (
    UPDATE client_transaction
    SET write_count = write_count + 1, row_count = row_count + %(row_count)s,
        inline_bytes = inline_bytes
            + CASE WHEN %(payload_kind)s = 'inline' THEN %(byte_count)s ELSE 0 END,
        last_seen = duckmesh_now()
    WHERE transaction_id = %(transaction_id)s AND state = 'open' AND write_count < %(writes_max)s
    RETURNING transaction_id, write_count
)
INSERT INTO transaction_write (transaction_id, position, event_id, table_id, schema_version,
                               operation, idempotency_key, payload_hash, payload_kind, payload,
                               row_count, byte_count, raises_fence, min_event_time, max_event_time,
                               trace_id)
SELECT held.transaction_id, held.write_count, %(event_id)s, %(table_id)s, %(schema_version)s,
       %(operation)s, %(idempotency_key)s, %(payload_hash)s, %(payload_kind)s, %(payload)s,
       %(row_count)s, %(byte_count)s, %(raises_fence)s, %(min_event_time)s, %(max_event_time)s,
       %(trace_id)s
FROM held

-- name: supersede
-- An overwrite ends the writes before it: nobody would ever see their rows. The count of writes
-- stays, for it numbers them.
WITH ended AS (
    DELETE FROM transaction_write
    WHERE transaction_id = %(transaction_id)s AND table_id = %(table_id)s
    RETURNING payload_kind, payload, byte_count, row_count
), counted AS (
    UPDATE client_transaction
    SET row_count = row_count - (SELECT coalesce(sum(row_count), 0) FROM ended),
        inline_bytes = inline_bytes - (SELECT coalesce(sum(byte_count), 0) FROM ended
                                       WHERE payload_kind = 'inline')
    WHERE transaction_id = %(transaction_id)s
)
SELECT payload FROM ended WHERE payload_kind = 'staged'

-- name: replaced_version
SELECT max(schema_version) FROM transaction_write
WHERE transaction_id = %s AND table_id = %s AND raises_fence

-- name: held_operations
SELECT DISTINCT operation FROM transaction_write WHERE transaction_id = %s AND table_id = %s

-- name: restamp
UPDATE transaction_write SET schema_version = %(version)s
WHERE transaction_id = %(transaction_id)s AND table_id = %(table_id)s
  AND schema_version = %(former)s

-- name: writes
SELECT event_id, table_id, schema_version, operation, idempotency_key, payload_hash, payload_kind,
       payload, row_count, byte_count, raises_fence, min_event_time, max_event_time, trace_id
FROM transaction_write WHERE transaction_id = %s
ORDER BY position

-- name: end
UPDATE client_transaction
SET state = %(state)s, last_token = %(last_token)s, ended_at = duckmesh_now()
WHERE transaction_id = %(transaction_id)s AND state = %(was)s

-- name: drop_writes
DELETE FROM transaction_write WHERE transaction_id = %s

-- name: drop_writes_returning_staged
WITH ended AS (
    DELETE FROM transaction_write WHERE transaction_id = %s
    RETURNING payload_kind, payload
)
SELECT payload FROM ended WHERE payload_kind = 'staged'

-- name: staged_payloads
SELECT w.payload
FROM client_transaction t JOIN transaction_write w USING (transaction_id)
WHERE t.tenant_id = %s AND w.payload_kind = 'staged'

-- name: idle
SELECT transaction_id FROM client_transaction
WHERE state = 'open' AND last_seen < duckmesh_now() - %(idle)s
LIMIT %(limit)s

-- name: is_idle
SELECT last_seen < duckmesh_now() - %(idle)s FROM client_transaction
WHERE transaction_id = %(transaction_id)s

-- name: forget_ended
DELETE FROM client_transaction
WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM client_transaction
    WHERE state <> 'open' AND ended_at < duckmesh_now() - %(older_than)s LIMIT %(limit)s))
