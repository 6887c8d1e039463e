-- name: parse
SELECT json_serialize_sql(?)

-- name: unparse
SELECT json_deserialize_sql(?)

-- name: insert_as_cte
WITH written AS (
{insert}
) SELECT 1

-- name: change_as_cte
WITH changed AS (
{change}
) SELECT 1

-- name: matching
SELECT NULL FROM target, source WHERE true

-- name: matching_bound
SELECT NULL FROM target, {bound}

-- name: bound_rows
(SELECT {columns}) AS {name}

-- name: unnested
unnest(${place}) AS {name}

-- name: numbered
unnest(range(len($1))) AS {name}

-- name: distinct
SELECT DISTINCT {columns} FROM (
{source}
) AS matched({aliases})

-- name: least_of_each
SELECT DISTINCT ON ({key}) {columns} FROM (
{source}
) AS matched({aliases}) ORDER BY ALL

-- name: select_source
SELECT {columns} FROM (
{source}
) AS source({aliases})

-- name: select_cells
SELECT {columns} FROM {source}

-- name: select
SELECT {columns}

-- name: cast
CAST({value} AS {type})

-- name: named
{value} AS {name}

-- name: fails
{value} IS NOT NULL AND TRY_CAST({value} AS {type}) IS NULL

-- name: any_fails
coalesce(bool_or({value} IS NOT NULL AND TRY_CAST({value} AS {type}) IS NULL), false)

-- name: any_true
coalesce(bool_or({value}), false)

-- name: tables_made
SELECT database_name, schema_name, table_name FROM duckdb_tables()

-- name: columns_of
SELECT column_name, data_type, column_default, is_nullable, comment
FROM duckdb_columns() WHERE table_name = ? ORDER BY column_index

-- name: constraints_of
SELECT constraint_type, constraint_column_names
FROM duckdb_constraints() WHERE table_name = ?

-- name: sketch_table
CREATE TABLE {table} ({columns})

-- name: sketch_column
{name} {type}{nulls}

-- name: note_field_id
COMMENT ON COLUMN {table}.{column} IS {field_id}

-- name: all_of
FROM {table}
