"""A check finds files that are gone or cut, in the newest snapshot and in older ones."""

import psycopg

from catalog import tenants
from coordinator.integrity import Damage, IntegrityCheck, IntegrityReport
from tests.coordinator.test_collect import overwritten
from tests.coordinator.test_compact import objects, publish_each
from tests.rooms import Rooms, rows


def check(rooms: Rooms) -> IntegrityReport:
    with rooms.catalog.connect() as connection:
        tenant = tenants.find_tenant(connection, "acme")
    return IntegrityCheck(rooms.catalog, rooms.store).check(tenant, principal="test")


def test_whole_files_pass_inline_ones_and_older_ones_too(rooms: Rooms) -> None:
    overwritten(rooms, 1, 2)
    publish_each(rooms, rows(3))
    report = check(rooms)
    assert (report.files_checked, report.missing, report.mismatched) == (3, 0, 0)
    assert report.damaged == ()


def test_a_missing_and_a_cut_file_are_told_and_leave_incidents(rooms: Rooms) -> None:
    overwritten(rooms, 1, 2)
    publish_each(rooms, rows(3))
    gone, cut = objects(rooms)
    rooms.store.delete(gone)
    rooms.store.put(cut, b"PAR1")
    with psycopg.connect(rooms.dsn, autocommit=True) as connection:
        connection.execute("UPDATE data_file_content SET content = content || 'x'")
    report = check(rooms)
    assert (report.files_checked, report.missing, report.mismatched) == (3, 1, 2)
    assert {each.damage for each in report.damaged} == {Damage.MISSING, Damage.SIZE_MISMATCH}
    with psycopg.connect(rooms.dsn) as connection:
        noted = connection.execute(
            "SELECT count(*) FROM incident_audit WHERE act = 'integrity' AND outcome = 'CORRUPT'"
        ).fetchone()
    assert noted == (3,)
