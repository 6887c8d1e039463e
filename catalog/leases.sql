-- name: acquire
-- A live lease of another holder changes no row. A new holder gets a larger epoch.
INSERT INTO lease AS held (name, holder, epoch, lease_until)
VALUES (%(name)s, %(holder)s, 1, duckmesh_now() + %(span)s)
ON CONFLICT (name) DO UPDATE
SET holder = excluded.holder,
    epoch = held.epoch + CASE WHEN held.holder = excluded.holder
                              AND held.lease_until > duckmesh_now() THEN 0 ELSE 1 END,
    lease_until = excluded.lease_until
WHERE held.holder = excluded.holder OR held.lease_until <= duckmesh_now()
RETURNING epoch

-- name: release
UPDATE lease SET lease_until = duckmesh_now()
WHERE name = %s AND holder = %s AND epoch = %s
