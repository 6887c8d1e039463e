"""`/v1/tables`: create, describe and drop tables."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final, Literal

import pyarrow as pa
from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from duckmesh.errors import ErrorCode, Invalid, NotSupported
from gateway.identity import Identity
from gateway.reads import DescribedTable
from gateway.tables import ColumnChange
from http_shim.answers import json_response
from http_shim.bodies import read_json
from http_shim.calls import call_of
from http_shim.column_types import NESTING_MAX, arrow_field, describe_columns
from http_shim.json_requests import StrictModel, parse
from http_shim.rooms import Door, door_of

router = APIRouter(tags=["tables"])
_BODY_MAX_BYTES: Final = 4 * 2**20


class ColumnType(StrictModel):
    """A type: a plain one by its name, a nested one by its parts."""

    type: str = Field(
        description="`bigint`, `varchar`, `decimal(18,2)`, `timestamptz` and so on; `list`, "
        "`struct`, `map`."
    )
    nullable: bool = True
    element: "ColumnType | None" = Field(default=None, description="Of a list.")
    fields: "list[Column] | None" = Field(default=None, description="Of a struct.")
    key: "ColumnType | None" = Field(default=None, description="Of a map.")
    value: "ColumnType | None" = Field(default=None, description="Of a map.")


class Column(ColumnType):
    """A column, or a field of a struct."""

    name: str


class CreateTableRequest(StrictModel):
    """A new table."""

    codes: ClassVar[Mapping[str, ErrorCode]] = {
        "name": ErrorCode.TABLE_REQUIRED,
        "schema": ErrorCode.SCHEMA_REQUIRED,
        "columns": ErrorCode.SCHEMA_REQUIRED,
    }

    name: str
    columns: Annotated[list[Column], Field(min_length=1, alias="schema")]
    primary_key_cols: list[str] = Field(
        default=[], description="Columns that become NOT NULL and name a row."
    )
    partition_spec: list[str] = Field(
        default=[],
        description="How files are cut: `day(ts)`, `bucket(16, id)`, `truncate(4, name)` and so "
        "on, at most four.",
    )
    compatibility_mode: Literal["none", "backward", "forward", "full"] = Field(
        default="backward", description="`backward` until tables change their columns by HTTP."
    )


class RenameColumn(StrictModel):
    """A column's new name."""

    column: str
    to: str


class WidenColumn(ColumnType):
    """A column's wider type, which holds every value of its old one."""

    column: str


class ChangeTableRequest(StrictModel):
    """One change of one column, or of how files are cut: exactly one of these fields."""

    add: Column | None = None
    rename: RenameColumn | None = None
    drop: str | None = None
    widen: WidenColumn | None = None
    allow_null: str | None = None
    partition_spec: list[str] | None = Field(
        default=None, description="How new files are cut from now on; empty: not at all."
    )

    def change(self) -> ColumnChange:
        """The change. Raises Invalid when there is none, or more than one."""
        if len(self.model_fields_set) != 1:
            raise Invalid(
                ErrorCode.SCHEMA_REQUIRED,
                "a request makes one change: add, rename, drop, widen, allow_null or "
                "partition_spec",
            )
        if self.add is not None:
            return ColumnChange.add(_field(self.add))
        if self.rename is not None:
            return ColumnChange.rename(self.rename.column, self.rename.to)
        if self.drop is not None:
            return ColumnChange.drop(self.drop)
        if self.widen is not None:
            described = {**self.widen.model_dump(exclude_none=True), "name": self.widen.column}
            return ColumnChange.widen(self.widen.column, _arrow_field(described).type)
        if self.allow_null is not None:
            return ColumnChange.allow_null(self.allow_null)
        raise Invalid(ErrorCode.SCHEMA_REQUIRED, "the change is null: say what to change")


@router.post("/v1/tables", summary="Create a table", status_code=201)
async def create_table(request: Request) -> Response:
    """Create an empty table; every query sees it when this answers."""
    call, door = call_of(request), door_of(request)
    idle_seconds = door.limits.idle.total_seconds()
    body = await read_json(request, limit=_BODY_MAX_BYTES, idle_seconds=idle_seconds)
    return await call.run(lambda who: _create(door, who, body))


@router.get("/v1/tables", summary="List the tables")
async def list_tables(request: Request) -> Response:
    """The tables of the newest snapshot, by name."""
    call, door = call_of(request), door_of(request)
    found = await call.run(door.rooms.tables.all)
    return json_response({"tables": [_described(table) for table in found]})


@router.get("/v1/tables/{table}", summary="Describe a table")
async def describe_table(request: Request, table: str) -> Response:
    """A table's columns, and the token of its newest visible write."""
    call, door = call_of(request), door_of(request)
    found = await call.run(lambda who: door.rooms.tables.named(who, table))
    return json_response(_described(found))


@router.patch("/v1/tables/{table}", summary="Change a column, or how files are cut")
async def change_table(request: Request, table: str) -> Response:
    """Add, rename, drop or widen one column, or let it be null. Old rows are read right after.

    A partition spec is for the files to come; those that are there stay as they are.
    """
    call, door = call_of(request), door_of(request)
    idle_seconds = door.limits.idle.total_seconds()
    body = await read_json(request, limit=_BODY_MAX_BYTES, idle_seconds=idle_seconds)
    return await call.run(lambda who: _change(door, who, table, body))


@router.delete("/v1/tables/{table}", summary="Drop a table")
async def drop_table(request: Request, table: str) -> Response:
    """End a table in a new snapshot; older snapshots keep its rows until retention."""
    call, door = call_of(request), door_of(request)
    await call.run(lambda who: door.rooms.tables.drop(who, table))
    return json_response({"table": table, "dropped": True})


def _create(door: Door, who: Identity, body: bytes) -> Response:
    asked = parse(CreateTableRequest, body)
    if asked.compatibility_mode != "backward":
        raise NotSupported(
            ErrorCode.NOT_IMPLEMENTED_YET,
            "compatibility modes are not here yet: leave compatibility_mode out",
            feature="compatibility_mode",
        )
    columns = pa.schema([_field(column) for column in asked.columns])
    made = door.rooms.tables.create(
        who,
        asked.name,
        columns,
        primary_key=asked.primary_key_cols,
        partition_spec=asked.partition_spec,
    )
    return json_response(_described(made), status=201)


def _change(door: Door, who: Identity, table: str, body: bytes) -> Response:
    asked = parse(ChangeTableRequest, body)
    if asked.partition_spec is not None and len(asked.model_fields_set) == 1:
        changed = door.rooms.tables.partition(who, table, asked.partition_spec)
    else:
        changed = door.rooms.tables.change(who, table, asked.change())
    return json_response(_described(changed))


def _field(column: Column) -> pa.Field:
    return _arrow_field(column.model_dump(exclude_none=True))


def _arrow_field(described: dict[str, Any]) -> pa.Field:
    try:
        return arrow_field(described)
    except (pa.ArrowException, ValueError, RecursionError) as error:
        name = str(described["name"])[:80]
        raise Invalid(
            ErrorCode.SCHEMA_INCOMPATIBLE,
            f"column {name!r} has no type that a table can hold (at most {NESTING_MAX} levels)",
            column=name,
        ) from error


def _described(table: DescribedTable) -> dict[str, Any]:
    return {
        "name": table.name,
        "kind": "view" if table.is_view else "table",
        "schema": describe_columns(table.schema),
        "primary_key_cols": list(table.primary_key),
        "partition_spec": list(table.partition_spec),
        "max_visibility_token": table.watermark,
    }
