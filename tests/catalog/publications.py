"""Words for what the catalog's tests publish."""

from typing import Any

import psycopg
import pyarrow as pa

from catalog import snapshots, tables
from catalog.connection import Connection
from catalog.snapshots import NewFile, Publication, Snapshot
from catalog.table_schema import TableSchema
from catalog.tables import Table
from catalog.tenants import Tenant
from duckmesh.identifiers import Epoch, TableId, TenantId, new_file_id
from duckmesh.tokens import VisibilityToken

COLUMNS = pa.schema([("id", pa.int64()), ("name", pa.string())])
PATIENCE_SECONDS = 20.0


def new_table(connection: Connection, tenant: Tenant, name: str) -> Table:
    created = tables.create_table(
        connection,
        tenant.tenant_id,
        name,
        TableSchema.first(COLUMNS),
        creation_key=None,
        created_by="test",
    )
    assert created is not None
    return created


def a_file(table: Table, token: int, *, inline: bool = False, **fields: Any) -> NewFile:
    """A data file of one row with that token; its path, or its content, follows its id."""
    file_id = new_file_id()
    place = {"content": file_id.bytes} if inline else {"path": f"acme/events/part-{file_id}"}
    values: dict[str, Any] = {
        "table_id": table.table_id,
        "schema_version": table.schema.version,
        "record_count": 1,
        "file_size_bytes": 100,
        "min_token": VisibilityToken(token),
        "max_token": VisibilityToken(token),
    }
    return NewFile(file_id, **(values | place | fields))


def up_to(
    tenant_id: TenantId, watermark: int, *, after: int | None = None, epoch: int = 1, **fields: Any
) -> Publication:
    """A publication of the tokens up to `watermark`, those above `after` being new."""
    return Publication(
        tenant_id=tenant_id,
        epoch=Epoch(epoch),
        after_token=VisibilityToken(watermark - 1 if after is None else after),
        watermark=VisibilityToken(watermark),
        **({"created_by": "test"} | fields),
    )


def publish(connection: Connection, publication: Publication) -> Snapshot:
    with connection.transaction():
        return snapshots.commit_snapshot(connection, publication)


def publish_files(connection: Connection, table: Table, token: int, *files: NewFile) -> Snapshot:
    """Publish the files as the rows of one token."""
    return publish(
        connection,
        up_to(
            table.tenant_id,
            token,
            files=files,
            table_watermarks={table.table_id: VisibilityToken(token)},
        ),
    )


def everything(connection: Connection) -> dict[str, list[tuple[Any, ...]]]:
    """Every row that publications write, by table."""
    return {
        name: connection.execute(
            psycopg.sql.SQL("SELECT * FROM {} AS t ORDER BY t::text").format(
                psycopg.sql.Identifier(name)
            )
        ).fetchall()
        for name in (
            "snapshot",
            "publication_head",
            "snapshot_table_watermark",
            "data_file",
            "data_file_content",
            "snapshot_file",
            "table_def",
            "table_former_name",
            "table_schema_version",
        )
    }


def table_ids(*found: Table) -> list[TableId]:
    return [table.table_id for table in found]
