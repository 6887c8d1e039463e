-- name: attach
ATTACH {path} AS segment

-- name: create_rows
-- One thread writes the files in their order, so that rows keep theirs.
CREATE TABLE segment.main.rows AS
SELECT CAST(file_index AS INTEGER) AS {file_number}, *
FROM read_parquet($files, hive_partitioning = false, schema = {columns})

-- name: create_merged_rows
-- Rows that no file of a later layer supersedes, and that do not delete their key.
CREATE TABLE segment.main.rows AS
SELECT 0 AS {file_number}, {columns} FROM (
    SELECT *, $layers[CAST(file_index AS BIGINT) + 1] AS layer
    FROM read_parquet($files, hive_partitioning = false, schema = {all_map})
) held
ANTI JOIN (
    SELECT {key}, max($newer_layers[CAST(file_index AS BIGINT) + 1]) AS layer
    FROM read_parquet($newer_files, hive_partitioning = false, schema = {key_map})
    GROUP BY {key}
) later ON {same_key} AND held.layer < later.layer
WHERE held.{deleted} IS DISTINCT FROM true

-- name: create_undeleted_rows
-- The same of one layer: nothing supersedes anything.
CREATE TABLE segment.main.rows AS
SELECT 0 AS {file_number}, {columns}
FROM read_parquet($files, hive_partitioning = false, schema = {all_map})
WHERE {deleted} IS DISTINCT FROM true

-- name: column_types
SELECT column_name, data_type FROM duckdb_columns()
WHERE database_name = 'segment' ORDER BY column_index

-- name: rows_by_file
SELECT {file_number}, count(*) FROM segment.main.rows GROUP BY ALL

-- name: complete
CHECKPOINT segment

-- name: detach
DETACH segment
