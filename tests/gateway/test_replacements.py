"""A replacement by other columns whose writer dies before the table is told of them.

The bus has accepted it, and its publication brings the columns. Whoever changes the table, or sends
the replacement again, must not take the columns of before for those of now.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from duckmesh.errors import Conflict, ErrorCode, Unavailable
from duckmesh.identifiers import SchemaVersion, TransactionId
from gateway.ingest_modes import IngestMode
from gateway.pending_write import PendingWrite
from gateway.writes import Writes
from tests.publisher import publishing
from tests.rooms import Rooms, open_rooms, rows

OTHER_COLUMNS = pa.table({"a": pa.array([7, 8], pa.int64()), "b": ["x", "y"]})


class Died(Exception):
    pass


@pytest.fixture
def t(rooms: Rooms) -> Rooms:
    """A table `t` with one published row."""
    rooms.write("t", rows(1))
    rooms.publish_all()
    return rooms


def begin(rooms: Rooms, key: str | None = None) -> PendingWrite:
    pending = rooms.writes.begin(
        rooms.acme, "t", OTHER_COLUMNS.schema, mode=IngestMode.REPLACE, idempotency_key=key
    )
    for batch in OTHER_COLUMNS.to_batches():
        pending.append(batch)
    return pending


def die_once_accepted(rooms: Rooms, key: str | None = None) -> None:
    """Replace the table, and die before it is told."""

    def die(*_: object) -> None:
        raise Died

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Writes, "adopt", die)
        with pytest.raises(Died):
            begin(rooms, key).commit()


def read(rooms: Rooms, columns: str = "*", table: str = "t") -> list[tuple[Any, ...]]:
    rooms.publish_all()
    found = rooms.query(f"SELECT {columns} FROM {table} ORDER BY ALL")
    return list(zip(*(column.to_pylist() for column in found.columns), strict=True))


def version(rooms: Rooms) -> SchemaVersion:
    """Of the columns that later writes are checked against."""
    return rooms.writes.table(rooms.acme, "t").schema.version


def add_column(rooms: Rooms) -> str:
    rooms.execute("ALTER TABLE t ADD COLUMN c BIGINT")
    return "t"


def rename(rooms: Rooms) -> str:
    rooms.execute("ALTER TABLE t RENAME TO u")
    return "u"


@pytest.mark.parametrize("change", [add_column, rename])
@pytest.mark.parametrize("published", [True, False], ids=["published", "not published"])
def test_a_change_beside_a_replacement_whose_writer_died_keeps_its_rows(
    t: Rooms, change: Callable[[Rooms], str], published: bool
) -> None:
    die_once_accepted(t)
    if published:
        t.publish_all()
    with publishing(t):
        name = change(t)
    assert read(t, "a, b", name) == [(7, "x"), (8, "y")]
    t.execute(f"INSERT INTO {name} (a, b) VALUES (8, 'y')")
    assert read(t, "a, b", name) == [(7, "x"), (8, "y"), (8, "y")]


def test_a_change_worked_out_before_a_replacement_was_accepted_is_refused(t: Rooms) -> None:
    table = t.writes.table(t.acme, "t")
    columns = [*table.schema.arrow, pa.field("c", pa.int64())]
    die_once_accepted(t)
    with pytest.raises(Conflict) as caught:
        t.writes.definitions.alter_table(t.acme, table, columns, primary_key=())
    assert caught.value.code is ErrorCode.SCHEMA_INCOMPATIBLE
    assert version(t) == 2, "the table is told by whoever finds out"
    assert read(t) == [(7, "x"), (8, "y")]


def test_a_publication_tells_the_table_of_the_columns_that_it_brings(t: Rooms) -> None:
    die_once_accepted(t)
    assert version(t) == 1
    t.publish_all()
    assert version(t) == 2


def test_a_repeat_tells_the_table_of_the_columns_that_were_accepted(t: Rooms) -> None:
    die_once_accepted(t, "k")
    repeated = begin(t, "k").commit()
    assert not repeated.inserted
    assert version(t) == repeated.schema_version == 2
    assert read(t) == [(7, "x"), (8, "y")]


def held(rooms: Rooms, key: str | None, *more: pa.Table) -> TransactionId:
    transaction = rooms.transactions.begin(rooms.acme, None)
    writes = [(OTHER_COLUMNS, IngestMode.REPLACE, key)]
    writes += [(table, IngestMode.APPEND, None) for table in more]
    for table, mode, of in writes:
        rooms.write("t", table, mode=mode, key=of, transaction=transaction)
    return transaction


def test_a_repeat_in_a_transaction_leaves_the_columns_that_were_accepted(t: Rooms) -> None:
    transactions = [held(t, "k"), held(t, "k")]
    for transaction in transactions:
        t.transactions.commit(t.acme, transaction)
    assert version(t) == 2, "nobody brings the columns that the repeat proposed"
    t.write("t", OTHER_COLUMNS.slice(1), mode=IngestMode.APPEND)
    assert read(t) == [(7, "x"), (8, "y"), (8, "y")]


def test_rows_of_columns_that_a_repeat_would_bring_again_are_refused(t: Rooms) -> None:
    first, second = held(t, "k"), held(t, "k", OTHER_COLUMNS.slice(1))
    t.transactions.commit(t.acme, first)
    with pytest.raises(Conflict) as caught:
        t.transactions.commit(t.acme, second)
    assert caught.value.code is ErrorCode.SCHEMA_INCOMPATIBLE
    assert version(t) == 2
    assert read(t) == [(7, "x"), (8, "y")]


def test_a_replacement_stands_and_is_answered_when_its_table_cannot_be_told(
    database_dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The catalog goes away behind the commit. What was staged is named by an accepted write."""

    def fail(*_: object) -> None:
        raise Unavailable(ErrorCode.CATALOG_UNAVAILABLE, "the connection broke")

    with open_rooms(database_dsn, tmp_path, inline_max_bytes=0) as opened:
        opened.write("t", rows(1))
        monkeypatch.setattr(Writes, "adopt", fail)
        pending = begin(opened)
        receipt = pending.commit()
        pending.abort()
        assert receipt.inserted
        assert read(opened) == [(7, "x"), (8, "y")]
