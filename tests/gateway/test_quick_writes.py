"""Small writes without blocking: the checks of all writes, by what memory knows."""

from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa
import pytest

from duckmesh.errors import Conflict, Denied, ErrorCode, Invalid
from gateway.groups import KeyedRows
from gateway.identity import Identity, Role
from gateway.quick_writes import ROWS_MAX, QuickTarget
from tests.processes import until
from tests.rooms import Rooms, rows


@contextmanager
def no_catalog(rooms: Rooms, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whoever asks the catalog in the block fails."""

    def refuse() -> None:
        raise AssertionError("the catalog was asked")

    with monkeypatch.context() as patch:
        patch.setattr(rooms.catalog, "connect", refuse)
        yield


def known(rooms: Rooms, table: str = "t") -> QuickTarget:
    """A target of the table, with all that it takes looked up before."""
    who, found = rooms.identity("acme"), []

    def look() -> bool:
        rooms.writes.check_may_write(who, table)
        rooms.writes.target(who, table)
        found.append(rooms.writes.quick.target(who, table))
        return found[-1] is not None

    # What is known is known for a moment.
    until(look)
    return found[-1]


def parts(*keyed: tuple[int, str | None]) -> list[KeyedRows]:
    return [KeyedRows(rows(number).to_batches()[0], key) for number, key in keyed]


def test_the_catalog_is_never_asked(rooms: Rooms, monkeypatch: pytest.MonkeyPatch) -> None:
    who, quick = rooms.identity("acme"), rooms.writes.quick
    rooms.write("t", rows(1))
    with no_catalog(rooms, monkeypatch):
        assert quick.target(who, "nowhere") is None

    def found() -> bool:
        known(rooms)
        with no_catalog(rooms, monkeypatch):
            return quick.target(who, "t") is not None

    until(found)


def test_each_part_is_a_write_and_all_are_accepted_together(rooms: Rooms) -> None:
    rooms.write("t", rows(1))
    who, quick, target = rooms.identity("acme"), rooms.writes.quick, known(rooms)
    first = quick.submit(who, target, parts((2, "a"), (3, "b")))
    again = quick.submit(who, target, parts((3, "b"), (4, None)))
    other = quick.submit(who, target, parts((5, None), (9, "a")))
    assert first is not None
    assert again is not None
    assert other is not None
    told = [(r.visibility_token, r.inserted) for each in (first, again) for r in each.result()]
    assert told == [(2, True), (3, True), (3, False), (4, True)]
    with pytest.raises(Conflict) as conflict:
        other.result()
    assert conflict.value.code is ErrorCode.IDEMPOTENCY_CONFLICT
    rooms.publish_all()
    assert sorted(rooms.query("SELECT * FROM t").column(0).to_pylist()) == [1, 2, 3, 4]


def test_what_a_write_is_refused_for_is_refused_here(rooms: Rooms) -> None:
    rooms.write("t", rows(1))
    target = known(rooms)
    who, quick = rooms.identity("acme"), rooms.writes.quick
    reader = Identity(who.tenant_id, who.tenant, "r", None, frozenset({Role.QUERY_READER}))
    with pytest.raises(Denied):
        quick.target(reader, "t")
    with pytest.raises(Invalid):
        quick.target(who, "")
    with pytest.raises(Invalid):
        quick.submit(who, target, parts((2, "")))
    assert rooms.bus.backlog(who.tenant_id).events == 1


def test_rows_too_large_for_the_bus_are_left_to_others(rooms: Rooms) -> None:
    text = pa.table({"word": ["x" * 3_000_000]})
    rooms.write("words", text.slice(0, 0))
    (batch,) = text.to_batches()
    target = known(rooms, "words")
    assert (
        rooms.writes.quick.submit(rooms.identity("acme"), target, [KeyedRows(batch, None)]) is None
    )


def test_rows_that_change_their_types_and_very_many_rows_are_left_to_others(rooms: Rooms) -> None:
    rooms.write("t", rows(1))
    known(rooms)
    who, quick = rooms.identity("acme"), rooms.writes.quick

    def submitted(values: pa.Array) -> bool:
        batch = pa.record_batch({"v": values})
        target = None
        while target is None:
            known(rooms)
            target = quick.target_for(who, "t", batch.schema)
        answer = quick.submit(who, target, [KeyedRows(batch, None)])
        return answer is not None and bool(answer.result())

    assert submitted(pa.array([2], pa.int64()))
    assert not submitted(pa.array([2], pa.int32()))
    assert not submitted(pa.nulls(1_000_000))
    assert not submitted(pa.nulls(ROWS_MAX + 1, pa.int64()))
