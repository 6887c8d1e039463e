"""The demo's questions, asked through pandas and Polars."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

QUESTIONS: Final = (
    (
        "pandas",
        "Which airlines arrive late?",
        """
        SELECT a.name AS airline, count(*) AS flights,
               round(avg(f.arr_delay), 1) AS mean_delay_minutes,
               round(100.0 * avg((f.arr_delay > 15)::INTEGER), 1) AS late_percent
        FROM flights f JOIN airlines a ON a.carrier = f.carrier
        WHERE f.arr_delay IS NOT NULL
        GROUP BY a.name HAVING count(*) > 5000
        ORDER BY late_percent DESC, airline LIMIT 6
        """,
    ),
    (
        "Polars",
        "What does poor visibility do to departures?",
        """
        SELECT CASE WHEN w.visib < 1 THEN 'below 1 mile' WHEN w.visib < 5 THEN '1 to 5 miles'
                    WHEN w.visib < 10 THEN '5 to 10 miles' ELSE '10 miles' END AS visibility,
               count(*) AS flights,
               round(avg(f.dep_delay), 1) AS mean_delay_minutes,
               round(100.0 * avg((f.dep_time IS NULL)::INTEGER), 1) AS cancelled_percent
        FROM flights f JOIN weather w ON w.origin = f.origin AND w.time_hour = f.time_hour
        GROUP BY visibility ORDER BY mean_delay_minutes DESC
        """,
    ),
    (
        "pandas",
        "Who built the planes, and how old are they?",
        """
        SELECT p.manufacturer, count(DISTINCT p.tailnum) AS planes, count(*) AS flights,
               round(avg(2013 - p.year), 1) AS mean_age_years, max(p.seats) AS most_seats
        FROM flights f JOIN planes p ON p.tailnum = f.tailnum
        GROUP BY p.manufacturer ORDER BY flights DESC, p.manufacturer LIMIT 5
        """,
    ),
    (
        "Polars",
        "Where do long flights make up lost time?",
        """
        SELECT d.name AS destination, a.name AS airline, count(*) AS flights,
               round(avg(f.dep_delay - f.arr_delay), 1) AS minutes_made_up
        FROM flights f JOIN airports d ON d.faa = f.dest JOIN airlines a ON a.carrier = f.carrier
        WHERE f.distance > 2000 AND f.arr_delay IS NOT NULL
        GROUP BY d.name, a.name HAVING count(*) > 500
        ORDER BY minutes_made_up DESC, destination LIMIT 5
        """,
    ),
)


@dataclass(frozen=True, slots=True)
class Answered:
    """A question with its answer, printed."""

    question: str
    library: str
    rows: int
    text: str


def ask_all(connection: Any) -> Iterator[Answered]:
    """Ask each question over the ADBC connection, with the library that it is for."""
    ask: dict[str, Callable[[str, Any], tuple[int, str]]] = {
        "pandas": _with_pandas,
        "Polars": _with_polars,
    }
    for library, question, sql in QUESTIONS:
        rows, text = ask[library](sql, connection)
        yield Answered(question, library, rows, text)


def _with_pandas(sql: str, connection: Any) -> tuple[int, str]:
    import pandas as pd  # type: ignore[import-untyped]

    frame = pd.read_sql(sql, connection)
    return len(frame), frame.to_string(index=False)


def _with_polars(sql: str, connection: Any) -> tuple[int, str]:
    import polars as pl

    frame = pl.read_database(sql, connection)
    with pl.Config(
        tbl_formatting="NOTHING",
        tbl_hide_dataframe_shape=True,
        tbl_hide_column_data_types=True,
        fmt_str_lengths=40,
        tbl_width_chars=100,
    ):
        return frame.height, str(frame)
