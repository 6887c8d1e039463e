-- name: crowded_tables
-- Tables with several small live files, the most crowded first. An object of several partitions
-- is to be taken apart, however large it is. Two indexes, one for each: large files are not read.
SELECT f.tenant_id, f.table_id, count(*), sum(f.file_size_bytes)::bigint
FROM (
    SELECT tenant_id, table_id, path, file_size_bytes, partition FROM data_file
    WHERE end_snapshot IS NULL AND file_size_bytes < %(small_bytes)s
    UNION ALL
    SELECT tenant_id, table_id, path, file_size_bytes, partition FROM data_file
    WHERE end_snapshot IS NULL AND partition @> '{"many": true}'
      AND file_size_bytes >= %(small_bytes)s
) f
GROUP BY f.tenant_id, f.table_id
HAVING count(*) > 1 OR bool_or(f.path IS NOT NULL AND f.partition @> '{"many": true}')
ORDER BY count(*) DESC, f.table_id
LIMIT %(limit)s

-- name: small_files
-- A file whose snapshot is forgotten is old.
SELECT f.file_id, f.path, f.schema_version, f.record_count, f.file_size_bytes, f.min_token,
       f.max_token,
       coalesce(duckmesh_now() - (SELECT s.created_at FROM snapshot s
                                  WHERE s.snapshot_id = f.begin_snapshot), interval '1000 days'),
       f.partition, f.delete_count
FROM (
    SELECT file_id, path, schema_version, record_count, file_size_bytes, min_token, max_token,
           begin_snapshot, partition, delete_count
    FROM data_file
    WHERE table_id = %(table_id)s AND end_snapshot IS NULL AND file_size_bytes < %(small_bytes)s
    UNION ALL
    SELECT file_id, path, schema_version, record_count, file_size_bytes, min_token, max_token,
           begin_snapshot, partition, delete_count
    FROM data_file
    WHERE table_id = %(table_id)s AND end_snapshot IS NULL AND partition @> '{"many": true}'
      AND file_size_bytes >= %(small_bytes)s
) f
ORDER BY f.min_token, f.file_id
LIMIT %(limit)s

-- name: live_files
SELECT f.file_id, f.path, f.schema_version, f.record_count, f.file_size_bytes, f.min_token,
       f.max_token,
       coalesce(duckmesh_now() - (SELECT s.created_at FROM snapshot s
                                  WHERE s.snapshot_id = f.begin_snapshot), interval '1000 days'),
       f.partition, f.delete_count
FROM data_file f
WHERE f.table_id = %(table_id)s AND f.end_snapshot IS NULL
ORDER BY f.max_token, f.file_id
LIMIT %(limit)s

-- name: layered_tables
-- Every live file of the tables with a primary key is looked at: compaction keeps them few.
SELECT f.tenant_id, f.table_id
FROM table_def t JOIN data_file f USING (table_id)
WHERE t.primary_key_cols <> '{}' AND t.end_snapshot IS NULL AND f.end_snapshot IS NULL
GROUP BY f.tenant_id, f.table_id
HAVING count(DISTINCT f.max_token) > 1 OR sum(f.delete_count) > 0
ORDER BY count(*) DESC, f.table_id
LIMIT %(limit)s

-- name: arrangement
SELECT partition_spec, primary_key_cols <> '{}' FROM table_def WHERE table_id = %s

-- name: hold_files
-- Publications leave held files out of their folds. A hold prevents nothing: whoever ends a file
-- first wins.
UPDATE data_file SET held_until = duckmesh_now() + %(span)s
WHERE file_id = ANY (%(file_ids)s) AND end_snapshot IS NULL

-- name: begin_run
INSERT INTO compaction_run (run_id, tenant_id, table_id, files_in, bytes_in)
VALUES (%(run_id)s, %(tenant_id)s, %(table_id)s, %(files_in)s, %(bytes_in)s)

-- name: close_dead_runs
-- The caller holds the table's lease: whoever began these is gone.
UPDATE compaction_run
SET state = 'failed', ended_at = duckmesh_now(), failure = 'its process died'
WHERE tenant_id = %(tenant_id)s AND table_id = %(table_id)s AND state = 'running'

-- name: end_run
UPDATE compaction_run
SET state = %(state)s, snapshot_id = %(snapshot_id)s, files_out = %(files_out)s,
    bytes_out = %(bytes_out)s, failure = %(failure)s, ended_at = duckmesh_now()
WHERE run_id = %(run_id)s

-- name: recent_runs
SELECT state, files_in, files_out, bytes_in, bytes_out, snapshot_id, failure
FROM compaction_run WHERE tenant_id = %(tenant_id)s AND table_id = %(table_id)s
ORDER BY started_at DESC LIMIT %(limit)s
