"""docs/errors.md, written from the error tree and from what both doors make of it.

`python -m command_line.errors_reference` in the tree's root writes it; a test keeps it current,
and holds the classes named here against every place that raises.
"""

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from duckmesh.errors import (
    Cancelled,
    Conflict,
    Corrupt,
    Denied,
    DuckMeshError,
    ErrorCode,
    Exceeded,
    Fenced,
    Internal,
    Invalid,
    NotFound,
    NotSupported,
    NotYetVisible,
    Overloaded,
    Unavailable,
)
from flight_server.boundary import CODE_OF_CLASS, grpc_code, sqlstate
from http_shim.boundary import STATUS_OF_CLASS, http_status

Kind = type[DuckMeshError]


@dataclass(frozen=True, slots=True)
class Entry:
    """A code of the contract: the classes that carry it, and when a caller meets it.

    `planned` codes belong to the contract and are raised by nothing yet.
    """

    kinds: tuple[Kind, ...]
    when: str
    planned: bool = False


def _met(when: str, *kinds: Kind) -> Entry:
    return Entry(kinds, when)


def _planned(when: str, *kinds: Kind) -> Entry:
    return Entry(kinds, when, planned=True)


REFERENCE: Final[Mapping[ErrorCode, Entry]] = {
    ErrorCode.INVALID_JSON: _met(
        "The body of a request is no JSON, or has other fields than it may; the metadata of a "
        "stream's batch is no JSON object.",
        Invalid,
    ),
    ErrorCode.INVALID_COMMAND: _met(
        "A command, ticket, header or setting of a store cannot be read as what it claims to be.",
        Invalid,
    ),
    ErrorCode.TABLE_REQUIRED: _met(
        "No table is named, or the name cannot name a table of this service.", Invalid
    ),
    ErrorCode.RECORDS_REQUIRED: _met("A JSON ingest carries no record.", Invalid),
    ErrorCode.IDEMPOTENCY_KEY_REQUIRED: _met(
        "An idempotency key is empty, too long, or holds a NUL.", Invalid
    ),
    ErrorCode.INVALID_OP: _met(
        "A record names an operation other than those there are, or one that its table lacks.",
        Invalid,
    ),
    ErrorCode.PAYLOAD_REQUIRED: _met("A record carries no payload.", Invalid),
    ErrorCode.INVALID_PAYLOAD: _met(
        "A value does not fit its column (the context names column, record and reason), or the "
        "stream is no Arrow IPC.",
        Invalid,
    ),
    ErrorCode.SCHEMA_REQUIRED: _met(
        "The stream sends no Arrow schema, or one of no columns.", Invalid
    ),
    ErrorCode.SCHEMA_INCOMPATIBLE: _met(
        "The rows have other columns than the table (Invalid), or the table was given other "
        "columns while the rows were on their way (Conflict).",
        Invalid,
        Conflict,
    ),
    ErrorCode.PARTITION_SPEC_INVALID: _met(
        "A partition spec does not read, names no column of its table, or transforms a type that "
        "the transform does not take.",
        Invalid,
    ),
    ErrorCode.TOO_MANY_PARTITIONS: _met(
        "A write has rows of more partitions of its table than one write may.", Invalid
    ),
    ErrorCode.SQL_REQUIRED: _met("The statement is empty.", Invalid),
    ErrorCode.SQL_NOT_ALLOWED: _met(
        "The statement is not one query, or it names a function, file or setting out of reach.",
        Invalid,
    ),
    ErrorCode.QUERY_EXECUTION_FAILED: _met(
        "The statement does not parse, bind or run; the message is DuckDB's, without paths.",
        Invalid,
    ),
    ErrorCode.SNAPSHOT_SELECTOR_CONFLICT: _met(
        "A call names more than one of token, snapshot id and snapshot time, or two snapshots.",
        Invalid,
    ),
    ErrorCode.VISIBILITY_TOKEN_INVALID: _met(
        "A token is no positive whole number, or was never issued to the tenant.", Invalid
    ),
    ErrorCode.TICKET_INVALID: _met(
        "A ticket or prepared statement was changed, has expired, or is another tenant's.", Invalid
    ),
    ErrorCode.PAYLOAD_TOO_LARGE: _met(
        "A write, a statement or a set of bound rows is larger than its limit.", Invalid
    ),
    ErrorCode.NOT_SUPPORTED: _met(
        "DuckMesh does not do this; the message names the way that works. Refused while it is "
        "being prepared, a statement is Invalid: drivers take `UNIMPLEMENTED` for a server that "
        "prepares nothing.",
        NotSupported,
        Invalid,
    ),
    ErrorCode.NOT_IMPLEMENTED_YET: _met(
        "The request asks for a feature that is planned; the context names it.", NotSupported
    ),
    ErrorCode.UNAUTHORIZED: _met("No credential, an unknown one, or a revoked one.", Denied),
    ErrorCode.TENANT_REQUIRED: _met("A tenant's name cannot name a tenant.", Invalid),
    ErrorCode.FORBIDDEN: _met(
        "The identity lacks the role (Denied), or a new key names a role that does not exist "
        "(Invalid).",
        Denied,
        Invalid,
    ),
    ErrorCode.TABLE_NOT_FOUND: _met("The tenant has no table of that name.", NotFound),
    ErrorCode.SNAPSHOT_NOT_FOUND: _met(
        "The tenant has no such snapshot, or had none at that time.", NotFound
    ),
    ErrorCode.TENANT_NOT_FOUND: _met("An operator names a tenant that does not exist.", NotFound),
    ErrorCode.NOT_FOUND: _met("A key or an object does not exist.", NotFound),
    ErrorCode.TABLE_EXISTS: _met(
        "`create` finds the table there, and the write is not the one that created it.", Conflict
    ),
    ErrorCode.IDEMPOTENCY_CONFLICT: _met(
        "The key was accepted before, with other rows or in another mode.", Conflict
    ),
    ErrorCode.TRANSACTION_ENDED: _met(
        "The transaction was rolled back because its COMMIT was refused, or nothing was said in "
        "it for `transaction.idle_seconds`.",
        Conflict,
    ),
    ErrorCode.RATE_LIMITED: _met(
        "The tenant or the API key sends rows faster than its quota and cannot be slowed down, or "
        "too many wrong secrets of one API key came from one source.",
        Overloaded,
    ),
    ErrorCode.QUOTA_EXCEEDED: _met(
        "Too much of the tenant is accepted and not visible yet (Overloaded); it has no room or no "
        "table left, or a result is larger than its limit (Exceeded).",
        Overloaded,
        Exceeded,
    ),
    ErrorCode.TOO_MANY_QUERIES: _met(
        "The process runs as many calls or queries as it may.", Overloaded
    ),
    ErrorCode.QUERY_CANCELLED: _met(
        "The caller cancelled the query or its ticket, or has gone.", Cancelled
    ),
    ErrorCode.INGEST_CANCELLED: _met(
        "The sender left before the end of the stream: nothing of the open write is accepted.",
        Cancelled,
    ),
    ErrorCode.QUERY_TIMEOUT: _met(
        "The query ran longer than it may, or its rows waited too long for their reader.", Exceeded
    ),
    ErrorCode.QUERY_MEMORY: _met(
        "The query needs more memory, or more disk beside it, than it may have.", Exceeded
    ),
    ErrorCode.QUERY_WORKER_LOST: _met(
        "The process that ran the query ended before it did, after the query was tried again.",
        Unavailable,
    ),
    ErrorCode.CONSISTENCY_TIMEOUT: _met(
        "The deadline passed before the token was visible; `requested_token` and `latest_token` "
        "are in the context. An ingest that waited stands all the same.",
        NotYetVisible,
    ),
    ErrorCode.CATALOG_UNAVAILABLE: _met(
        "Postgres cannot be reached, restarts, only reads, or has no connection free "
        "(Unavailable); an embedded one is another process's (Conflict).",
        Unavailable,
        Conflict,
    ),
    ErrorCode.STORE_UNAVAILABLE: _met(
        "The object store or the local cache fails, stalls or is full.", Unavailable
    ),
    ErrorCode.NOT_READY: _met(
        "The process is stopping or starts, or the catalog's schema is not the one it needs "
        "(Unavailable); the catalog is newer than this release (Invalid).",
        Unavailable,
        Invalid,
    ),
    ErrorCode.SETTINGS_INVALID: _met(
        "A setting is unknown, wrong or unsafe (Invalid), or the port is taken (Conflict): the "
        "process does not start.",
        Invalid,
        Conflict,
    ),
    ErrorCode.FENCED: _met(
        "A worker woke after another took its work: it changed nothing.", Fenced
    ),
    ErrorCode.CORRUPT: _met("Stored state contradicts itself; nothing is guessed.", Corrupt),
    ErrorCode.INTERNAL: _met("A fault of DuckMesh; the log has it by its trace id.", Internal),
}

_INTRODUCTION: Final = """# Errors

This file is generated from the code: `python -m command_line.errors_reference`.

Every error has a code, a message that says what to change, and a context of plain values.
Over [HTTP](http.md) the whole is the body, as JSON.
Over Flight the text begins with the code: `[TABLE_NOT_FOUND] there is no table 't': ...`.
The trailer `x-duckmesh-error` carries the whole as JSON:

```json
{"error_code": "TABLE_NOT_FOUND",
 "message": "there is no table 't': create it first, or correct the name",
 "retryable": false, "context": {"table": "t"}, "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736"}
```

The trailers `x-sqlstate` and `x-trace-id` come with it. When the context has `latest_token`, the
trailer `x-duckmesh-visibility-token` repeats it; `retry-after` repeats `retry_after_seconds`.
What a limit refuses says in its context which it is (`quota`, or `setting`), how much is `used`,
and the `limit`; `retry_after_ms` is there when waiting helps: [Quotas](quotas.md).
ADBC shows all of them in `exc.details`, also of an error in the middle of a result.

*Retryable* says whether the same request, unchanged, may succeed later.
No error holds a traceback, a path, a DSN, an endpoint or another tenant's name.

Conflicts and limits have the gRPC statuses that Arrow's clients know, and not `ALREADY_EXISTS` or
`RESOURCE_EXHAUSTED`: the code in the text tells the case. A cancellation among rows is `ABORTED`.

"""


def errors_page() -> str:
    """The whole of docs/errors.md."""
    return _INTRODUCTION + "\n".join((*_classes(), "", *_codes())) + "\n"


def _classes() -> Iterator[str]:
    yield "## Classes: what the caller does next"
    yield ""
    yield "| class | meaning | retryable | gRPC status | HTTP status |"
    yield "|---|---|---|---|---|"
    for kind, status in CODE_OF_CLASS.items():
        meaning = " ".join((inspect.getdoc(kind) or "").split())
        http = STATUS_OF_CLASS[kind]
        yield f"| `{kind.__name__}` | {meaning} | {_yes(kind)} | `{status.name}` | {http} |"


def _codes() -> Iterator[str]:
    yield "## Codes"
    yield ""
    yield "A *planned* code belongs to the contract, and nothing raises it yet."
    yield ""
    yield "| code | when | class | retryable | gRPC status | SQLSTATE | HTTP status |"
    yield "|---|---|---|---|---|---|---|"
    for code in ErrorCode:
        entry = REFERENCE[code]
        when = f"*planned* {entry.when}" if entry.planned else entry.when
        samples = [_sample(kind, code) for kind in entry.kinds]
        cells = (
            f"`{code}`",
            when,
            _each(f"`{kind.__name__}`" for kind in entry.kinds),
            _each(_yes(kind) for kind in entry.kinds),
            _each(f"`{grpc_code(sample).name}`" for sample in samples),
            _each(f"`{sqlstate(sample)}`" for sample in samples),
            _each(str(http_status(sample)) for sample in samples),
        )
        yield f"| {' | '.join(cells)} |"


def _sample(kind: Kind, code: ErrorCode) -> DuckMeshError:
    if issubclass(kind, Internal):
        return kind()
    return kind("") if issubclass(kind, Fenced | Corrupt) else kind(code, "")


def _each(values: Iterator[str]) -> str:
    """One value where all are equal, else one for each class."""
    return "<br>".join(dict.fromkeys(values))


def _yes(kind: Kind) -> str:
    return "yes" if kind.retryable else "no"


def main(root: Path) -> None:
    """Write docs/errors.md below `root`."""
    (root / "docs" / "errors.md").write_text(errors_page(), encoding="utf-8")


if __name__ == "__main__":
    main(Path.cwd())
