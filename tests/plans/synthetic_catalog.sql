-- The large catalog that plans are tried on. Tenant 1 is large, the others are many and small.
-- What a statement answers is as large at every scale; what lies around it grows with the scale.

-- name: may_skip_triggers
SELECT rolsuper FROM pg_roles WHERE rolname = current_user

-- name: skip_triggers
-- Foreign keys of a million rows are checked one by one; what is made here is whole by its making.
SET session_replication_role = replica

-- name: make_ids
-- The n-th id of a kind: ordered as time is, as UUIDv7 is.
CREATE FUNCTION pg_temp.made_id(kind text, n bigint) RETURNS uuid LANGUAGE sql IMMUTABLE
RETURN (lpad(to_hex(n), 12, '0') || '7' || substr(md5(kind || n), 1, 3) || '8'
        || substr(md5(kind || n), 4, 15))::uuid

-- name: tenants
INSERT INTO tenant (tenant_id, name) OVERRIDING SYSTEM VALUE
SELECT n, 'tenant-' || n FROM generate_series(1, 1 + %(tenants)s) n

-- name: api_keys
INSERT INTO api_key (key_id, tenant_id, name, secret_hash, roles)
SELECT 'key-' || tenant_id, tenant_id, 'key', sha256(name::bytea), '{query_reader}' FROM tenant

-- name: quotas
INSERT INTO tenant_quota (tenant_id, quota, value)
SELECT tenant_id, 'queries_concurrent', 4 FROM tenant

-- name: live_tables
-- Ten of the large tenant, three of each small one.
INSERT INTO table_def (table_id, tenant_id, name, begin_snapshot) OVERRIDING SYSTEM VALUE
SELECT n, 1, 'table-' || n, 1 FROM generate_series(1, 10) n
UNION ALL
SELECT 10 + (tenant_id - 2) * 3 + n, tenant_id, 'table-' || n, 1
FROM tenant, generate_series(1, 3) n WHERE tenant_id > 1

-- name: dropped_tables
-- The large tenant made and dropped a table in each tenth snapshot.
INSERT INTO table_def (table_id, tenant_id, name, begin_snapshot, end_snapshot)
OVERRIDING SYSTEM VALUE
SELECT 10 + %(tenants)s * 3 + n, 1, 'dropped-' || n, n * 10, n * 10 + 5
FROM generate_series(1, (%(newest)s - 100) / 10) n

-- name: schema_versions
INSERT INTO table_schema_version (table_id, schema_version, arrow_schema, columns, begin_snapshot)
SELECT table_id, 1, decode(repeat('00', 300), 'hex'), '[{"field_id": 1}]', begin_snapshot
FROM table_def

-- name: former_names
INSERT INTO table_former_name (table_id, name, end_snapshot)
SELECT 1 + mod(n, 10), 'former-' || n, n FROM generate_series(100, 1900, 100) n

-- name: views
INSERT INTO view_def (tenant_id, name, query, arrow_schema, begin_snapshot, end_snapshot)
SELECT 1, 'view-' || n, 'SELECT 1', '\x00', n * 10,
       CASE WHEN n * 10 < %(newest)s - 50 THEN n * 10 + 5 END
FROM generate_series(1, %(newest)s / 10) n

-- name: snapshots
-- Of eight days, three of four the large tenant's. Those before `oldest` have expired.
INSERT INTO snapshot (snapshot_id, tenant_id, created_at, created_by, operation,
                      max_visibility_token)
SELECT n, CASE WHEN mod(n, 4) = 0 THEN 2 + mod(n / 4, %(tenants)s) ELSE 1 END,
       now() - interval '8 days' * (1 - n::float8 / %(newest)s), 'synthetic', 'publish', n
FROM generate_series(%(oldest)s, %(newest)s) n

-- name: heads
INSERT INTO publication_head (tenant_id, snapshot_id, created_at, max_visibility_token)
SELECT tenant_id, max(snapshot_id), max(created_at), max(max_visibility_token)
FROM snapshot GROUP BY tenant_id

-- name: move_numbers
SELECT setval('snapshot_id_sequence', %(newest)s),
       setval(pg_get_serial_sequence('tenant', 'tenant_id'), (SELECT max(tenant_id) FROM tenant)),
       setval(pg_get_serial_sequence('table_def', 'table_id'),
              (SELECT max(table_id) FROM table_def))

-- name: watermarks
INSERT INTO snapshot_table_watermark (table_id, snapshot_id, max_visibility_token)
SELECT CASE WHEN mod(snapshot_id, 4) = 0
            THEN 10 + (tenant_id - 2) * 3 + 1 + mod(snapshot_id / 4 / %(tenants)s, 3)
            ELSE 1 + mod(snapshot_id, 10) END, snapshot_id, snapshot_id
FROM snapshot

-- name: pins
INSERT INTO snapshot_pin (tenant_id, snapshot_id, tag, created_by)
SELECT tenant_id, snapshot_id, 'pin-' || n, 'synthetic'
FROM generate_series(1, 20) n
JOIN snapshot ON snapshot_id = %(oldest)s + n * ((%(newest)s - %(oldest)s) / 24) / 4 * 4 + 1

-- name: files
-- One a snapshot. Most are folded soon after they came, some are merged later, and a few, as many at
-- every scale, are never touched. Those that ended before the oldest snapshot are to be deleted.
INSERT INTO data_file (file_id, tenant_id, table_id, path, schema_version, record_count,
                       file_size_bytes, min_event_time, max_event_time, stats, min_token, max_token,
                       begin_snapshot, end_snapshot, unreachable_since)
SELECT pg_temp.made_id('file', n), tenant_id, table_id,
       CASE WHEN mod(n, 3) = 0 THEN 'tenant/table/part-' || n END, 1, 100, 1000, now(), now(),
       '{"id": {"min": 1, "max": 100, "nulls": 0}, "name": {"min": "a", "max": "z", "nulls": 3}}',
       n, n, n, CASE WHEN ends <= %(newest)s THEN ends END,
       CASE WHEN ends <= %(oldest)s THEN now() - interval '3 hours' END
FROM (
    SELECT n, CASE WHEN mod(n, 4) = 0 THEN 2 + mod(n / 4, %(tenants)s) ELSE 1 END AS tenant_id,
           CASE WHEN mod(n, 4) = 0
                THEN 10 + mod(n / 4, %(tenants)s) * 3 + 1 + mod(n / 4 / %(tenants)s, 3)
                ELSE 1 + mod(n, 10) END AS table_id,
           CASE WHEN mod(n, 4) = 0 THEN n + 20 * %(tenants)s
                WHEN mod(n, %(newest)s / 64) = 1 THEN NULL
                WHEN mod(n, 16) = 15 THEN n + 800
                ELSE n + 20 + mod(n * 7919::bigint, 140) END AS ends
    FROM generate_series(1, %(newest)s) n
) f

-- name: contents
INSERT INTO data_file_content (file_id, content)
SELECT file_id, decode(repeat(md5(min_token::text), 16), 'hex') FROM data_file WHERE path IS NULL

-- name: file_log
INSERT INTO snapshot_file (snapshot_id, file_id, table_id, change_type)
SELECT begin_snapshot, file_id, table_id, 'add' FROM data_file
UNION ALL
SELECT end_snapshot, file_id, table_id, 'remove' FROM data_file WHERE end_snapshot IS NOT NULL

-- name: live_bytes
UPDATE publication_head h SET live_bytes = f.live_bytes
FROM (SELECT tenant_id, sum(file_size_bytes) AS live_bytes FROM data_file
      WHERE end_snapshot IS NULL GROUP BY tenant_id) f
WHERE f.tenant_id = h.tenant_id

-- name: events
-- Of eight days. The last of the large tenant and of four small ones are open, and a hundred dead.
INSERT INTO ingest_event (tenant_id, visibility_token, event_id, table_id, schema_version,
                          operation, idempotency_key, payload_kind, payload, row_count, byte_count,
                          trace_id, ingested_at, state, failure_reason)
SELECT tenant_id, token, pg_temp.made_id('event' || tenant_id, token), table_id, 1, 'insert',
       CASE WHEN mod(token, 2) = 0 THEN 'key-' || token END,
       CASE WHEN mod(token, 50) = 0 THEN 'staged' ELSE 'inline' END,
       CASE WHEN state <> 'committed' THEN decode(repeat('00', 200), 'hex') END, 10, 200,
       CASE WHEN mod(token, 8) = 0 THEN md5(token::text) END,
       now() - interval '8 days' * (1 - token::float8 / last_token), state,
       CASE WHEN state = 'failed' THEN 'refused' END
FROM (
    SELECT 1 AS tenant_id, token, 1 + mod(token, 10) AS table_id, %(last_token)s AS last_token,
           CASE WHEN token > %(acked)s THEN 'accepted'
                WHEN mod(token, %(last_token)s / 100) = 7 THEN 'failed'
                ELSE 'committed' END AS state
    FROM generate_series(1, %(last_token)s) token
    UNION ALL
    SELECT tenant_id, token, 10 + (tenant_id - 2) * 3 + 1 + mod(token, 3), %(small_last_token)s,
           CASE WHEN tenant_id <= 5 AND token > %(small_last_token)s - 20 THEN 'accepted'
                ELSE 'committed' END
    FROM tenant, generate_series(1, %(small_last_token)s) token WHERE tenant_id > 1
) e

-- name: keys
INSERT INTO idempotency_key (tenant_id, table_id, key, payload_hash, event_id, created_at)
SELECT tenant_id, table_id, idempotency_key, sha256(idempotency_key::bytea), event_id, ingested_at
FROM ingest_event WHERE idempotency_key IS NOT NULL

-- name: counters
-- Most tenants are quiet.
INSERT INTO token_counter (tenant_id, last_token, idle)
SELECT tenant_id, CASE WHEN tenant_id = 1 THEN %(last_token)s ELSE %(small_last_token)s END,
       tenant_id > 5
FROM tenant

-- name: leases
INSERT INTO ingest_lease (tenant_id, acked_token, oldest_token, oldest_at)
SELECT tenant_id, CASE WHEN tenant_id = 1 THEN %(acked)s
                       WHEN tenant_id <= 5 THEN %(small_last_token)s - 20
                       ELSE %(small_last_token)s END, 1, ingested_at
FROM tenant JOIN ingest_event USING (tenant_id) WHERE visibility_token = 1

-- name: claims
INSERT INTO ingest_claim_batch (batch_id, tenant_id, consumer_id, epoch, attempt, first_token,
                                last_token, claimed_at, ended_at, state)
SELECT pg_temp.made_id('claim', n), 1, 'synthetic', n, 1, n, n, at, at, 'acked'
FROM (SELECT n, now() - interval '26 hours' * (1 - n::float8 / %(newest)s) AS at
      FROM generate_series(1, %(newest)s) n) c

-- name: fences
INSERT INTO schema_fence (tenant_id, table_id, min_schema_version)
SELECT 1, n, 1 FROM generate_series(1, 3) n

-- name: sessions
INSERT INTO client_session (session_id, tenant_id, principal, last_token, last_seen)
SELECT pg_temp.made_id('session', n), CASE WHEN mod(n, 4) = 0 THEN 2 + mod(n / 4, %(tenants)s)
       ELSE 1 END, 'key', n, now() - interval '26 hours' * (1 - n::float8 / %(sessions)s)
FROM generate_series(1, %(sessions)s) n

-- name: ended_transactions
INSERT INTO client_transaction (transaction_id, tenant_id, principal, state, opened_at, last_seen,
                                ended_at)
SELECT pg_temp.made_id('transaction', n), 1, 'key', 'committed', at, at, at
FROM (SELECT n, now() - interval '26 hours' * (1 - n::float8 / %(sessions)s) AS at
      FROM generate_series(1, %(sessions)s) n) t

-- name: open_transactions
INSERT INTO client_transaction (transaction_id, tenant_id, principal, state, write_count)
SELECT pg_temp.made_id('open', n), 1 + mod(n, 2), 'key', 'open', 5 FROM generate_series(1, 10) n

-- name: held_writes
INSERT INTO transaction_write (transaction_id, position, event_id, table_id, schema_version,
                               operation, payload_kind, payload, row_count, byte_count,
                               raises_fence)
SELECT transaction_id, n, gen_random_uuid(), 1, 1, 'insert', 'staged', '[]', 1, 1, false
FROM client_transaction, generate_series(1, 5) n WHERE state = 'open'

-- name: audited_queries
-- Of forty days. One query in a thousand is a rare principal's.
INSERT INTO query_audit (query_id, tenant_id, principal, sql_text, started_at, outcome)
SELECT pg_temp.made_id('query', n),
       CASE WHEN mod(n, 4) = 0 THEN 2 + mod(n / 4, %(tenants)s) ELSE 1 END,
       CASE WHEN n > 50 AND n <= 70 THEN 'rare' ELSE 'key' END, 'SELECT count(*) FROM t',
       now() - interval '40 days' * (1 - n::float8 / %(newest)s), 'OK'
FROM generate_series(1, %(newest)s) n

-- name: acts
INSERT INTO incident_audit (tenant_id, principal, act, subject, noted_at)
SELECT CASE WHEN mod(n, 4) = 0 THEN 2 + mod(n / 4, %(tenants)s) ELSE 1 END,
       CASE WHEN n > 50 AND n <= 70 THEN 'rare' ELSE 'key' END, 'create_table', 't',
       now() - interval '400 days' * (1 - n::float8 / %(sessions)s)
FROM generate_series(1, %(sessions)s) n

-- name: compactions
INSERT INTO compaction_run (run_id, tenant_id, table_id, started_at, ended_at, state)
SELECT pg_temp.made_id('compaction', n), 1, 1 + mod(n, 10), at, at, 'published'
FROM (SELECT n, now() - interval '40 days' * (1 - n::float8 / %(sessions)s) AS at
      FROM generate_series(1, %(sessions)s) n) r

-- name: collections
INSERT INTO gc_run (run_id, tenant_id, started_at, ended_at, state)
SELECT pg_temp.made_id('collection', n), 1, at, at, 'done'
FROM (SELECT n, now() - interval '40 days' * (1 - n::float8 / %(sessions)s) AS at
      FROM generate_series(1, %(sessions)s) n) r

-- name: duties
INSERT INTO lease (name, holder, epoch, lease_until)
SELECT 'duty/' || n, 'nobody', 1, now() FROM generate_series(1, 50) n
