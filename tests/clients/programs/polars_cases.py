"""What Polars does: read_database, read_database_uri, write_database."""

from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import polars as pl
from adbc_cases import ask, connected, new_table, refused
from polars.testing import assert_frame_equal

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
FRAME = pl.DataFrame(
    {
        "id": [1, 2, 3],
        "text": ["a", None, "ü"],
        "moment": pl.Series([NOON, None, NOON], dtype=pl.Datetime("us", "UTC")),
        "day": [date(2026, 1, 31), None, date(2026, 2, 1)],
        "price": pl.Series([Decimal("1.50"), None, Decimal(2)], dtype=pl.Decimal(9, 2)),
        "list": [[1, 2], None, []],
    }
)


def version() -> str:
    return pl.__version__


def case_write_database_and_read_database(place: Any) -> None:
    table = new_table()
    with connected(place) as connection:
        FRAME.write_database(table, connection, engine="adbc")
        got = pl.read_database(f"SELECT * FROM {table} ORDER BY id", connection)
        assert_frame_equal(got, FRAME)


def case_read_database_uri(place: Any) -> None:
    """Polars hands the driver the address alone, so this reads where no key is asked for."""
    table = new_table()
    with connected(place) as connection:
        FRAME.write_database(table, connection, engine="adbc")
        ask(connection, f"SELECT * FROM {table}")
    uri = f"flightsql://{place.host}:{place.open_port}?transport=tcp"
    got = pl.read_database_uri(f"SELECT * FROM {table} ORDER BY id", uri, engine="adbc")
    assert_frame_equal(got, FRAME)


def case_write_database_appends_replaces_and_fails(place: Any) -> None:
    table = new_table()
    small = FRAME.select("id", "text")
    with connected(place) as connection:
        small.write_database(table, connection, engine="adbc")
        small.write_database(table, connection, engine="adbc", if_table_exists="append")
        assert ask(connection, f"SELECT count(*) FROM {table}") == [(6,)]
        small.head(1).write_database(table, connection, engine="adbc", if_table_exists="replace")
        assert ask(connection, f"SELECT count(*) FROM {table}") == [(1,)]
        refused(
            lambda: small.write_database(table, connection, engine="adbc", if_table_exists="fail"),
            "TABLE_EXISTS",
        )


def case_read_in_batches(place: Any) -> None:
    with connected(place) as connection:
        frames = pl.read_database(
            "SELECT * FROM range(200000) r(i)", connection, iter_batches=True, batch_size=50_000
        )
        assert sum(len(frame) for frame in frames) == 200_000


def case_parameters(place: Any) -> None:
    with connected(place) as connection:
        got = pl.read_database(
            "SELECT ? AS a, ? AS b", connection, execute_options={"parameters": (1, "x")}
        )
        assert got.rows() == [(1, "x")]
