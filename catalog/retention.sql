-- name: horizon
-- The oldest snapshot that stays for its age and for its number: the newest one of before the time
-- that is kept, or an older one while there are few. 0: none expires.
SELECT least(
    coalesce((SELECT snapshot_id FROM snapshot
              WHERE tenant_id = %(tenant_id)s
                AND created_at <= duckmesh_now() - %(kept_for)s::interval
              ORDER BY created_at DESC LIMIT 1), 0),
    coalesce((SELECT snapshot_id FROM snapshot WHERE tenant_id = %(tenant_id)s
              ORDER BY snapshot_id DESC OFFSET %(kept_at_least)s - 1 LIMIT 1), 0))

-- name: note_replaced
-- A pinned snapshot outlives the next one: keep the time up to which it was the newest.
UPDATE snapshot s
SET replaced_at = (SELECT n.created_at FROM snapshot n
                   WHERE n.tenant_id = s.tenant_id AND n.snapshot_id > s.snapshot_id
                   ORDER BY n.snapshot_id LIMIT 1)
WHERE s.snapshot_id = ANY (ARRAY(SELECT snapshot_id FROM snapshot_pin
                                 WHERE tenant_id = %(tenant_id)s))
  AND s.snapshot_id < %(horizon)s AND s.replaced_at IS NULL

-- name: expire
WITH old AS MATERIALIZED (
    SELECT s.snapshot_id FROM snapshot s
    WHERE s.tenant_id = %(tenant_id)s AND s.snapshot_id < %(horizon)s
      AND NOT EXISTS (SELECT 1 FROM snapshot_pin p WHERE p.snapshot_id = s.snapshot_id)
    ORDER BY s.snapshot_id LIMIT %(limit)s
), gone AS (
    DELETE FROM snapshot WHERE snapshot_id IN (SELECT snapshot_id FROM old) RETURNING snapshot_id
)
SELECT coalesce(array_agg(snapshot_id), '{}') FROM gone

-- name: note_expired
UPDATE publication_head SET expired_through = greatest(expired_through, %(through)s)
WHERE tenant_id = %(tenant_id)s

-- name: condemn_files
-- A file that ended after the horizon is in the horizon's snapshot, or in the one it began with.
UPDATE data_file SET unreachable_since = duckmesh_now()
WHERE file_id = ANY (ARRAY(
    SELECT f.file_id FROM data_file f
    WHERE f.tenant_id = %(tenant_id)s AND f.end_snapshot <= %(horizon)s
      AND f.unreachable_since IS NULL
      -- The first snapshot that may read it: one probe for each file, whatever a planner expects.
      AND coalesce((SELECT s.snapshot_id FROM snapshot s
                    WHERE s.tenant_id = f.tenant_id AND s.snapshot_id >= f.begin_snapshot
                    ORDER BY s.snapshot_id LIMIT 1), f.end_snapshot) >= f.end_snapshot
    ORDER BY f.tenant_id, f.end_snapshot LIMIT %(limit)s))

-- name: forget_watermarks
-- Of the snapshots that just went. Those of one gap have the same kept neighbours: a pinned one, or
-- none, before them, and one after them. Between the two no snapshot is left: a watermark of there
-- goes when the next one, or the end of its table, comes before or with the neighbour. So the newest
-- watermark at every snapshot that is kept stays.
WITH pinned AS (
    SELECT ARRAY(SELECT DISTINCT snapshot_id FROM snapshot_pin WHERE tenant_id = %(tenant_id)s
                 ORDER BY snapshot_id) AS ids
), gap AS MATERIALIZED (
    SELECT coalesce(p.ids[g.number], 0) AS before, g.first, g.last,
           (SELECT s.snapshot_id FROM snapshot s
            WHERE s.tenant_id = %(tenant_id)s AND s.snapshot_id > g.last
            ORDER BY s.snapshot_id LIMIT 1) AS after
    FROM pinned p
    CROSS JOIN LATERAL (
        SELECT width_bucket(gone, p.ids) AS number, min(gone) AS first, max(gone) AS last
        FROM unnest(%(gone)s::bigint[]) AS gone
        GROUP BY 1
    ) g
)
DELETE FROM snapshot_table_watermark
WHERE ctid = ANY (ARRAY(
    SELECT old.place
    FROM gap g
    CROSS JOIN LATERAL (
        SELECT t.table_id, t.end_snapshot,
               -- What lies before it went earlier: its dead rows are not passed through again.
               (SELECT m.snapshot_id FROM snapshot_table_watermark m
                WHERE m.table_id = t.table_id AND m.snapshot_id <= g.first
                ORDER BY m.snapshot_id DESC LIMIT 1) AS newest_at_first
        FROM table_def t
        WHERE int8range(t.tenant_id, t.tenant_id, '[]')
              = int8range(%(tenant_id)s, %(tenant_id)s, '[]')
          AND int8range(t.begin_snapshot, t.end_snapshot) && int8range(g.first, g.last, '[]')
        -- Each gap looks its tables up. A planner that takes the tenant's tables for few reads all.
        OFFSET 0
    ) t
    CROSS JOIN LATERAL (
        SELECT m.ctid AS place,
               lead(m.snapshot_id, 1, t.end_snapshot) OVER (ORDER BY m.snapshot_id) AS next
        FROM snapshot_table_watermark m
        WHERE m.table_id = t.table_id
          AND m.snapshot_id >= greatest(t.newest_at_first, g.before + 1)
          AND m.snapshot_id <= g.after
    ) old
    WHERE old.next <= g.after))

-- name: plan
-- What would expire now, and the files that would have no snapshot left.
WITH old AS (
    SELECT s.snapshot_id FROM snapshot s
    WHERE s.tenant_id = %(tenant_id)s AND s.snapshot_id < %(horizon)s
      AND NOT EXISTS (SELECT 1 FROM snapshot_pin p WHERE p.snapshot_id = s.snapshot_id
                        AND (p.expires_at IS NULL OR p.expires_at > duckmesh_now()))
), left_over AS (
    SELECT f.file_size_bytes FROM data_file f
    WHERE f.tenant_id = %(tenant_id)s AND f.end_snapshot <= %(horizon)s
      AND f.unreachable_since IS NULL
      AND NOT EXISTS (SELECT 1 FROM snapshot s
                      WHERE s.tenant_id = f.tenant_id AND s.snapshot_id >= f.begin_snapshot
                        AND s.snapshot_id < f.end_snapshot
                        AND s.snapshot_id NOT IN (SELECT snapshot_id FROM old))
)
SELECT (SELECT count(*) FROM old),
       (SELECT count(*) FROM left_over),
       (SELECT coalesce(sum(file_size_bytes), 0)::bigint FROM left_over)

-- name: due_files
-- Several files may name one object: it goes with the last of them.
SELECT f.file_id, f.path, f.file_size_bytes,
       f.path IS NOT NULL AND NOT EXISTS (
           SELECT 1 FROM data_file o
           WHERE o.path = f.path AND o.file_id <> f.file_id
             AND (o.unreachable_since IS NULL
                  OR o.unreachable_since > duckmesh_now() - %(safety_age)s::interval))
FROM data_file f
WHERE f.tenant_id = %(tenant_id)s
  AND f.unreachable_since <= duckmesh_now() - %(safety_age)s::interval
ORDER BY f.unreachable_since LIMIT %(limit)s

-- name: forget_changes
DELETE FROM snapshot_file WHERE file_id = ANY (%(file_ids)s)

-- name: forget_files
DELETE FROM data_file WHERE file_id = ANY (%(file_ids)s) AND unreachable_since IS NOT NULL

-- name: record_run
INSERT INTO gc_run (run_id, tenant_id, started_at, ended_at, state, dry_run, snapshots_expired,
                    files_deleted, bytes_deleted, orphans_deleted, failure)
VALUES (%(run_id)s, %(tenant_id)s, %(started_at)s, duckmesh_now(), %(state)s, %(dry_run)s,
        %(snapshots)s, %(files)s, %(bytes)s, %(orphans)s, %(failure)s)

-- name: forget_gc_runs
DELETE FROM gc_run WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM gc_run WHERE started_at < duckmesh_now() - %(older_than)s::interval
    LIMIT %(limit)s))

-- name: forget_compaction_runs
DELETE FROM compaction_run WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM compaction_run WHERE started_at < duckmesh_now() - %(older_than)s::interval
    LIMIT %(limit)s))

-- name: now
SELECT duckmesh_now()
