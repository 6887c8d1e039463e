"""The lists behind the statement gate: what SQL may name beside the tenant's own tables."""

from typing import Final

QUERY_NODES: Final = frozenset(
    {"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"}
)
"""Kinds of query that only read. INSERT_QUERY_NODE and its like can hide in a CTE."""

TABLE_FUNCTIONS: Final = frozenset(
    {
        "duckdb_columns",
        "duckdb_constraints",
        "duckdb_databases",
        "duckdb_functions",
        "duckdb_indexes",
        "duckdb_keywords",
        "duckdb_schemas",
        "duckdb_sequences",
        "duckdb_tables",
        "duckdb_types",
        "duckdb_views",
        "generate_series",
        "icu_calendar_names",
        "json_each",
        "json_tree",
        "pg_timezone_names",
        "pragma_version",
        "range",
        "repeat",
        "repeat_row",
        "unnest",
    }
)
"""The table functions that reach nothing outside the statement and the tenant's catalog.

Everything else is refused, known or not: readers of files (`read_*`, `*_scan`, `parquet_*`,
`glob`, `sniff_csv`), those that take a table or a statement as text (`query`, `query_table`,
`histogram`), and those that tell settings, variables, logs or paths.
"""

FORBIDDEN_FUNCTIONS: Final = frozenset(
    {
        "current_setting",
        "getenv",
        "getvariable",
        "json_deserialize_sql",
        "json_execute_serialized_sql",
        "json_serialize_plan",
        "write_log",
    }
)
"""Scalar functions that tell paths (the file lists are variables), bind text, or write."""

SHOWN: Final = frozenset({"tables", "databases", "schemas", "__show_tables_expanded"})
"""What SHOW may list. `SHOW VARIABLES` tells file lists, `SHOW SETTINGS` tells paths."""

CATALOG_SCHEMAS: Final = frozenset({"information_schema", "pg_catalog"})

CATALOG_VIEWS: Final = frozenset(
    {
        "duckdb_columns",
        "duckdb_constraints",
        "duckdb_databases",
        "duckdb_indexes",
        "duckdb_schemas",
        "duckdb_tables",
        "duckdb_types",
        "duckdb_views",
        "sqlite_master",
        "sqlite_schema",
        "sqlite_temp_master",
        "sqlite_temp_schema",
    }
)
"""Views of DuckDB's own catalog that may be named without a schema, beside `pg_*`."""

FORBIDDEN_VIEWS: Final = frozenset({"pg_settings", "pg_prepared_statements", "duckdb_logs"})

SESSION_FUNCTIONS: Final = ("last_visibility_token", "duckmesh_last_token")
"""The functions whose value the caller gives with the query; NULL when it does not."""
