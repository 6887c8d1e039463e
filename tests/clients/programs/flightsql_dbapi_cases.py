"""What flightsql-dbapi does: a DB-API of its own, and the SQLAlchemy 1.4 dialect over it."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version as version_of
from typing import Any
from uuid import uuid4

import flightsql
import flightsql.sqlalchemy  # registers the dialect
import sqlalchemy as sa


def version() -> str:
    return version_of("flightsql-dbapi")


@contextmanager
def connected(place: Any, key: str | None = None) -> Iterator[Any]:
    client = flightsql.FlightSQLClient(
        host=place.host, port=place.port, user="anyone", password=key or place.key, insecure=True
    )
    with flightsql.connect(client) as connection:
        yield connection


@contextmanager
def engine_of(place: Any) -> Iterator[Any]:
    address = f"{place.host}:{place.port}"
    # Parameters stay literals, as the dialect has it: the client drops the handle of bound rows.
    features = "feature-sqlalchemy-primary-keys=on"
    engine = sa.create_engine(
        f"datafusion+flightsql://anyone:{place.key}@{address}?insecure=True&{features}"
    )
    try:
        yield engine
    finally:
        engine.dispose()


def new_table() -> str:
    return f"t_{uuid4().hex[:12]}"


def case_query(place: Any) -> None:
    with connected(place) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT 42 AS answer, 'x' AS text")
        assert [list(row) for row in cursor.fetchall()] == [[42, "x"]]
        assert [each[0] for each in cursor.description] == ["answer", "text"]


def case_wrong_key_is_refused(place: Any) -> None:
    try:
        with connected(place, key="wrong") as connection, connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except Exception as error:  # noqa: BLE001 - whatever the client raises
        assert "UNAUTHORIZED" in str(error), error
    else:
        raise AssertionError("it was not refused")


def case_create_insert_and_read(place: Any) -> None:
    table = new_table()
    with connected(place) as connection, connection.cursor() as cursor:
        cursor.execute(f"CREATE TABLE {table} (id BIGINT, name VARCHAR)")
        cursor.execute(f"INSERT INTO {table} VALUES (1, 'a'), (2, 'b')")
        cursor.execute(f"SELECT count(*) FROM {table}")
        assert [row[0] for row in cursor.fetchall()] == [2]


def case_sqlalchemy_connect_and_select(place: Any) -> None:
    with engine_of(place) as engine, engine.connect() as connection:
        assert connection.execute(sa.text("SELECT 1 AS one")).scalar() == 1
        many = sa.text("SELECT i FROM range(10) r(i) WHERE i > :low")
        assert len(connection.execute(many.bindparams(low=7)).all()) == 2
        assert engine.dialect.identifier_preparer.initial_quote == '"'


def case_sqlalchemy_inspects(place: Any) -> None:
    table = new_table()
    with connected(place) as connection, connection.cursor() as cursor:
        cursor.execute(f"CREATE TABLE {table} (id BIGINT NOT NULL, name VARCHAR)")
    with engine_of(place) as engine:
        inspector = sa.inspect(engine)
        assert "main" in inspector.get_schema_names()
        assert table in inspector.get_table_names("main")
        columns = inspector.get_columns(table, "main")
        assert [each["name"] for each in columns] == ["id", "name"]
        assert inspector.get_pk_constraint(table, "main")["constrained_columns"] == []
