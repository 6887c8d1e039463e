"""Answers under way: rows pulled on a thread, bytes sent by the event loop, and a way to stop both.

Nothing is pulled before the bytes before it were taken, so a slow reader slows the query down. A
reader who leaves stops it; one who stays and stops reading is left after a while.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import orjson
import pyarrow as pa
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from duckmesh.errors import Cancelled, ErrorCode
from gateway.open_answers import Answer
from http_shim.calls import Call
from http_shim.formats import AnswerForm

_PIECE_BYTES: Final = 256 * 2**10
"""About how much goes out at a time; a batch is never cut."""
_PIECE_SECONDS: Final = 0.05
"""Rows that come slowly go out after this time, however few they are."""


def json_response(
    value: Any, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """A plain value as JSON; times as RFC 3339 in UTC."""
    content = orjson.dumps(value, option=orjson.OPT_UTC_Z)
    return Response(content, status_code=status, media_type="application/json", headers=headers)


class Departure:
    """Watches for the caller's going, once the body is read: runs `left` then, at most once."""

    def __init__(self, receive: Callable[[], Awaitable[Message]], left: Callable[[], None]) -> None:
        self._receive = receive
        self._left = left
        self._watching = asyncio.create_task(self._watch())

    def forget(self) -> None:
        """Watch no more. Idempotent."""
        self._watching.cancel()

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._left()


class QueryStream:
    """The bytes of a query's answer, piece by piece. Used by one thread at a time."""

    def __init__(
        self,
        answer: Answer,
        form: AnswerForm,
        *,
        row_limit: int | None,
        facts: Mapping[str, Any],
        check_live: Callable[[], None],
    ) -> None:
        self.form = form
        self.facts = facts
        self.first = b""
        self.ended = False
        self._answer = answer
        self._left = row_limit
        self._check_live = check_live
        self._began = time.monotonic()
        self._rows = 0
        self._truncated = False

    def begin(self) -> None:
        """Make the first piece: what fails in it is still answered by a status."""
        self.first = self.form.head() + self.next_piece()

    def next_piece(self) -> bytes:
        """The next bytes; `ended` is set with the last of them. Raises as the reader does."""
        parts: list[bytes] = []
        size = 0
        until = time.monotonic() + _PIECE_SECONDS
        while size < _PIECE_BYTES and time.monotonic() < until:
            batch = self._next_batch()
            part = self.form.tail(self._outcome()) if batch is None else self.form.piece(batch)
            parts.append(part)
            size += len(part)
            if batch is None:
                self.ended = True
                self._answer.enough()
                self.close()
                break
        return b"".join(parts)

    def close(self) -> None:
        """Give everything back. Idempotent."""
        self._answer.close()

    def _next_batch(self) -> pa.RecordBatch | None:
        """The next rows within the limit; one row more is asked for, to know of a truncation."""
        # An answer may be read for hours: its caller's key is asked for again, from a cache.
        self._check_live()
        batch = None if self._truncated else self._answer.next_batch()
        if batch is None:
            return None
        if self._left is not None:
            self._truncated = batch.num_rows > self._left
            batch = batch.slice(0, self._left)
            self._left -= batch.num_rows
        self._rows += batch.num_rows
        return batch

    def _outcome(self) -> dict[str, Any]:
        stats = self._answer.stats
        return {
            "row_count": self._rows,
            "truncated": self._truncated,
            **self.facts,
            "stats": {
                "duration_ms": round((time.monotonic() - self._began) * 1000, 3),
                "scanned_files": stats.scanned_files,
                "scanned_bytes": self._answer.scanned_bytes,
                "pruned_files": self._answer.pruned_files,
                "source": "replica" if stats.replica_files else "parquet",
                "replica_files": stats.replica_files,
            },
        }


class StreamedAnswer(Response):
    """Sends a QueryStream, and ends it whatever happens."""

    def __init__(
        self,
        stream: QueryStream,
        departure: Departure,
        call: Call,
        *,
        stop: Callable[[], None],
        idle_seconds: float,
    ) -> None:
        facts = stream.facts
        headers = {
            "x-duckmesh-snapshot-id": str(facts["snapshot_id"]),
            "x-duckmesh-snapshot-time": facts["snapshot_time"].isoformat(),
            "x-duckmesh-visibility-token": str(facts["max_visibility_token"]),
        }
        super().__init__(stream.first, headers=headers, media_type=stream.form.media_type)
        if not stream.ended:
            del self.headers["content-length"]
        self._stream = stream
        self._departure = departure
        self._call = call
        self._stop = stop
        self._idle_seconds = idle_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with self._call.stoppable(self._stop):
                await self._send_all(scope, receive, send)
        finally:
            self._departure.forget()
            self._stream.close()

    async def _send_all(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._stream.ended:
            await super().__call__(scope, receive, send)
            return
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await self._sent(send, start)
        piece = bytes(self.body)
        while True:
            more = not self._stream.ended
            await self._sent(send, {"type": "http.response.body", "body": piece, "more_body": more})
            if not more:
                return
            piece = await self._call.run_for_anybody(self._stream.next_piece)

    async def _sent(self, send: Send, message: Message) -> None:
        try:
            async with asyncio.timeout(self._idle_seconds):
                await send(message)
        except TimeoutError:
            raise Cancelled(
                ErrorCode.QUERY_CANCELLED,
                "the reader stopped reading: ask again, and read the answer as it comes",
            ) from None
