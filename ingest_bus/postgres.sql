-- name: pick_tenant
-- The tenant that waited longest. Its lease row stays locked until the claim commits. Tenants that
-- are idle are not looked at, however many there are.
SELECT l.tenant_id, l.acked_token, l.attempt, c.last_token
FROM ingest_lease l
JOIN token_counter c USING (tenant_id)
WHERE NOT c.idle AND c.last_token > l.acked_token AND l.tenant_id <> ALL (%(skip)s)
  AND (l.lease_until IS NULL OR l.lease_until <= duckmesh_now())
  AND (l.not_before IS NULL OR l.not_before <= duckmesh_now())
ORDER BY l.claimed_at NULLS FIRST
LIMIT 1
FOR UPDATE OF l SKIP LOCKED

-- name: claim_next
-- A claim in one statement, which commits itself: of the tenant that waited longest, or of `only`, the
-- events that fit the limits, and the rest of the group whose beginning fits: a group is never cut.
-- No row: nobody waits. One row without an event: the tenant needs `pick_tenant` and a closer look,
-- and nothing was changed. Rows come in any order: Postgres would sort the payloads with them.
WITH picked AS (
    SELECT l.tenant_id, l.acked_token, c.last_token, l.xmin AS version,
           l.attempt < %(attempts_max)s AS usual
    FROM ingest_lease l
    JOIN token_counter c USING (tenant_id)
    WHERE NOT c.idle AND c.last_token > l.acked_token AND l.tenant_id <> ALL (%(skip)s)
      AND (l.tenant_id = %(only)s OR %(only)s::bigint IS NULL)
      AND (l.lease_until IS NULL OR l.lease_until <= duckmesh_now())
      AND (l.not_before IS NULL OR l.not_before <= duckmesh_now())
    ORDER BY l.claimed_at NULLS FIRST
    LIMIT 1
    FOR UPDATE OF l SKIP LOCKED
), tail AS (
    -- Verdicts on events come with a change of the lease row. A lock takes the row as it is by now,
    -- and all else is as it was when the statement began: only an unchanged row fits its events.
    SELECT p.tenant_id, p.acked_token, p.last_token
    FROM picked p JOIN ingest_lease s ON s.tenant_id = p.tenant_id AND s.xmin = p.version
    WHERE p.usual
), fitting AS (
    SELECT visibility_token, group_last_token,
           sum(CASE WHEN payload_kind = 'inline' THEN byte_count ELSE 0 END)
               OVER (ORDER BY visibility_token) AS running_bytes,
           row_number() OVER (ORDER BY visibility_token) AS position
    FROM (
        SELECT visibility_token, group_last_token, payload_kind, byte_count
        FROM ingest_event
        WHERE tenant_id = (SELECT tenant_id FROM tail)
          -- No token is beyond the counter's. Without an upper bound the planner takes a third of the
          -- tenant's events for open, and reads them all.
          AND visibility_token > (SELECT acked_token FROM tail)
          AND visibility_token <= (SELECT last_token FROM tail) AND state = 'accepted'
        ORDER BY visibility_token
        LIMIT %(limit)s
    ) n
), bounds AS (
    SELECT min(visibility_token) AS first_token,
           max(greatest(visibility_token, group_last_token)) AS last_token
    FROM fitting WHERE running_bytes <= %(max_bytes)s OR position = 1
), held AS (
    UPDATE ingest_lease l
    SET epoch = l.epoch + 1, consumer_id = %(consumer_id)s, batch_id = %(batch_id)s,
        lease_until = duckmesh_now() + %(lease)s, claimed_at = duckmesh_now(),
        attempt = l.attempt + 1, not_before = NULL
    FROM tail, bounds
    WHERE l.tenant_id = tail.tenant_id AND bounds.last_token IS NOT NULL
    -- A claim that Postgres forgets in a crash is fenced by its batch: nothing of it is published.
    -- Else the publication's own commit makes it durable. A verdict given with it waits for the disk.
    RETURNING l.tenant_id, l.epoch, l.attempt, l.lease_until,
              set_config('synchronous_commit', CASE WHEN %(gave_verdict)s
                         THEN current_setting('synchronous_commit') ELSE 'off' END, true)
), expired AS (
    -- A lease that ran out is ours now: its claim has ended.
    UPDATE ingest_claim_batch b SET state = 'expired', ended_at = clock_timestamp()
    FROM held WHERE b.tenant_id = held.tenant_id AND b.state = 'active'
), noted AS (
    INSERT INTO ingest_claim_batch (batch_id, tenant_id, consumer_id, epoch, attempt, first_token,
                                    last_token)
    SELECT %(batch_id)s, held.tenant_id, %(consumer_id)s, held.epoch, held.attempt,
           bounds.first_token, bounds.last_token
    FROM held CROSS JOIN bounds
)
SELECT p.tenant_id, p.acked_token, first.epoch, first.attempt, first.lease_until,
       e.visibility_token, e.event_id, e.table_id, e.schema_version, e.operation,
       e.idempotency_key, e.payload_kind, e.payload, e.row_count, e.byte_count, e.min_event_time,
       e.max_event_time, e.trace_id, e.ingested_at, e.attempts, e.group_last_token
FROM picked p
LEFT JOIN held ON held.tenant_id = p.tenant_id
LEFT JOIN ingest_event e
  ON e.tenant_id = held.tenant_id
     AND e.visibility_token >= (SELECT first_token FROM bounds)
     AND e.visibility_token <= (SELECT last_token FROM bounds) AND e.state = 'accepted'
-- The lease stands in the first event's row alone: thousands of copies cost more than the claim.
LEFT JOIN held first ON e.visibility_token = (SELECT first_token FROM bounds)

-- name: expire_claims_of_tenant
UPDATE ingest_claim_batch SET state = 'expired', ended_at = clock_timestamp()
WHERE tenant_id = %s AND state = 'active'

-- name: skip_resolved
-- Never over an event that waits: it would be lost.
UPDATE ingest_lease l SET acked_token = %(last_token)s, attempt = 0
WHERE l.tenant_id = %(tenant_id)s AND l.acked_token < %(last_token)s
  AND NOT EXISTS (
      SELECT 1 FROM ingest_event e
      WHERE e.tenant_id = %(tenant_id)s AND e.visibility_token > l.acked_token
        AND e.visibility_token <= %(last_token)s AND e.state = 'accepted')

-- name: bury_head
-- With its group, if it is of one: nobody may ever see a part of that.
UPDATE ingest_event
SET state = 'failed', attempts = %(attempt)s, failure_reason = %(reason)s
WHERE tenant_id = %(tenant_id)s AND visibility_token > %(acked_token)s AND state = 'accepted'
  AND visibility_token <= (
      SELECT coalesce(group_last_token, visibility_token) FROM ingest_event
      WHERE tenant_id = %(tenant_id)s AND visibility_token > %(acked_token)s
        AND state = 'accepted'
      ORDER BY visibility_token LIMIT 1)

-- name: forgive
UPDATE ingest_lease SET attempt = 0 WHERE tenant_id = %(tenant_id)s

-- name: lock_live_claim
-- The fence: no row when the claim is not this one any more, or its lease has run out.
SELECT acked_token FROM ingest_lease
WHERE tenant_id = %(tenant_id)s AND batch_id = %(batch_id)s AND epoch = %(epoch)s
  AND lease_until > duckmesh_now()
FOR UPDATE

-- name: commit_events
UPDATE ingest_event SET state = 'committed', payload = NULL
WHERE tenant_id = %(tenant_id)s AND visibility_token > %(after_token)s
  AND visibility_token <= %(last_token)s AND state = 'accepted'
  AND event_id = ANY (%(event_ids)s)

-- name: ack_whole
-- A claim of which every event is acked: nothing of its range is open then. Its lease is the fence:
-- no row when the claim is not this one any more, or its lease has run out, and then nothing changes.
WITH freed AS (
    UPDATE ingest_lease
    SET acked_token = greatest(acked_token, %(last_token)s),
        attempt = CASE WHEN %(last_token)s > acked_token THEN 0 ELSE greatest(attempt - 1, 0) END,
        batch_id = NULL, consumer_id = NULL, lease_until = NULL
    WHERE tenant_id = %(tenant_id)s AND batch_id = %(batch_id)s AND epoch = %(epoch)s
      AND lease_until > duckmesh_now()
    RETURNING tenant_id
), committed AS (
    UPDATE ingest_event e SET state = 'committed', payload = NULL
    FROM freed
    WHERE e.tenant_id = %(tenant_id)s AND e.visibility_token > %(after_token)s
      AND e.visibility_token <= %(last_token)s AND e.state = 'accepted'
), ended AS (
    UPDATE ingest_claim_batch b SET state = 'acked', ended_at = clock_timestamp()
    FROM freed
    WHERE b.batch_id = %(batch_id)s AND b.state = 'active'
)
SELECT tenant_id FROM freed

-- name: refuse_events
UPDATE ingest_event
SET attempts = attempts + 1,
    failure_reason = %(reason)s,
    state = CASE WHEN %(dead)s OR attempts + 1 >= %(max_attempts)s THEN 'failed' ELSE state END
WHERE tenant_id = %(tenant_id)s AND visibility_token > %(after_token)s
  AND visibility_token <= %(last_token)s AND state = 'accepted'
  AND event_id = ANY (%(event_ids)s)
RETURNING event_id, visibility_token, attempts, state = 'failed'

-- name: note_refusals
INSERT INTO ingest_claim_item (batch_id, event_id, visibility_token, attempt, reason, dead_lettered)
SELECT %(batch_id)s, event_id, visibility_token, attempt, %(reason)s, dead
FROM unnest(%(event_ids)s::uuid[], %(tokens)s::bigint[], %(attempts)s::integer[],
            %(dead)s::boolean[]) AS i (event_id, visibility_token, attempt, dead)
ON CONFLICT DO NOTHING

-- name: settle
-- The acked token moves over the resolved prefix, never over a hole. The claim ends when nothing
-- in its range is open but what it gave back itself.
WITH open AS (
    SELECT min(e.visibility_token) AS first_token,
           bool_or(i.event_id IS NULL) AS held
    FROM ingest_event e
    LEFT JOIN ingest_claim_item i ON i.batch_id = %(batch_id)s AND i.event_id = e.event_id
    WHERE e.tenant_id = %(tenant_id)s AND e.visibility_token > %(after_token)s
      AND e.visibility_token <= %(last_token)s AND e.state = 'accepted'
)
UPDATE ingest_lease l
SET acked_token = greatest(l.acked_token, coalesce(open.first_token - 1, %(last_token)s)),
    -- A claim that its consumer ended itself did not end in death: its attempt does not count.
    attempt = CASE WHEN coalesce(open.first_token - 1, %(last_token)s) > l.acked_token THEN 0
                   WHEN open.held THEN l.attempt
                   ELSE greatest(l.attempt - 1, 0) END,
    batch_id = CASE WHEN open.held THEN l.batch_id END,
    consumer_id = CASE WHEN open.held THEN l.consumer_id END,
    lease_until = CASE WHEN open.held THEN l.lease_until END,
    not_before = CASE WHEN %(backoff)s::interval IS NULL THEN l.not_before
                      ELSE duckmesh_now() + %(backoff)s::interval END
FROM open
WHERE l.tenant_id = %(tenant_id)s
RETURNING l.batch_id IS NULL

-- name: end_claim
UPDATE ingest_claim_batch SET state = %(state)s, ended_at = clock_timestamp()
WHERE batch_id = %(batch_id)s AND state = 'active'

-- name: release_lease
-- Given back without blame: the attempt does not count.
UPDATE ingest_lease
SET batch_id = NULL, consumer_id = NULL, lease_until = NULL,
    attempt = greatest(attempt - 1, 0), not_before = duckmesh_now() + %(delay)s
WHERE tenant_id = %(tenant_id)s AND batch_id = %(batch_id)s AND epoch = %(epoch)s
  AND lease_until > duckmesh_now()

-- name: extend_lease
UPDATE ingest_lease SET lease_until = duckmesh_now() + %(lease)s
WHERE tenant_id = %(tenant_id)s AND batch_id = %(batch_id)s AND epoch = %(epoch)s
  AND lease_until > duckmesh_now()

-- name: requeue_expired
-- The epoch grows, so that the old holder is fenced even before a new one comes.
WITH expired AS (
    UPDATE ingest_lease
    SET batch_id = NULL, consumer_id = NULL, lease_until = NULL, epoch = epoch + 1
    WHERE lease_until <= duckmesh_now()
    RETURNING tenant_id
)
UPDATE ingest_claim_batch b SET state = 'expired', ended_at = clock_timestamp()
FROM expired
WHERE b.tenant_id = expired.tenant_id AND b.state = 'active'

-- name: rest_quiet
-- Nothing of them waits, and nothing was claimed of late. A publish that holds the counter row is
-- not waited for; one that comes meanwhile waits for this, and wakes the tenant by a trigger.
WITH quiet AS (
    SELECT c.tenant_id
    FROM token_counter c JOIN ingest_lease l USING (tenant_id)
    WHERE NOT c.idle AND l.acked_token >= c.last_token
      AND (l.claimed_at IS NULL OR l.claimed_at < duckmesh_now() - %(quiet_for)s)
    LIMIT %(limit)s
    FOR UPDATE OF c SKIP LOCKED
)
UPDATE token_counter c SET idle = true FROM quiet q WHERE c.tenant_id = q.tenant_id

-- name: last_token
SELECT last_token FROM token_counter WHERE tenant_id = %s

-- name: has_unresolved
SELECT EXISTS (
    SELECT 1 FROM ingest_event
    WHERE tenant_id = %(tenant_id)s
      AND visibility_token > (SELECT acked_token FROM ingest_lease
                              WHERE tenant_id = %(tenant_id)s)
      AND visibility_token <= %(through)s
      AND state = 'accepted'
      AND (%(table_ids)s::bigint[] IS NULL OR table_id = ANY (%(table_ids)s))
)

-- name: find_by_key
SELECT e.event_id, e.visibility_token, e.table_id, e.idempotency_key, e.row_count, e.state,
       e.ingested_at, e.failure_reason
FROM idempotency_key k JOIN ingest_event e USING (event_id)
WHERE k.tenant_id = %s AND k.table_id = %s AND k.key = %s

-- name: recent_events
SELECT event_id, visibility_token, table_id, idempotency_key, row_count, state, ingested_at,
       failure_reason
FROM ingest_event WHERE tenant_id = %s
ORDER BY visibility_token DESC LIMIT %s

-- name: backlog
SELECT count(*), coalesce(sum(byte_count), 0)::bigint, min(ingested_at)
FROM ingest_event
WHERE tenant_id = %(tenant_id)s
  AND visibility_token > (SELECT acked_token FROM ingest_lease WHERE tenant_id = %(tenant_id)s)
  -- No event is beyond it. With both ends the planner takes a short range, and not a third of all.
  AND visibility_token <= (SELECT last_token FROM token_counter WHERE tenant_id = %(tenant_id)s)
  AND state = 'accepted'

-- name: pending_tables
SELECT table_id, count(*), coalesce(sum(byte_count), 0)::bigint,
       greatest(duckmesh_now() - min(ingested_at), interval '0'), max(visibility_token)
FROM ingest_event
WHERE tenant_id = %(tenant_id)s
  AND visibility_token > (SELECT acked_token FROM ingest_lease WHERE tenant_id = %(tenant_id)s)
  -- No event is beyond it. With both ends the planner takes a short range, and not a third of all.
  AND visibility_token <= (SELECT last_token FROM token_counter WHERE tenant_id = %(tenant_id)s)
  AND state = 'accepted'
GROUP BY table_id

-- name: limit_time
SELECT set_config('statement_timeout', %s, true)

-- name: lag
-- The tenants that have waited longest, with the sums over all tenants in every row.
SELECT l.tenant_id, w.events, extract(epoch FROM duckmesh_now() - w.oldest)::float8,
       sum(w.events) OVER ()::bigint, sum(w.bytes) OVER ()::bigint
FROM ingest_lease l
JOIN token_counter c USING (tenant_id)
CROSS JOIN LATERAL (
    SELECT count(*) AS events, sum(e.byte_count) AS bytes, min(e.ingested_at) AS oldest
    FROM ingest_event e
    WHERE e.tenant_id = l.tenant_id AND e.visibility_token > l.acked_token
      AND e.visibility_token <= c.last_token AND e.state = 'accepted'
) w
WHERE NOT c.idle AND c.last_token > l.acked_token AND w.events > 0
ORDER BY w.oldest LIMIT %(tenants_max)s

-- name: stuck
SELECT (SELECT count(*) FROM ingest_lease WHERE lease_until <= duckmesh_now()),
       (SELECT count(*) FROM ingest_event WHERE state = 'failed' AND replay_token IS NULL)

-- name: staged_payloads
SELECT payload FROM ingest_event
WHERE tenant_id = %s AND payload_kind = 'staged' AND payload IS NOT NULL

-- name: forget_claims
DELETE FROM ingest_claim_batch
WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM ingest_claim_batch
    WHERE ended_at < duckmesh_now() - %(older_than)s::interval LIMIT %(limit)s))

-- name: expire_keys
DELETE FROM idempotency_key
WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM idempotency_key
    WHERE created_at < duckmesh_now() - %(older_than)s LIMIT %(limit)s))

-- name: note_oldest
-- Of the tenants whose oldest event may be old by now. It begins where the last turn ended: dead
-- letters and dead rows are passed once. A lease that is in use is left to the next turn, so that
-- no claim waits for this, nor this for a claim.
UPDATE ingest_lease l
SET (oldest_token, oldest_at) = (
    -- Where there is none: an event that comes later is younger than now.
    SELECT coalesce(o.visibility_token, l.oldest_token), coalesce(o.ingested_at, clock_timestamp())
    FROM (SELECT) AS one_row
    LEFT JOIN LATERAL (
        SELECT visibility_token, ingested_at FROM ingest_event
        WHERE tenant_id = l.tenant_id AND visibility_token >= l.oldest_token AND state <> 'failed'
        ORDER BY visibility_token LIMIT 1
    ) o ON true)
WHERE l.tenant_id = ANY (ARRAY(
    SELECT tenant_id FROM ingest_lease
    WHERE oldest_at < duckmesh_now() - %(older_than)s::interval
    ORDER BY oldest_at LIMIT %(limit)s
    FOR UPDATE SKIP LOCKED))

-- name: expire_events
-- Committed events older than any key. Their rows are in snapshots; only receipts end here. Each
-- event looks its key up, and is found by its place: a join would read all keys and all events, and
-- grow with what is kept. A tenant's events are read up to the first young one.
DELETE FROM ingest_event WHERE ctid = ANY (ARRAY(
    SELECT e.place
    FROM (
        SELECT tenant_id, oldest_token FROM ingest_lease
        WHERE oldest_at < duckmesh_now() - %(older_than)s::interval
        ORDER BY oldest_at LIMIT %(limit)s
    ) l
    CROSS JOIN LATERAL (
        SELECT n.ctid AS place, n.tenant_id, n.table_id, n.idempotency_key, n.event_id,
               count(CASE WHEN n.ingested_at >= duckmesh_now() - %(older_than)s::interval
                          THEN 1 END) OVER (ORDER BY n.visibility_token) AS young_so_far
        FROM (
            SELECT ctid, tenant_id, visibility_token, table_id, idempotency_key, event_id,
                   ingested_at
            FROM ingest_event
            WHERE tenant_id = l.tenant_id AND visibility_token >= l.oldest_token
              AND state = 'committed'
            ORDER BY visibility_token LIMIT %(limit)s
        ) n
    ) e
    -- The count never falls: Postgres stops reading where it is 1.
    WHERE e.young_so_far < 1 AND (
       e.idempotency_key IS NULL
       OR (SELECT k.event_id FROM idempotency_key k
           WHERE k.tenant_id = e.tenant_id AND k.table_id = e.table_id
             AND k.key = e.idempotency_key) IS DISTINCT FROM e.event_id)
    LIMIT %(limit)s))
