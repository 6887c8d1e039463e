-- name: lock_head
-- The lock that orders the tenant's publications. Whoever holds it draws the next snapshot id.
SELECT tenant_id, snapshot_id, created_at, max_visibility_token, publisher_epoch
FROM publication_head WHERE tenant_id = %s FOR UPDATE

-- name: publish
-- The next snapshot with what it adds, in one round trip. The head is locked by the statement before:
-- this one sees it as it is, and its parent is what the caller read there. Readers are told when it
-- commits.
WITH born AS (
    INSERT INTO snapshot (snapshot_id, tenant_id, parent_snapshot_id, created_at, created_by,
                          operation, max_visibility_token)
    VALUES (nextval('snapshot_id_sequence'), %(tenant_id)s, %(parent)s,
            greatest(clock_timestamp(), %(parent_created_at)s + interval '1 microsecond'),
            %(created_by)s, %(operation)s, %(watermark)s)
    RETURNING snapshot_id, tenant_id, created_at, max_visibility_token
), moved AS (
    UPDATE publication_head h
    SET snapshot_id = born.snapshot_id, created_at = born.created_at,
        max_visibility_token = born.max_visibility_token, publisher_epoch = %(epoch)s
    FROM born WHERE h.tenant_id = %(tenant_id)s AND h.snapshot_id = %(parent)s
    RETURNING h.tenant_id
), file AS (
    SELECT *
    FROM json_to_recordset(%(files)s::json)
         AS f (file_id uuid, table_id bigint, path text, schema_version integer,
               record_count bigint, file_size_bytes bigint, min_event_time timestamptz,
               max_event_time timestamptz, stats text, partition text, min_token bigint,
               max_token bigint, delete_count bigint, content_start integer, content_bytes integer)
    -- A table may have been dropped since its rows were gathered: nobody would end a file of it any
    -- more. Whoever drops one holds the head's lock, so this stays true. Its objects are orphans.
    WHERE (SELECT t.end_snapshot IS NULL FROM table_def t WHERE t.table_id = f.table_id)
), added AS (
    INSERT INTO data_file (file_id, tenant_id, table_id, path, schema_version, record_count,
                           file_size_bytes, min_event_time, max_event_time, stats, partition,
                           min_token, max_token, delete_count, begin_snapshot)
    SELECT f.file_id, %(tenant_id)s, f.table_id, f.path, f.schema_version, f.record_count,
           f.file_size_bytes, f.min_event_time, f.max_event_time, f.stats::jsonb,
           f.partition::jsonb, f.min_token, f.max_token, f.delete_count, born.snapshot_id
    FROM file f CROSS JOIN born
), logged AS (
    INSERT INTO snapshot_file (snapshot_id, file_id, table_id, change_type)
    SELECT born.snapshot_id, f.file_id, f.table_id, 'add' FROM file f CROSS JOIN born
), filled AS (
    -- The bytes of inline files lie end to end in one parameter.
    INSERT INTO data_file_content (file_id, content)
    SELECT f.file_id, substring(%(contents)b::bytea FROM f.content_start FOR f.content_bytes)
    FROM file f WHERE f.content_start IS NOT NULL
), marked AS (
    INSERT INTO snapshot_table_watermark (table_id, snapshot_id, max_visibility_token)
    SELECT w.key::bigint, born.snapshot_id, w.value::bigint
    FROM json_each_text(%(table_watermarks)s::json) w CROSS JOIN born
)
SELECT born.snapshot_id, born.created_at, EXISTS (SELECT 1 FROM moved),
       pg_notify('duckmesh_published', json_build_object(
           'tenant_id', born.tenant_id, 'snapshot_id', born.snapshot_id,
           'watermark', born.max_visibility_token)::text)
FROM born

-- name: end_files
-- Every live file of the tables leaves the manifest at this snapshot.
WITH ended AS (
    UPDATE data_file SET end_snapshot = %(snapshot_id)s
    WHERE table_id = ANY (%(table_ids)s) AND end_snapshot IS NULL
      AND begin_snapshot < %(snapshot_id)s
    RETURNING file_id, table_id
)
INSERT INTO snapshot_file (snapshot_id, file_id, table_id, change_type)
SELECT %(snapshot_id)s, file_id, table_id, 'remove' FROM ended

-- name: end_named_files
-- Only files that are still live end here; the caller compares the count.
WITH ended AS (
    UPDATE data_file SET end_snapshot = %(snapshot_id)s
    WHERE file_id = ANY (%(file_ids)s) AND end_snapshot IS NULL
    RETURNING file_id, table_id
)
INSERT INTO snapshot_file (snapshot_id, file_id, table_id, change_type)
SELECT %(snapshot_id)s, file_id, table_id, 'remove' FROM ended

-- name: begin_schema_versions
-- With what begins here the table checks later writes, also when the writer that brought it died
-- before he could say so. He nearly always has: then no row of a table is locked. Head row first,
-- then the table's: as ALTER TABLE.
WITH begun AS (
    UPDATE table_schema_version v SET begin_snapshot = %(snapshot_id)s
    FROM unnest(%(table_ids)s::bigint[], %(versions)s::integer[]) AS n (table_id, schema_version)
    WHERE v.table_id = n.table_id AND v.schema_version = n.schema_version
      AND v.begin_snapshot IS NULL
    RETURNING v.table_id, v.schema_version
)
UPDATE table_def t SET schema_version = begun.schema_version
FROM begun
WHERE t.table_id = begun.table_id AND t.schema_version < begun.schema_version
  AND t.end_snapshot IS NULL

-- name: head
SELECT h.snapshot_id, h.tenant_id, h.created_at, h.max_visibility_token
FROM publication_head h WHERE h.tenant_id = %s

-- name: latest_token
-- The largest visible token of any tenant; there is a row for each tenant.
SELECT coalesce(max(max_visibility_token), 0) FROM publication_head

-- name: by_id
SELECT snapshot_id, tenant_id, created_at, max_visibility_token
FROM snapshot WHERE tenant_id = %s AND snapshot_id = %s

-- name: expired_through
SELECT expired_through FROM publication_head WHERE tenant_id = %s

-- name: by_time
SELECT snapshot_id, tenant_id, created_at, max_visibility_token, replaced_at
FROM snapshot WHERE tenant_id = %s AND created_at <= %s
ORDER BY created_at DESC LIMIT 1

-- name: recent
-- The numbers come from the tenant's own index: by the primary key a plan would read past the
-- snapshots of every other tenant.
SELECT snapshot_id, tenant_id, created_at, max_visibility_token, operation, created_by
FROM snapshot
WHERE snapshot_id = ANY (ARRAY(
    SELECT snapshot_id FROM snapshot WHERE tenant_id = %s AND snapshot_id <= %s
    ORDER BY snapshot_id DESC LIMIT %s))
ORDER BY snapshot_id DESC
