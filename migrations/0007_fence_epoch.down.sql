DROP TRIGGER schema_fence_moves_epoch ON schema_fence;
DROP FUNCTION move_fence_epoch();
ALTER TABLE token_counter DROP COLUMN fence_epoch;
