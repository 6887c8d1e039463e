-- name: wait_for_the_disk
-- What was acknowledged is on the disk, whatever the server, the database or the role says. Every
-- other value waits for this server's disk too: what is stronger, or says more of standbys, stays.
SELECT set_config('synchronous_commit', 'on', false)
WHERE current_setting('synchronous_commit') = 'off'
