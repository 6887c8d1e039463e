-- name: fsync
SELECT current_setting('fsync')
