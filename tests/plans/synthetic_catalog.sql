-- name: tenants
-- Tenant 1 is large; the others are many and small.
INSERT INTO tenant (name) SELECT 'tenant-' || n FROM generate_series(1, 500) n

-- name: tables
INSERT INTO table_def (tenant_id, name, begin_snapshot)
SELECT t.tenant_id, 'table-' || n, 1 FROM tenant t, generate_series(1, 5) n
ORDER BY t.tenant_id, n

-- name: snapshots
INSERT INTO snapshot (snapshot_id, tenant_id, created_at, created_by, operation,
                      max_visibility_token)
SELECT n, CASE WHEN n % 4 = 0 THEN 2 + n % 499 ELSE 1 END,
       timestamptz '2026-01-01 00:00Z' + n * interval '1 second', 'synthetic', 'publish', n
FROM generate_series(1, 20000) n

-- name: heads
INSERT INTO publication_head (tenant_id, snapshot_id, created_at, max_visibility_token)
SELECT tenant_id, max(snapshot_id), max(created_at), max(max_visibility_token)
FROM snapshot GROUP BY tenant_id

-- name: watermarks
INSERT INTO snapshot_table_watermark (table_id, snapshot_id, max_visibility_token)
SELECT 1 + n % 5, n, n FROM generate_series(1, 20000) n

-- name: schema_versions
INSERT INTO table_schema_version (table_id, schema_version, arrow_schema, columns, begin_snapshot)
SELECT table_id, 1, '\x00', '[]', 1 FROM table_def

-- name: files
-- Most files were folded soon after they came; one in a hundred is live.
INSERT INTO data_file (file_id, tenant_id, table_id, path, schema_version, record_count,
                       file_size_bytes, min_token, max_token, begin_snapshot, end_snapshot)
SELECT gen_random_uuid(), 1, 1 + n % 5, CASE WHEN n % 2 = 0 THEN 'tenant-1/part-' || n END, 1, 1,
       100, n, n, n, CASE WHEN n % 100 > 0 AND n < 19950 THEN n + 50 END
FROM generate_series(1, 20000) n

-- name: file_log
INSERT INTO snapshot_file (snapshot_id, file_id, table_id, change_type)
SELECT begin_snapshot, file_id, table_id, 'add' FROM data_file

-- name: events
INSERT INTO ingest_event (tenant_id, visibility_token, event_id, table_id, schema_version,
                          operation, idempotency_key, payload_kind, payload, row_count, byte_count,
                          state)
SELECT CASE WHEN n % 5 = 0 THEN 2 + n % 499 ELSE 1 END, n, gen_random_uuid(), 1 + n % 5, 1,
       'insert', CASE WHEN n % 2 = 0 THEN 'key-' || n END, 'inline',
       CASE WHEN n > 99500 THEN '\x00'::bytea END, 1, 100,
       CASE WHEN n % 1000 = 0 THEN 'failed' WHEN n > 99500 THEN 'accepted' ELSE 'committed' END
FROM generate_series(1, 100000) n

-- name: keys
INSERT INTO idempotency_key (tenant_id, table_id, key, payload_hash, event_id)
SELECT tenant_id, table_id, idempotency_key, '\x00', event_id
FROM ingest_event WHERE idempotency_key IS NOT NULL

-- name: counters
-- Most tenants are quiet.
INSERT INTO token_counter (tenant_id, last_token, idle)
SELECT tenant_id, 100000, tenant_id > 5 FROM tenant

-- name: leases
INSERT INTO ingest_lease (tenant_id, acked_token)
SELECT tenant_id, CASE WHEN tenant_id = 1 THEN 99500 ELSE 100000 END FROM tenant

-- name: audited_queries
INSERT INTO query_audit (query_id, tenant_id, principal, sql_text, started_at, outcome)
SELECT gen_random_uuid(), CASE WHEN n % 4 = 0 THEN 2 + n % 499 ELSE 1 END, 'key', 'SELECT 1',
       now() - n * interval '1 minute', 'OK'
FROM generate_series(1, 60000) n

-- name: acts
INSERT INTO incident_audit (tenant_id, principal, act, subject, noted_at)
SELECT CASE WHEN n % 4 = 0 THEN 2 + n % 499 ELSE 1 END, 'key', 'create_table', 't',
       now() - n * interval '3 minutes'
FROM generate_series(1, 20000) n
