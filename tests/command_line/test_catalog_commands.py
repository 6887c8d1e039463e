"""migrate, tenants, keys, tables and lag, on a real catalog."""

import os
import re
import signal
import subprocess
import sys

import pytest

from catalog.connection import Catalog
from catalog.migrate import known_migrations
from duckmesh.errors import Denied
from gateway.tenancy import Tenancy
from tests.command_line.conftest import Process, document

NEWEST = len(known_migrations())


def test_migrate_up_status_and_down(run, empty_database_dsn: str) -> None:
    def migrate(*arguments: str):
        return run("migrate", *arguments, DUCKMESH_CATALOG_DSN=empty_database_dsn)

    before = document(migrate("status", "--json"))
    assert [each["applied_at"] for each in before] == [None] * NEWEST
    assert "pending" in migrate("status").stdout
    assert len(document(migrate("up", "--json"))) == NEWEST
    assert migrate("up").stdout == "the catalog is up to date\n"
    assert all(each["applied_at"] for each in document(migrate("status", "--json")))

    planned = document(migrate("down", "--to", "2", "--dry-run", "--json"))
    assert planned == {"undone": list(range(NEWEST, 2, -1)), "dry_run": True}
    assert all(each["applied_at"] for each in document(migrate("status", "--json")))
    refused = migrate("down", "--to", "2")
    assert refused.exit_code == 1
    assert "Aborted" in refused.stderr
    assert document(migrate("down", "--to", "2", "--yes", "--json"))["undone"] == planned["undone"]
    after = document(migrate("status", "--json"))
    assert [bool(each["applied_at"]) for each in after] == [True] * 2 + [False] * (NEWEST - 2)


@pytest.mark.parametrize("command", ["serve", "coordinate"])
def test_a_process_refuses_pending_migrations_and_names_the_command(
    command: str, empty_database_dsn: str, tmp_path
) -> None:
    environment = {
        "DUCKMESH_CATALOG_DSN": empty_database_dsn,
        "DUCKMESH_STORE_URL": (tmp_path / "objects").as_uri(),
        "DUCKMESH_FLIGHT_PORT": "0",
    }
    with Process(command, environment=environment) as process:
        assert process.wait() == 6
        assert process.rest() == []
    assert "error NOT_READY: the catalog lacks" in process.errors
    assert "run `duckmesh migrate up`" in process.errors


def test_a_key_is_shown_once_lets_in_and_is_refused_once_revoked(
    on_catalog, database_dsn: str
) -> None:
    assert on_catalog("tenants", "create", "acme").exit_code == 0
    made = on_catalog(
        *("keys", "create", "--tenant", "acme", "--name", "loader"),
        *("--role", "ingest_writer", "--role", "query_reader"),
    )
    secret = made.stdout.strip()
    assert re.fullmatch(r"dm_[0-9a-f]{12}_\S{40,}", secret)
    (listed,) = document(on_catalog("keys", "list", "--tenant", "acme", "--json"))
    assert (listed["name"], listed["roles"]) == ("loader", ["ingest_writer", "query_reader"])
    assert secret not in on_catalog("keys", "list", "--tenant", "acme").stdout

    key = ("--tenant", "acme", listed["key_id"])
    with Catalog(database_dsn) as catalog:
        assert Tenancy(catalog).authenticate_api_key(secret).principal == "loader"
        assert on_catalog("keys", "revoke", "--dry-run", *key).exit_code == 0
        assert Tenancy(catalog).authenticate_api_key(secret).tenant == "acme"
        assert on_catalog("keys", "revoke", *key).exit_code == 0
        with pytest.raises(Denied):
            Tenancy(catalog).authenticate_api_key(secret)
    for again in (("--dry-run",), ()):
        result = on_catalog("keys", "revoke", *again, *key)
        assert (result.exit_code, result.stderr) == (
            3,
            "error NOT_FOUND: no live key has this id\n",
        )
    assert document(on_catalog("keys", "list", "--tenant", "acme", "--json"))[0]["revoked_at"]


def test_a_key_as_json_and_a_key_of_nobody(on_catalog) -> None:
    role = ("--role", "ops_admin", "--name", "n")
    missing = on_catalog("keys", "create", "--tenant", "nobody", *role)
    assert missing.exit_code == 3
    assert missing.stderr.startswith("error TENANT_NOT_FOUND: ")
    on_catalog("tenants", "create", "acme")
    made = document(on_catalog("keys", "create", "--tenant", "acme", *role, "--json"))
    assert made["secret"].startswith(f"dm_{made['key_id']}_")


def test_tenants_are_created_once_and_listed(on_catalog) -> None:
    assert "no tenant yet" in on_catalog("tenants", "list").stdout
    first = document(on_catalog("tenants", "create", "acme", "--json"))
    assert document(on_catalog("tenants", "create", "acme", "--json")) == first
    assert [each["name"] for each in document(on_catalog("tenants", "list", "--json"))] == ["acme"]
    assert on_catalog("tenants", "create", "No Spaces").exit_code == 2


def test_a_new_tenant_has_no_table_and_no_lag(on_catalog) -> None:
    on_catalog("tenants", "create", "acme")
    assert on_catalog("tables", "--tenant", "acme").stdout == "tenant acme has no table yet\n"
    assert document(on_catalog("tables", "--tenant", "acme", "--json"))["tables"] == []
    (lag,) = document(on_catalog("lag", "--json"))
    assert lag == {
        "tenant": "acme",
        "last_token": 0,
        "watermark": 0,
        "pending_writes": 0,
        "pending_bytes": 0,
        "oldest_pending_seconds": None,
    }
    assert on_catalog("lag", "--tenant", "nobody").exit_code == 3
    assert on_catalog("tables", "--tenant", "nobody").exit_code == 3


def test_snapshots_are_listed_and_shown(on_catalog) -> None:
    on_catalog("tenants", "create", "acme")
    of_acme = ("--tenant", "acme")
    (only,) = document(on_catalog("snapshots", "list", *of_acme, "--json"))
    assert only["watermark"] == 0
    number = str(only["snapshot_id"])
    assert number in on_catalog("snapshots", "list", *of_acme).stdout
    shown = document(on_catalog("snapshots", "show", number, *of_acme, "--json"))
    assert shown == {**only, "tables": []}
    assert "it has no table" in on_catalog("snapshots", "show", number, *of_acme).stdout
    gone = on_catalog("snapshots", "show", "999", *of_acme)
    assert gone.exit_code == 3
    assert gone.stderr.startswith("error SNAPSHOT_NOT_FOUND: the tenant has no snapshot 999: ")


def test_lag_is_watched_until_it_is_stopped(on_catalog, database_dsn: str) -> None:
    on_catalog("tenants", "create", "acme")
    environment = {"DUCKMESH_CATALOG_DSN": database_dsn}
    with Process("lag", "--watch", "0.1", environment=environment) as process:
        for _ in range(3):
            process.line("acme")
        process.signal(signal.SIGINT)
        assert process.wait() == 0


@pytest.mark.parametrize(
    ("shell", "holds"), [("bash", "complete -o"), ("zsh", "#compdef"), ("fish", "complete --no-")]
)
def test_each_shell_gets_its_completion(run, shell: str, holds: str) -> None:
    result = run("completion", shell)
    assert result.exit_code == 0, result.output
    assert holds in result.stdout


def test_commands_complete_in_a_shell() -> None:
    environment = {"COMP_WORDS": "duckmesh sna", "COMP_CWORD": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "command_line.main"],
        env={**os.environ, **environment, "_DUCKMESH_COMPLETE": "bash_complete"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "plain,snapshots\n"
