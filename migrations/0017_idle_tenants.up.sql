-- Tenants that have been quiet for a while: who looks for work passes over them.

ALTER TABLE token_counter ADD COLUMN idle boolean NOT NULL DEFAULT false;
CREATE INDEX token_counter_busy ON token_counter (tenant_id) WHERE NOT idle;

CREATE FUNCTION wake_tenant() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.idle = false;
    RETURN NEW;
END
$$;

-- A trigger, so that no process, of no version, accepts a write that nobody then looks for. It runs
-- under the row's lock, and sees the row as it is now. Of a tenant that is not idle it costs a look.
CREATE TRIGGER token_counter_wakes BEFORE UPDATE OF last_token ON token_counter
    FOR EACH ROW WHEN (OLD.idle) EXECUTE FUNCTION wake_tenant();
