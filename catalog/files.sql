-- name: manifest
-- The files of some tables at a snapshot, oldest rows first. None of a snapshot that has expired:
-- some of its files may be gone.
SELECT file_id, table_id, path, schema_version, record_count, file_size_bytes,
       min_event_time, max_event_time, min_token, max_token, begin_snapshot, delete_count
FROM data_file
WHERE table_id = ANY (%(table_ids)s)
  AND begin_snapshot <= %(snapshot_id)s
  AND (end_snapshot IS NULL OR end_snapshot > %(snapshot_id)s)
  AND EXISTS (SELECT 1 FROM snapshot WHERE snapshot_id = %(snapshot_id)s)
ORDER BY table_id, min_token, file_id

-- name: content
SELECT content FROM data_file_content WHERE file_id = %s

-- name: contents
SELECT file_id, content FROM data_file_content WHERE file_id = ANY (%s)

-- name: live_inline_files
-- Without those that a compaction holds: it carries them on.
SELECT f.file_id, f.table_id, f.path, f.schema_version, f.record_count, f.file_size_bytes,
       f.min_event_time, f.max_event_time, f.min_token, f.max_token, f.begin_snapshot,
       f.delete_count
FROM data_file f
WHERE f.table_id = ANY (%(table_ids)s) AND f.end_snapshot IS NULL AND f.path IS NULL
  AND (f.held_until IS NULL OR f.held_until <= duckmesh_now())
ORDER BY f.table_id, f.min_token, f.file_id
LIMIT %(limit)s

-- name: newest_tokens_outside
-- By table. Files are left out by their ids: a hold may have ended since they were listed.
SELECT table_id, max(max_token) FROM data_file
WHERE table_id = ANY (%(table_ids)s) AND end_snapshot IS NULL
  AND file_id <> ALL (%(file_ids)s)
GROUP BY table_id

-- name: is_kept
SELECT EXISTS (SELECT 1 FROM snapshot WHERE snapshot_id = %s)

-- name: known_paths
SELECT path FROM data_file WHERE path = ANY (%s)

-- name: kept_files
-- Files that some snapshot reads, a page at a time.
SELECT f.file_id, t.name, f.path, f.file_size_bytes, octet_length(c.content)
FROM data_file f
JOIN table_def t USING (table_id)
LEFT JOIN data_file_content c ON c.file_id = f.file_id
WHERE f.tenant_id = %(tenant_id)s AND f.unreachable_since IS NULL
  AND (%(after)s::uuid IS NULL OR f.file_id > %(after)s)
ORDER BY f.file_id LIMIT %(limit)s

-- name: still_kept
SELECT file_id FROM data_file WHERE file_id = ANY (%s) AND unreachable_since IS NULL

-- name: stats_of
SELECT file_id, stats, partition FROM data_file WHERE file_id = ANY (%s)

-- name: partitions_of
SELECT file_id, partition FROM data_file WHERE file_id = ANY (%s) AND partition <> '{}'
