"""`duckmesh ingest`: files of rows into a table, each file one write."""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from glob import glob, has_magic
from pathlib import Path
from typing import Any, Final

import click
import pyarrow as pa

from command_line.flight_client import CallOptions, FlightClient, connect
from command_line.ingest_progress import Progress, progress
from command_line.invocation import Invocation
from command_line.output import as_json, print_json
from command_line.row_files import STDIN, FileFormat, OpenFile, RowFile, open_rows, row_file
from command_line.server_address import Server, find_server, server_options
from duckmesh.errors import (
    Denied,
    DuckMeshError,
    ErrorCode,
    Invalid,
    NotFound,
    NotYetVisible,
)
from duckmesh.identifiers import check_idempotency_key

MODES: Final = ("append", "create", "create_append", "replace")
_ASK_MS: Final = 10_000


@dataclass(frozen=True, slots=True)
class Ingested:
    """One accepted file."""

    file: str
    rows: int
    token: int
    duplicate: bool | None
    """None when the key may not read the receipts that would tell."""
    visible_snapshot: int | None
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the flags ask for."""

    table: str
    mode: str
    key: str | None
    wait: bool
    timeout_seconds: float


@click.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@click.option("-t", "--table", required=True, help="The table that the rows go to.")
@click.option(
    "--mode",
    type=click.Choice(MODES),
    default="append",
    show_default=True,
    help="Whether the table must be there, is made, or gets these rows alone.",
)
@click.option(
    "--format",
    "kind",
    type=click.Choice([each.value for each in FileFormat]),
    help="The files' format; by their suffix when not given.",
)
@click.option(
    "--idempotency-key",
    help="Names the write, so that a repeat writes nothing. With several files, KEY/FILENAME each.",
)
@click.option("--wait", is_flag=True, help="End when the rows are visible.")
@click.option(
    "--timeout",
    "timeout_seconds",
    metavar="SECONDS",
    type=click.FloatRange(min=0.001),
    default=60.0,
    show_default=True,
    help="How long --wait waits.",
)
@as_json
@server_options
@click.pass_obj
def ingest(
    invocation: Invocation,
    /,
    *,
    files: tuple[str, ...],
    table: str,
    mode: str,
    kind: str | None,
    idempotency_key: str | None,
    wait: bool,
    timeout_seconds: float,
    as_json: bool,
    **server: Any,
) -> None:
    """Write CSV, NDJSON, Parquet or Arrow files to a table. `-` is standard input.

    Each file is one write: all its rows are accepted, or none. Files go one after the other, and
    the first that fails ends the command; those before it stand. With --mode create or replace
    the first file does that, and the others append. A pattern such as 'day-*.csv' may be quoted.
    CSV and NDJSON take the types of the table's columns; for a new table they are read off the
    first 4 MiB.
    """
    plan = Plan(
        table=table, mode=mode, key=idempotency_key, wait=wait, timeout_seconds=timeout_seconds
    )
    chosen = _files(files, None if kind is None else FileFormat(kind))
    found = find_server(invocation, **server)
    _run(found, chosen, plan, as_json=as_json)


def _run(server: Server, files: list[RowFile], plan: Plan, *, as_json: bool) -> None:
    began = time.monotonic()
    done: list[Ingested] = []
    try:
        with progress(len(files)) as shown:
            for number, file in enumerate(files):
                done.append(_ingest(server, file, _plan_for(plan, files, number), shown))
                if not as_json:
                    click.echo(_line(done[-1]), err=True)
    except DuckMeshError:
        if done:
            last = done[-1].file
            click.echo(f"{len(done)} of {len(files)} files were accepted, up to {last}", err=True)
        raise
    if as_json:
        print_json(_summary(done, time.monotonic() - began))


def _files(arguments: tuple[str, ...], kind: FileFormat | None) -> list[RowFile]:
    found: list[RowFile] = []
    for argument in arguments:
        names = [argument]
        if argument != STDIN and has_magic(argument) and not Path(argument).exists():
            # The shell has expanded what it could: this one was quoted.
            names = sorted(glob(argument, recursive=True))  # noqa: PTH207 - as the shell does
            if not names:
                raise NotFound(ErrorCode.NOT_FOUND, f"no file matches {argument!r}")
        found += [row_file(name, kind) for name in names]
    return found


def _plan_for(plan: Plan, files: list[RowFile], number: int) -> Plan:
    """What one file of several is written with."""
    if len(files) == 1:
        return plan
    mode = plan.mode
    if number:
        mode = "append" if mode in ("create", "replace") else mode
    if plan.key is None:
        return replace(plan, mode=mode)
    names = [file.name for file in files]
    if names.count(files[number].name) > 1:
        raise Invalid(
            ErrorCode.IDEMPOTENCY_KEY_REQUIRED,
            f"two files are named {files[number].name!r}, and a file's key is KEY/FILENAME: "
            "ingest them with two commands",
        )
    return replace(plan, mode=mode, key=f"{plan.key}/{files[number].name}")


def _ingest(server: Server, file: RowFile, plan: Plan, shown: Progress) -> Ingested:
    began = time.monotonic()
    if plan.key is not None:
        check_idempotency_key(plan.key)
    # A session of its own: its last token is then this write's, also when that was written before.
    with connect(server) as client:
        table = client.table_schema(plan.table) if plan.mode != "create" else None
        known = None if plan.key is None else _newest_token(client)
        with open_rows(file, None if plan.mode == "replace" else table) as opened:
            counted = _Counted(opened, shown)
            with shown.file(file.name, opened.size_bytes):
                rows = _write(client, plan, counted)
        token = client.last_token
        snapshot = _await_visible(client, plan, token) if plan.wait else None
    duplicate = False if plan.key is None else None if known is None else token <= known
    return Ingested(file.name, rows, token, duplicate, snapshot, round(time.monotonic() - began, 3))


def _write(client: FlightClient, plan: Plan, counted: "_Counted") -> int:
    options = CallOptions(idempotency_key=plan.key)
    reader = pa.RecordBatchReader.from_batches(counted.schema, counted.batches())
    try:
        return client.ingest(plan.table, reader, mode=plan.mode, options=options)
    except DuckMeshError as error:
        # What the driver says of a reader that raised is our own error, in its words.
        raise counted.failure or error from error


class _Counted:
    """A file's batches as they are sent: counted, and with the failure that ended them."""

    def __init__(self, opened: OpenFile, shown: Progress) -> None:
        self.schema = opened.schema
        self.failure: Exception | None = None
        self._opened = opened
        self._shown = shown

    def batches(self) -> Iterator[pa.RecordBatch]:
        try:
            sent = False
            for batch in self._opened.batches:
                sent = True
                yield batch
                self._shown.advance(batch.num_rows, self._opened.position())
            if not sent:
                # The driver sends nothing at all for no batch, and the server then sees no write.
                yield pa.RecordBatch.from_pylist([], self.schema)
        except Exception as error:
            self.failure = error
            raise


def _newest_token(client: FlightClient) -> int | None:
    """The newest token that any write of the tenant has; None when this key may not read.

    A write of ours that has one no larger was accepted before: it is a duplicate.
    """
    try:
        found = client.rows(
            "SELECT max(visibility_token) AS newest FROM duckmesh_system.receipts",
            options=CallOptions(consistency="latest"),
        )
    except Denied:
        return None
    return int(found["newest"][0].as_py() or 0)


def _await_visible(client: FlightClient, plan: Plan, token: int) -> int | None:
    """The snapshot that shows the write. Raises NotYetVisible at the deadline."""
    deadline = time.monotonic() + plan.timeout_seconds
    table = plan.table.replace('"', '""')
    while True:
        left_ms = int(1000 * (deadline - time.monotonic()))
        options = CallOptions(token=token, timeout_ms=max(1, min(left_ms, _ASK_MS)))
        try:
            with client.execute(f'FROM "{table}" LIMIT 0', options=options) as answer:
                return getattr(answer, "snapshot_id", None)
        except Denied as error:
            raise Denied(
                error.code,
                f"the rows are accepted with token {token}, and --wait needs a key that may read: "
                "give it the role query_reader, or leave --wait out",
            ) from error
        except NotYetVisible:
            if left_ms > _ASK_MS:
                continue
            raise NotYetVisible(
                ErrorCode.CONSISTENCY_TIMEOUT,
                f"the rows are accepted with token {token}, and not visible within "
                f"{plan.timeout_seconds:g} s: ask with --token {token} later",
            ) from None


def _line(done: Ingested) -> str:
    visible = f", visible in snapshot {done.visible_snapshot}" if done.visible_snapshot else ""
    repeated = " (duplicate: written before, nothing added)" if done.duplicate else ""
    return f"{done.file}: {done.rows:,} rows, token {done.token}{visible}{repeated}"


def _summary(done: list[Ingested], seconds: float) -> dict[str, Any]:
    duplicates = {each.duplicate for each in done}
    snapshots = [each.visible_snapshot for each in done]
    return {
        "rows": sum(each.rows for each in done),
        "token": max(each.token for each in done),
        "duplicate": None if None in duplicates else duplicates == {True},
        "visible_snapshot": None if None in snapshots else max(each for each in snapshots if each),
        "seconds": round(seconds, 3),
        "files": [asdict(each) for each in done],
    }
