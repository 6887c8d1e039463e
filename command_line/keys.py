"""`duckmesh keys`: the API keys of a tenant."""

from collections.abc import Sequence

import click

from catalog.tenants import ApiKey
from command_line.catalog_access import open_catalog
from command_line.invocation import Invocation
from command_line.output import as_json, print_json, print_rows
from command_line.quotas import given, quota_options
from duckmesh.errors import ErrorCode, NotFound
from duckmesh.identifiers import KeyId
from duckmesh.quotas import KEY_QUOTAS
from gateway import tenancy
from gateway.identity import Role

_tenant = click.option("--tenant", required=True, help="The tenant whose data the key reaches.")


@click.group()
def keys() -> None:
    """Create, list, rotate and revoke API keys."""


@keys.command()
@_tenant
@click.option("--name", required=True, help="Who holds the key: logs and lists show it.")
@click.option(
    "--role",
    "roles",
    multiple=True,
    required=True,
    type=click.Choice([role.value for role in Role]),
    help="What the key may do. May be repeated.",
)
@quota_options(KEY_QUOTAS, "max-")
@as_json
@click.pass_obj
def create(
    invocation: Invocation,
    /,
    tenant: str,
    name: str,
    roles: tuple[str, ...],
    *,
    as_json: bool,
    **limits: int | None,
) -> None:
    """Create a key. Its secret is shown now and never again.

    The limits hold for this key alone, beside those of its tenant.
    """
    own = given(limits)
    with open_catalog(invocation.tool_settings()) as catalog:
        key_id, secret = tenancy.create_key(catalog, tenant, name=name, roles=roles, quotas=own)
    if as_json:
        made = {"key_id": key_id, "secret": secret, "tenant": tenant, "roles": sorted(roles)}
        print_json({**made, "quotas": own.by_name()})
        return
    click.echo(f"key {key_id} of tenant {tenant}; store its secret now:", err=True)
    click.echo(secret)


@keys.command("list")
@_tenant
@as_json
@click.pass_obj
def list_(invocation: Invocation, tenant: str, as_json: bool) -> None:
    """List a tenant's keys, without their secrets."""
    with open_catalog(invocation.tool_settings()) as catalog:
        found = tenancy.list_keys(catalog, tenant)
    if as_json:
        print_json(
            [
                {
                    "key_id": key.key_id,
                    "name": key.name,
                    "roles": key.roles,
                    "created_at": key.created_at,
                    "revoked_at": key.revoked_at,
                    "last_used_at": key.last_used_at,
                    "quotas": key.quotas.by_name(),
                }
                for key in found
            ]
        )
        return
    print_rows(
        ("key id", "name", "roles", "created", "revoked", "last used"),
        [(*_shown(key), key.created_at, key.revoked_at, key.last_used_at) for key in found],
        empty=f"tenant {tenant} has no key",
    )


def _shown(key: ApiKey) -> tuple[str, str, str]:
    return key.key_id, key.name, ",".join(key.roles)


@keys.command()
@_tenant
@click.argument("key_id")
@as_json
@click.pass_obj
def rotate(invocation: Invocation, tenant: str, key_id: str, as_json: bool) -> None:
    """Replace a key by a new one of the same name and roles. The old one ends at once."""
    with open_catalog(invocation.tool_settings()) as catalog:
        new_id, secret = tenancy.rotate_key(catalog, tenant, KeyId(key_id))
    if as_json:
        print_json({"key_id": new_id, "secret": secret, "replaces": key_id})
        return
    click.echo(f"key {new_id} replaces {key_id}; store its secret now:", err=True)
    click.echo(secret)


@keys.command()
@_tenant
@click.argument("key_id")
@click.option("--dry-run", is_flag=True, help="Check that the key is live, and change nothing.")
@as_json
@click.pass_obj
def revoke(invocation: Invocation, tenant: str, key_id: str, dry_run: bool, as_json: bool) -> None:
    """End a key. Serving processes refuse it within a second."""
    with open_catalog(invocation.tool_settings()) as catalog:
        if dry_run:
            _check_live(tenancy.list_keys(catalog, tenant), key_id)
        else:
            tenancy.revoke_key(catalog, tenant, KeyId(key_id))
    if as_json:
        print_json({"key_id": key_id, "revoked": not dry_run})
        return
    click.echo(f"{'would revoke' if dry_run else 'revoked'} {key_id}")


def _check_live(found: Sequence[ApiKey], key_id: str) -> None:
    if not any(key.key_id == key_id and key.revoked_at is None for key in found):
        raise NotFound(ErrorCode.NOT_FOUND, "no live key has this id", key_id=key_id)
