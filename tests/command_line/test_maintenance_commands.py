"""compact, retention and integrity, on a real catalog and store."""

from pathlib import Path

from tests.command_line.conftest import document
from tests.rooms import open_rooms, rows


def test_storage_is_compacted_checked_and_given_back(
    run, database_dsn: str, tmp_path: Path
) -> None:
    def command(*arguments: str, exit_code: int = 0):
        done = run(
            *arguments,
            "--json",
            DUCKMESH_CATALOG_DSN=database_dsn,
            DUCKMESH_STORE_URL=(tmp_path / "objects").as_uri(),
            DUCKMESH_AUTH_DEFAULT_TENANT="acme",
        )
        assert done.exit_code == exit_code, done.stderr
        return document(done) if exit_code == 0 else None

    with open_rooms(database_dsn, tmp_path) as rooms:
        for number in range(3):
            rooms.write("t", rows(number))
            rooms.publish_all()
        planned = command("compact", "--table", "t", "--dry-run")
        assert [(each["state"], each["files_in"]) for each in planned] == [("planned", 3)]
        done = command("compact")
        assert [(each["state"], each["files_out"]) for each in done] == [("published", 1)]
        assert command("compact") == []
        assert command("integrity")["files_checked"] == 4
        assert command("retention", "--dry-run") == {
            "tenant": "acme",
            "dry_run": True,
            "snapshots": 0,
            "files": 0,
            "file_bytes": 0,
            "orphans": 0,
        }
        assert command("retention")["snapshots"] == 0
        (key,) = [each.key for each in rooms.store.list("acme")]
        assert rooms.query("SELECT sum(v) AS s FROM t")["s"].to_pylist() == [3]
        rooms.store.delete(key)
        command("integrity", exit_code=1)
