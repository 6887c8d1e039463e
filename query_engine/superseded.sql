-- name: configure
SET memory_limit = {memory}; SET temp_directory = {spill}; SET autoload_known_extensions = false

-- name: superseded
-- Rows of which a file of a later layer has the key.
SELECT held.file, held.row FROM (
    SELECT {key}, file_index AS file, file_row_number AS row,
           getvariable('layers')[CAST(file_index AS BIGINT) + 1] AS layer
    FROM read_parquet(getvariable('files'), hive_partitioning = false, schema = {columns})
) held
SEMI JOIN (
    SELECT {key}, max(getvariable('newer_layers')[CAST(file_index AS BIGINT) + 1]) AS layer
    FROM read_parquet(getvariable('newer_files'), hive_partitioning = false, schema = {columns})
    GROUP BY {key}
) newer ON {same_key} AND held.layer < newer.layer
ORDER BY held.file, held.row

-- name: repeats
SELECT count(*) - count(DISTINCT {key_value})
FROM read_parquet(getvariable('files'), hive_partitioning = false, schema = {columns})

-- name: repeated
-- Rows whose key comes again, in the same file or in one behind it.
SELECT file, row FROM (
    SELECT file_index AS file, file_row_number AS row,
           lead(true) OVER (PARTITION BY {key} ORDER BY file_index, file_row_number) AS comes_again
    FROM read_parquet(getvariable('files'), hive_partitioning = false, schema = {columns})
)
WHERE comes_again
ORDER BY file, row

-- name: set_list
SET VARIABLE {variable} = ?
