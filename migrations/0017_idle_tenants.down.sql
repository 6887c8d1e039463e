DROP TRIGGER token_counter_wakes ON token_counter;
DROP FUNCTION wake_tenant();
DROP INDEX token_counter_busy;
ALTER TABLE token_counter DROP COLUMN idle;
