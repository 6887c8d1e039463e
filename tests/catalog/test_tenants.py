"""Tenants, API keys, and the secret that processes share."""

import pytest

from catalog import snapshots, tenants
from catalog.connection import Catalog, Connection
from catalog.tenants import Tenant
from duckmesh.errors import ErrorCode, Invalid, NotFound
from duckmesh.identifiers import KeyId
from tests.bus_worlds import together


def test_a_tenant_begins_with_an_empty_snapshot(connection: Connection, acme: Tenant) -> None:
    first = snapshots.newest(connection, acme.tenant_id)
    assert first.max_visibility_token == 0
    assert snapshots.by_id(connection, acme.tenant_id, first.snapshot_id) == first


def test_a_tenant_is_created_once(connection: Connection, acme: Tenant) -> None:
    assert tenants.ensure_tenant(connection, "acme", created_by="other") == acme
    assert tenants.find_tenant(connection, "acme") == acme
    assert tenants.list_tenants(connection) == [acme]


def test_concurrent_callers_get_the_same_tenant(catalog: Catalog) -> None:
    def ensure() -> Tenant:
        with catalog.connect() as connection:
            return tenants.ensure_tenant(connection, "acme", created_by="test")

    assert len(set(together(*[ensure] * 8))) == 1
    with catalog.connect() as connection:
        found = connection.execute("SELECT count(*) FROM snapshot").fetchone()
    assert found == (1,)


@pytest.mark.parametrize("name", ["", "Acme", "a/b", "..", "-a", "a" * 64, "a\n"])
def test_a_tenant_name_that_cannot_stand_in_a_key_is_invalid(
    connection: Connection, name: str
) -> None:
    with pytest.raises(Invalid):
        tenants.ensure_tenant(connection, name, created_by="test")


def test_an_unknown_tenant_is_not_found(connection: Connection) -> None:
    with pytest.raises(NotFound) as raised:
        tenants.find_tenant(connection, "nobody")
    assert raised.value.code is ErrorCode.TENANT_NOT_FOUND


def test_a_key_speaks_for_its_tenant_with_its_roles(connection: Connection, acme: Tenant) -> None:
    key_id, secret = tenants.create_key(
        connection, acme.tenant_id, name="ci", roles=["query_reader", "ingest_writer"]
    )
    assert tenants.key_id_of(secret) == key_id
    holder = tenants.find_holder(connection, key_id)
    assert holder is not None
    assert holder.secret_hash == tenants.hash_secret(secret)
    assert (holder.key_id, holder.key_name, holder.tenant) == (key_id, "ci", acme)
    assert holder.roles == {"query_reader", "ingest_writer"}


@pytest.mark.parametrize("secret", ["", "dm_", "dm_0_wrong", "\x00", "dm_0123456789ab_short"])
def test_what_has_not_the_form_of_a_secret_names_no_key(secret: str) -> None:
    assert tenants.key_id_of(secret) is None


def test_a_secret_is_stored_as_a_hash_alone(connection: Connection, acme: Tenant) -> None:
    _, secret = tenants.create_key(connection, acme.tenant_id, name="ci", roles=["query_reader"])
    row = connection.execute("SELECT api_key::text, secret_hash FROM api_key").fetchone()
    assert row is not None
    assert secret not in row[0]
    assert row[1] == tenants.hash_secret(secret)


def test_a_revoked_key_is_dead_at_once_and_stays_listed(
    connection: Connection, acme: Tenant
) -> None:
    key_id, _ = tenants.create_key(connection, acme.tenant_id, name="ci", roles=["query_reader"])
    tenants.revoke_key(connection, acme.tenant_id, key_id)
    assert tenants.find_holder(connection, key_id) is None
    listed = tenants.list_keys(connection, acme.tenant_id)
    assert [(key.key_id, key.revoked_at is None) for key in listed] == [(key_id, False)]
    with pytest.raises(NotFound):
        tenants.revoke_key(connection, acme.tenant_id, key_id)


def test_a_key_is_reached_only_by_its_own_tenant(connection: Connection, acme: Tenant) -> None:
    other = tenants.ensure_tenant(connection, "other", created_by="test")
    key_id, _ = tenants.create_key(connection, acme.tenant_id, name="ci", roles=["query_reader"])
    with pytest.raises(NotFound):
        tenants.revoke_key(connection, other.tenant_id, key_id)
    assert tenants.list_keys(connection, other.tenant_id) == []
    assert tenants.find_holder(connection, key_id) is not None


def test_the_keys_of_a_disabled_tenant_are_dead(connection: Connection, acme: Tenant) -> None:
    key_id, _ = tenants.create_key(connection, acme.tenant_id, name="ci", roles=["query_reader"])
    connection.execute("UPDATE tenant SET disabled_at = now()")
    assert tenants.find_holder(connection, key_id) is None
    assert tenants.find_tenant(connection, "acme").disabled


def test_an_unknown_key_is_not_live(connection: Connection) -> None:
    assert tenants.find_holder(connection, KeyId("0")) is None


def test_every_process_gets_the_same_sealing_secret(catalog: Catalog) -> None:
    def ask() -> bytes:
        with catalog.connect() as connection:
            return tenants.sealing_secret(connection, "tickets")

    secrets = set(together(*[ask] * 6))
    assert len(secrets) == 1
    with catalog.connect() as connection:
        assert tenants.sealing_secret(connection, "sessions") not in secrets
