-- name: end_later_files
WITH ended AS (
    UPDATE data_file SET end_snapshot = %(now)s
    WHERE table_id = ANY (%(table_ids)s) AND end_snapshot IS NULL AND begin_snapshot > %(then)s
    RETURNING file_id, table_id
)
INSERT INTO snapshot_file (snapshot_id, file_id, table_id, change_type)
SELECT %(now)s, file_id, table_id, 'remove' FROM ended

-- name: end_files_of
WITH ended AS (
    UPDATE data_file SET end_snapshot = %(now)s
    WHERE table_id = ANY (%(table_ids)s) AND end_snapshot IS NULL AND begin_snapshot < %(now)s
    RETURNING file_id, table_id
)
INSERT INTO snapshot_file (snapshot_id, file_id, table_id, change_type)
SELECT %(now)s, file_id, table_id, 'remove' FROM ended

-- name: end_tables
UPDATE table_def SET end_snapshot = %(now)s
WHERE table_id = ANY (%(table_ids)s) AND end_snapshot IS NULL

-- name: make_anew
INSERT INTO table_def (tenant_id, name, primary_key_cols, partition_spec, schema_version,
                       begin_snapshot)
SELECT tenant_id, %(name)s, %(primary_key)s, partition_spec, %(version)s, %(now)s
FROM table_def WHERE table_id = %(table_id)s
RETURNING table_id

-- name: copy_versions
-- Old files name the version they were written with: every one up to the restored is there.
INSERT INTO table_schema_version (table_id, schema_version, arrow_schema, columns,
                                  compatibility_mode, begin_snapshot, primary_key_cols)
SELECT %(new_table_id)s, schema_version, arrow_schema, columns, compatibility_mode, %(now)s,
       primary_key_cols
FROM table_schema_version
WHERE table_id = %(table_id)s AND schema_version <= %(version)s AND begin_snapshot <= %(then)s

-- name: copy_watermark
INSERT INTO snapshot_table_watermark (table_id, snapshot_id, max_visibility_token)
SELECT %(new_table_id)s, %(now)s, max_visibility_token
FROM snapshot_table_watermark
WHERE table_id = %(table_id)s AND snapshot_id <= %(then)s
ORDER BY snapshot_id DESC LIMIT 1

-- name: bring_back
-- What is live and was there then stays as it is, unless its table is made anew.
WITH picked AS MATERIALIZED (
    SELECT gen_random_uuid() AS new_id, t.to_table, f.file_id, f.tenant_id, f.path, f.format,
           f.schema_version, f.partition, f.record_count, f.file_size_bytes, f.min_event_time,
           f.max_event_time, f.stats, f.min_token, f.max_token, f.delete_count
    FROM data_file f
    JOIN unnest(%(from_tables)s::bigint[], %(to_tables)s::bigint[]) AS t (from_table, to_table)
      ON t.from_table = f.table_id
    WHERE f.begin_snapshot <= %(then)s
      AND (f.end_snapshot IS NULL OR f.end_snapshot > %(then)s)
      AND (f.end_snapshot IS NOT NULL OR t.to_table <> t.from_table)
), added AS (
    INSERT INTO data_file (file_id, tenant_id, table_id, path, format, schema_version, partition,
                           record_count, file_size_bytes, min_event_time, max_event_time, stats,
                           min_token, max_token, delete_count, begin_snapshot)
    SELECT new_id, tenant_id, to_table, path, format, schema_version, partition, record_count,
           file_size_bytes, min_event_time, max_event_time, stats, min_token, max_token, delete_count, %(now)s
    FROM picked
), contents AS (
    INSERT INTO data_file_content (file_id, content)
    SELECT p.new_id, c.content FROM picked p JOIN data_file_content c ON c.file_id = p.file_id
)
INSERT INTO snapshot_file (snapshot_id, file_id, table_id, change_type)
SELECT %(now)s, new_id, to_table, 'add' FROM picked

-- name: end_other_views
UPDATE view_def v SET end_snapshot = %(now)s
WHERE v.tenant_id = %(tenant_id)s AND v.end_snapshot IS NULL AND v.begin_snapshot > %(then)s

-- name: bring_views_back
-- Those that ended since. What lives from before is there already.
INSERT INTO view_def (tenant_id, name, query, arrow_schema, begin_snapshot)
SELECT tenant_id, name, query, arrow_schema, %(now)s
FROM view_def
WHERE int8range(tenant_id, tenant_id, '[]') = int8range(%(tenant_id)s, %(tenant_id)s, '[]')
  AND int8range(begin_snapshot, end_snapshot) @> %(then)s::bigint AND end_snapshot <= %(now)s
