-- name: create_native_schema
CREATE SCHEMA IF NOT EXISTS duckmesh.duckmesh_native

-- name: create_parts_view
CREATE VIEW duckmesh.main.{view} AS
SELECT {selection} FROM query_table(getvariable({variable}))

-- name: create_files_view
CREATE VIEW {view} AS
SELECT * FROM read_parquet(getvariable({variable}), hive_partitioning = false, schema = {columns})

-- name: create_plain_files_view
CREATE VIEW {view} AS
SELECT {columns} FROM read_parquet(getvariable({variable}), hive_partitioning = false)

-- name: create_layered_view
-- A table with a primary key. Rows of the oldest layer are visible unless a newer one has their key;
-- newer rows unless a later one has it, or they delete it. Two reads of the newer files: the one of
-- their keys reads no other column, and neither is kept in memory whole. No column is read by its own
-- name, which may be `file_index`.
CREATE VIEW {view} AS
SELECT {columns} FROM query_table(getvariable({oldest})) held
ANTI JOIN (
    SELECT {key} FROM read_parquet(getvariable({newer}), hive_partitioning = false, schema = {key_map})
) newer ON {oldest_key}
UNION ALL
SELECT {renamed} FROM (
    SELECT *, getvariable({layers})[CAST(file_index AS BIGINT) + 1] AS layer
    FROM read_parquet(getvariable({newer}), hive_partitioning = false, schema = {all_map})
) held
ANTI JOIN (
    SELECT {key}, max(getvariable({layers})[CAST(file_index AS BIGINT) + 1]) AS layer
    FROM read_parquet(getvariable({newer}), hive_partitioning = false, schema = {key_map})
    GROUP BY {key}
) later ON {same_key} AND held.layer < later.layer
WHERE held.{deleted} IS DISTINCT FROM true

-- name: create_two_layers_view
-- The same where the newer files are of one layer: none of them supersedes another.
CREATE VIEW {view} AS
SELECT {columns} FROM query_table(getvariable({oldest})) held
ANTI JOIN (
    SELECT {key} FROM read_parquet(getvariable({newer}), hive_partitioning = false, schema = {key_map})
) newer ON {oldest_key}
UNION ALL
SELECT {renamed}
FROM read_parquet(getvariable({newer}), hive_partitioning = false, schema = {all_map}) held
WHERE held.{deleted} IS DISTINCT FROM true

-- name: create_segment_view
CREATE VIEW {view} AS SELECT {columns} FROM {segment}.main.rows WHERE {condition}

-- name: drop_view
DROP VIEW {view}

-- name: attach
ATTACH {path} AS {catalog} (READ_ONLY)

-- name: detach
DETACH {catalog}

-- name: set_list
SET VARIABLE {variable} = ?
