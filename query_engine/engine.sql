-- name: open
ATTACH ':memory:' AS duckmesh;
USE duckmesh;
DETACH memory;
SET GLOBAL TimeZone = 'UTC';
SET autoinstall_known_extensions = false;
SET autoload_known_extensions = false;
SET allow_community_extensions = false;
SET allow_persistent_secrets = false;
SET python_enable_replacements = false;
-- Data files never change under their name, so a footer once read stays true.
SET parquet_metadata_cache = true;
SET validate_external_file_cache = 'NO_VALIDATION';

-- What other engines call it: Grafana's $__dateBin writes this.
CREATE MACRO duckmesh.main.date_bin(stride, source, origin) AS time_bucket(stride, source, origin);

-- name: session_function
CREATE MACRO duckmesh.main.{function}() AS CAST(getvariable({variable}) AS BIGINT)

-- name: lock
SET max_temp_directory_size = {temp_bytes};
SET temp_directory = {temp};
SET allowed_directories = {directories};
SET enable_external_access = false;
SET lock_configuration = true;

-- name: set_variable
SET VARIABLE {variable} = ?

-- name: reset_variable
RESET VARIABLE {variable}

-- name: create_view
CREATE VIEW duckmesh.main.{view} AS
SELECT {selection}
FROM read_parquet(getvariable({variable}), hive_partitioning = false, schema = {columns})

-- name: create_plain_view
-- The files are read as they are: so DuckDB knows how many rows they have, and orders joins by it.
CREATE VIEW duckmesh.main.{view} AS
SELECT {selection}
FROM (SELECT {columns} FROM read_parquet(getvariable({variable}), hive_partitioning = false))

-- name: create_schema
CREATE SCHEMA IF NOT EXISTS duckmesh.{schema}

-- name: create_table
CREATE TABLE duckmesh.{schema}.{table} ({columns})

-- name: create_table_view
CREATE VIEW duckmesh.{schema}.{view} AS SELECT * FROM temp.main.{source}

-- name: create_empty_view
CREATE VIEW duckmesh.{schema}.{table} AS SELECT {columns}

-- name: parameter_types
SELECT json_serialize_plan(?)

-- name: as_text
SELECT typeof(v), CAST(v AS VARCHAR) FROM parameter

-- name: parse
SELECT json_serialize_sql(?)

-- name: seal_parser
SET enable_external_access = false; SET lock_configuration = true

-- name: use_utc
SET GLOBAL TimeZone = 'UTC'

-- name: deserialize
SELECT json_deserialize_sql(?)

-- name: moment
SELECT epoch_us(CAST(NULL AS TIMESTAMP WITH TIME ZONE))
