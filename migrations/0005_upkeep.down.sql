DROP TABLE incident_audit;
DROP TABLE query_audit;
DROP TABLE gc_run;
DROP TABLE compaction_run;
DROP TABLE lease;
