"""tenants quota, the limits of keys, and what tenants list says, on a real catalog."""

from catalog.connection import Catalog
from duckmesh.quotas import KEY_QUOTAS, Quota
from gateway.tenancy import Tenancy
from tests.command_line.conftest import document


def limits(result) -> dict[str, tuple[int | None, bool]]:
    return {each["quota"]: (each["limit"], each["own"]) for each in document(result)}


def test_quotas_are_shown_set_and_reset(on_catalog) -> None:
    on_catalog("tenants", "create", "acme")
    before = limits(on_catalog("tenants", "quota", "show", "acme", "--json"))
    assert list(before) == [quota.value for quota in Quota]
    assert before["pending_events"] == (100_000, False)
    assert before["ingest_rows_per_second"] == (None, False)

    settings = [
        f"--{quota.value.replace('_', '-')}={70_000_000 + n}" for n, quota in enumerate(Quota)
    ]
    changed = limits(on_catalog("tenants", "quota", "set", "acme", *settings, "--json"))
    assert list(changed.values()) == [(70_000_000 + n, True) for n in range(len(Quota))]
    shown = on_catalog("tenants", "quota", "show", "acme").stdout
    assert "storage_bytes" in shown
    assert "70,000,004" in shown

    one = on_catalog("tenants", "quota", "reset", "acme", "--quota", "pending_events", "--json")
    assert limits(one)["pending_events"] == (100_000, False)
    assert limits(one)["tables"][1]
    assert limits(on_catalog("tenants", "quota", "reset", "acme", "--json")) == before


def test_wrong_values_and_unknown_tenants_are_refused(on_catalog) -> None:
    on_catalog("tenants", "create", "acme")
    assert on_catalog("tenants", "quota", "set", "acme").exit_code == 2
    low = on_catalog("tenants", "quota", "set", "acme", "--query-memory-bytes", "5")
    assert low.exit_code == 2
    assert "67108864" in low.stderr
    for words in (("show",), ("set", "--tables", "5"), ("reset",)):
        unknown = on_catalog("tenants", "quota", words[0], "nobody", *words[1:])
        assert unknown.exit_code != 0
        assert "TENANT_NOT_FOUND" in unknown.stderr


def test_a_key_is_made_with_limits_of_its_own(on_catalog, database_dsn: str) -> None:
    on_catalog("tenants", "create", "acme")
    options = [f"--max-{quota.value.replace('_', '-')}=90000000" for quota in KEY_QUOTAS]
    named = ("--tenant", "acme", "--name", "n", "--role", "query_reader")
    made = document(on_catalog("keys", "create", *named, *options, "--json"))
    assert made["quotas"] == {quota.value: 90_000_000 for quota in KEY_QUOTAS}
    (listed,) = document(on_catalog("keys", "list", "--tenant", "acme", "--json"))
    assert listed["quotas"] == made["quotas"]
    with Catalog(database_dsn) as catalog:
        assert Tenancy(catalog).authenticate_api_key(made["secret"]).key_id == made["key_id"]


def test_tenants_are_listed_with_what_they_hold(on_catalog) -> None:
    on_catalog("tenants", "create", "acme")
    (listed,) = document(on_catalog("tenants", "list", "--json"))
    assert (listed["tables"], listed["storage_bytes"]) == (0, 0)
    assert "storage bytes" in on_catalog("tenants", "list").stdout
