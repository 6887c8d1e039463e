"""`POST /v1/query`: a question in JSON, its answer in the form that Accept names."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any, ClassVar, Final, Literal

import pyarrow as pa
from fastapi import APIRouter, Request
from pydantic import AwareDatetime, Field
from starlette.responses import Response

from catalog.snapshots import Snapshot
from duckmesh.errors import ErrorCode
from duckmesh.identifiers import SnapshotId
from duckmesh.tokens import VisibilityToken
from gateway.identity import Identity
from gateway.open_answers import Answer
from gateway.reads import ReadPoint
from http_shim.answers import Departure, QueryStream, StreamedAnswer, json_response
from http_shim.bodies import read_json
from http_shim.calls import Call, call_of
from http_shim.formats import chosen_media_type, form_for
from http_shim.json_requests import StrictModel, parse
from http_shim.json_text import Numbers
from http_shim.parameters import parameter_batch
from http_shim.rooms import Door, door_of
from query_engine.engine import Interruption

router = APIRouter(tags=["query"])
_INT64_MAX: Final = 2**63 - 1
_BODY_MAX_BYTES: Final = 4 * 2**20


class QueryRequest(StrictModel):
    """One statement, its parameters, and the point in time to answer from."""

    codes: ClassVar[Mapping[str, ErrorCode]] = {
        "sql": ErrorCode.SQL_REQUIRED,
        "idempotency_key": ErrorCode.IDEMPOTENCY_KEY_REQUIRED,
        "min_visibility_token": ErrorCode.VISIBILITY_TOKEN_INVALID,
    }

    sql: str = Field(description="One SQL statement.")
    params: list[Any] | dict[str, Any] | None = Field(
        default=None,
        description="Values for `?` or `$1` (an array) or `$name` (an object).",
    )
    snapshot_id: Annotated[int, Field(ge=1, le=_INT64_MAX)] | None = Field(
        default=None, description="Answer from exactly this snapshot."
    )
    snapshot_time: AwareDatetime | None = Field(
        default=None, description="Answer from the newest snapshot at that moment (RFC 3339)."
    )
    tag: str | None = Field(default=None, description="Answer from the snapshot with this tag.")
    min_visibility_token: Annotated[int, Field(ge=1, le=_INT64_MAX)] | None = Field(
        default=None, description="Wait until the write with this token is visible."
    )
    consistency: Literal["latest", "strong"] = Field(
        default="latest", description="`strong` waits for everything accepted before the query."
    )
    consistency_timeout_ms: Annotated[int, Field(ge=0, le=3_600_000)] | None = Field(
        default=None, description="How long to wait; `query.consistency_timeout_ms` when left out."
    )
    row_limit: Annotated[int, Field(ge=0, le=_INT64_MAX)] | None = Field(
        default=None, description="Rows of the answer at most; `truncated` says whether more are."
    )
    idempotency_key: str | None = Field(
        default=None, description="Names a statement that writes: a repeat writes nothing."
    )
    numbers: Literal["safe", "json"] = Field(
        default="safe",
        description="`safe`: numbers that JavaScript would round are strings. `json`: all numbers.",
    )

    def read_point(self) -> ReadPoint:
        """Where in time the answer is to be taken from."""
        timeout = self.consistency_timeout_ms
        return ReadPoint(
            min_token=None
            if self.min_visibility_token is None
            else VisibilityToken(self.min_visibility_token),
            snapshot_id=None if self.snapshot_id is None else SnapshotId(self.snapshot_id),
            snapshot_time=self.snapshot_time,
            tag=self.tag,
            strong=self.consistency == "strong",
            timeout=None if timeout is None else timedelta(milliseconds=timeout),
        )


@dataclass(frozen=True, slots=True)
class _Asking:
    """One request to `/v1/query`, on its way to an answer."""

    door: Door
    call: Call
    media_type: str
    body: bytes
    interruption: Interruption


@router.post("/v1/query", summary="Run one SQL statement")
async def query(request: Request) -> Response:
    """Answer a query from one snapshot, streamed; or run a statement that is none, once."""
    call, door = call_of(request), door_of(request)
    media_type = chosen_media_type(request.headers.get("accept", ""))
    idle_seconds = door.limits.idle.total_seconds()
    body = await read_json(request, limit=_BODY_MAX_BYTES, idle_seconds=idle_seconds)
    asking = _Asking(door, call, media_type, body, Interruption())
    stop = asking.interruption.interrupt
    departure = Departure(request.receive, stop)
    try:
        with call.stoppable(stop):
            begun = await call.run(lambda who: _begin(asking, who))
    except BaseException:
        departure.forget()
        raise
    if isinstance(begun, Response):
        departure.forget()
        return begun
    return StreamedAnswer(begun, departure, call, stop=stop, idle_seconds=idle_seconds)


def _begin(asking: _Asking, who: Identity) -> QueryStream | Response:
    """Start the query, with its first rows at hand; on an error everything is given back."""
    asked = parse(QueryRequest, asking.body)
    parameters = parameter_batch(asked.params)
    reads = asking.door.rooms.reads
    if not reads.is_query(who, asked.sql):
        return _executed(asking, who, asked, parameters)
    snapshot = reads.pin(who, asked.sql, asked.read_point(), stop=asking.interruption)
    answer = reads.run(
        who,
        asked.sql,
        snapshot.snapshot_id,
        parameters=parameters,
        asked_token=asked.read_point().min_token,
        interruption=asking.interruption,
    )
    try:
        form = form_for(asking.media_type, _schema(answer, snapshot), Numbers(asked.numbers))
        stream = QueryStream(
            answer,
            form,
            row_limit=asked.row_limit,
            facts=_facts(snapshot),
            check_live=asking.call.check_live,
        )
        stream.begin()
    except BaseException:
        answer.close()
        raise
    return stream


def _schema(answer: Answer, snapshot: Snapshot) -> pa.Schema:
    """The columns, with metadata that an Arrow stream carries: which snapshot they are of."""
    return answer.schema.with_metadata(
        {
            "duckmesh.snapshot_id": str(snapshot.snapshot_id),
            "duckmesh.max_visibility_token": str(snapshot.max_visibility_token),
        }
    )


def _facts(snapshot: Snapshot) -> Mapping[str, Any]:
    return {
        "snapshot_id": snapshot.snapshot_id,
        "snapshot_time": snapshot.created_at,
        "max_visibility_token": snapshot.max_visibility_token,
    }


def _executed(
    asking: _Asking, who: Identity, asked: QueryRequest, parameters: pa.RecordBatch | None
) -> Response:
    """Run a statement that is no query; what it wrote is durable in the answer."""
    door = asking.door
    done = door.rooms.sql_writes.execute(
        who,
        asked.sql,
        point=asked.read_point(),
        parameters=None if parameters is None else pa.Table.from_batches([parameters]),
        idempotency_key=asked.idempotency_key,
        trace_id=asking.call.trace_id,
        interruption=asking.interruption,
    )
    token = done.visibility_token
    outcome = {"row_count": done.row_count, "visibility_token": token}
    if token is None:
        return json_response(outcome)
    return json_response(outcome, headers={"x-duckmesh-visibility-token": str(token)})
