"""Tenants that are shut out and let in again."""

from collections.abc import Iterator

import pytest

from catalog.connection import Catalog
from duckmesh.errors import Denied, NotFound
from gateway import tenancy
from gateway.tenancy import Tenancy


@pytest.fixture
def catalog(database_dsn: str) -> Iterator[Catalog]:
    with Catalog(database_dsn) as opened:
        for name in ("acme", "zeta"):
            tenancy.ensure_tenant(opened, name, principal="test")
        yield opened


def test_a_disabled_tenant_is_refused_in_every_way_and_comes_back_whole(catalog: Catalog) -> None:
    _, secret = tenancy.create_key(catalog, "acme", name="ci", roles=["query_reader"])
    _, others = tenancy.create_key(catalog, "zeta", name="ci", roles=["query_reader"])
    before = Tenancy(catalog, open_tenant="acme")
    by_key, by_nothing = before.authenticate_api_key(secret), before.open_identity()
    assert by_nothing is not None
    for _ in range(2):
        tenancy.switch_tenant(catalog, "acme", disabled=True)
    # Another process, which knows nothing from before.
    doors = Tenancy(catalog, open_tenant="acme")
    refused = (
        lambda: doors.authenticate_api_key(secret),
        lambda: doors.check_live(by_key),
        doors.open_identity,
        lambda: doors.check_live(by_nothing),
    )
    for ask in refused:
        with pytest.raises(Denied):
            ask()
    assert doors.authenticate_api_key(others).tenant == "zeta"
    assert doors.open_identity("zeta") is not None
    tenancy.switch_tenant(catalog, "acme", disabled=False)
    after = Tenancy(catalog, open_tenant="acme")
    assert after.authenticate_api_key(secret) == by_key
    assert after.open_identity() == by_nothing


def test_a_tenant_that_does_not_exist_is_not_disabled(catalog: Catalog) -> None:
    with pytest.raises(NotFound):
        tenancy.switch_tenant(catalog, "nobody", disabled=True)
