-- name: attach
ATTACH {path} AS segment

-- name: create_rows
-- One thread writes the files in their order, so that rows keep theirs.
CREATE TABLE segment.main.rows AS
SELECT CAST(file_index AS INTEGER) AS {file_number}, *
FROM read_parquet($files, hive_partitioning = false, schema = {columns})

-- name: column_types
SELECT column_name, data_type FROM duckdb_columns()
WHERE database_name = 'segment' ORDER BY column_index

-- name: rows_by_file
SELECT {file_number}, count(*) FROM segment.main.rows GROUP BY ALL

-- name: complete
CHECKPOINT segment

-- name: detach
DETACH segment
