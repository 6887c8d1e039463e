"""A tenant's API keys, as those administer them who hold one."""

from collections.abc import Sequence

from catalog import quotas, tenants
from catalog.connection import Catalog
from catalog.tenants import ApiKey
from duckmesh.errors import Denied, ErrorCode, Invalid, NotFound
from duckmesh.identifiers import KeyId
from duckmesh.quotas import KEY_QUOTAS, NO_QUOTAS, VALUE_MAX, Quotas
from gateway.acts import administrative_act
from gateway.identity import Identity, Role
from gateway.tenant_quotas import check_values

_NAME_MAX_CHARS = 200


class ApiKeys:
    """Keys of the caller's own tenant. Nobody gives a role away that they do not hold. Thread-safe.

    An ops_admin may give every role.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def create(
        self,
        identity: Identity,
        *,
        name: str,
        roles: Sequence[Role],
        own_quotas: Quotas = NO_QUOTAS,
    ) -> tuple[KeyId, str]:
        """A new key's id and its secret, which cannot be shown again. Raises Denied, Invalid.

        It may take no more than its maker's key: it gets the smaller of both where that has quotas.
        """
        with administrative_act(self._catalog, identity, "create_key", name) as act:
            _check_may_administer(identity)
            _check_may_give(identity, roles)
            _check_name(name)
            check_values(own_quotas, allowed=KEY_QUOTAS)
            tenant_id = identity.tenant_id
            with self._catalog.connect() as connection, connection.transaction():
                makers = quotas.in_force(connection, tenant_id, identity.key_id).key
                given = own_quotas.narrowed(makers)
                made = tenants.create_key(
                    connection, tenant_id, name=name, roles=roles, own_quotas=given
                )
                act.target = made[0]
                act.done(connection, name=name, roles=sorted(roles), quotas=given.by_name())
            return made

    def all(self, identity: Identity) -> list[ApiKey]:
        """The tenant's keys, revoked ones too, without their secrets. Raises Denied."""
        _check_may_administer(identity)
        with self._catalog.connect() as connection:
            return tenants.list_keys(connection, identity.tenant_id)

    def rotate(self, identity: Identity, key_id: KeyId) -> tuple[KeyId, str]:
        """A new key in the place of a live one: same name, same roles; the old one ends. Atomic.

        Raises NotFound when the tenant has no live key of that id, Denied.
        """
        with administrative_act(self._catalog, identity, "rotate_key", key_id) as act:
            _check_may_administer(identity)
            with self._catalog.connect() as connection, connection.transaction():
                old = _live(tenants.list_keys(connection, identity.tenant_id), key_id)
                _check_may_give(identity, [Role(role) for role in old.roles])
                makers = quotas.in_force(connection, identity.tenant_id, identity.key_id).key
                _check_no_wider(old.quotas, makers)
                made = tenants.rotate_key(connection, identity.tenant_id, key_id)
                act.done(connection, new_key=made[0], roles=sorted(old.roles))
            return made

    def revoke(self, identity: Identity, key_id: KeyId) -> None:
        """End a key; serving processes refuse it within a second. Raises NotFound, Denied."""
        with administrative_act(self._catalog, identity, "revoke_key", key_id) as act:
            _check_may_administer(identity)
            with self._catalog.connect() as connection, connection.transaction():
                tenants.revoke_key(connection, identity.tenant_id, key_id)
                act.done(connection)


def _check_name(name: str) -> None:
    if not name.strip() or len(name) > _NAME_MAX_CHARS or "\x00" in name:
        raise Invalid(
            ErrorCode.INVALID_COMMAND, f"a key's name has 1 to {_NAME_MAX_CHARS} characters"
        )


def _live(keys: Sequence[ApiKey], key_id: KeyId) -> ApiKey:
    for key in keys:
        if key.key_id == key_id and key.revoked_at is None:
            return key
    raise NotFound(ErrorCode.NOT_FOUND, "no live key has this id", key_id=key_id)


def _check_may_administer(identity: Identity) -> None:
    if Role.OPS_ADMIN not in identity.roles:
        identity.require(Role.TABLE_ADMIN)


def _check_no_wider(given: Quotas, makers: Quotas) -> None:
    """Raise Denied when a key may take more than the key of whoever would have its secret."""
    beyond = [q.value for q, value in makers.own().items() if (given.value(q) or VALUE_MAX) > value]
    if beyond:
        raise Denied(
            ErrorCode.FORBIDDEN,
            f"the key may take more than yours ({', '.join(beyond)}): have another one rotate it",
            quotas=beyond,
        )


def _check_may_give(identity: Identity, roles: Sequence[Role]) -> None:
    beyond = sorted(set(roles) - identity.roles)
    if not roles:
        raise Invalid(ErrorCode.INVALID_COMMAND, "a key has one role at least")
    if beyond and Role.OPS_ADMIN not in identity.roles:
        raise Denied(
            ErrorCode.FORBIDDEN,
            f"a key may give no role that it lacks: {', '.join(beyond)}",
            roles=beyond,
        )
