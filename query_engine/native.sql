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
