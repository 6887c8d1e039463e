DROP TABLE table_schema_version;
DROP TABLE table_def;
