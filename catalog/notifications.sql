-- name: listen
LISTEN {}

-- name: without_durability
SET synchronous_commit = off

-- name: notify
SELECT pg_notify(%s, %s)
