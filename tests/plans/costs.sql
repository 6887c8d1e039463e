-- name: counts
-- Of this transaction alone: rows and index entries that were read, blocks that were touched, scans
-- from end to end. An index counts as its table.
SELECT t.relname,
       pg_stat_get_xact_tuples_returned(t.oid) + pg_stat_get_xact_tuples_fetched(t.oid) + i.entries,
       pg_stat_get_xact_blocks_fetched(t.oid) + i.blocks,
       pg_stat_get_xact_numscans(t.oid)
FROM pg_class t
CROSS JOIN LATERAL (
    SELECT coalesce(sum(pg_stat_get_xact_tuples_returned(indexrelid)), 0)::bigint AS entries,
           coalesce(sum(pg_stat_get_xact_blocks_fetched(indexrelid)), 0)::bigint AS blocks
    FROM pg_index WHERE indrelid = t.oid
) i
WHERE t.relnamespace = 'public'::regnamespace AND t.relkind = 'r'

-- name: live_files
SELECT file_id FROM data_file WHERE tenant_id = 1 AND end_snapshot IS NULL
ORDER BY begin_snapshot DESC LIMIT 20

-- name: ended_files
SELECT file_id FROM data_file
WHERE tenant_id = 1 AND end_snapshot IS NOT NULL AND unreachable_since IS NULL
ORDER BY begin_snapshot DESC LIMIT 20

-- name: unreachable_files
SELECT file_id FROM data_file WHERE unreachable_since IS NOT NULL ORDER BY file_id LIMIT 20

-- name: a_session
SELECT session_id FROM client_session WHERE tenant_id = 1 ORDER BY last_seen DESC LIMIT 1

-- name: a_transaction
SELECT transaction_id FROM client_transaction WHERE state = 'open' AND tenant_id = 1
ORDER BY transaction_id LIMIT 1

-- name: keyed_tokens
-- Of long ago: their pages are not those of the newest.
SELECT visibility_token FROM ingest_event
WHERE tenant_id = 1 AND visibility_token > 1000 AND idempotency_key IS NOT NULL
  AND state = 'committed'
ORDER BY visibility_token LIMIT 10

-- name: dead_tokens
SELECT visibility_token FROM ingest_event WHERE tenant_id = 1 AND state = 'failed'
ORDER BY visibility_token LIMIT 5

-- name: twentieth_event
SELECT ingested_at FROM ingest_event WHERE tenant_id = 1 AND visibility_token = 20
