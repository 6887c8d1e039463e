-- name: accept
-- A whole publish in one statement, for a group whose keys are all new and whose schema versions
-- stand above every fence of the epoch that this process knows. It fails as a whole, and leaves
-- nothing, when that is not so: a key that is there breaks the primary key of `idempotency_key`; an
-- epoch that moved breaks NOT NULL of `fence_epoch`. Then the group goes through the transaction
-- below, which knows duplicates and tells of fences.
WITH e AS (
    SELECT position, event_id, table_id, schema_version, operation, key, payload_hash,
           payload_kind, payload_start, payload_bytes, row_count, byte_count, min_event_time,
           max_event_time, trace_id, session_id, principal
    FROM json_to_recordset(%(envelopes)s::json)
         AS e (position bigint, event_id uuid, table_id bigint, schema_version integer,
               operation text, key text, payload_hash text, payload_kind text,
               payload_start integer, payload_bytes integer, row_count bigint, byte_count bigint,
               min_event_time timestamptz, max_event_time timestamptz, trace_id text,
               session_id uuid, principal text)
), keyed AS (
    INSERT INTO idempotency_key (tenant_id, table_id, key, payload_hash, event_id)
    SELECT %(tenant_id)s, e.table_id, e.key, decode(e.payload_hash, 'hex'), e.event_id
    FROM e
    WHERE e.key IS NOT NULL
    -- First lock. Sorted, so that two processes' groups cannot deadlock.
    ORDER BY e.table_id, e.key
    RETURNING event_id
), counter AS (
    -- Last lock, held until commit: no token is visible before a smaller one. Whoever raises a
    -- fence holds it too, and moves the epoch: this row, once locked, is the newest one, however
    -- old the statement's snapshot is.
    UPDATE token_counter c
    SET last_token = c.last_token + %(count)s,
        fence_epoch = CASE WHEN c.fence_epoch = %(fence_epoch)s THEN c.fence_epoch END
    -- Counting them makes the keys come first.
    FROM (SELECT count(*) FROM keyed) k
    WHERE c.tenant_id = %(tenant_id)s
    RETURNING c.last_token - %(count)s AS before
), inserted AS (
    INSERT INTO ingest_event (tenant_id, visibility_token, event_id, table_id, schema_version,
                              operation, idempotency_key, payload_kind, payload, row_count,
                              byte_count, min_event_time, max_event_time, trace_id,
                              group_last_token)
    SELECT %(tenant_id)s, c.before + e.position, e.event_id, e.table_id, e.schema_version,
           e.operation, e.key, e.payload_kind,
           substring(%(payloads)b::bytea FROM e.payload_start FOR e.payload_bytes),
           e.row_count, e.byte_count, e.min_event_time, e.max_event_time, e.trace_id,
           CASE WHEN %(as_one)s THEN c.before + %(count)s END
    FROM counter c CROSS JOIN e
), noted AS (
    -- After the counter's lock, so that the rows of a tenant's sessions are locked by one publish
    -- at a time.
    INSERT INTO client_session AS s (session_id, tenant_id, principal, last_token)
    SELECT e.session_id, %(tenant_id)s, max(e.principal), max(c.before + e.position)
    FROM counter c CROSS JOIN e
    WHERE e.session_id IS NOT NULL
    GROUP BY e.session_id
    ON CONFLICT (session_id) DO UPDATE
    SET last_token = greatest(s.last_token, excluded.last_token), last_seen = duckmesh_now()
    WHERE s.tenant_id = excluded.tenant_id
)
SELECT before FROM counter

-- name: accept_plain
-- The same for a group without keys and sessions: Postgres begins a statement of two parts in less
-- time than one of five.
WITH counter AS (
    UPDATE token_counter c
    SET last_token = c.last_token + %(count)s,
        fence_epoch = CASE WHEN c.fence_epoch = %(fence_epoch)s THEN c.fence_epoch END
    WHERE c.tenant_id = %(tenant_id)s
    RETURNING c.last_token - %(count)s AS before
), inserted AS (
    INSERT INTO ingest_event (tenant_id, visibility_token, event_id, table_id, schema_version,
                              operation, payload_kind, payload, row_count, byte_count,
                              min_event_time, max_event_time, trace_id, group_last_token)
    SELECT %(tenant_id)s, c.before + e.position, e.event_id, e.table_id, e.schema_version,
           e.operation, e.payload_kind,
           substring(%(payloads)b::bytea FROM e.payload_start FOR e.payload_bytes),
           e.row_count, e.byte_count, e.min_event_time, e.max_event_time, e.trace_id,
           CASE WHEN %(as_one)s THEN c.before + %(count)s END
    FROM counter c
    CROSS JOIN json_to_recordset(%(envelopes)s::json)
         AS e (position bigint, event_id uuid, table_id bigint, schema_version integer,
               operation text, payload_kind text, payload_start integer, payload_bytes integer,
               row_count bigint, byte_count bigint, min_event_time timestamptz,
               max_event_time timestamptz, trace_id text)
)
SELECT before FROM counter

-- name: accept_one
-- The same for one small write alone: no JSON to read, and no function whose rows are gathered.
WITH counter AS (
    UPDATE token_counter c
    SET last_token = c.last_token + 1,
        fence_epoch = CASE WHEN c.fence_epoch = %(fence_epoch)s THEN c.fence_epoch END
    WHERE c.tenant_id = %(tenant_id)s
    RETURNING c.last_token - 1 AS before
), inserted AS (
    INSERT INTO ingest_event (tenant_id, visibility_token, event_id, table_id, schema_version,
                              operation, payload_kind, payload, row_count, byte_count,
                              min_event_time, max_event_time, trace_id)
    SELECT %(tenant_id)s, c.before + 1, %(event_id)s::uuid, %(table_id)s, %(schema_version)s,
           %(operation)s, 'inline', %(payload)b::bytea, %(row_count)s, %(byte_count)s,
           %(min_event_time)s::timestamptz, %(max_event_time)s::timestamptz, %(trace_id)s
    FROM counter c
)
SELECT before FROM counter

-- name: fences_of
-- The fence epoch, and the fences of some tables in it: both of one moment.
SELECT c.fence_epoch, f.table_id, f.min_schema_version
FROM token_counter c
LEFT JOIN schema_fence f ON f.tenant_id = c.tenant_id AND f.table_id = ANY (%(table_ids)s)
WHERE c.tenant_id = %(tenant_id)s

-- name: insert_keys
-- First lock of a publish. Sorted, so that two processes' groups cannot deadlock. A concurrent
-- publish of the same key waits here for the other's commit.
INSERT INTO idempotency_key (tenant_id, table_id, key, payload_hash, event_id)
SELECT %(tenant_id)s, e.table_id, e.key, decode(e.payload_hash, 'hex'), e.event_id
FROM json_to_recordset(%(envelopes)s::json)
     AS e (position bigint, event_id uuid, table_id bigint, key text, payload_hash text)
WHERE e.key IS NOT NULL
-- Of equal keys in one group the first caller's is the original.
ORDER BY e.table_id, e.key, e.position
ON CONFLICT DO NOTHING

-- name: open_tenant
INSERT INTO token_counter (tenant_id) VALUES (%(tenant_id)s) ON CONFLICT DO NOTHING

-- name: open_lease
INSERT INTO ingest_lease (tenant_id) VALUES (%(tenant_id)s) ON CONFLICT DO NOTHING

-- name: take_tokens
-- Last lock of a publish, held until commit: no token is visible before a smaller one.
UPDATE token_counter
SET last_token = last_token + (
    SELECT count(*)
    FROM json_to_recordset(%(envelopes)s::json) AS e (event_id uuid, table_id bigint, key text)
    WHERE e.key IS NULL OR EXISTS (
        SELECT 1 FROM idempotency_key k
        WHERE k.tenant_id = %(tenant_id)s AND k.table_id = e.table_id AND k.key = e.key
          AND k.event_id = e.event_id)
)
WHERE tenant_id = %(tenant_id)s

-- name: insert_events
-- Only envelopes whose key is theirs: a duplicate's key names an earlier event.
INSERT INTO ingest_event (tenant_id, visibility_token, event_id, table_id, schema_version,
                          operation, idempotency_key, payload_kind, payload, row_count, byte_count,
                          min_event_time, max_event_time, trace_id, group_last_token)
SELECT %(tenant_id)s,
       c.last_token - count(*) OVER () + row_number() OVER (ORDER BY e.position),
       e.event_id, e.table_id, e.schema_version, e.operation, e.key, e.payload_kind,
       substring(%(payloads)b::bytea FROM e.payload_start FOR e.payload_bytes),
       e.row_count, e.byte_count, e.min_event_time, e.max_event_time, e.trace_id,
       CASE WHEN %(as_one)s THEN c.last_token END
FROM json_to_recordset(%(envelopes)s::json)
     AS e (position bigint, event_id uuid, table_id bigint, schema_version integer,
           operation text, key text, payload_kind text, payload_start integer,
           payload_bytes integer, row_count bigint, byte_count bigint,
           min_event_time timestamptz, max_event_time timestamptz, trace_id text)
CROSS JOIN token_counter c
WHERE c.tenant_id = %(tenant_id)s
  AND (e.key IS NULL OR EXISTS (
        SELECT 1 FROM idempotency_key k
        WHERE k.tenant_id = %(tenant_id)s AND k.table_id = e.table_id AND k.key = e.key
          AND k.event_id = e.event_id))

-- name: raise_fences
-- Under the counter's lock, so that a write is either before the fence and below its token, or
-- checked against it. A trigger moves the counter's fence epoch.
INSERT INTO schema_fence AS f (tenant_id, table_id, min_schema_version)
SELECT %(tenant_id)s, e.table_id, max(e.schema_version)
FROM json_to_recordset(%(envelopes)s::json)
     AS e (event_id uuid, table_id bigint, schema_version integer, raises_fence boolean)
-- A duplicate raised its fence when it was accepted first.
JOIN ingest_event v ON v.event_id = e.event_id
WHERE e.raises_fence
GROUP BY e.table_id
ON CONFLICT (tenant_id, table_id) DO UPDATE
SET min_schema_version = greatest(f.min_schema_version, excluded.min_schema_version)

-- name: note_sessions
-- After the counter's lock, so that the rows of a tenant's sessions are locked by one publish at a
-- time. A duplicate counts by its original's token: who repeats a write wants to see it as well.
INSERT INTO client_session AS s (session_id, tenant_id, principal, last_token)
SELECT e.session_id, %(tenant_id)s, max(e.principal), max(v.visibility_token)
FROM json_to_recordset(%(envelopes)s::json)
     AS e (session_id uuid, principal text, event_id uuid, table_id bigint, key text)
LEFT JOIN idempotency_key k
  ON k.tenant_id = %(tenant_id)s AND k.table_id = e.table_id AND k.key = e.key
JOIN ingest_event v ON v.event_id = coalesce(k.event_id, e.event_id)
WHERE e.session_id IS NOT NULL
GROUP BY e.session_id
ON CONFLICT (session_id) DO UPDATE
SET last_token = greatest(s.last_token, excluded.last_token), last_seen = duckmesh_now()
WHERE s.tenant_id = excluded.tenant_id

-- name: tell_accepted
SELECT pg_notify('duckmesh_accepted', '')

-- name: lock_counter
SELECT last_token FROM token_counter WHERE tenant_id = %(tenant_id)s FOR UPDATE

-- name: set_fence
INSERT INTO schema_fence AS f (tenant_id, table_id, min_schema_version)
VALUES (%(tenant_id)s, %(table_id)s, %(below)s)
ON CONFLICT (tenant_id, table_id) DO UPDATE
SET min_schema_version = greatest(f.min_schema_version, excluded.min_schema_version)
RETURNING f.min_schema_version

-- name: receipts
SELECT e.event_id = v.event_id AS inserted, v.event_id, v.visibility_token, v.row_count,
       v.schema_version,
       v.operation = e.operation
           AND k.payload_hash IS NOT DISTINCT FROM decode(e.payload_hash, 'hex') AS same_write,
       f.min_schema_version
FROM json_to_recordset(%(envelopes)s::json)
     AS e (position bigint, event_id uuid, table_id bigint, operation text, key text,
           payload_hash text)
LEFT JOIN idempotency_key k
  ON k.tenant_id = %(tenant_id)s AND k.table_id = e.table_id AND k.key = e.key
JOIN ingest_event v ON v.event_id = coalesce(k.event_id, e.event_id)
LEFT JOIN schema_fence f ON f.tenant_id = %(tenant_id)s AND f.table_id = e.table_id
ORDER BY e.position
