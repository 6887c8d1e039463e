-- The fence epoch: a publish names the one it knows, and so needs not read the fences.

-- It is in the counter row because a publish locks that row, and then sees it as it is now.
ALTER TABLE token_counter ADD COLUMN fence_epoch bigint NOT NULL DEFAULT 0;

CREATE FUNCTION move_fence_epoch() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE token_counter SET fence_epoch = fence_epoch + 1 WHERE tenant_id = NEW.tenant_id;
    RETURN NULL;
END
$$;

-- A trigger, so that no process, of no version, raises a fence and leaves the epoch. Fences are
-- raised under the counter row's lock: no new lock is taken here.
CREATE TRIGGER schema_fence_moves_epoch AFTER INSERT OR UPDATE ON schema_fence
    FOR EACH ROW EXECUTE FUNCTION move_fence_epoch();
