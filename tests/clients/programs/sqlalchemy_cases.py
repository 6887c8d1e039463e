"""What SQLAlchemy does with the GizmoSQL dialect, and what Superset asks of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version as version_of
from typing import Any
from uuid import uuid4

import sqlalchemy as sa
from sqlalchemy import orm


def version() -> str:
    return version_of("sqlalchemy-gizmosql-adbc-dialect")


@contextmanager
def engine_of(place: Any, key: str | None = None) -> Iterator[Any]:
    url = sa.URL.create(
        "gizmosql",
        username="anyone",
        password=key or place.key,
        host=place.host,
        port=place.port,
        query={"useEncryption": "False"},
    )
    engine = sa.create_engine(url)
    try:
        yield engine
    finally:
        engine.dispose()


def case_tls(place: Any) -> None:
    url = sa.URL.create(
        "gizmosql",
        username="anyone",
        password=place.key,
        host=place.host,
        port=place.tls_port,
        query={"useEncryption": "True", "disableCertificateVerification": "True"},
    )
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        assert connection.execute(sa.text("SELECT 1")).scalar_one() == 1
    engine.dispose()


def new_table(*columns: Any) -> Any:
    return sa.Table(f"t_{uuid4().hex[:12]}", sa.MetaData(), *columns)


def people() -> Any:
    return new_table(
        sa.Column("id", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("name", sa.String),
        sa.Column("score", sa.Float),
    )


def case_connect_and_select(place: Any) -> None:
    with engine_of(place) as engine, engine.connect() as connection:
        assert connection.execute(sa.text("SELECT 1 AS one")).all() == [(1,)]
        assert connection.execute(sa.select(sa.literal(7))).scalar_one() == 7


def case_wrong_key_is_refused(place: Any) -> None:
    with engine_of(place, key="wrong") as engine:
        try:
            engine.connect()
        except Exception as error:  # noqa: BLE001 - the dialect raises what the driver does
            assert "UNAUTH" in str(error).upper(), error
        else:
            raise AssertionError("it was not refused")


def case_bound_parameters(place: Any) -> None:
    with engine_of(place) as engine, engine.connect() as connection:
        query = sa.text("SELECT i FROM range(10) r(i) WHERE i > :low AND i < :high ORDER BY i")
        assert connection.execute(query, {"low": 2, "high": 5}).all() == [(3,), (4,)]


def case_create_insert_select_drop(place: Any) -> None:
    table = people()
    with engine_of(place) as engine:
        table.create(engine)
        with engine.begin() as connection:
            connection.execute(sa.insert(table).values(id=1, name="a", score=0.5))
        with engine.connect() as connection:
            assert connection.execute(sa.select(table)).all() == [(1, "a", 0.5)]
            count = sa.select(sa.func.count()).select_from(table)
            assert connection.execute(count).scalar_one() == 1
        table.drop(engine)


def case_insert_of_many_rows(place: Any) -> None:
    table = people()
    rows = [{"id": i, "name": f"n{i}", "score": i / 2} for i in range(100)]
    with engine_of(place) as engine:
        table.create(engine)
        with engine.begin() as connection:
            connection.execute(sa.insert(table), rows)
        with engine.connect() as connection:
            query = sa.select(sa.func.count(), sa.func.sum(table.c.id))
            assert connection.execute(query).one() == (100, 4950)


def keyed_people() -> Any:
    return new_table(
        sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("name", sa.String),
        sa.Column("score", sa.Float),
    )


def case_update_and_delete(place: Any) -> None:
    table = keyed_people()
    rows = [{"id": i, "name": f"n{i}", "score": i / 2} for i in range(10)]
    with engine_of(place) as engine:
        table.create(engine)
        with engine.begin() as connection:
            connection.execute(sa.insert(table), rows)
        with engine.begin() as connection:
            better = sa.update(table).where(table.c.id < 4).values(score=table.c.score + 100)
            connection.execute(better)
        with engine.begin() as connection:
            connection.execute(sa.delete(table).where(table.c.name.in_(["n2", "n7"])))
            connection.execute(sa.delete(table).where(table.c.id == 9))
        with engine.connect() as connection:
            query = sa.select(table.c.id).where(table.c.score > 50).order_by(table.c.id)
            assert connection.execute(query).scalars().all() == [0, 1, 3]
            count = sa.select(sa.func.count()).select_from(table)
            assert connection.execute(count).scalar_one() == 7


def case_update_of_many_rows(place: Any) -> None:
    table = keyed_people()
    with engine_of(place) as engine:
        table.create(engine)
        with engine.begin() as connection:
            rows = [{"id": i, "name": "old", "score": 0.0} for i in range(50)]
            connection.execute(sa.insert(table), rows)
        with engine.begin() as connection:
            named = sa.update(table).where(table.c.id == sa.bindparam("which"))
            connection.execute(
                named.values(name=sa.bindparam("new")),
                [{"which": i, "new": f"new {i}"} for i in range(40)],
            )
        with engine.connect() as connection:
            query = sa.select(sa.func.count()).where(table.c.name == "old")
            assert connection.execute(query).scalar_one() == 10


def case_objects_are_changed_and_deleted(place: Any) -> None:
    """The ORM's unit of work: it counts the rows that its statements say they changed."""
    table = keyed_people()

    class Person:
        pass

    orm.registry().map_imperatively(Person, table)
    with engine_of(place) as engine:
        table.create(engine)
        with engine.begin() as connection:
            rows = [{"id": i, "name": "old", "score": 0.0} for i in range(4)]
            connection.execute(sa.insert(table), rows)
        with orm.Session(engine) as session:
            for person in session.scalars(sa.select(Person)):
                person.name = f"new {person.id}"
            session.commit()
            session.delete(session.get(Person, 2))
            session.commit()
            names = session.scalars(sa.select(table.c.name).order_by(table.c.id)).all()
            assert names == ["new 0", "new 1", "new 3"]


def case_rollback_leaves_nothing(place: Any) -> None:
    table = people()
    with engine_of(place) as engine:
        table.create(engine)
        with engine.connect() as connection:
            connection.execute(sa.insert(table).values(id=1, name="a", score=0.5))
            connection.rollback()
        with engine.connect() as connection:
            assert connection.execute(sa.select(table)).all() == []


def case_inspector_as_superset_asks(place: Any) -> None:
    """Superset's dataset and SQL Lab pages: schemas, tables, views, columns, keys, indexes."""
    table = people()
    with engine_of(place) as engine:
        table.create(engine)
        inspector = sa.inspect(engine)
        assert "main" in inspector.get_schema_names()
        assert table.name in inspector.get_table_names("main")
        assert table.name not in inspector.get_view_names("main")
        assert inspector.has_table(table.name, "main")
        assert not inspector.has_table("absent", "main")
        columns = inspector.get_columns(table.name, "main")
        assert [each["name"] for each in columns] == ["id", "name", "score"]
        assert [each["nullable"] for each in columns] == [False, True, True]
        assert not (inspector.get_pk_constraint(table.name, "main") or {}).get(
            "constrained_columns"
        )
        assert inspector.get_foreign_keys(table.name, "main") == []
        assert inspector.get_check_constraints(table.name, "main") in ([], None)
        assert inspector.get_indexes(table.name, "main") == []


def case_queries_as_superset_sends(place: Any) -> None:
    """A chart: the dataset's columns from a query of no rows, then a grouped, limited query."""
    with engine_of(place) as engine, engine.connect() as connection:
        virtual = (
            "SELECT i % 3 AS kind, i AS value, TIMESTAMP '2026-01-01' + to_hours(i) AS moment "
            "FROM range(100) r(i)"
        )
        cursor = connection.connection.cursor()
        cursor.execute(f"SELECT * FROM ({virtual}) AS virtual_table LIMIT 0")
        assert [each[0] for each in cursor.description] == ["kind", "value", "moment"]
        cursor.close()
        chart = (
            "SELECT date_trunc('day', moment) AS day, kind AS kind, sum(value) AS \"SUM(value)\" "
            f"FROM ({virtual}) AS virtual_table "
            "WHERE moment >= TIMESTAMP '2026-01-01' AND moment < TIMESTAMP '2026-02-01' "
            "GROUP BY date_trunc('day', moment), kind ORDER BY \"SUM(value)\" DESC LIMIT 1000"
        )
        assert len(connection.execute(sa.text(chart)).all()) == 15
