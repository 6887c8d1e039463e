-- Pins and tags of snapshots, files that a restore brings back, and replays of dead letters.

-- What holds a snapshot past retention. With a tag it is also a name that queries read by. A pin is
-- made under the lock of the tenant's head, and retention expires snapshots under that lock: so
-- neither misses the other.
CREATE TABLE snapshot_pin (
    pin_id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_id   bigint NOT NULL REFERENCES tenant,
    snapshot_id bigint NOT NULL REFERENCES snapshot,
    tag         text CHECK (tag ~ '^[A-Za-z_][A-Za-z0-9_.-]{0,62}$'),
    created_by  text NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT duckmesh_now(),
    -- From then on it holds and names nothing. NULL: it stands until it is taken away.
    expires_at  timestamptz
);

CREATE UNIQUE INDEX snapshot_pin_by_tag ON snapshot_pin (tenant_id, tag) WHERE tag IS NOT NULL;
CREATE UNIQUE INDEX snapshot_pin_untagged ON snapshot_pin (snapshot_id) WHERE tag IS NULL;
CREATE INDEX snapshot_pin_of_snapshot ON snapshot_pin (snapshot_id);

-- A restore makes new rows of old files: several rows may name one object. It stays in the store
-- until no row names it.
ALTER TABLE data_file DROP CONSTRAINT data_file_path_key;
CREATE INDEX data_file_by_path ON data_file (path) WHERE path IS NOT NULL;

-- A dead letter that was accepted again: the token of the new event, which has its payload.
ALTER TABLE ingest_event ADD COLUMN replay_token bigint;
