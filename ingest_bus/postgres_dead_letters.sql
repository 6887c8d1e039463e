-- name: list_dead
SELECT event_id, visibility_token, table_id, schema_version, operation, idempotency_key, row_count,
       byte_count, ingested_at, attempts, coalesce(failure_reason, ''), trace_id, group_last_token,
       replay_token
FROM ingest_event
WHERE tenant_id = %(tenant_id)s AND visibility_token > %(above)s AND state = 'failed'
  AND (%(replayed)s OR replay_token IS NULL)
  AND (%(named)s::bigint[] IS NULL
       OR visibility_token = ANY (%(named)s)
       OR group_last_token IN (SELECT g.group_last_token FROM ingest_event g
                               WHERE g.tenant_id = %(tenant_id)s AND g.state = 'failed'
                                 AND g.visibility_token = ANY (%(named)s)))
ORDER BY visibility_token
LIMIT %(limit)s

-- name: lock_dead
-- First lock of a replay: of two replays of one dead letter the second finds its token. With an
-- event of a group comes the group.
SELECT visibility_token, replay_token
FROM ingest_event
WHERE tenant_id = %(tenant_id)s AND state = 'failed'
  AND (visibility_token = ANY (%(tokens)s)
       OR group_last_token IN (SELECT g.group_last_token FROM ingest_event g
                               WHERE g.tenant_id = %(tenant_id)s AND g.state = 'failed'
                                 AND g.visibility_token = ANY (%(tokens)s)))
ORDER BY visibility_token
FOR NO KEY UPDATE

-- name: point_keys
-- Who repeats the write from now on gets the receipt of its replay.
UPDATE idempotency_key k SET event_id = r.event_id
FROM unnest(%(tokens)s::bigint[], %(event_ids)s::uuid[]) AS r (dead_token, event_id)
JOIN ingest_event d ON d.tenant_id = %(tenant_id)s AND d.visibility_token = r.dead_token
WHERE k.tenant_id = %(tenant_id)s AND k.table_id = d.table_id AND k.key = d.idempotency_key
  AND k.event_id = d.event_id

-- name: take_tokens
-- Last lock of a replay, held until commit: no token is visible before a smaller one.
UPDATE token_counter SET last_token = last_token + %(count)s
WHERE tenant_id = %(tenant_id)s
RETURNING last_token - %(count)s

-- name: below_fence
SELECT d.visibility_token, f.min_schema_version
FROM ingest_event d
JOIN schema_fence f ON f.tenant_id = d.tenant_id AND f.table_id = d.table_id
WHERE d.tenant_id = %(tenant_id)s AND d.visibility_token = ANY (%(tokens)s)
  AND d.schema_version < f.min_schema_version
ORDER BY d.visibility_token
LIMIT 1

-- name: insert_replays
INSERT INTO ingest_event (tenant_id, visibility_token, event_id, table_id, schema_version,
                          operation, idempotency_key, payload_kind, payload, row_count, byte_count,
                          min_event_time, max_event_time, trace_id, group_last_token)
SELECT d.tenant_id, %(before)s + r.position, r.event_id, d.table_id, d.schema_version, d.operation,
       d.idempotency_key, d.payload_kind, d.payload, d.row_count, d.byte_count, d.min_event_time,
       d.max_event_time, d.trace_id,
       CASE WHEN d.group_last_token IS NOT NULL
            THEN %(before)s + max(r.position) OVER (PARTITION BY d.group_last_token) END
FROM unnest(%(tokens)s::bigint[], %(event_ids)s::uuid[])
     WITH ORDINALITY AS r (dead_token, event_id, position)
JOIN ingest_event d ON d.tenant_id = %(tenant_id)s AND d.visibility_token = r.dead_token

-- name: mark_replayed
-- The payload has moved: of one write's rows there is one copy.
UPDATE ingest_event d SET replay_token = %(before)s + r.position, payload = NULL
FROM unnest(%(tokens)s::bigint[]) WITH ORDINALITY AS r (dead_token, position)
WHERE d.tenant_id = %(tenant_id)s AND d.visibility_token = r.dead_token

-- name: replays
-- A replay that became visible long ago may be forgotten: then its dead letter speaks for it.
SELECT d.visibility_token, coalesce(n.event_id, d.event_id), d.replay_token, d.row_count
FROM ingest_event d
LEFT JOIN ingest_event n ON n.tenant_id = d.tenant_id AND n.visibility_token = d.replay_token
WHERE d.tenant_id = %(tenant_id)s AND d.visibility_token = ANY (%(tokens)s)
ORDER BY d.visibility_token

-- name: tell_accepted
-- Sent when the transaction commits.
SELECT pg_notify('duckmesh_accepted', '')
