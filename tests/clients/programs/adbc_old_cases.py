"""What the driver of 2025 does: no bulk ingest, and SQL writes through GetFlightInfo."""

from typing import Any

from adbc_cases import (
    LAST_TOKEN,
    ask,
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
    connected,
    version,
)
from adbc_sql_cases import (
    case_create_insert_select_drop,
    case_create_table_as,
    case_executemany_is_one_write,
    case_insert_runs_once_and_counts,
    case_insert_with_parameters,
    case_metadata_of_a_table_made_by_sql,
    case_writes_that_do_not_fit_are_refused,
    run,
    table_of,
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
    "case_user_and_password",
    "case_writes_that_do_not_fit_are_refused",
    "case_wrong_key_is_refused",
    "version",
]


def case_transactions_with_autocommit_off(place: Any) -> None:
    """The DB-API's own way: nothing is seen before commit, all of it after, none after rollback."""
    with connected(place) as outside, table_of(outside) as table:
        count = f"SELECT count(*) FROM {table}"
        with connected(place, autocommit=False) as inside:
            run(inside, f"INSERT INTO {table} VALUES (1, 'a')")
            run(inside, f"INSERT INTO {table} VALUES (2, 'b')")
            assert ask(outside, count) == [(0,)]
            inside.commit()
            assert ask(inside, count) == [(2,)]
            inside.commit()
            run(inside, f"INSERT INTO {table} VALUES (3, 'c')")
            inside.rollback()
            assert ask(inside, count) == [(2,)]
            assert inside.adbc_connection.get_option_int(LAST_TOKEN) > 0
