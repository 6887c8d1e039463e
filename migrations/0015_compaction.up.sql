-- Until when a compaction carries a live file on: publications leave it out of their folds.

ALTER TABLE data_file ADD COLUMN held_until timestamptz;
