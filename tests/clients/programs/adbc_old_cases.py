"""What the driver of 2025 does: no bulk ingest, and SQL writes through GetFlightInfo."""

from adbc_cases import (
    case_bearer_token,
    case_cancel_ends_a_query,
    case_description_and_rowcount,
    case_errors_are_typed_and_clean,
    case_parameters_of_each_type,
    case_partitions,
    case_stream_of_a_large_result,
    case_tls,
    case_user_and_password,
    case_wrong_key_is_refused,
    version,
)
from adbc_sql_cases import (
    case_create_insert_select_drop,
    case_create_table_as,
    case_executemany_is_one_write,
    case_insert_runs_once_and_counts,
    case_insert_with_parameters,
    case_metadata_of_a_table_made_by_sql,
    case_transactions_with_autocommit_off,
    case_writes_that_do_not_fit_are_refused,
)

__all__ = [
    "case_bearer_token",
    "case_cancel_ends_a_query",
    "case_create_insert_select_drop",
    "case_create_table_as",
    "case_description_and_rowcount",
    "case_errors_are_typed_and_clean",
    "case_executemany_is_one_write",
    "case_insert_runs_once_and_counts",
    "case_insert_with_parameters",
    "case_metadata_of_a_table_made_by_sql",
    "case_parameters_of_each_type",
    "case_partitions",
    "case_stream_of_a_large_result",
    "case_tls",
    "case_transactions_with_autocommit_off",
    "case_user_and_password",
    "case_writes_that_do_not_fit_are_refused",
    "case_wrong_key_is_refused",
    "version",
]
