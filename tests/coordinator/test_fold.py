"""The hot tail stays short, and nothing of it is lost, doubled or changed in older snapshots."""

import pytest

from coordinator.fold import FOLD_FROM_FILES
from duckmesh.errors import Fenced
from tests.rooms import Rooms, rows


def _files(rooms: Rooms, snapshot_id: int) -> list[tuple[bool, int]]:
    sql = "SELECT inline, row_count FROM duckmesh_system.data_files WHERE table_name = 't'"
    found = rooms.query_at(sql, snapshot_id).to_pylist()
    return [(row["inline"], row["row_count"]) for row in found]


def test_many_small_publications_leave_few_files(rooms: Rooms) -> None:
    publications = 3 * FOLD_FROM_FILES
    for number in range(publications):
        rooms.write("t", rows(number))
        rooms.publish_all()
    newest = rooms.visibility.newest(rooms.acme.tenant_id)
    assert len(_files(rooms, newest.snapshot_id)) <= FOLD_FROM_FILES + 1
    found = rooms.query("SELECT v FROM t ORDER BY v")["v"].to_pylist()
    assert found == list(range(publications))


def test_a_snapshot_before_a_fold_keeps_its_files_and_rows(rooms: Rooms) -> None:
    for number in range(FOLD_FROM_FILES):
        rooms.write("t", rows(number))
        rooms.publish_all()
    before = rooms.visibility.newest(rooms.acme.tenant_id)
    assert len(_files(rooms, before.snapshot_id)) == FOLD_FROM_FILES
    rooms.write("t", rows(-1))
    rooms.publish_all()
    after = rooms.visibility.newest(rooms.acme.tenant_id)
    assert _files(rooms, after.snapshot_id) == [(True, FOLD_FROM_FILES + 1)]
    assert len(_files(rooms, before.snapshot_id)) == FOLD_FROM_FILES
    old = rooms.query_at("SELECT sum(v), count(*) AS n FROM t", before.snapshot_id)
    assert old["n"].to_pylist() == [FOLD_FROM_FILES]


def test_a_table_dropped_while_its_tail_is_folded_leaves_no_claim_behind(rooms: Rooms) -> None:
    for number in range(FOLD_FROM_FILES):
        rooms.write("t", rows(number))
        rooms.publish_all()
    rooms.write("t", rows(99))
    last = rooms.write("u", rows(1))

    def drop_before_the_commit(step: str) -> None:
        if step == "put":
            rooms.writes.definitions.drop_table(rooms.acme, "t", if_exists=True)

    materializer = rooms.materializer(step=drop_before_the_commit)
    with pytest.raises(Fenced, match="no longer live"):
        materializer.publish_next()
    assert materializer.publish_next() is not None
    found = rooms.query("SELECT v FROM u", min_token=last.visibility_token)
    assert found["v"].to_pylist() == [1]
