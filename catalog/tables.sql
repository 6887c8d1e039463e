-- name: insert_table
INSERT INTO table_def (tenant_id, name, creation_key, begin_snapshot, primary_key_cols,
                       partition_spec)
VALUES (%s, %s, %s, %s, %s, %s)
RETURNING table_id

-- name: insert_schema_version
INSERT INTO table_schema_version (table_id, schema_version, arrow_schema, columns, begin_snapshot,
                                  primary_key_cols)
VALUES (%s, %s, %s, %s, %s, %s)

-- name: lock_live_table
-- Two replacements cannot draw one number. A statement of its own: the next one then sees what
-- the one before it committed. It waits for no publication, which only refers to the row. Whoever
-- found the table by a name that is not its own any more does not find it here.
SELECT table_id FROM table_def
WHERE tenant_id = %(tenant_id)s AND table_id = %(table_id)s AND name = %(name)s
  AND end_snapshot IS NULL
FOR NO KEY UPDATE

-- name: next_schema_version
SELECT 1 + max(v.schema_version), 1 + max((c ->> 'field_id')::integer)
FROM table_schema_version v
CROSS JOIN LATERAL jsonb_array_elements(v.columns) c
WHERE v.table_id = %(table_id)s

-- name: adopt_schema_version
UPDATE table_def SET schema_version = greatest(schema_version, %(version)s)
WHERE tenant_id = %(tenant_id)s AND table_id = %(table_id)s AND end_snapshot IS NULL
RETURNING schema_version

-- name: find_live_table
SELECT t.table_id, t.name, t.creation_key, t.primary_key_cols, v.schema_version, v.arrow_schema,
       v.primary_key_cols, t.partition_spec
FROM table_def t
JOIN table_schema_version v
  ON v.table_id = t.table_id AND v.schema_version = t.schema_version
WHERE t.tenant_id = %s AND t.name = %s AND t.end_snapshot IS NULL

-- name: count_tables
SELECT count(*) FROM table_def WHERE tenant_id = %s AND end_snapshot IS NULL

-- name: is_view
SELECT 1 FROM view_def
WHERE tenant_id = %s AND lower(name) = lower(%s) AND end_snapshot IS NULL

-- name: find_live_name
-- SQL compares names without case. An exact match comes first.
SELECT name FROM table_def
WHERE tenant_id = %(tenant_id)s AND lower(name) = lower(%(name)s) AND end_snapshot IS NULL
ORDER BY name = %(name)s DESC, name
LIMIT 1

-- name: schema_versions
SELECT schema_version, arrow_schema, primary_key_cols
FROM table_schema_version
WHERE table_id = %s AND schema_version = ANY (%s)

-- name: tables_at
-- The tables of a snapshot, each with the name and schema it had then and its newest watermark.
SELECT t.table_id, coalesce(f.name, t.name) AS name_then, v.schema_version, v.arrow_schema, w.max_visibility_token,
       v.primary_key_cols, t.partition_spec
FROM table_def t
CROSS JOIN LATERAL (
    SELECT schema_version, arrow_schema, primary_key_cols FROM table_schema_version
    WHERE table_id = t.table_id AND begin_snapshot <= %(snapshot_id)s
    ORDER BY schema_version DESC LIMIT 1
) v
LEFT JOIN LATERAL (
    SELECT max_visibility_token FROM snapshot_table_watermark
    WHERE table_id = t.table_id AND snapshot_id <= %(snapshot_id)s
    ORDER BY snapshot_id DESC LIMIT 1
) w ON true
LEFT JOIN LATERAL (
    SELECT name FROM table_former_name
    WHERE table_id = t.table_id AND end_snapshot > %(snapshot_id)s
    ORDER BY end_snapshot LIMIT 1
) f ON true
WHERE int8range(t.tenant_id, t.tenant_id, '[]') = int8range(%(tenant_id)s, %(tenant_id)s, '[]')
  AND int8range(t.begin_snapshot, t.end_snapshot) @> %(snapshot_id)s::bigint
ORDER BY name_then

-- name: end_table
-- By its name too: DROP TABLE of a name must not end a table that has another one by now.
UPDATE table_def SET end_snapshot = %(snapshot_id)s
WHERE tenant_id = %(tenant_id)s AND table_id = %(table_id)s AND name = %(name)s
  AND end_snapshot IS NULL

-- name: is_published
-- Whether the version that writes are checked against is this one, and in a snapshot already.
SELECT v.begin_snapshot IS NOT NULL
FROM table_def t
JOIN table_schema_version v
  ON v.table_id = t.table_id AND v.schema_version = t.schema_version
WHERE t.tenant_id = %(tenant_id)s AND t.table_id = %(table_id)s AND t.end_snapshot IS NULL
  AND t.schema_version = %(version)s

-- name: set_definition
UPDATE table_def SET schema_version = %(version)s, primary_key_cols = %(primary_key)s
WHERE tenant_id = %(tenant_id)s AND table_id = %(table_id)s AND end_snapshot IS NULL

-- name: set_partition_spec
UPDATE table_def SET partition_spec = %(partition_spec)s
WHERE tenant_id = %(tenant_id)s AND table_id = %(table_id)s AND name = %(name)s
  AND end_snapshot IS NULL

-- name: keep_former_name
INSERT INTO table_former_name (table_id, name, end_snapshot)
VALUES (%(table_id)s, %(name)s, %(snapshot_id)s)

-- name: set_name
UPDATE table_def SET name = %(new_name)s, schema_version = %(version)s
WHERE tenant_id = %(tenant_id)s AND table_id = %(table_id)s AND end_snapshot IS NULL

-- name: places
SELECT t.table_id, n.name, t.name, t.end_snapshot IS NOT NULL, t.partition_spec
FROM table_def t JOIN tenant n USING (tenant_id)
WHERE t.tenant_id = %s AND t.table_id = ANY (%s)
