"""What pandas does over an ADBC connection: read_sql and to_sql."""

from contextlib import suppress
from typing import Any

import pandas as pd
from adbc_cases import ask, connected, new_table

FRAME = pd.DataFrame(
    {
        "id": pd.Series([1, 2, 3], dtype="int64"),
        "real": [0.5, None, 2.5],
        "text": ["a", None, "ü"],
        "moment": pd.to_datetime(["2026-01-31T12:00:00Z", None, "2026-02-01T00:00:00Z"]),
    }
)


def version() -> str:
    return pd.__version__


def case_to_sql_and_read_sql(place: Any) -> None:
    table = new_table()
    with connected(place) as connection:
        assert FRAME.to_sql(table, connection, index=False) == 3
        got = pd.read_sql(f"SELECT * FROM {table} ORDER BY id", connection)
        assert list(got.columns) == list(FRAME.columns)
        assert got["id"].tolist() == [1, 2, 3]
        assert got["text"].isna().tolist() == [False, True, False]
        assert got["moment"].dropna().tolist() == FRAME["moment"].dropna().tolist()


def case_to_sql_fails_appends_and_replaces(place: Any) -> None:
    table = new_table()
    count = f"SELECT count(*) FROM {table}"
    with connected(place) as connection:
        FRAME.to_sql(table, connection, index=False, if_exists="fail")
        with suppress(ValueError):
            FRAME.to_sql(table, connection, index=False, if_exists="fail")
            raise AssertionError("the second was not refused")
        FRAME.to_sql(table, connection, index=False, if_exists="append")
        assert ask(connection, count) == [(6,)]
        FRAME.head(1).to_sql(table, connection, index=False, if_exists="replace")
        assert ask(connection, count) == [(1,)]


def case_read_sql_table_and_query(place: Any) -> None:
    table = new_table()
    with connected(place) as connection:
        FRAME.to_sql(table, connection, index=False)
        assert len(pd.read_sql(table, connection)) == 3
        assert len(pd.read_sql_query(f"SELECT * FROM {table} WHERE id > 1", connection)) == 2


def case_read_sql_in_arrow_types(place: Any) -> None:
    table = new_table()
    with connected(place) as connection:
        FRAME.to_sql(table, connection, index=False)
        got = pd.read_sql(f"SELECT * FROM {table}", connection, dtype_backend="pyarrow")
        assert str(got.dtypes["id"]) == "int64[pyarrow]"


def case_a_frame_in_chunks(place: Any) -> None:
    """pandas takes no `chunksize` with ADBC: the chunks are made by the caller."""
    table = new_table()
    rows = pd.DataFrame({"id": range(10_000)})
    with connected(place) as connection:
        for start in range(0, len(rows), 2_500):
            chunk = rows.iloc[start : start + 2_500]
            chunk.to_sql(table, connection, index=False, if_exists="append")
        assert ask(connection, f"SELECT count(*), sum(id) FROM {table}") == [(10_000, 49_995_000)]


def case_read_your_writes(place: Any) -> None:
    table = new_table()
    with connected(place) as connection:
        for number in range(1, 6):
            FRAME.to_sql(table, connection, index=False, if_exists="append")
            assert len(pd.read_sql(f"SELECT id FROM {table}", connection)) == 3 * number
