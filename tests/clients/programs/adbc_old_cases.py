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

__all__ = [
    "case_bearer_token",
    "case_cancel_ends_a_query",
    "case_description_and_rowcount",
    "case_errors_are_typed_and_clean",
    "case_parameters_of_each_type",
    "case_partitions",
    "case_stream_of_a_large_result",
    "case_tls",
    "case_user_and_password",
    "case_wrong_key_is_refused",
    "version",
]
