"""`duckmesh tables`: what a tenant's newest snapshot holds; creating and dropping tables."""

from typing import Any

import click
import pyarrow as pa

from catalog import acts, snapshots
from catalog import tables as definitions
from catalog.connection import Catalog
from catalog.table_schema import TableSchema
from catalog.tables import TableAt, name_is_taken, table_not_found, tables_at
from command_line.catalog_access import open_bus, open_catalog, operator_of
from command_line.invocation import Invocation
from command_line.output import as_json, print_json, print_rows
from data_files.partitions import bound_spec, spec_texts
from duckmesh.errors import ErrorCode, Invalid
from duckmesh.identifiers import check_table_name
from duckmesh.partitions import parse_terms
from gateway.definitions import NO_VERSION
from gateway.tables import with_key
from http_shim.column_types import arrow_field, describe_columns

_tenant = click.option("--tenant", help="The tenant; the default tenant when not given.")
_partition = click.option(
    "--partition",
    "partitions",
    multiple=True,
    metavar="FIELD",
    help="How files are cut: 'day(ts)', 'bucket(16, id)' and so on. May be repeated.",
)
_NOT_NULL = " not null"


@click.group(invoke_without_command=True)
@_tenant
@as_json
@click.pass_context
def tables(context: click.Context, tenant: str | None, as_json: bool) -> None:
    """List, show, create and drop a tenant's tables. Alone it lists them."""
    if context.invoked_subcommand is None:
        _list(context.obj, tenant, as_json)


@tables.command("list")
@_tenant
@as_json
@click.pass_obj
def list_(invocation: Invocation, tenant: str | None, as_json: bool) -> None:
    """List a tenant's tables as of its newest snapshot."""
    _list(invocation, tenant, as_json)


def _list(invocation: Invocation, tenant: str | None, as_json: bool) -> None:
    settings = invocation.tool_settings()
    name = tenant or settings.auth.default_tenant
    with open_catalog(settings) as catalog:
        snapshot_id, found = _newest(catalog, name)
    if as_json:
        print_json(
            {
                "tenant": name,
                "snapshot_id": snapshot_id,
                "tables": [
                    {
                        "name": table.name,
                        "schema_version": table.schema.version,
                        "watermark": table.watermark,
                        "columns": [
                            {"name": field.name, "type": str(field.type)}
                            for field in table.schema.arrow
                        ],
                    }
                    for table in found
                ],
            }
        )
        return
    print_rows(
        ("table", "columns", "schema version", "newest token"),
        [
            (table.name, len(table.schema.arrow), table.schema.version, table.watermark)
            for table in found
        ],
        empty=f"tenant {name} has no table yet",
    )


@tables.command()
@_tenant
@click.argument("name")
@as_json
@click.pass_obj
def show(invocation: Invocation, tenant: str | None, name: str, as_json: bool) -> None:
    """Show a table's columns, its primary key and its partition spec."""
    settings = invocation.tool_settings()
    with open_catalog(settings) as catalog:
        _, found = _newest(catalog, tenant or settings.auth.default_tenant)
    table = next((each for each in found if each.name == name), None)
    if table is None:
        raise table_not_found(name[:200])
    columns = describe_columns(table.schema.arrow)
    spec = spec_texts(table.partition_spec, table.schema.arrow)
    if as_json:
        print_json(
            {
                "name": table.name,
                "schema_version": table.schema.version,
                "watermark": table.watermark,
                "primary_key": list(table.primary_key),
                "partition_spec": list(spec),
                "columns": columns,
            }
        )
        return
    print_rows(
        ("column", "type", "nullable", "primary key"),
        [
            (
                column["name"],
                _type_text(column),
                column["nullable"],
                column["name"] in table.primary_key,
            )
            for column in columns
        ],
        empty="it has no column",
    )
    if spec:
        click.echo(f"partitioned by {', '.join(spec)}")


@tables.command()
@_tenant
@click.argument("name")
@click.option(
    "--column",
    "columns",
    multiple=True,
    required=True,
    metavar="'NAME TYPE [NOT NULL]'",
    help="A column, such as 'id BIGINT NOT NULL'. May be repeated.",
)
@click.option("--primary-key", "key", multiple=True, help="A column of the key. May be repeated.")
@_partition
@as_json
@click.pass_obj
def create(
    invocation: Invocation,
    *,
    tenant: str | None,
    name: str,
    columns: tuple[str, ...],
    key: tuple[str, ...],
    partitions: tuple[str, ...],
    as_json: bool,
) -> None:
    """Create an empty table with plain columns. Nested types are for SQL: `duckmesh sql`."""
    check_table_name(name)
    schema = TableSchema.first(with_key(pa.schema([_field(text) for text in columns]), key))
    spec = bound_spec(parse_terms(partitions), schema.arrow)
    settings = invocation.tool_settings()
    with open_catalog(settings) as catalog:
        who = operator_of(catalog, tenant or settings.auth.default_tenant)
        with catalog.connect() as connection, connection.transaction():
            made = definitions.create_table(
                connection,
                who.tenant_id,
                name,
                schema,
                creation_key=None,
                created_by=who.principal,
                primary_key=key,
                partition_spec=spec,
            )
            if made is None:
                raise name_is_taken(name)
            acts.record(
                connection,
                "create_table",
                name,
                tenant_id=who.tenant_id,
                principal=who.audited_as,
            )
    if as_json:
        print_json({"name": name, "columns": describe_columns(made.schema.arrow)})
        return
    click.echo(f"created {name}")


@tables.command()
@_tenant
@click.argument("name")
@_partition
@as_json
@click.pass_obj
def partition(
    invocation: Invocation,
    tenant: str | None,
    name: str,
    partitions: tuple[str, ...],
    as_json: bool,
) -> None:
    """Cut a table's new files by these fields; by none, when none is given."""
    settings = invocation.tool_settings()
    with open_catalog(settings) as catalog:
        who = operator_of(catalog, tenant or settings.auth.default_tenant)
        with catalog.connect() as connection, connection.transaction():
            table = definitions.find_table(connection, who.tenant_id, name)
            if table is None:
                raise table_not_found(name[:200])
            spec = bound_spec(parse_terms(partitions), table.schema.arrow)
            definitions.set_partition_spec(connection, table, spec, created_by=who.principal)
            acts.record(
                connection, "alter_table", name, tenant_id=who.tenant_id, principal=who.audited_as
            )
    texts = spec_texts(spec, table.schema.arrow)
    if as_json:
        print_json({"name": name, "partition_spec": list(texts)})
        return
    click.echo(f"{name} is partitioned by {', '.join(texts) or 'nothing'}")


@tables.command()
@_tenant
@click.argument("name")
@click.option("--dry-run", is_flag=True, help="Check that the table is there; change nothing.")
@as_json
@click.pass_obj
def drop(
    invocation: Invocation, tenant: str | None, name: str, dry_run: bool, as_json: bool
) -> None:
    """End a table in a new snapshot. Older snapshots keep it until retention."""
    settings = invocation.tool_settings()
    with open_catalog(settings) as catalog:
        who = operator_of(catalog, tenant or settings.auth.default_tenant)
        bus = open_bus(catalog)
        with catalog.connect() as connection, connection.transaction():
            table = definitions.find_table(connection, who.tenant_id, name)
            if table is None:
                raise table_not_found(name[:200])
            if not dry_run:
                # Counter row first, head row second: the lock order of ingest_bus.postgres.
                bus.fence(who.tenant_id, table.table_id, below=NO_VERSION, within=connection)
                definitions.drop_table(connection, table, created_by=who.principal)
                acts.record(
                    connection,
                    "drop_table",
                    name,
                    tenant_id=who.tenant_id,
                    principal=who.audited_as,
                )
    if as_json:
        print_json({"name": name, "dropped": not dry_run})
        return
    click.echo(f"{'would drop' if dry_run else 'dropped'} {name}")


def _newest(catalog: Catalog, tenant: str) -> tuple[int, list[TableAt]]:
    who = operator_of(catalog, tenant)
    with catalog.connect() as connection:
        newest = snapshots.newest(connection, who.tenant_id)
        return newest.snapshot_id, tables_at(connection, who.tenant_id, newest.snapshot_id)


def _field(text: str) -> pa.Field:
    """A column as SQL writes it: its name, its type, and perhaps NOT NULL."""
    name, _, rest = text.strip().partition(" ")
    kind = rest.strip()
    required = kind.lower().endswith(_NOT_NULL)
    if required:
        kind = kind[: -len(_NOT_NULL)].strip()
    try:
        return arrow_field({"name": name, "type": kind.lower(), "nullable": not required})
    except (pa.ArrowException, ValueError) as error:
        raise Invalid(
            ErrorCode.SCHEMA_INCOMPATIBLE,
            f"column {text[:80]!r} is none: write its name and a type, such as 'id BIGINT'",
            column=name[:80],
        ) from error


def _type_text(column: dict[str, Any]) -> str:
    """The type for people: nested ones with their parts."""
    kind = str(column["type"])
    match kind:
        case "list":
            return f"list of {_type_text(column['element'])}"
        case "struct":
            parts = ", ".join(f"{f['name']} {_type_text(f)}" for f in column["fields"])
            return f"struct({parts})"
        case "map":
            return f"map of {_type_text(column['key'])} to {_type_text(column['value'])}"
    return kind
