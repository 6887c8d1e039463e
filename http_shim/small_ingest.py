"""A few records in one request, which is how most requests come: answered on the event loop.

A thread for each costs several times what the write costs: it is woken, takes the interpreter from
the loop, waits for its commit, and gives the interpreter back. Here the loop does the work itself,
which takes a fraction of a millisecond, and waits for the commit as it waits for bytes. Whatever
would block goes the way of all other requests.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from typing import Final

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from duckmesh.errors import Conflict, Invalid
from gateway.identity import Identity
from http_shim import ingest_routes
from http_shim.bodies import read_json
from http_shim.calls import Call, call_of
from http_shim.formats import JSON
from http_shim.passage import Passage
from http_shim.receipts import Wish, answered
from http_shim.record_ingest import ingest_records, may_be_out_of_date, records_of
from http_shim.rooms import Door
from ingest_bus.acceptance import Acceptance
from ingest_bus.envelope import Receipt

_PREFIX: Final = "/v1/ingest/"
_WISHES: Final = {b"": Wish(), b"results=records": Wish(records=True)}
_BODY_MAX_BYTES: Final = 8 * 2**10
"""So little that the loop is not held up by it."""


class SmallIngest:
    """Answers small requests to write records; hands every other one to `app`."""

    def __init__(self, app: ASGIApp, door: Door) -> None:
        self._app = app
        self._door = door
        self._passage = Passage(self._answer, door)
        self._arrivals = Arrivals()
        self._watched = Watched()

    def close(self) -> None:
        """The loop has ended: what it waited for is waited for elsewhere."""
        self._watched.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if _is_small_ingest(scope):
            scope["route"] = ingest_routes.route()
            await self._passage(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        limits = self._door.limits
        body = await read_json(
            request, limit=limits.json_max_bytes, idle_seconds=limits.idle.total_seconds()
        )
        table = scope["path"].removeprefix(_PREFIX)
        response = await self._accepted(
            call_of(request), table, body, _WISHES[scope["query_string"]]
        )
        await response(scope, receive, send)

    async def _accepted(self, call: Call, table: str, body: bytes, wish: Wish) -> Response:
        door = self._door
        quick = door.rooms.writes.quick
        who = call.recall_identity()
        target = None if who is None else quick.target(who, table)
        if who is None or target is None:
            return await self._on_a_thread(call, table, body, wish)
        try:
            records = records_of(body, target.table, records_max=door.limits.records_max)
            committing = quick.submit(
                who,
                target,
                records.parts,
                again=may_be_out_of_date,
                trace_id=call.trace_id,
                settled=self._arrivals.settled,
                watch=self._watched.watch,
            )
            if committing is None:
                return await self._on_a_thread(call, table, body, wish)
            receipts = await self._arrivals.of(committing)
        except (Invalid, Conflict) as refused:
            if not may_be_out_of_date(refused):
                raise
            # A key that is known by now finds its receipt.
            return await self._on_a_thread(call, table, body, wish)
        asked, placed = records.asked.wish(wish), records.placed(receipts)
        if asked.wait:
            return await call.run(lambda who: answered(door, call, who, asked, placed))
        return answered(door, call, who, asked, placed)

    async def _on_a_thread(self, call: Call, table: str, body: bytes, wish: Wish) -> Response:
        door = self._door

        def accept(who: Identity) -> Response:
            door.rooms.writes.check_may_write(who, table, slows=False)
            return ingest_records(door, call, who, table=table, body=body, wish=wish)

        return await call.run(accept)


class Arrivals:
    """Acceptances that end on other threads or on the loop, awaited on one event loop.

    Those that end together wake the loop once: each wake-up is a system call, and a fight for the
    interpreter.
    """

    def __init__(self) -> None:
        self._arrived: deque[asyncio.Future[None]] = deque()
        self._woken = False
        self._loop: asyncio.AbstractEventLoop | None = None

    async def of(self, acceptance: Acceptance) -> list[Receipt]:
        """Its receipts, or its error; `settled` follows its end. Leaving early is harmless."""
        self._loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = self._loop.create_future()
        acceptance.add_done_callback(lambda _: self._arrived.append(waiter))
        if acceptance.done():
            # It may have been told of before it was noted.
            self.settled()
        await waiter
        return acceptance.result()

    def settled(self) -> None:
        """From any thread: some have ended."""
        # In this order, and `_deliver` in the other one: whoever finds the loop woken already is
        # delivered by that wake-up.
        loop = self._loop
        if not self._woken and loop is not None:
            self._woken = True
            # A loop that has ended has nobody who waits.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._woken = False
        while self._arrived:
            waiter = self._arrived.popleft()
            if not waiter.done():
                waiter.set_result(None)


class Watched:
    """File descriptors that the bus waits for, on the event loop. Used on its thread."""

    def __init__(self) -> None:
        self._acts: dict[int, Callable[[], None]] = {}
        self._ended = False

    def watch(self, descriptor: int, act: Callable[[], None]) -> bool:
        """Call `act` once when there are bytes to read; False once the loop has ended."""
        if self._ended:
            return False
        # What could not be watched is another's to wait for: noted first, it would be called at the
        # end of the loop, on a connection that has gone back.
        asyncio.get_running_loop().add_reader(descriptor, self._seen, descriptor)
        self._acts[descriptor] = act
        return True

    def close(self) -> None:
        """From the thread of the loop, when that has ended: whoever waits looks for himself."""
        self._ended = True
        for descriptor in list(self._acts):
            self._acts.pop(descriptor)()

    def _seen(self, descriptor: int) -> None:
        asyncio.get_running_loop().remove_reader(descriptor)
        self._acts.pop(descriptor)()


def _is_small_ingest(scope: Scope) -> bool:
    if scope["type"] != "http" or scope["method"] != "POST":
        return False
    path: str = scope["path"]
    if not path.startswith(_PREFIX) or "/" in path[len(_PREFIX) :] or len(path) == len(_PREFIX):
        return False
    if scope["query_string"] not in _WISHES:
        return False
    headers = Headers(scope=scope)
    length = headers.get("content-length", "")
    return (
        headers.get("content-type", JSON) == JSON
        and length.isdigit()
        and len(length) < 9
        and int(length) <= _BODY_MAX_BYTES
        and not any(name in headers for name in ingest_routes.LONG_WAY_HEADERS)
    )
