-- name: lock
-- Session lock: it is given back when the connection ends, however it ends.
SELECT pg_advisory_lock(hashtext('duckmesh_schema_migrations'))

-- name: create_migration_table
CREATE TABLE IF NOT EXISTS duckmesh_schema_migrations (
    version    integer PRIMARY KEY,
    name       text NOT NULL,
    checksum   text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
)

-- name: applied
SELECT version, name, checksum, applied_at
FROM duckmesh_schema_migrations
ORDER BY version

-- name: record
INSERT INTO duckmesh_schema_migrations (version, name, checksum)
VALUES (%s, %s, %s)
RETURNING applied_at

-- name: forget
DELETE FROM duckmesh_schema_migrations WHERE version = %s
