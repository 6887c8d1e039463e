ALTER TABLE data_file DROP COLUMN held_until;
