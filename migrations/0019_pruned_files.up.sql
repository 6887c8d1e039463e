-- What the audit adds: the files that a query left out.

ALTER TABLE query_audit ADD COLUMN pruned_files integer NOT NULL DEFAULT 0;
